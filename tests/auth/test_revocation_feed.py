"""The feed's connection through a failover: attempts that hang, connections that are slow to open, and standbys."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kits.faults import Fragile, Link, Standby, fragile_server, link, with_standby
from kits.live import until

from server import Unavailable
from server.auth.feed_connection import SHORT_SECONDS, soonest
from server.auth.revocation import Revocations
from server.auth.revocation_feed import Feed
from server.database.direct import direct_connection
from server.testing.clerk import LoopbackClerk
from tests.conftest import Serve, TestDatabase

FOREVER = 3600.0
ENDED = "INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', $1, now() + interval '1 hour')"


@pytest.fixture(scope="module")
def fragile() -> Iterator[Fragile]:
    """A Postgres of this module's own."""
    with fragile_server() as server:
        yield server


@pytest.fixture
async def own(fragile: Fragile) -> AsyncIterator[TestDatabase]:
    found = TestDatabase(fragile, await fragile.fresh())
    yield found
    await fragile.drop_database(found.name)


class Doors:
    """Opens connections through a Link, and counts how many are being opened and are open."""

    def __init__(self, way: Link, own: TestDatabase, *, slow: float = 0.0) -> None:
        """`slow`: so many seconds longer than usual, beginning with the second one."""
        self.way, self.own, self.slow = way, own, slow
        self.begun = self.waiting = self.most_waiting = self.open = 0

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Any]:
        self.begun += 1
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        role, name = self.own.server.serving_role, self.own.name
        dsn = f"postgresql://{role}@127.0.0.1:{self.way.port}/{name}?sslmode=disable"
        try:
            await asyncio.sleep(self.slow if self.begun > 1 else 0)
            opening = direct_connection({"dsn": dsn}, seconds=FOREVER)
            connection = await opening.__aenter__()
        finally:
            self.waiting -= 1
        self.open += 1
        try:
            yield connection
        finally:
            self.open -= 1
            await opening.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def feeding(doors: Doors) -> AsyncIterator[Revocations]:
    known = Revocations(max_staleness=10)
    feed = Feed(known, doors)
    await feed.open()
    try:
        assert (doors.begun, doors.open) == (1, 1), "all revocations are read once, on the connection that it keeps"
        yield known
    finally:
        await feed.close()
    assert (doors.open, doors.waiting) == (0, 0)


async def break_off(doors: Doors) -> None:
    """Close the open connection, and have every new one hang."""
    doors.way.hang_up()
    doors.way.swallow()
    before = doors.begun
    await until(lambda: doors.begun >= before + 3, 60)


async def test_an_attempt_that_hangs_is_overtaken(fragile: Fragile, own: TestDatabase) -> None:
    """As in a proxy that has lost the primary: what was sent there before is never answered, and what comes later is."""
    async with link(fragile) as way:
        doors = Doors(way, own)
        async with feeding(doors) as known:
            await break_off(doors)
            assert doors.open == 0
            way.open()
            await own.rows(ENDED, "sess_meanwhile")
            await until(lambda: known.revoked("session", "sess_meanwhile", None), 30)
            assert doors.most_waiting <= 2
            assert (doors.open, doors.waiting) == (1, 0)
            await own.rows(ENDED, "sess_afterwards")
            await until(lambda: known.revoked("session", "sess_afterwards", None), 30)


async def test_a_connection_that_is_slow_to_open_is_waited_for(fragile: Fragile, own: TestDatabase) -> None:
    """On a loaded machine each short attempt is too short. The patient one is not."""
    async with link(fragile) as way:
        doors = Doors(way, own, slow=3 * SHORT_SECONDS)
        async with feeding(doors) as known:
            way.hang_up()
            way.open()
            await own.rows(ENDED, "sess_slow")
            await until(lambda: known.revoked("session", "sess_slow", None), 60)
            assert doors.most_waiting <= 2
            assert (doors.open, doors.waiting) == (1, 0)


async def test_the_end_while_attempts_hang(fragile: Fragile, own: TestDatabase) -> None:
    async with link(fragile) as way:
        doors = Doors(way, own)
        async with feeding(doors):
            await break_off(doors)


async def test_what_the_patient_attempt_fails_with(fragile: Fragile) -> None:
    """A refusal is reported at once, and no other attempt is made beside it."""
    begun = 0

    def connect() -> Any:
        nonlocal begun
        begun += 1
        return direct_connection({"dsn": f"postgresql://nobody@127.0.0.1:{way.port}/none?sslmode=disable"}, seconds=FOREVER)

    async with link(fragile) as way:
        with pytest.raises(Unavailable, match="nobody"):
            async with soonest(connect):
                raise AssertionError("connected")
    assert begun == 1


async def test_what_the_body_raises_closes_the_connection(fragile: Fragile, own: TestDatabase) -> None:
    async with link(fragile) as way:
        doors = Doors(way, own)
        used: list[Any] = []

        async def use() -> None:
            async with soonest(doors) as connection:
                used.append(connection)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await use()
        assert (doors.open, doors.waiting) == (0, 0)
        assert used[0].is_closed()


async def test_a_standby_is_not_read_from(serve: Serve) -> None:
    """It has what the primary had at some time. Not even the first reading may come from there."""
    with with_standby() as (primary, standby):
        found = TestDatabase(primary, await primary.fresh())
        await asyncio.to_thread(standby.start)
        known = Revocations(max_staleness=10)
        feed = Feed(known, lambda: direct_connection(standby.connect_args(standby.serving_role, found.name)))
        with pytest.raises(Unavailable, match="standby"):
            await feed.open()
        assert known.age == math.inf
        await _and_of_two_hosts_the_primary(serve, found, primary, standby)


async def _and_of_two_hosts_the_primary(serve: Serve, found: TestDatabase, primary: Fragile, standby: Standby) -> None:
    """The URL names a standby first, and does not say which of the two is meant."""
    async with link(standby) as one, link(primary) as two, LoopbackClerk() as clerk:
        where = f"postgresql://{primary.serving_role}@127.0.0.1:{one.port},127.0.0.1:{two.port}/{found.name}?sslmode=disable"
        client = await serve({**clerk.settings(), "database.url": found.url, "database.direct_url": where})
        headers = {"Authorization": f"Bearer {clerk.token(sid='sess_two')}"}
        assert (await client.get("/api/me", headers)).status == 200
        await found.rows(ENDED, "sess_two")
        async with asyncio.timeout(60):
            while (got := await client.get("/api/me", headers)).status == 200:
                await asyncio.sleep(0.05)
        assert (got.status, got.json()["reason"]) == (401, "session-revoked")
        await asyncio.to_thread(primary.down, signal.SIGKILL)
        await standby.promote()
        after = TestDatabase(standby, found.name)
        headers = {"Authorization": f"Bearer {clerk.token(sid='sess_three')}"}
        await after.rows(ENDED, "sess_three")
        async with asyncio.timeout(60):
            while (got := await client.get("/api/me", headers)).status != 401:
                await asyncio.sleep(0.05)
        assert got.json()["reason"] == "session-revoked"
