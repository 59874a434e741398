"""All revocations are read page by page: no statement grows with the table, and nothing that commits meanwhile is missed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from server.app import SERVER_DATABASE
from server.auth.revocation import Revocations
from server.auth.revocation_feed import PAGE_ROWS, Feed
from server.testing.clerk import LoopbackClerk

FILL = """INSERT INTO revocations (kind, subject, expires_at, owner) SELECT 'session', 'sess_' || n, now() + interval '1 hour', 'user_' || n % $2
    FROM generate_series(0, $1::int - 1) AS n"""
INSERT = "INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', $1, now() + interval '1 hour')"
PAGE = 100
Between = Callable[[int], Awaitable[object]]
"""Awaited before each page, with the number of pages that this connection has read."""


class Paused:
    """A real connection that lets others work between two pages."""

    def __init__(self, connection: asyncpg.Connection, between: Between) -> None:
        self._connection, self._between, self.sizes = connection, between, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, sql: str, *args: Any, **more: Any) -> Any:
        await self._between(len(self.sizes))
        rows = await self._connection.fetch(sql, *args, **more)
        self.sizes.append(len(rows))
        return rows


@contextlib.asynccontextmanager
async def paused(db: Any, between: Between) -> AsyncIterator[Paused]:
    async with db.server.connected(db.server.serving_role, db.name) as connection:
        yield Paused(connection, between)


async def nothing(_: int) -> None:
    """Between two pages."""


async def fill(db: Any, rows: int, owners: int) -> None:
    """Add so many sessions of so many users, without an entry in the audit log for each."""
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("SET session_replication_role = replica")
        await admin.execute(FILL, rows, owners)


def feed_of(known: Revocations) -> Feed:
    """A feed whose connections a test opens."""

    def connect() -> Any:
        raise AssertionError

    return Feed(known, connect, page_rows=PAGE)


async def knows(known: Revocations, *subjects: str) -> None:
    async with asyncio.timeout(300):
        while not all(known.revoked("session", subject, None) for subject in subjects):
            await asyncio.sleep(0.02)


async def test_a_server_starts_where_one_statement_could_not_return_all_of_them(serve: Any, db: Any) -> None:
    """The bound is one of Postgres that a machine's speed does not move: what a function returns must fit in its memory."""
    role = f'ALTER ROLE "{db.server.serving_role}" IN DATABASE "{db.name}"'
    await fill(db, 100_000, 100_000)
    await db.rows(f"{role} SET temp_file_limit = 0")
    try:
        async with db.server.connected(db.server.serving_role, db.name) as connection:
            with pytest.raises(asyncpg.ConfigurationLimitExceededError):
                await connection.fetch("SELECT * FROM revocations_since('0')")
        async with LoopbackClerk() as clerk:
            client = await serve(clerk.settings())
            known = client.app[SERVER_DATABASE].revocations
            assert len(known) == 100_000
            for sid, status in (("sess_0", 401), ("sess_54321", 401), ("sess_99999", 401), ("sess_100000", 200)):
                answer = await client.get("/api/me", {"Authorization": f"Bearer {clerk.token(sid=sid)}"})
                assert answer.status == status, sid
            await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%revocations_page%' AND pid <> pg_backend_pid()", db.name)
            await db.rows(INSERT, "sess_later")  # the feed begins anew
            await knows(known, "sess_later", "sess_99999")
            assert len(known) == 100_001
    finally:
        await db.rows(f"{role} RESET temp_file_limit")


async def test_what_commits_between_the_pages_is_not_missed(db: Any) -> None:
    """Whatever its transaction began with: before the first page or after it, new rows, changed ones, wider ones in their place."""
    await fill(db, 10 * PAGE, 500)
    await db.rows("INSERT INTO revocations (kind, subject, expires_at) SELECT 'session', 'old_' || n, now() - interval '1 hour' FROM generate_series(1, 250) AS n")
    await db.rows("INSERT INTO revocations (kind, subject, issued_before, expires_at) VALUES ('user', 'changed', now() - interval '1 day', now() + interval '1 hour')")
    known = Revocations(max_staleness=10)
    feed, minute = feed_of(known), time.time() - 60
    async with db.server.as_admin(db.name) as early, db.server.as_admin(db.name) as late:
        first, last = early.transaction(), late.transaction()
        await first.start()
        await early.execute(INSERT, "early")  # a lower transaction id than every page's horizon
        await last.start()
        await late.execute(INSERT, "late")

        async def between(pages: int) -> None:
            assert len(known) == 0, "nothing is used before the last page has been read"
            assert known.stale
            await db.rows(INSERT, f"page_{pages}")
            if pages == 3:
                await first.commit()
            if pages == 5:
                await db.rows("SELECT gatepost_revoke('user', 'changed', now(), now() + interval '1 hour')")
                # The sessions of user_400: some pages have been read, others have not.
                await db.rows("SELECT gatepost_revoke('session', 'sess_new', NULL, now() + interval '1 hour', 'user_400', 2)")
            if pages == 6:
                await db.rows("SELECT prune_sync()")

        async with paused(db, between) as connection:
            await feed._read(connection)
            assert len(connection.sizes) > 10
            assert max(connection.sizes) == PAGE
        assert known.age < math.inf
        assert await db.count("revocations WHERE kind = 'session' AND subject LIKE 'old_%'") == 0
        assert known.revoked("user", "changed", minute)
        assert known.revoked("user", "user_400", minute)
        held = [row["subject"] for row in await db.rows("SELECT subject FROM revocations WHERE kind = 'session'")]
        pages = len(connection.sizes)
        missed = [subject for subject in held if not known.revoked("session", subject, None)]
        # Only what was written before the very last statement, which came after all others.
        assert set(missed) <= {f"page_{pages - 1}"}
        assert not known.revoked("session", "late", None)
        assert not known.revoked("session", "old_1", None)
        await last.commit()
        async with paused(db, nothing) as connection:
            await feed._read(connection)
            assert connection.sizes[0] < PAGE, "the next reading begins with the oldest transaction that was in progress"
        assert known.revoked("session", "late", None)
        assert known.revoked("session", f"page_{pages - 1}", None)


