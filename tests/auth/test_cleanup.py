"""Cleaning up after ended accesses: in batches, and without delaying the reading of revocations."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kits.live import until

from server import Unavailable
from server.app import SERVER_DATABASE
from server.auth import cleanup as cleanup_module
from server.auth.cleanup import BATCH_ROWS, Cleanup
from server.auth.revocation import Revocations
from server.database.connections import Database
from server.testing.clerk import LoopbackClerk
from tests.conftest import Serve, TestDatabase

ENDED = "INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', $1, now() + interval '1 hour')"
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'"
FEEDS = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%revocations_page%' AND pid <> pg_backend_pid()"


@contextlib.asynccontextmanager
async def opened(db: TestDatabase, size: int = 1) -> AsyncIterator[Database]:
    made = Database(size=size, acquire_seconds=60, statement_seconds=60, pooled=False)
    await made.open({"dsn": db.url})
    try:
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def locked(db: TestDatabase, table: str) -> AsyncIterator[None]:
    """Another session has this table for itself, as a migration that builds an index or VACUUM FULL has."""
    async with db.server.as_admin(db.name) as other, other.transaction():
        await other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


async def pids(db: TestDatabase, sql: str) -> set[int]:
    """The sessions that this finds, as soon as there is one."""
    async with asyncio.timeout(60):
        while not (found := {row["pid"] for row in await db.rows(sql, db.name)}):
            await asyncio.sleep(0.02)
    return found


async def test_a_locked_table_does_not_delay_the_reading_of_revocations(serve: Serve, db: TestDatabase) -> None:
    """Each revocation is followed by a clean-up. The connection that reads must not be the one that waits for its lock."""
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "database.url": db.url})
        known = client.app[SERVER_DATABASE].revocations
        async with locked(db, "endings"):
            await db.rows(ENDED, "sess_one")
            blocked = await pids(db, WAITING)
            await db.rows(ENDED, "sess_two")
            await until(lambda: known.revoked("session", "sess_two", None), 60)
            assert not await pids(db, FEEDS) & blocked
            headers = {"Authorization": f"Bearer {clerk.token(sid='sess_two')}"}
            got = await client.get("/api/me", headers)
            assert (got.status, got.json()["reason"]) == (401, "session-revoked")


async def test_a_start_reads_all_revocations_once(serve: Serve, db: TestDatabase) -> None:
    """The connection that has read them at startup then reads the new ones."""
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "database.url": db.url})
        known, feeds = client.app[SERVER_DATABASE].revocations, await pids(db, FEEDS)
        assert len(feeds) == 1
        await db.rows(ENDED, "sess_one")
        await until(lambda: known.revoked("session", "sess_one", None), 60)
        assert await pids(db, FEEDS) == feeds


@pytest.mark.parametrize("table", ["endings", "webhook_inbox", "revocations", "idempotency_keys"])
async def test_a_wait_for_a_lock_ends_by_itself_and_the_connection_is_free_again(db: TestDatabase, table: str) -> None:
    async with opened(db) as database:
        cleanup = Cleanup(Revocations(max_staleness=10), database.call)
        async with locked(db, table):
            with pytest.raises(Unavailable, match="55P03"):
                await (cleanup.sweep() if table == "endings" else cleanup.prune())
            assert database.pool is not None
            assert (database.pool.lent, database.pool.idle) == (0, 1)
        await cleanup.sweep()
        await cleanup.prune()


async def test_many_expired_rows_are_deleted_in_batches(db: TestDatabase) -> None:
    many = 2 * BATCH_ROWS + 1
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("SET session_replication_role = replica")
        for age in ("-1", "1"):
            await admin.execute(
                "INSERT INTO revocations (kind, subject, expires_at) SELECT 'session', $2 || n, now() + $2::int * interval '1 hour' FROM generate_series(1, $1::int) n",
                many, age)  # fmt: skip
            await admin.execute(
                "INSERT INTO webhook_inbox (id, provider, type, event_at, payload, expires_at) SELECT $2 || '_' || n, 'clerk', 't', now(), '{}', now() + $2::int * interval '1 hour' FROM generate_series(1, $1::int) n",
                many, age)  # fmt: skip
    sizes: list[int] = []
    async with opened(db) as database:

        async def call(function: str, *args: Any) -> Any:
            rows = await database.call(function, *args)
            sizes.append(rows[0][function])
            return rows

        await Cleanup(Revocations(max_staleness=10), call).prune()
    assert sizes == [2 * BATCH_ROWS, 2 * BATCH_ROWS, 2, 0]
    assert [await db.count("revocations"), await db.count("webhook_inbox")] == [many, many]
    assert await db.count("revocations WHERE expires_at <= now()") == 0


async def test_two_processes_do_not_prune_the_same_rows(db: TestDatabase) -> None:
    await db.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', 'old', now() - interval '1 hour')")
    async with opened(db) as database, db.server.as_admin(db.name) as other:
        async with other.transaction():
            await other.execute("SELECT prune_sync()")
            assert (await database.call("prune_sync"))[0]["prune_sync"] == 0
        assert await db.count("revocations") == 0


async def test_an_outage_is_logged_once_and_the_work_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    known, calls, down = Revocations(max_staleness=10), list[str](), True

    async def call(function: str, *_: Any) -> Any:
        calls.append(function)
        if down:
            raise Unavailable("the database is not open")
        return [{function: 0}]

    cleanup = Cleanup(known, call)
    with caplog.at_level(logging.WARNING, "gatepost"):
        cleanup.open()
        for number in range(1, 4):
            await until(lambda number=number: len(calls) >= number, 60)
            known.add([{"kind": "session", "subject": f"s{number}", "issued_before": None, "expires_at": None}], 0.0)
        assert [record.getMessage() for record in caplog.records] == ["clean-up interrupted"]
        down = False
        done = len(calls)
        known.add([{"kind": "session", "subject": "last", "issued_before": None, "expires_at": None}], 0.0)
        await until(lambda: len(calls) > done, 60)
        await cleanup.close()
    assert cleanup.pending == 0


async def test_many_ends_are_swept_without_a_pause_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ban leaves one for each key. There is a pause only after a batch that finished none of them, or after a while."""
    monkeypatch.setattr(cleanup_module, "WORK_SECONDS", 3600.0)
    monkeypatch.setattr(cleanup_module, "PAUSE_SECONDS", 3600.0)
    left = iter([*range(20_000, 0, -1), 0])

    async def call(function: str, *_: Any) -> Any:
        return [{function: next(left)}]

    cleanup = Cleanup(Revocations(max_staleness=10), call)
    cleanup.pending = 20_001
    async with asyncio.timeout(300):
        await cleanup.sweep()
    assert (cleanup.pending, list(left)) == (0, [])
