"""What a newcomer types wrong on the command line, in gatepost.toml or in a module: one line that says what to do, and status 2."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from server.commands import run

HEAD = "from aiohttp import web\nfrom server import *\nroutes = web.RouteTableDef()\n"
HOOK = "@hookimpl\ndef register_handlers():\n    return routes\n"
ROUTE = '@routes.get("/api/x")\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("app", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("DATABASE_URL", "GATEPOST_CONFIG", "GATEPOST_PORT", "GATEPOST_PROVIDERS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line of a command that ends with status 2 and says nothing else."""
    try:
        status: Any = run(list(words))
    except SystemExit as ended:  # a mistake in the arguments
        status = ended.code
    said = capsys.readouterr()
    assert (status, said.out, len(said.err.splitlines())) == (2, "", 1), said
    return said.err.removeprefix("gatepost: ").rstrip("\n")


@pytest.mark.parametrize(("words", "said"), [
    ("srve", "no command is named 'srve'; did you mean serve?; see `python -m server --help`"),
    ("check routes", "unrecognized arguments: routes; see `python -m server check --help`"),
    ("check --dry-run", "unrecognized arguments: --dry-run; see `python -m server check --help`"),
    ("keys", "a command is missing: one of create, list, revoke, rotate, hash; see `python -m server keys --help`"),
    ("keys crate", "no command is named 'crate'; did you mean create?; see `python -m server keys --help`"),
    ("--port abc", "argument --port: invalid int value: 'abc'; see `python -m server --help`"),
    ("--port 99999", "port: must be 0 to 65535, not 99999 (command line)"),
    ("routes --config .", ".: cannot be read: Is a directory"),
    ("token --user=", "--user is empty: is the variable set that it is taken from?"),
    ("migrate --schema nope.sql", "--schema nope.sql: cannot be read (No such file or directory)"),
])  # fmt: skip
def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, said: str) -> None:
    monkeypatch.setattr(sys, "argv", ["__main__.py"])
    assert refused(capsys, *words.split()) == said


