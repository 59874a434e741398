"""A `write` that is given up, or whose Postgres fails: all of it is stored or nothing, and its connection is in order afterwards."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from kits.faults import Fragile, link

from server import Unavailable
from server.database.statements import SETTINGS
from tests.conftest import ALICE, BOB, Client, Serve, TestDatabase
from tests.database.test_database_faults import (
    db,  # noqa: F401 - in place of the usual one
    fragile,  # noqa: F401
    fragile_database,  # noqa: F401
    running,
    unavailable,
    well_again,
)
from tests.database.test_database_settling import backends, opened
from tests.database.test_synchronous_commit import standby, waiting

SCOPE, WRITER = ("alice", "", ""), ("alice", "request_1")
INSERT = "INSERT INTO data (user_id, name) VALUES ('alice', $1) RETURNING name"
UPDATE = "UPDATE data SET name = $1 WHERE user_id = 'alice' RETURNING name"
LOCKS = """INSERT INTO data (user_id, name) SELECT 'alice', $1 || pg_advisory_xact_lock($2::int) || pg_advisory_xact_lock_shared(9)
           || pg_advisory_xact_lock($3::int) RETURNING name"""
SLEEP = "INSERT INTO data (user_id, name) SELECT 'alice', $1 || pg_sleep(30) RETURNING name"


@pytest.fixture
async def client(serve: Serve, db: TestDatabase) -> Client:  # noqa: F811
    return await serve({"database.pool_size": 2, "database.acquire_seconds": 20.0, "database.statement_seconds": 20.0})


def write(client: Client, sql: str, *args: Any) -> asyncio.Task[str | None]:
    return asyncio.ensure_future(opened(client).write(SCOPE, WRITER, sql, args))


async def names(db: TestDatabase) -> list[str]:  # noqa: F811
    return [row["name"] for row in await db.rows("SELECT name FROM data ORDER BY name")]


@asynccontextmanager
async def locked(db: TestDatabase) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The rows of `data` are locked by another transaction for the time of the block."""
    async with db.server.as_admin(db.name) as admin, admin.transaction():
        await admin.execute("SELECT 1 FROM data FOR UPDATE")
        yield admin


async def returned(client: Client) -> None:
    """Wait until every connection is back in the pool."""
    async with asyncio.timeout(30):
        while opened(client)._opened.lent:
            await asyncio.sleep(0.02)


async def in_order(client: Client) -> None:
    """No connection has a caller's settings, a lock limit or an open transaction."""
    await returned(client)
    async with opened(client).connection() as one, opened(client).connection() as two:
        for connection in (one, two):
            assert connection.unfinished is None
            assert not connection.is_in_transaction()
            for name in SETTINGS:
                assert not await connection.fetchval("SELECT current_setting($1, true)", name)
            assert await connection.fetchval("SHOW lock_timeout") == "0"
    await well_again(client)


async def test_a_write_that_was_given_up_is_not_cancelled(client: Client, db: TestDatabase) -> None:  # noqa: F811
    """It may already be committing, so it goes on to its end; its connection waits for it, and is used again."""
    await write(client, INSERT, "old")
    before = set(await backends(db))
    async with locked(db):
        task = write(client, UPDATE, "new")
        await running(db, "UPDATE data")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert opened(client)._opened.lent == 1
        await running(db, "UPDATE data")
    await returned(client)
    assert await names(db) == ["new"]
    assert before <= set(await backends(db))
    await in_order(client)


async def test_a_client_that_goes_away(client: Client, db: TestDatabase) -> None:  # noqa: F811
    """Its request is cancelled while Postgres inserts: it is stored once or not at all, and others are served."""
    async with db.server.as_admin(db.name) as admin, admin.transaction():
        await admin.execute("LOCK TABLE data IN SHARE MODE")
        async with client.wire() as wire:
            await wire.send("POST /api/data", {**ALICE, "Content-Type": "application/json", "Content-Length": "16"}, body=b'{"name": "gone"}')
            await running(db, "INSERT INTO data")
        assert (await client.get("/api/data", BOB)).status == 200
    await returned(client)
    assert await names(db) in ([], ["gone"])
    await in_order(client)


async def test_a_cancelled_wait_for_a_standby_goes_on(client: Client, db: TestDatabase, fragile: Fragile) -> None:  # noqa: F811
    """No caller sees the row before the standby has it."""
    await standby(fragile, "nowhere")
    try:
        task = write(client, INSERT, "given up")
        await waiting(db, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(2.5)  # Postgres is asked twice whether it still runs it
        await waiting(db, 1)
        assert await names(db) == []
        assert opened(client)._opened.lent == 1
    finally:
        await standby(fragile, "")
    await waiting(db, 0)
    assert await names(db) == ["given up"]
    await in_order(client)


async def test_a_write_that_postgres_no_longer_runs_gives_its_connection_back(serve: Serve, db: TestDatabase) -> None:  # noqa: F811
    """The network swallows what Postgres sends, as after a failover: all connections of the pool wait for an end that never comes."""
    async with link(db.server) as network:
        url = f"postgresql://{db.server.serving_role}@127.0.0.1:{network.port}/{db.name}?sslmode=disable"
        client = await serve({"database.url": url, "database.pool_size": 2, "database.acquire_seconds": 20.0, "database.statement_seconds": 20.0})
        await write(client, INSERT, "old")
        async with locked(db) as admin:
            tasks = [write(client, UPDATE, name) for name in ("one", "two")]
            backends = await running(db, "UPDATE data", 2)
            network.swallow()
            for task in tasks:
                task.cancel()
            assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [asyncio.CancelledError] * 2
            network.open()
            await asyncio.sleep(2.5)
            assert opened(client)._opened.lent == 2  # Postgres still runs them
            for process in backends:
                await admin.execute("SELECT pg_terminate_backend($1)", process)
        await returned(client)
        assert await names(db) == ["old"]
        await in_order(client)


async def test_a_lock_that_another_has(serve: Serve, db: TestDatabase) -> None:  # noqa: F811
    """Half of the wait for a connection, as in `scoped`: a 503, nothing changed."""
    client = await serve({"database.pool_size": 2, "database.acquire_seconds": 1.0, "database.statement_seconds": 20.0})
    await write(client, INSERT, "old")
    async with locked(db):
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="55P03"):
                await write(client, UPDATE, "new")
    assert await names(db) == ["old"]
    await in_order(client)


