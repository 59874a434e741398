"""Acme on loopback, and Gatepost with this plugin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

pytest_plugins = ["server.testing", "server.testing_provider"]

SECRET = "the-secret-of-this-server"
ALICE, BOB = "acme_token-of-alice-0001", "acme_token-of-bob-00002"
PEOPLE = {
    ALICE: {"user": "alice", "organisation": "north", "role": "org:member"},
    BOB: {"user": "bob", "organisation": "south", "role": "org:member"},
}


class Acme:
    """Acme's service. `status` is what it answers in its bad hours, `seconds` how long it thinks; `asked` counts."""

    def __init__(self) -> None:
        self.status, self.seconds, self.asked, self.url = 200, 0.0, 0, ""

    async def introspect(self, request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        if self.status != 200 or request.headers["Authorization"] != f"Bearer {SECRET}":
            return web.Response(status=self.status if self.status != 200 else 403)
        person = PEOPLE.get((await request.json())["token"])
        return web.json_response(person) if person else web.Response(status=404)

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        self.status = 500
        yield
        self.status = 200

    @asynccontextmanager
    async def slow(self) -> AsyncIterator[None]:
        self.seconds = 0.6
        yield
        self.seconds = 0.0


@pytest.fixture
async def acme() -> AsyncIterator[Acme]:
    service, app = Acme(), web.Application()
    app.router.add_post("/introspect", service.introspect)
    async with TestServer(app, host="127.0.0.1") as server:
        service.url = str(server.make_url("/introspect"))
        yield service


@pytest.fixture(scope="session")
def gatepost_schema() -> Sequence[str]:
    return [(Path(__file__).parent.parent / "schema.sql").read_text("utf-8")]


@pytest.fixture
def gatepost_settings(acme: Acme) -> Mapping[str, Any]:
    given = {"url": acme.url, "secret": SECRET}
    return {"plugins": ["acme"], "providers": ["acme", "clerk"]} | {f"acme.{key}": value for key, value in given.items()}
