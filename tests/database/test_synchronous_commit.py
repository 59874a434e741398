"""A COMMIT that waits for a standby: no client gets a success, or sees its rows, before the standby has it.

Postgres ends the wait when a statement is cancelled, reports success with a warning, and shows the row to everybody, although a
failover would lose it. So a COMMIT is never cancelled.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from kits.faults import Fragile

from tests.conftest import ALICE, Client, Serve, TestDatabase, plugin
from tests.database.test_database_faults import (
    db,  # noqa: F401 - in place of the usual one
    fragile,  # noqa: F401
    fragile_database,  # noqa: F401
)
from tests.database.test_database_settling import opened, routes

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


async def standby(fragile: Fragile, name: str) -> None:  # noqa: F811
    """Which standby must confirm each commit; none: the empty text."""
    async with fragile.as_admin() as admin:
        await admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        await admin.execute("SELECT pg_reload_conf()")


@pytest.fixture
async def serve_waiting(serve: Serve, fragile: Fragile) -> AsyncIterator[Any]:  # noqa: F811
    """A server whose statements have a second; from `wait()` on commits wait for a standby that does not exist."""

    async def start(**settings: Any) -> Client:
        usual = {"database.acquire_seconds": 1.0, "database.statement_seconds": 1.0, "database.pool_size": 8, **settings}
        return await serve(usual, extra={"these": plugin(*routes)})

    yield start
    await standby(fragile, "")


async def rows(client: Client) -> list[str]:
    got = await client.get("/api/data", ALICE)
    assert got.status == 200
    return [row["name"] for row in got.json()]


async def waiting(db: TestDatabase, number: int) -> None:  # noqa: F811
    """Wait until so many commits wait for the standby."""
    async with asyncio.timeout(10):
        while (await db.rows(WAITING))[0]["count"] != number:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("key", [True, False])
async def test_a_write_that_no_standby_has_is_neither_acknowledged_nor_shown(
    serve_waiting: Any, fragile: Fragile, db: TestDatabase, key: bool  # noqa: F811
) -> None:
    client = await serve_waiting()
    await standby(fragile, "nowhere")
    more = {"Idempotency-Key": str(uuid.uuid4())} if key else {}
    got = await client.post("/api/data", {**ALICE, **more}, {"name": "one"})
    assert got.status == 503
    assert await rows(client) == []
    if key:  # before, the repeat found the first one's answer and acknowledged what a failover would lose
        for _ in range(3):
            assert (await client.post("/api/data", {**ALICE, **more}, {"name": "one"})).status in (409, 503)
    await waiting(db, 1)
    await standby(fragile, "")
    await waiting(db, 0)
    assert await rows(client) == ["one"]
    if key:
        assert (await client.post("/api/data", {**ALICE, **more}, {"name": "one"})).status == 201
        assert await rows(client) == ["one"]


async def test_a_client_that_goes_away_does_not_end_the_wait(
    serve_waiting: Any, fragile: Fragile, db: TestDatabase  # noqa: F811
) -> None:
    client = await serve_waiting(**{"database.statement_seconds": 20.0})
    await standby(fragile, "nowhere")

    async def write() -> None:
        async with opened(client).scoped(("alice", "", "")) as one:
            await one.execute("INSERT INTO data (user_id, name) VALUES ('alice', 'given up')")

    task = asyncio.ensure_future(write())
    await waiting(db, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(1.5)
    await waiting(db, 1)
    assert await rows(client) == []
    assert opened(client)._opened.lent == 1  # it keeps its connection, so that there are never more of them than connections
    await standby(fragile, "")
    await waiting(db, 0)
    assert await rows(client) == ["given up"]
    async with asyncio.timeout(5):
        while opened(client)._opened.lent:
            await asyncio.sleep(0.05)


async def test_waiting_commits_are_no_more_than_the_connections(
    serve_waiting: Any, fragile: Fragile, db: TestDatabase  # noqa: F811
) -> None:
    client = await serve_waiting(**{"database.pool_size": 4})
    await standby(fragile, "nowhere")
    for _ in range(2):
        got = await asyncio.gather(*(client.post("/api/data", ALICE, {"name": "many"}) for _ in range(10)))
        assert {one.status for one in got} == {503}
    assert 1 <= (await db.rows(WAITING))[0]["count"] <= 4
    await standby(fragile, "")
    await waiting(db, 0)
    assert (await client.post("/api/data", ALICE, {"name": "after"})).status == 201


async def test_a_listed_function_is_not_cancelled_while_it_waits(
    serve_waiting: Any, fragile: Fragile, db: TestDatabase  # noqa: F811
) -> None:
    """Its connection is closed instead, and Postgres goes on waiting."""
    client = await serve_waiting()
    await standby(fragile, "nowhere")
    task = asyncio.ensure_future(opened(client).call("revoke_access", "session", "sess_1", timedelta(hours=1)))
    await waiting(db, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(1)
    await waiting(db, 1)
