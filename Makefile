.DEFAULT_GOAL := help
.PHONY: help install deploy-tools client-tools cluster-tools cluster drill-cluster run test test-long test-all test-matrix check docs site diagrams sbom release bench bench-scale bench-locks bench-streams bench-check soak clean

VENV    := .venv
PYTHON  := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
SERVING := $(VENV)/.serving
TOOLS   := $(VENV)/.deploy-tools
CLIENTS := .cache/clients
PEERS   := .cache/peers
OIDC    := .cache/oidc
CLERK   := .cache/clerk
AGENTS  := .cache/agents
CLUSTER := .cache/cluster
PYTEST  := $(PYTHON) -m pytest -n 2 --dist worksteal
# Tests of the marks $(1), first those that may run beside each other, then those that need the machine for themselves. The second part
# runs even if the first has failed, but not after Ctrl-C (2), and a part without tests (5) is no failure if the other has some.
define run_apart
	@$(PYTEST) -m "$(1)not alone" $(ARGS); beside=$$?; \
	test $$beside -ne 2 || exit 2; \
	$(PYTHON) -m pytest -n 0 -m "$(1)alone" $(ARGS); alone=$$?; \
	case $$beside-$$alone in 0-* | 5-*) ;; *) exit $$beside ;; esac; \
	test $$alone -ne 5 || exit $$beside; \
	exit $$alone
endef
# More arguments for the program: make run ARGS="--port 0", make test ARGS="tests/project/test_docs.py -x"
ARGS    ?=

export PIP_ROOT_USER_ACTION := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
ifeq ($(strip $(HOME)),)
export PIP_NO_CACHE_DIR := 1
endif