@pytest.mark.parametrize(("text", "said"), [
    ("host = ['a']", "host: must be a string, not a list"),
    ("workers = 'x'", "workers: must be a number, not 'x'"),
    ("host = 1", "host: must be a string"),
    ("host = 'http://localhost'", "host: must be an address or a name, without scheme, path and port, not 'http://localhost'"),
    ("host = 'localhost:8080'", "host: must be an address or a name, without scheme, path and port, not 'localhost:8080'"),
    ("host = '[::1]'", "host: must be an address or a name, without scheme, path and port, not '[::1]'"),
    ("host = 'a b'", "host: must be an address or a name, without scheme, path and port, not 'a b'"),
    ("ops.host = 'http://localhost:1'", "ops.host: must be an address or a name, without scheme, path and port, not 'http://localhost:1'"),
    ("ops.host = 'a..b'", "ops.host: must be an address or a name, without scheme, path and port, not 'a..b'"),
    ("port = 1\nport = 2", "Cannot overwrite a value (at line 2, column 9): the key is given twice"),
    ("[limits]\nheaders = 64\n[limits]\nhead_bytes = 2000", "the table is given twice: put its keys under one heading"),
    ("env: test", 'write key = "value", and the tables as [name] (TOML, not JSON or YAML)'),
    ('{"env": "test"}', 'write key = "value", and the tables as [name] (TOML, not JSON or YAML)'),
    ('host = "a\n', "a text needs a closing quote on its line"),
    ('data_folder = "C:\\Users\\x"', "in \"quotes\" a backslash begins an escape: write a path in 'single quotes'"),
    ('data_folder = "C:\\data"', "in \"quotes\" a backslash begins an escape: write a path in 'single quotes'"),
    ("[oidc]\nissuers = 'x'", "oidc.issuers: must be an array of tables: [[oidc.issuers]]"),
    ("[oidc.issuers]\nissuer = 'x'", "oidc.issuers: must be an array of tables: [[oidc.issuers]]"),
    ("[database]\nproviders = ['stub']", "unknown key 'database.providers': 'providers' belongs above the first [table] of the file"),
    ("[server]\nport = 1", "unknown key 'server.port': 'port' belongs above the first [table] of the file"),
    ("log = 'json'", "unknown key 'log': it is a table: write its keys below [log], each as name = value"),
    ("[[database]]\nurl = 'x'", "unknown key 'database': it is a table: write its keys below [database], each as name = value"),
    ("[limits]\nbody-bytes = 1", "unknown key 'limits.body-bytes'; the nearest known one is 'limits.body_bytes'"),
    ("Port = 1", "unknown key 'Port'; the nearest known one is 'port'"),
    ("[[api_key.keys]]\nid = 'a'\nhsh = 'x'", "api_key.keys[0]: unknown member 'hsh'; the nearest known one is 'hash'"),
    ("cors_origins = ['*']", "cors_origins: '*': any origin cannot be allowed where credentials are sent: name the origins of your front ends"),
    ("plugins = ['acme']", "install its package into this environment, or write module:<import path> for your own module"),
    ("plugins = ['module:app.py']", "plugins: 'module:app.py' is not an import path: write module:app"),
    ("plugins = ['module:./shop/app.py']", "plugins: 'module:./shop/app.py' is not an import path: write module:shop.app"),
    ("plugins = ['module:']", "plugins: 'module:' is not an import path: write module:<import path>"),
    ("providers = ['clrek']", "offered: api_key, clerk, oidc, stub. What is not built in comes with a plugin, which 'plugins' must name"),
    ("handlers = ['todos']", "profile, stub. What is not built in comes with a plugin, which 'plugins' must name"),
])  # fmt: skip
def test_in_the_settings_file(folder: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (folder / "gatepost.toml").write_text(text + "\n")
    assert refused(capsys, "routes").endswith(said)


@pytest.mark.parametrize(("text", "said"), [
    ("def x(:\n", "cannot be imported: SyntaxError: invalid syntax (app.py, line 1)"),
    ("\nimport no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' (app.py, line 2): install it into this environment"),
    ("import other\nx = 1\n", "(most likely due to a circular import)"),
    ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3 (app.py, line 2)"),
    ("import os\nos.environ['NO_SUCH_THING']\n", "cannot be imported: KeyError: 'NO_SUCH_THING' (app.py, line 2)"),
    (HEAD, "it has no hook marked with @hookimpl, which goes above `def register_handlers()`"),
    (HEAD + "@hookimpl\ndef register_handler():\n    return routes\n", "; did you mean register_handlers?"),
    (HEAD + "@hookimpl\ndef register_handlers():\n    return 1 / 0\n", "register_handlers failed: ZeroDivisionError: division by zero (app.py, line 6)"),
    (HEAD + ROUTE + "async def x(request): ...\n" + HOOK, "no access is declared. Put @public, @signed_in or @requires(...) on the handler, below @routes"),
    (HEAD + ROUTE + "@requires(rol='a')\nasync def x(request): ...\n", "@requires has no argument 'rol'; did you mean role? (app.py, line 5)"),
    (HEAD + 2 * (ROUTE + "@signed_in\nasync def x(request): ...\n") + HOOK, "GET /api/x: a route with this method and path exists already"),
])  # fmt: skip
def test_in_a_module(folder: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (folder / "gatepost.toml").write_text("plugins = ['module:app']\nhandlers = ['health']\n")
    (folder / "app.py").write_text(text)
    (folder / "other.py").write_text("from app import x\n")
    importlib.invalidate_caches()
    line = refused(capsys, "routes")
    assert said in line
    assert "site-packages" not in line


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["explain", *words]) == 0
    return capsys.readouterr().out


def test_explain_names_the_methods_that_a_path_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = explained(capsys, "PUT", "/api/data/5c0d3b9e-0000-4000-8000-000000000001")
    assert "methods: DELETE, GET, HEAD, PATCH\n" in said
    assert "no route of this path has this method, only DELETE, GET, HEAD, PATCH: " in said
    assert '"methods": "DELETE, GET, HEAD, PATCH"' in explained(capsys, "PUT", "/api/data/x", "--json")
    assert "(the nearest path is /api/me)" in explained(capsys, "GET", "/api/mee?x=1")
    assert "nearest" not in explained(capsys, "GET", "/zzzzzzz")
    assert "a path begins with /" in explained(capsys, "GET", "api/me")


def test_check_says_each_thing_once(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLERK_SECRET_KEY", "sk_test_0123456789abcdef")
    monkeypatch.setenv("CLERK_ISSUER", "https://clerk.example.com")
    monkeypatch.setenv("CLERK_API_URL", "http://127.0.0.1:9")  # the port "discard": nothing listens there
    monkeypatch.setenv("CLERK_AUTHORISED_PARTIES", "x")
    assert run(["check"]) == 0
    said = capsys.readouterr()
    lines = [*said.out.splitlines(), *said.err.splitlines()]
    assert [line for line in lines if "127.0.0.1:9/v1/jwks" in line] == ["warning: clerk: Clerk's key set: http://127.0.0.1:9/v1/jwks: ClientConnectorError"]
    [misspelt] = [line for line in lines if "CLERK_AUTHORISED_PARTIES" in line]
    assert misspelt == "warning: CLERK_AUTHORISED_PARTIES is set and not read; the nearest known one is CLERK_AUTHORIZED_PARTIES"
    assert said.err == ""
