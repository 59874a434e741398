"""The README: its code is loaded as plugins and served, its tables and answers are compared with the server's."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kits import ROOT, doc_pages

from server.app import TABLE, build
from server.settings.sources import Settings
from tests.conftest import ALICE, Client, Serve, TestDatabase

README = (ROOT / "README.md").read_text("utf-8")
PYTHON = dict(re.findall(r"`(\w+)\.py`:\n\n```python\n(.*?)```", README, re.DOTALL))
LOADED = next(block for block in re.findall(r"```toml\n(.*?)```", README, re.DOTALL) if "module:acme" in block)


def test_every_python_block_is_a_file_that_is_served_here() -> None:
    assert set(PYTHON) == {"acme", "names"}
    assert README.count("```python") == len(PYTHON)


@pytest.mark.parametrize(("name", "most"), [("acme", 25), ("names", 10)])
def test_the_examples_are_short(name: str, most: int) -> None:
    assert len([line for line in PYTHON[name].splitlines() if line.strip()]) <= most


@pytest.fixture
async def acme(aiohttp_server: Any) -> TestServer:
    """Acme's service: it knows one token, and has a bad day for another."""

    async def introspect(request: web.Request) -> web.Response:
        token = await request.text()
        if token == "acme_broken":
            return web.Response(status=500)
        return web.json_response({"user": "alice"}) if token == "acme_good" else web.Response(status=404)

    app = web.Application()
    app.router.add_post("/introspect", introspect)
    return await aiohttp_server(app)  # type: ignore[no-any-return]


@pytest.fixture
async def guest(acme: TestServer, db: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A server with both examples, loaded by the README's own settings file."""
    for name, text in PYTHON.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "gatepost.toml"
    file.write_text(re.sub(r'url = "[^"]*"', f'url = "{acme.make_url("/introspect")}"', LOADED))
    given = {
        "env": "test",
        "ops.port": 0,
        "database.url": db.url,
        "database.pool_size": 2,
        "data_folder": str(tmp_path / "data"),
    }
    app = build(Settings(file=file, environ={}, given=given))
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    client = Client(server, app)
    yield client
    await client.close()
    for name in PYTHON:
        sys.modules.pop(name, None)


async def test_the_examples_work(guest: Client, db: TestDatabase) -> None:
    for user in ("alice", "bob"):
        await db.rows("INSERT INTO data (user_id, name) VALUES ($1, $2)", user, f"of {user}")
    got = await guest.get("/api/names", {"Authorization": "Bearer acme_good"})
    assert (got.status, got.json()) == (200, [{"name": "of alice"}])


@pytest.mark.parametrize(
    ("header", "status", "reason"),
    [
        ("Bearer acme_unknown", 401, "credential-rejected"),
        ("Bearer other", 401, "credential-rejected"),
        ("Bearer acme_broken", 503, None),
        (None, 401, "credential-missing"),
    ],
)
async def test_the_provider_gives_every_answer(guest: Client, header: str | None, status: int, reason: str | None) -> None:
    got = await guest.get("/api/names", {"Authorization": header} if header else None)
    assert (got.status, got.json().get("reason")) == (status, reason)


async def test_the_table_of_routes_is_the_servers(serve: Serve) -> None:
    table = (await serve()).app[TABLE]
    ours = {(f"{row.method} {row.template}", row.access) for row in table.rows if row.method != "HEAD"}
    told = re.findall(r"^\| `([A-Z]+ /api/[^`]*)` \| ([^|]+) \|$", README, re.MULTILINE)
    assert set(told) == ours
    assert len(told) == len(ours)


async def test_the_answers_of_the_first_minute(client: Client) -> None:
    shown = dict(re.findall(r"^\$ curl http://127\.0\.0\.1:8080(\S+)\n(\{.*\})$", README, re.MULTILINE))
    assert set(shown) == {"/api/health", "/api/me"}
    for path, body in shown.items():
        assert (await client.get(path)).raw.decode() == body
    made = await client.post("/api/data", ALICE, {"name": "first"})
    (members,) = re.findall(r'^\{"id":"…".*$', README, re.MULTILINE)
    assert list(made.json()) == re.findall(r'"(\w+)":', members)


async def test_the_stub_header_is_taken(client: Client) -> None:
    (header,) = set(re.findall(r"^curl -H 'Authorization: (Stub [^']*)'", README, re.MULTILINE))
    got = await client.get("/api/me", {"Authorization": header})
    assert (got.status, got.json()["org_role"]) == (200, "org:admin")


def test_every_link_leads_somewhere() -> None:
    top = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    for page in [*top, *doc_pages()]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), SimpleNamespace(page=page.name, target=target)
