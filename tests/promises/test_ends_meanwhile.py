"""Access that ends while its request is under way: the body still comes, or the request waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.live import until
from kits.webhooks import SETTINGS, deliver, empty, user_deleted

from server import answer, body_stream, signed_in
from server.app import LIMITS
from tests.conftest import ALICE, Client, Serve, TestDatabase, plugin

JSON = {"Content-Type": "application/json"}


@signed_in
async def upload(request: web.Request) -> web.Response:
    return answer({"size": sum([len(piece) async for piece in body_stream(request)])})


class Door:
    """A route whose handler waits until the door is open, and the late part of a body."""

    def __init__(self) -> None:
        self.open, self.waiting = asyncio.Event(), asyncio.Event()

    async def handler(self, request: web.Request) -> web.Response:
        self.waiting.set()
        await self.open.wait()
        return answer({})

    async def body(self, first: bytes, last: bytes) -> AsyncIterator[bytes]:
        yield first
        await self.open.wait()
        yield last


async def ended(client: Client, headers: dict[str, str]) -> None:
    """Wait until this process refuses the credential. An unknown path needs no turn."""
    async with asyncio.timeout(20):
        while (await client.get("/nowhere", headers)).status != 401:
            await asyncio.sleep(0.02)


async def key_of(client: Client) -> tuple[str, dict[str, str]]:
    row = (await client.post("/api/keys", ALICE, {"name": "k"})).json()
    return row["id"], {"X-API-Key": row["secret"]}


@pytest.mark.parametrize("path", ["/api/data", "/upload"])
@pytest.mark.parametrize("how", ["key", "user", "nothing"])
async def test_a_body_that_comes_after_the_end(serve: Serve, db: TestDatabase, path: str, how: str) -> None:
    """The client held the last bytes back: nothing is stored when they come."""
    await empty(db)
    client, door = await serve(SETTINGS, {"own": plugin(web.post("/upload", upload))}), Door()
    key, headers = await key_of(client)
    if how == "user":
        headers = ALICE
    body = door.body(b'{"name":', b'"late"}')
    sent = asyncio.create_task(client.post(path, {**headers, **JSON}, data=body))
    await until(lambda: client.app[LIMITS].concurrency.in_work == 1, 20)
    if how == "key":
        assert (await client.delete(f"/api/keys/{key}", ALICE)).status == 204
    elif how == "user":
        assert (await deliver(client, user_deleted(3600, "alice"))).status == 204
    if how != "nothing":
        await ended(client, headers)
    door.open.set()
    got = await sent
    assert (got.status, got.json().get("reason")) == {
        "key": (401, "key-revoked"), "user": (401, "session-revoked"), "nothing": (201 if path == "/api/data" else 200, None)
    }[how]  # fmt: skip
    assert await db.count("data") == (1 if how == "nothing" and path == "/api/data" else 0)


async def test_a_key_that_ends_while_its_request_waits_for_a_turn(serve: Serve, db: TestDatabase) -> None:
    """As a session does: a revoked key got its turn all the same."""
    door = Door()
    settings: dict[str, Any] = {"limits.concurrency": 1}
    client = await serve(settings, {"own": plugin(web.get("/door", signed_in(door.handler)))})
    key, headers = await key_of(client)
    other = (await key_of(client))[1]
    first = asyncio.create_task(client.get("/door", other))
    await door.waiting.wait()
    second = asyncio.create_task(client.get("/api/me", headers))
    await until(lambda: client.app[LIMITS].concurrency.waiting == 1, 20)
    await db.rows("UPDATE api_keys SET revoked_at = now() WHERE id = $1", key)
    await ended(client, headers)
    door.open.set()
    assert (await first).status == 200
    got = await second
    assert got.json()["reason"] == "key-revoked" if got.status == 401 else got.status == 429, got
