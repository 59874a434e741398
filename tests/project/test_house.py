"""The rules of the code: what is served to whom, who may import what, how long a module may be, what must be documented."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from aiohttp import web
from kits import ROOT
from kits.app import build_app

import server
from server.app import TABLE
from server.auth.access import access_of
from server.commands.routes import as_text
from server.plugins import hookspecs
from server.plugins.loader import DISTRIBUTION, GROUP
from server.settings.core import CORE
from server.settings.setting import Setting
from server.settings.sources import env_name

PACKAGES = ("server", "providers", "handlers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 220
BUILT_IN_PLUGINS = [plugin for plugin in metadata.entry_points(group=GROUP) if plugin.dist and plugin.dist.name == DISTRIBUTION]
DOCS = "\n".join(path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])

# A change of access is a changed line here, and is seen in review.
ROUTES = """\
GET     /api/data                       signed in, user                                  handlers.data.list_data
POST    /api/data                       signed in, user                                  handlers.data.create_data
GET     /api/data/events                signed in, user                                  handlers.data.watch_data
DELETE  /api/data/{id}                  role org:admin                                   handlers.data.delete_data
GET     /api/data/{id}                  signed in, user                                  handlers.data.get_data
PATCH   /api/data/{id}                  signed in, user                                  handlers.data.change_data
GET     /api/health                     public                                           handlers.health.health
GET     /api/invoices                   permission org:invoices:read                     handlers.invoices.list_invoices
POST    /api/invoices                   permission org:invoices:create                   handlers.invoices.create_invoice
GET     /api/invoices/{id}              permission org:invoices:read                     handlers.invoices.get_invoice
GET     /api/keys                       accepts api_key session_token                    providers.api_key.routes.Keys.list_keys
POST    /api/keys                       accepts api_key session_token, no impersonation  providers.api_key.routes.Keys.create_key
DELETE  /api/keys/{id}                  accepts api_key session_token                    providers.api_key.routes.Keys.revoke_key
POST    /api/keys/{id}/rotate           accepts api_key session_token, no impersonation  providers.api_key.routes.Keys.rotate_key
GET     /api/me                         signed in                                        handlers.me.me
GET     /api/me/profile                 signed in, user                                  handlers.profile.profile
GET     /api/orgs/{org_id}/audit        organization {org_id}, role org:admin            handlers.audit.list_audit
GET     /api/orgs/{org_id}/data         organization {org_id}                            handlers.orgs.list_org_data
POST    /api/orgs/{org_id}/data         organization {org_id}                            handlers.orgs.create_org_data
GET     /api/orgs/{org_id}/data/events  organization {org_id}                            handlers.orgs.watch_org_data
GET     /api/orgs/{org_id}/members      organization {org_id}                            handlers.profile.list_members
GET     /api/public/docs                public                                           handlers.docs.docs
GET     /api/public/docs/{file}         public                                           handlers.docs.docs_file
GET     /api/public/openapi.json        public                                           handlers.docs.document
POST    /api/stream-tickets             accepts access_token api_key clerk_api_key m2m_token oauth_token session_token, pending sessions too  server.streams.ticket_route.create_ticket
POST    /api/webhooks/clerk             public                                           providers.clerk.webhooks.Receiver.take"""

PUBLIC_INTERFACE = {
    "Answer", "ApiError", "BadRequest", "BoundedDict", "Change", "CheckViolation", "Command", "CommandContext", "Conflict",
    "CredentialRejected", "ErrorDetails", "Forbidden", "ForeignKeyViolation", "House", "Identity", "NotFound",
    "PreconditionFailed", "Provider", "Setting", "SingleFlight", "Stream", "TooManyRequests", "Tool", "Unavailable",
    "UniqueViolation", "Unprocessable", "accepted_types", "access_table", "answer", "answer_row", "answers_secret", "body", "body_stream", "call_tool",
    "caller_of", "calls_tools", "check_if_match", "checked_origin", "client_address", "client_network",
    "content_disposition", "describe", "entity_tag", "event_stream", "hookimpl", "identity_of", "is_foreign_origin",
    "is_local", "is_plain_text", "limited", "nearest_name", "openapi_document", "page", "public", "query", "raw_body", "read", "requires",
    "revocation_failed", "row_id", "scoped", "service", "signed_in", "socket", "tools_of", "with_org_prefix", "write",
}  # fmt: skip


# Routes ----------------------------------------------------------------------------------------------------------------


def test_the_route_table_of_the_built_in_handlers() -> None:
    assert as_text([row for row in build_app()[TABLE].rows if row.method != "HEAD"]) == ROUTES


def test_the_route_of_the_handler_that_is_off_by_default() -> None:
    if "mcp" not in metadata.entry_points(group=GROUP).names:
        pytest.skip("the entry point of handlers/mcp is not installed: make install")
    rows = [row for row in build_app(handlers=["mcp"])[TABLE].rows if row.method != "HEAD" and "mcp" in row.template]
    words = "accepts access_token api_key clerk_api_key m2m_token oauth_token session_token"
    assert as_text(rows) == f"POST  /api/mcp  {words}  handlers.mcp.mcp"


def test_every_route_of_the_router_has_an_access_and_is_known_to_the_gate() -> None:
    app = build_app()
    routes = list(app.router.routes())
    assert set(routes) == set(app[TABLE].rules)
    for route in routes:
        assert access_of(route.handler) is app[TABLE].rules[route].access, route
    assert {route.method for route in routes} <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}


def test_the_head_of_a_route_has_the_access_of_its_get() -> None:
    rows = {(row.method, row.template): row.access for row in build_app()[TABLE].rows}
    for (method, template), access in rows.items():
        if method == "GET":
            assert rows["HEAD", template] == access


def test_no_route_is_locked_by_mistake() -> None:
    assert build_app()[TABLE].warnings == []


def test_nothing_is_served_beside_the_table() -> None:
    app = build_app()
    assert not [one for one in app.router.resources() if isinstance(one, web.StaticResource | web.PrefixedSubAppResource)]
    assert len(app.middlewares) <= 3


# Imports ---------------------------------------------------------------------------------------------------------------


def imports(path: Path) -> Iterator[str]:
    """The absolute names of all modules that a file imports, wherever in it."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_the_contracts_of_import_linter_are_kept() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("library", "modules"),
    [("asyncpg", {"server/database/driver.py"}), ("pluggy", {"server/plugins/hookspecs.py", "server/plugins/loader.py"})],
)
def test_a_library_is_imported_by_few_modules(library: str, modules: set[str]) -> None:
    found = {
        str(path.relative_to(ROOT)) for path in SOURCES if any(name.partition(".")[0] == library for name in imports(path))
    }
    assert found == modules