async def test_a_transaction_that_stays_open_does_not_make_the_next_reading_one_large_statement(db: Any) -> None:
    """Each reading repeats what was written since that one began: page by page too, and each row counts as soon as it is read."""
    known = Revocations(max_staleness=1000)
    feed = feed_of(known)
    async with db.server.as_admin(db.name) as late:
        transaction = late.transaction()
        await transaction.start()
        await late.execute(INSERT, "late")
        async with paused(db, nothing) as connection:
            await feed._read(connection)
            await fill(db, 5 * PAGE, 500)
            ages = []

            async def between(pages: int) -> None:
                ages.append(known.age)
                assert len(known) >= (pages - 1) * PAGE

            connection._between, connection.sizes = between, []
            await feed._read(connection)
            assert len(known) == 5 * PAGE
            assert max(connection.sizes) == PAGE
            assert ages == sorted(ages), "the set is fresh again once the last page has been read"
            assert known.age < ages[-1] + 0.001
        await transaction.rollback()


async def test_a_page_that_fails_begins_anew_and_what_was_known_goes_on_until_it_is_stale(db: Any) -> None:
    await fill(db, 10 * PAGE, 500)
    known = Revocations(max_staleness=1e-6)  # whatever is older than the last page is stale
    opened, first, again = 0, 0, asyncio.Event()
    freshness: list[tuple[int, bool]] = []

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        nonlocal opened, first
        opened += 1
        mine = opened
        if mine == 3:
            await again.wait()

        async def between(pages: int) -> None:
            freshness.append((len(known), known.stale))
            if mine == 2 and pages == 4:
                await db.rows("SELECT pg_terminate_backend($1)", connection._connection.get_server_pid())

        async with paused(db, between) as connection:
            first = first or connection._connection.get_server_pid()
            yield connection

    feed = Feed(known, connect, page_rows=PAGE)
    await feed.open()
    assert len(known) == 10 * PAGE
    try:
        assert opened == 1
        await db.rows("SELECT pg_terminate_backend($1)", first)
        async with asyncio.timeout(300):
            while opened < 3:
                await asyncio.sleep(0.02)
        assert len(known) == 10 * PAGE, "half of the pages must not take the place of all"
        assert known.stale
        await db.rows(INSERT, "later")
        await db.rows("DELETE FROM revocations WHERE subject = 'sess_1'")  # as a server that had lost it
        again.set()
        await knows(known, "later")
        assert not known.revoked("session", "sess_1", None)
        assert known.revoked("session", f"sess_{10 * PAGE - 1}", None)
    finally:
        await feed.close()


async def test_a_start_is_refused_a_first_page_that_fails(db: Any) -> None:
    """Nothing of it is used; a second attempt reads everything."""
    await fill(db, 3 * PAGE, 500)
    known, fails = Revocations(max_staleness=1000), True

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        async def between(pages: int) -> None:
            if fails and pages == 2:
                await db.rows("SELECT pg_terminate_backend($1)", connection._connection.get_server_pid())

        async with paused(db, between) as connection:
            yield connection

    feed = Feed(known, connect, page_rows=PAGE)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
        await feed.open()
    assert (len(known), known.age) == (0, math.inf)
    fails = False
    await feed.open()
    await feed.close()
    assert len(known) == 3 * PAGE


async def test_more_than_can_be_held_are_read_page_by_page_too(db: Any) -> None:
    await fill(db, 10 * PAGE, 500)
    known, heard = Revocations(max_staleness=1000, most=4 * PAGE), list[set[tuple[str, str]]]()
    known.listeners.append(heard.append)
    async with paused(db, nothing) as connection:
        await feed_of(known)._read(connection)
    assert len(known) <= 4 * PAGE
    assert heard == [set()], "any open stream may be concerned"
    assert known.revoked("session", "never seen", time.time() - 60), "credentials from before are refused"
    assert not known.revoked("session", "never seen", time.time() + 3600)


async def test_a_page_is_bounded_in_a_database_without_statistics(db: Any) -> None:
    """Its plan reads the index from the page's place on: neither the table nor a sort."""
    await fill(db, 3 * PAGE_ROWS, 500)
    place = await db.rows(
        'SELECT changed_in::text, kind, subject FROM revocations ORDER BY changed_in, kind COLLATE "C", subject COLLATE "C" OFFSET 15000 LIMIT 1'
    )
    at = place[0]["changed_in"], place[0]["kind"], place[0]["subject"]
    async with db.server.as_admin(db.name) as admin:
        try:
            await admin.execute("LOAD 'auto_explain'")
        except asyncpg.UndefinedFileError:
            pytest.skip("Postgres's extension auto_explain is not installed")
        plans: list[str] = []
        admin.add_log_listener(lambda _, message: plans.append(message.message))
        for setting, value in (("log_min_duration", "0"), ("log_nested_statements", "on"), ("log_level", "notice")):
            await admin.execute(f"SET auto_explain.{setting} = '{value}'")
        rows = await admin.fetch("SELECT * FROM revocations_page($1::text::xid8, $2, $3, 100)", *at)
    assert [row["subject"] for row in rows] == sorted(row["subject"] for row in rows)
    assert len(rows) == 100
    inner = next(plan for plan in plans if "LIMIT at_most" in plan)
    assert "Index Scan using revocations_pages" in inner
    assert "Sort" not in inner
