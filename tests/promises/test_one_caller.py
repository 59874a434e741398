"""One caller cannot fill the database: requests for one row, and requests that wait for its lock, do not affect other callers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from server import answer, scoped, signed_in
from server.app import LIMITS
from server.database.scope import DATABASE
from tests.conftest import Client, Serve, TestDatabase, plugin

KEYS: list[dict[str, str]] = []


def key(user: str, **more: str) -> dict[str, str]:
    """The header of a caller with a key: of a development credential every new connection is examined, which takes time."""
    text = f"gp_the-key-of-{user}"
    KEYS.append({"id": user, "hash": "sha256:" + hashlib.sha256(text.encode()).hexdigest(), "user_id": user, **more})
    return {"X-API-Key": text}


ALICE, BOB, CID, DOT, ANNA = key("alice"), key("bob"), key("cid"), key("dot", org_id="org_a"), key("anna", org_id="org_a")
ADMINS = [key(f"admin{n}", org_id="org_a", org_role="org:admin") for n in range(12)]
EIGHT = {"database.pool_size": 8, "api_key.keys": KEYS}
routes = web.RouteTableDef()


@routes.get("/slow")
@signed_in
async def slow(request: web.Request) -> web.Response:
    async with scoped(request) as db:
        return answer(await db.fetchval("SELECT pg_sleep(0.3)::text"))


class Others:
    """Other callers, who read and write all the time."""

    def __init__(self, client: Client, *callers: dict[str, str]) -> None:
        self._client, self._callers = client, callers
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False
        self.statuses: Counter[int] = Counter()

    async def __aenter__(self) -> Others:
        self._tasks = [asyncio.create_task(self._run(caller)) for caller in self._callers]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _run(self, caller: dict[str, str]) -> None:
        while not self._over:
            self.statuses[(await self._client.get("/api/data?limit=1", caller)).status] += 1
            self.statuses[(await self._client.post("/api/data", caller, {"name": "other"})).status] += 1
            await asyncio.sleep(0.01)


async def row_of(client: Client, caller: dict[str, str]) -> str:
    got = await client.post("/api/data", caller, {"name": "0", "payload": {"n": 0}})
    assert got.status == 201
    return str(got.json()["id"])


async def patches(client: Client, row: str, number: int) -> Counter[int]:
    """So many changes of one row, all at once."""
    sent = [client.patch(f"/api/data/{row}", ALICE, {"name": str(n), "payload": {"n": n}}) for n in range(1, number + 1)]
    return Counter(got.status for got in await asyncio.gather(*sent))


async def is_whole(db: TestDatabase, row: str) -> bool:
    """Whether name and payload are those of one and the same change."""
    (one,) = await db.rows("SELECT name, payload->>'n' AS n FROM data WHERE id = $1", row)
    return bool(one["name"] == one["n"])


@contextlib.asynccontextmanager
async def locked(db: TestDatabase, row: str) -> AsyncIterator[None]:
    """Another transaction locks the row, and does not end."""
    async with db.server.as_admin(db.name) as admin, admin.transaction():
        await admin.execute("SELECT 1 FROM data WHERE id = $1 FOR UPDATE", row)
        yield


async def test_a_hundred_and_fifty_changes_of_one_row(serve: Serve, db: TestDatabase) -> None:
    client = await serve(EIGHT)
    row = await row_of(client, ALICE)
    async with Others(client, BOB, CID, DOT) as others:
        statuses = await patches(client, row, 150)
    assert set(statuses) <= {200, 429}
    assert statuses[200] > 15
    assert set(others.statuses) == {200, 201}
    assert await is_whole(db, row)
    assert client.app[LIMITS].concurrency.in_work == client.app[LIMITS].concurrency.waiting == 0


async def test_a_row_that_stays_locked(serve: Serve, db: TestDatabase) -> None:
    client = await serve(EIGHT)
    row = await row_of(client, ALICE)
    async with Others(client, BOB, CID) as others, locked(db, row):
        statuses = await patches(client, row, 150)
        got = await client.patch(f"/api/data/{row}", ALICE, {"name": "late"})
    assert set(statuses) == {503, 429}, "who waited for the lock, and who waited for those"
    assert (got.status, got.headers["Retry-After"]) == (503, "1")
    assert set(others.statuses) == {200, 201}
    assert others.statuses[200] > 10
    assert [row["name"] for row in await db.rows("SELECT name FROM data WHERE id = $1", row)] == ["0"]
    assert await patches(client, row, 1) == {200: 1}
    pool = client.app[DATABASE].pool
    assert pool is not None
    assert (pool.lent, pool._shares._counts) == (0, {})
    for connection in pool._idle:
        assert await connection.fetchval("SHOW lock_timeout") == "0", "for one transaction alone"


async def test_many_callers_who_wait_for_one_lock_give_up_before_others_do(serve: Serve, db: TestDatabase) -> None:
    client = await serve(EIGHT)
    row = await row_of(client, ANNA)
    async with locked(db, row):
        waiting = [asyncio.create_task(client.delete(f"/api/data/{row}", admin)) for admin in ADMINS]
        await asyncio.sleep(0.3)  # each of eight has a connection, and the lock is not theirs
        got = await client.get("/api/data", BOB)
        assert {one.status for one in await asyncio.gather(*waiting)} == {503}
    assert got.status == 200
    assert await db.count("data") == 1


async def test_a_caller_with_slow_statements_leaves_half_of_the_pool(serve: Serve) -> None:
    client = await serve(EIGHT, extra={"acme": plugin(*routes)})
    tasks = [asyncio.create_task(client.get("/slow", ALICE)) for _ in range(16)]
    pool = client.app[DATABASE].pool
    assert pool is not None
    most = 0
    async with Others(client, BOB, CID) as others:
        while not all(task.done() for task in tasks):
            most = max(most, pool._shares._counts.get("user/alice", 0))
            await asyncio.sleep(0.01)
    assert most == 4
    assert {task.result().status for task in tasks} == {200}
    assert set(others.statuses) == {200, 201}


@pytest.mark.parametrize("pooler", ["none", "transaction"])
def test_the_lock_limit_is_shorter_than_the_wait_for_a_connection(pooler: str) -> None:
    from server.database.connections import Database

    def limit(**more: Any) -> str:
        usual = {"size": 8, "acquire_seconds": 2.0, "statement_seconds": 5.0, "pooled": pooler == "transaction"}
        return Database(**{**usual, **more}).set_scope

    assert "set_config('lock_timeout', '1000', true)" in limit()
    assert "set_config('lock_timeout', '250', true)" in limit(acquire_seconds=0.5)
    assert "set_config('lock_timeout', '400', true)" in limit(statement_seconds=0.4)
    assert "set_config('lock_timeout', '1', true)" in limit(acquire_seconds=0.001), "0 would be no limit"