# The environment records its folder: a checkout that was moved or copied gets a new one.
ifneq ($(shell $(PYTHON) -c 'print(open("$(SERVING)").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP) $(SERVING)
endif

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## create .venv with everything, including development tools

deploy-tools: $(TOOLS) ## add the linters of deploy/, Traefik, the SBOM generator and the site generator to .venv

client-tools: $(CLIENTS)/.installed $(OIDC)/.installed $(CLERK)/.installed $(AGENTS)/.installed ## add what tests need from npm to .cache: generators of clients, linters, an OpenID provider, agents

cluster-tools: $(CLUSTER)/.installed ## add Patroni to .cache, for the cluster

cluster: $(STAMP) $(CLUSTER)/.installed ## start three Postgres, three servers and what joins them on this machine, until Ctrl-C
	@exec $(PYTHON) deploy/cluster/one_machine.py

drill-cluster: $(STAMP) $(CLUSTER)/.installed ## break one part of the cluster after another under load, and count what was lost
	@$(PYTHON) bench/cluster_drill.py $(ARGS)

run: $(SERVING) ## serve (installs what serving needs, and no development tools)
	@exec $(PYTHON) -m server $(ARGS)

test: $(STAMP) ## run the tests except the long ones
	@$(PYTEST) -m "not long" $(ARGS)

test-long: $(STAMP) ## run only the long tests: drills, large corpora, the wheel
	$(call run_apart,long and )

test-all: $(STAMP) ## run every test
	$(call run_apart,)

test-matrix: $(STAMP) ## run the tests of `make test` with the lowest dependencies and with other Pythons
	@.ci/matrix $(ARGS)

check: $(STAMP) ## run the linters, the type checker and the import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check server providers handlers
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports

docs: $(STAMP) ## regenerate the reference pages, gatepost.example.toml and the pictures from the code
	@PYTHONPATH=. $(PYTHON) docs/generate/settings_page.py
	@PYTHONPATH=. $(PYTHON) docs/generate/reference_pages.py
	@PYTHONPATH=.:tests $(PYTHON) docs/generate/pictures.py $(ARGS)

site: $(TOOLS) ## build the site of docs/ into build/site
	@$(PYTHON) docs/generate/site_pages.py

diagrams: ## redraw docs/diagrams/ (needs Chromium and npm)
	@python3 docs/diagrams/render.py

sbom: $(TOOLS) ## write build/sbom.json, the packages that a server runs with (CycloneDX)
	@$(PYTHON) deploy/sbom.py

release: $(TOOLS) ## make a release in dist/, and publish nothing (KEY=~/.ssh/id_ed25519 signs it)
	@$(PYTHON) deploy/release.py $(if $(KEY),--key $(KEY)) $(ARGS)

bench: $(STAMP) ## measure the price beside a bare server; docs/explanation/performance.md says how to read it
	@$(PYTHON) bench/run.py $(ARGS)

bench-scale: $(STAMP) ## measure how the price grows with rows, keys, users, routes and connections
	@$(PYTHON) bench/scale.py $(ARGS)

bench-locks: $(STAMP) ## measure the price of each lock
	@$(PYTHON) bench/locks.py $(ARGS)

bench-streams: $(STAMP) $(PEERS)/.installed ## measure live answers beside FastAPI and Litestar
	@$(PYTHON) bench/streams.py $(ARGS)

soak: $(STAMP) ## mix honest and hostile clients with faults for 20 minutes (SOAK_HOURS for more), and see that nothing grows
	@$(PYTHON) bench/soak.py $(ARGS)

bench-check: $(STAMP) ## compare the price with bench/baseline.json; for a maintainer, not for the CI
	@$(PYTHON) bench/check.py $(ARGS)

clean: ## remove .venv, caches and builds; never .gatepost, which holds data
	rm -rf $(VENV) .venv-lowest .venv-3.1* build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.gatepost/*' -prune -exec rm -rf {} +

# What serving needs, with the embedded Postgres.
$(SERVING): pyproject.toml requirements.txt
	@command -v python3 >/dev/null || { echo "make: python3 is not installed; Gatepost needs Python 3.11 or newer" >&2; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: python3 is $$(python3 -c 'import platform; print(platform.python_version())'); Gatepost needs 3.11 or newer" >&2; \
	  exit 1; }
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: this python3 cannot make virtual environments; install its venv module (Debian: apt-get install python3-venv)" >&2; \
	  exit 1; }
	@echo "Installing into $(VENV) ..."
	@test ! -e $@ || test "$$(cat $@)" = "$(CURDIR)" || rm -rf $(VENV)
	@python3 deploy/environment.py $(VENV) embedded,reload
	@printf '%s\n' '$(CURDIR)' > $@

# All of it. The environment is made, or made anew, by the rule above.
$(STAMP): $(SERVING)
	@echo "Installing development tools into $(VENV) ..."
	@python3 deploy/environment.py $(VENV) dev
	@printf '%s\n' '$(CURDIR)' > $@

$(TOOLS): $(STAMP)
	@$(PYTHON) -m pip install --quiet -e '.[deploy,guides,site]' -c requirements.txt
	@touch $@

$(CLIENTS)/.installed: tests/openapi/clients/package.json tests/openapi/clients/requirements.txt
	@command -v npm >/dev/null || { echo "make: npm is not installed (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@mkdir -p $(CLIENTS)
	@cp tests/openapi/clients/package.json $(CLIENTS)/package.json
	@cd $(CLIENTS) && npm install --no-audit --no-fund --ignore-scripts --no-package-lock --loglevel=error
	@python3 -m venv $(CLIENTS)/venv
	@$(CLIENTS)/venv/bin/python -m pip install --quiet -r tests/openapi/clients/requirements.txt
	@touch $@

$(CLERK)/.installed: tests/kits/clerk_backend/package.json
	@command -v npm >/dev/null || { echo "make: npm is not installed (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@mkdir -p $(CLERK)
	@cp $< $(CLERK)/package.json
	@cd $(CLERK) && npm install --no-audit --no-fund --ignore-scripts --no-package-lock --loglevel=error
	@touch $@

$(OIDC)/.installed: tests/kits/oidc_provider/package.json
	@command -v npm >/dev/null || { echo "make: npm is not installed (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@mkdir -p $(OIDC)
	@cp $< $(OIDC)/package.json
	@cd $(OIDC) && npm install --no-audit --no-fund --ignore-scripts --no-package-lock --loglevel=error
	@touch $@

$(AGENTS)/.installed: tests/kits/mcp_clients/package.json tests/kits/mcp_clients/requirements.txt
	@command -v npm >/dev/null || { echo "make: npm is not installed (Debian: apt-get install nodejs npm)" >&2; exit 1; }
	@mkdir -p $(AGENTS)
	@cp $< $(AGENTS)/package.json
	@cd $(AGENTS) && npm install --no-audit --no-fund --ignore-scripts --no-package-lock --loglevel=error
	@python3 -m venv $(AGENTS)/venv
	@$(AGENTS)/venv/bin/python -m pip install --quiet -r tests/kits/mcp_clients/requirements.txt
	@touch $@

$(CLUSTER)/.installed: deploy/cluster/requirements.txt
	@mkdir -p .cache
	@python3 -m venv $(CLUSTER)
	@$(CLUSTER)/bin/python -m pip install --quiet -r deploy/cluster/requirements.txt
	@touch $@

$(PEERS)/.installed: bench/peers.txt
	@mkdir -p .cache
	@python3 -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet -r bench/peers.txt
	@touch $@