def test_the_server_imports_no_provider_and_no_handler() -> None:
    for path in (ROOT / "server").rglob("*.py"):
        assert not [name for name in imports(path) if name.partition(".")[0] in ("providers", "handlers")], path


def test_providers_and_handlers_import_the_public_interface_alone() -> None:
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0]
        if package == "server":
            continue
        for name in imports(path):
            first, _, rest = name.partition(".")
            if first == "server":
                assert rest == "" or rest in PUBLIC_INTERFACE, (path, name)
            elif first in PACKAGES:
                assert first == package, (path, name)


@pytest.mark.parametrize("words", [[], ["routes"]])
def test_without_its_dependencies_the_program_says_how_to_install_them(words: list[str]) -> None:
    """-S: Python without its site-packages, so that nothing is installed."""
    done = subprocess.run([sys.executable, "-S", "-m", "server", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "aiohttp" in done.stderr
    assert "make install" in done.stderr


@pytest.mark.parametrize("module", ["__main__", "installation"])
def test_the_first_imports_of_the_command_line_are_the_standard_librarys(module: str) -> None:
    tree = ast.parse((ROOT / "server" / f"{module}.py").read_text("utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in top if isinstance(node, ast.ImportFrom)
    }
    assert all(name is not None and name.partition(".")[0] in sys.stdlib_module_names for name in names)


def test_what_few_processes_need_is_not_loaded_by_all() -> None:
    """Each of these takes a megabyte or two of every worker."""
    rare = ["limits", "prometheus_client", "valkey", "redis"]
    code = f"import sys, server.commands, providers.clerk, providers.api_key; print([n for n in {rare} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_that_is_shipped_needs_a_test_library() -> None:
    testing = ("pytest", "unittest", "hypothesis", "aiohttp.test_utils", "_pytest")
    for path in SOURCES:
        if "testing" not in path.relative_to(ROOT).parts and path.stem != "testing_provider":
            assert not [name for name in imports(path) if name.startswith(testing)], path


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_can_be_imported(package: str) -> None:
    for found in pkgutil.walk_packages([str(ROOT / package)], package + "."):
        if not found.name.endswith("__main__") and not found.name.startswith("server.testing"):
            importlib.import_module(found.name)


# Folders ---------------------------------------------------------------------------------------------------------------

FOLDERS = {
    "auth", "commands", "database", "embedded", "gate", "http", "openapi", "plugins", "rate_limits", "routing", "schema", "serving",
    "settings", "streams", "telemetry", "testing", "tools",
}  # fmt: skip
LOOSE = {
    "__init__.py", "__main__.py", "app.py", "bounded.py", "composition.py", "installation.py", "messages.py", "py.typed",
    "single_flight.py", "testing_provider.py",
}  # fmt: skip


def test_the_folder_listing_of_the_server_is_the_map() -> None:
    listed = {path.name for path in (ROOT / "server").iterdir() if path.name != "__pycache__"}
    assert listed == FOLDERS | LOOSE


def test_the_architecture_has_a_row_for_each_folder_and_no_more() -> None:
    rows = re.findall(r"^\| [0-9]+ \| `(\w+)/` \|", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(FOLDERS)


@pytest.mark.parametrize("folder", sorted(FOLDERS - {"commands", "testing"}))
def test_a_folder_says_in_one_sentence_what_it_is_for(folder: str) -> None:
    """And its __init__.py has nothing else, so that importing a folder costs nothing and moves nothing."""
    body = ast.parse((ROOT / "server" / folder / "__init__.py").read_text("utf-8")).body
    assert len(body) == 1
    doc = ast.get_docstring(ast.Module(body=body, type_ignores=[])) or ""
    assert "\n" not in doc
    assert re.fullmatch(r"[A-Z].*[.?]", doc), doc


# Size and words --------------------------------------------------------------------------------------------------------


def test_no_module_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := len(path.read_text("utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


# Turns of phrase that readers stumbled over. Code, comments and messages say it plainly (CONTRIBUTING.md).
STUMBLING = re.compile(
    r"\b(?:[Ww]hoever|stops? the start|stands? there|(?:may|can) ?not stand|the [Dd]oor|[Nn]obody\b[^.\n]*\bthe other one)\b"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_uses_a_phrase_that_readers_stumble_over(path: Path) -> None:
    text = path.read_text("utf-8")
    assert [f"{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}" for hit in STUMBLING.finditer(text)] == []


def test_the_phrases_are_found() -> None:
    for phrase in ("whoever asks", "It stops the start.", "a name stands there twice", "a field cannot stand", "by the door"):
        assert STUMBLING.search(phrase), phrase
    assert not STUMBLING.search("the doorway stands in the standard place, however it starts")


def test_every_module_says_what_it_is_for() -> None:
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_uses_a_mock(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith(("unittest", "mock"))]


# Documentation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", CORE)
def test_every_core_setting_is_documented(key: str) -> None:
    assert f"`{key}`" in DOCS
    assert CORE[key].kind == "table" or f"`{env_name(key, CORE[key])}`" in DOCS
    assert CORE[key].help


def settings_of_plugins() -> list[tuple[str, str, Setting]]:
    found = []
    for plugin in BUILT_IN_PLUGINS:
        hook = getattr(plugin.load(), "register_settings", dict)
        found += [(plugin.name, key, setting) for key, setting in hook().items()]
    return found


@pytest.mark.parametrize(
    ("plugin", "key", "setting"), settings_of_plugins(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_setting_of_a_built_in_plugin_is_documented(plugin: str, key: str, setting: Setting) -> None:
    assert f"`{plugin}.{key}`" in DOCS
    assert setting.kind == "tables" or f"`{env_name(f'{plugin}.{key}', setting)}`" in DOCS
    assert setting.help


@pytest.mark.parametrize("hook", [name for name in dir(hookspecs) if name.startswith("register_")])
def test_every_hook_is_documented(hook: str) -> None:
    assert f"`{hook}(" in DOCS


@pytest.mark.parametrize("name", sorted(PUBLIC_INTERFACE))
def test_every_name_of_the_public_interface_is_documented(name: str) -> None:
    assert re.search(rf"`{name}\b", DOCS)


def test_the_public_interface_is_what_is_documented() -> None:
    assert set(server.__all__) == PUBLIC_INTERFACE
    assert all(hasattr(server, name) for name in PUBLIC_INTERFACE)
    assert len(server.__all__) == len(PUBLIC_INTERFACE)


def test_every_name_of_the_public_interface_has_a_docstring() -> None:
    assert not [name for name in PUBLIC_INTERFACE if not getattr(server, name).__doc__]
