"""docs/guides/agents.md: its to-dos as tools, its settings, and its agent, signed in through a certified OpenID provider."""

from __future__ import annotations

import asyncio
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import ClientSession
from conftest import Serve, TestDatabase
from kits import doc_page
from kits.agents import installed
from kits.mcp_clients import FOLDER, node_program
from kits.oidc_provider import oidc_provider
from kits.pages import free_port
from kits.todo import EXAMPLE, todo_table
from yarl import URL

pytestmark = installed
PAGE = doc_page("agents.md").read_text("utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


@pytest.fixture
def todo_app() -> Iterator[ModuleType]:
    """The tutorial's module, with the page's lines in the place of its own."""
    source = (EXAMPLE / "todo_app" / "api.py").read_text("utf-8")
    for line in block("text").splitlines():
        plain = re.sub(r'tool="\w+", ', "", line)
        assert source.count(plain) == 1, plain
        source = source.replace(plain, line)
    module = ModuleType("todo_app_as_tools")
    sys.modules[module.__name__] = module  # pydantic looks up the annotations there
    exec(compile(source, "todo_app_as_tools", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


async def test_the_agent_signs_in_and_works(serve: Serve, db: TestDatabase, todo_app: ModuleType, tmp_path: Path) -> None:
    node, *_ = node_program("client.mjs")
    settings, port = tomllib.loads(block("toml")), free_port()
    api = f"http://127.0.0.1:{port}"
    async with oidc_provider(claims={"org_id": "org_acme"}) as provider, todo_table(db):
        (issuer,) = settings["oidc"]["issuers"]
        issuer |= {"issuer": provider.issuer, "audience": issuer["audience"].replace(settings["resource"]["url"], api)}
        given = {"handlers": settings["handlers"], "providers": settings["providers"], "resource.url": api, "oidc.issuers": [issuer]}
        client = await serve({**given, "api_key.keys": None}, extra={"todos": todo_app}, port=port)
        assert client.port == port
        callback = f"http://127.0.0.1:{free_port()}/callback"
        program = tmp_path / "agent.mjs"
        program.write_text(block("js").replace("http://127.0.0.1:8765/callback", callback))
        (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
        process = await asyncio.create_subprocess_exec(
            node, "--no-warnings", str(program), f"{api}/api/mcp", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
            assert line.startswith("Sign in: "), line
            url = URL(line.removeprefix("Sign in: ").strip(), encoded=True)
            assert url.query["resource"] == f"{api}/api/mcp"
            assert url.query["code_challenge_method"] == "S256"
            back = await provider.follow("alice", url.update_query(login_hint="alice"), callback)
            assert back["iss"] == provider.issuer
            async with ClientSession() as browser, browser.get(URL(callback).with_query(back)) as page:
                assert page.status == 200
            out, err = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
        assert out.decode() == block("text", 1), err.decode()[-2000:]
        rows = await db.rows("SELECT organization_id, created_by, title FROM todos")
    assert rows == [{"organization_id": "org_acme", "created_by": "alice", "title": "Buy milk"}]


def test_the_endpoint_of_your_own_is_complete() -> None:
    source = "import json\nfrom aiohttp import web\nfrom server import answer, call_tool, calls_tools, signed_in\nroutes = web.RouteTableDef()\n"
    found: dict[str, object] = {}
    exec(compile(source + block("python"), "assistant", "exec"), found)
    assert callable(found["assistant"])