async def test_a_statement_that_takes_too_long(serve: Serve, db: TestDatabase) -> None:  # noqa: F811
    client = await serve({"database.pool_size": 2, "database.statement_seconds": 0.5})
    with pytest.raises(Unavailable, match="57014"):
        await write(client, SLEEP, "x")
    assert await names(db) == []
    await in_order(client)


async def test_a_deadlock_is_unavailable_for_one_of_two(client: Client, db: TestDatabase) -> None:  # noqa: F811
    async with db.server.as_admin(db.name) as admin, admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock(9)")
        both = write(client, LOCKS, "one", 1, 2), write(client, LOCKS, "two", 2, 1)
        async with asyncio.timeout(20):
            while (await db.rows("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"))[0]["count"] < 2:
                await asyncio.sleep(0.02)
    got = await asyncio.gather(*both, return_exceptions=True)
    (failed,) = [one for one in got if isinstance(one, BaseException)]
    assert isinstance(failed, Unavailable)
    assert "40P01" in str(failed)
    assert await names(db) == [name for name in ("one", "two") if any(isinstance(one, str) and name in one for one in got)]
    await in_order(client)


async def test_a_serialization_failure_is_unavailable(serve: Serve, db: TestDatabase) -> None:  # noqa: F811
    """For a role whose transactions are repeatable reads."""
    role = db.server.serving_role
    await db.rows(f'ALTER ROLE "{role}" IN DATABASE "{db.name}" SET default_transaction_isolation = "repeatable read"')
    try:
        client = await serve({"database.pool_size": 2, "database.acquire_seconds": 20.0, "database.statement_seconds": 20.0})
        await write(client, INSERT, "old")
        async with locked(db) as admin:
            task = write(client, UPDATE, "new")
            await running(db, "UPDATE data")
            await admin.execute("UPDATE data SET name = 'theirs'")
        with pytest.raises(Unavailable, match="40001"):
            await task
        assert await names(db) == ["theirs"]
        await in_order(client)
    finally:
        await db.rows(f'ALTER ROLE "{role}" IN DATABASE "{db.name}" RESET default_transaction_isolation')


@pytest.mark.parametrize("how", ["the session", "the server"])
async def test_a_postgres_that_is_killed_in_the_middle(client: Client, db: TestDatabase, fragile: Fragile, how: str) -> None:  # noqa: F811
    """A 503, and nothing stored, because the statement had not ended."""
    task = write(client, SLEEP, "half")
    (pid,) = await running(db, "pg_sleep(30)")
    if how == "the session":
        await db.rows("SELECT pg_terminate_backend($1)", pid)
    else:
        await asyncio.to_thread(fragile.down, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await task
    fragile.up()
    await well_again(client)
    assert "half" not in await names(db)
    await in_order(client)


async def test_a_postgres_that_stands_still(serve: Serve, db: TestDatabase, fragile: Fragile) -> None:  # noqa: F811
    """A 503 when the client's own time is up, whatever becomes of the row; afterwards every connection is in order."""
    client = await serve({"database.pool_size": 2, "database.acquire_seconds": 0.5, "database.statement_seconds": 0.5})
    await write(client, INSERT, "first")
    fragile.send(signal.SIGSTOP)
    try:
        unavailable(await client.post("/api/data", ALICE, {"name": "unknown"}))
    finally:
        fragile.send(signal.SIGCONT)
    await well_again(client)
    assert (await names(db)).count("unknown") <= 1
    await in_order(client)


async def test_a_schema_that_changes_under_it(client: Client, db: TestDatabase) -> None:  # noqa: F811
    """`RETURNING *` of a table that has changed: each write is done once."""
    every = "INSERT INTO data (user_id, name) VALUES ('alice', $1) RETURNING *"
    for n, change in enumerate(("ADD COLUMN more text", "ALTER COLUMN more TYPE varchar(9)", "DROP COLUMN more")):
        row = await write(client, every, f"before {n}")
        await db.rows(f"ALTER TABLE data {change}")
        row = await write(client, every, f"name {n}")
        assert row is not None
        assert ('"more":' in row) is (n < 2)
    assert len(await names(db)) == 6
    await in_order(client)
