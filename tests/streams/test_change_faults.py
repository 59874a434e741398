"""Changes while things go wrong: Postgres restarts, a network swallows everything, a pooler in between, readers that wait."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kits.faults import Fragile, fragile_server, link
from kits.live import events, until
from kits.pgbouncer import pgbouncer

from server.schema.migrate import apply
from server.streams.live_changes import CHANGES
from tests.conftest import Client, Serve, TestDatabase, url_of
from tests.streams.test_live_changes import ABE, ANN, BEA, LIVE, TODOS, change, hearing, nothing, own  # noqa: F401

INSERT = "INSERT INTO todos (organization_id, title) VALUES ('red', $1)"


@pytest.fixture(scope="module")
def fragile() -> Iterator[Fragile]:
    """A Postgres of this module's own, to be killed."""
    with fragile_server() as server:
        yield server


@pytest.fixture
async def mortal(fragile: Fragile) -> AsyncIterator[TestDatabase]:
    found = TestDatabase(fragile, await fragile.fresh())
    async with fragile.connected(fragile.owner_role, found.name) as owner:
        await owner.execute("SET client_min_messages = error")
        await apply(owner, TODOS, serving_role=fragile.serving_role)
    yield found
    fragile.up()
    await fragile.drop_database(found.name)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """(message, fields) of each line of the change feed."""
    return [(record.getMessage(), record.fields) for record in caplog.records if record.getMessage().startswith("change feed")]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_postgres_restarts(
    serve: Serve, fragile: Fragile, mortal: TestDatabase, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """No event is sent while it is down; then a resync, and what is written after it. The log has a line for the outage, and
    another for its end."""
    caplog.set_level("INFO")
    client = await serve({"database.url": mortal.url}, extra=LIVE)
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", BEA) as bea:
        await asyncio.to_thread(fragile.down, how)
        await nothing(ann, bea)
        feed = client.app[CHANGES].feed
        await until(lambda: not feed.listening, 20)
        failures = feed.failures
        await until(lambda: feed.failures >= failures + 3, 60)
        assert [message for message, _ in logged(caplog)] == ["change feed interrupted"]
        await asyncio.to_thread(fragile.up)
        await mortal.rows(INSERT, "unheard")
        for stream in (ann, bea):
            event = await stream.next(15)
            while event["event"] != "resync":  # written before or after it listened again
                event = await stream.next(15)
        await mortal.rows(INSERT, "heard")
        seen = await change(ann)
        while seen[1].get("title") != "heard":
            seen = await change(ann)
        await nothing(bea)
    (begun, why), (over, how_long) = logged(caplog)
    assert (begun, over) == ("change feed interrupted", "change feed resumed")
    assert why["error"]
    assert how_long.keys() == {"seconds"}
    assert how_long["seconds"] > 0


async def test_an_outage_is_logged_with_what_postgres_says(
    serve: Serve, fragile: Fragile, mortal: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """The role may no longer log in, and the first attempt already fails."""
    caplog.set_level("INFO")
    client = await serve({"database.url": mortal.url}, extra=LIVE)
    feed = client.app[CHANGES].feed
    await feed.close()
    async with fragile.as_admin() as admin:
        await admin.execute(f"ALTER ROLE {fragile.serving_role} NOLOGIN")
        try:
            feed._task = None
            feed._listening.clear()
            feed.start()
            await until(lambda: feed.failures >= 3, 60)
        finally:
            await admin.execute(f"ALTER ROLE {fragile.serving_role} LOGIN")
    await until(lambda: feed.listening, 60)
    (begun, why), (over, _) = logged(caplog)
    assert (begun, over) == ("change feed interrupted", "change feed resumed")
    assert why["error"] == "Unavailable"
    assert "not permitted to log in" in why["why"]


async def test_a_network_that_swallows_everything(serve: Serve, fragile: Fragile, mortal: TestDatabase) -> None:
    """A half-open connection to Postgres is noticed, and another one opened."""
    async with link(fragile) as way:
        direct = f"postgresql://{fragile.serving_role}@127.0.0.1:{way.port}/{mortal.name}?sslmode=disable"
        client = await serve({"database.url": mortal.url, "database.direct_url": direct}, extra=LIVE)
        live = client.app[CHANGES]
        live.feed._beat = 0.2
        live.feed._wake.set()
        async with hearing(client, "/api/todos/events", ANN) as ann:
            way.swallow()
            await mortal.rows(INSERT, "missed")
            await until(lambda: not live.feed.listening, 10)
            way.open()
            assert (await ann.next(15))["event"] == "resync"
            await mortal.rows(INSERT, "heard")
            assert (await change(ann))[1]["title"] == "heard"


async def test_a_listener_that_is_killed_at_once_each_time_does_not_spin(serve: Serve, fragile: Fragile, mortal: TestDatabase) -> None:
    async with link(fragile) as way:
        direct = f"postgresql://{fragile.serving_role}@127.0.0.1:{way.port}/{mortal.name}?sslmode=disable"
        client = await serve({"database.url": mortal.url, "database.direct_url": direct}, extra=LIVE)
        feed = client.app[CHANGES].feed
        way.hang_up()
        await until(lambda: not feed.listening, 10)
        began, before = time.monotonic(), way.refused
        await asyncio.sleep(3)
        assert way.refused - before <= 6 + 12 * (time.monotonic() - began)  # the feed of revocations tries too
        assert way.refused - before >= 1
        way.open()
        await until(lambda: feed.listening, 10)


async def test_behind_a_transaction_pooler(serve: Serve, postgres: Any, own: TestDatabase) -> None:  # noqa: F811
    """One connection to Postgres for all transactions: each row is read under its own caller's scope."""
    with pgbouncer(postgres, 1) as bouncer:
        role = postgres.serving_role
        client = await serve({"database.url": bouncer.url(role, own.name), "database.direct_url": url_of(postgres, role, own.name),
                              "database.pooler": "transaction"}, extra=LIVE)  # fmt: skip
        async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", ABE) as abe, \
                hearing(client, "/api/todos/events", BEA) as bea:  # fmt: skip
            for turn in range(10):
                await own.rows("INSERT INTO todos (organization_id, created_by, title, private) VALUES ('red', 'abe', $1, true), ('blue', 'bea', $1, true)", str(turn))
                assert [(await change(one))[1]["title"] for one in (abe, bea)] == [str(turn)] * 2
            await nothing(ann)


async def test_two_servers_receive_the_same_changes(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    one, two = await serve({"database.url": own.url}, extra=LIVE), await serve({"database.url": own.url}, extra=LIVE)
    async with hearing(one, "/api/todos/events", ANN) as ann, hearing(two, "/api/todos/events", ABE) as abe:
        await own.rows(INSERT, "a")
        assert [(await change(stream))[1]["title"] for stream in (ann, abe)] == ["a", "a"]


async def test_a_user_who_is_moved_to_another_organization_receives_no_more(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    client = await serve({"database.url": own.url}, extra=LIVE)
    live = client.app[CHANGES]
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", ABE) as abe:
        await own.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('membership', 'ann red', now() + interval '1 hour')")
        assert await ann.end() == "session-revoked"
        await until(lambda: len(live.fanout) == 1)
        await own.rows(INSERT, "a")
        assert (await change(abe))[1]["title"] == "a"


async def test_a_database_that_does_not_answer_delays_a_change(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    """The row is read again later: a change is not lost by a reading that fails."""
    client = await serve({"database.url": own.url, "database.statement_seconds": 0.3}, extra=LIVE)
    async with hearing(client, "/api/todos/events", ANN) as ann:
        async with own.server.as_admin(own.name) as admin, admin.transaction():
            await own.rows(INSERT, "a")
            await admin.execute("LOCK TABLE todos IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(1.0)
        event, row = await change(ann)
        assert (event, row["title"]) == ("created", "a")


async def test_reads_for_streams_leave_connections_to_requests(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    """Many streams whose readings wait for a lock: a request still gets a connection at once."""
    client = await serve({"database.url": own.url, "database.pool_size": 6, "streams.per_caller": 100}, extra=LIVE)
    async with own.server.as_admin(own.name) as admin:
        streams = [events(client, "/api/todos/events", {"Authorization": f'Stub user_id="u{n}", org_id="red"'}) for n in range(30)]
        opened = [await one.__aenter__() for one in streams]
        try:
            for one in opened:
                assert (await one.next())["event"] == "ready"
            await own.rows(INSERT, "a")
            for one in opened:
                assert (await one.next())["event"] == "created"
            async with admin.transaction():
                await admin.execute("UPDATE todos SET title = 'b'")
                await admin.execute("SELECT pg_notify('gatepost_changes', '[\"public.todos\", \"organization\", \"red\", \"u\", []]')")
            async with admin.transaction():
                await admin.execute("LOCK TABLE todos IN ACCESS EXCLUSIVE MODE")
                await asyncio.sleep(0.2)
                pool = client.app[CHANGES].reader
                assert len(pool._workers) <= 2
                # Without a free connection it would be a 503: the lock is kept until this has an answer.
                assert (await client.get("/api/data", ANN)).status == 200
        finally:
            for stream in streams:
                await stream.__aexit__(None, None, None)


async def test_a_client_that_goes_leaves_nothing_behind(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    client: Client = await serve({"database.url": own.url}, extra=LIVE)
    live = client.app[CHANGES]
    for _ in range(20):
        async with hearing(client, "/api/todos/events", ANN):
            pass
    await own.rows(INSERT, "a")
    await until(lambda: len(live.fanout) == 0)
    assert (live.fanout._by_key, live.fanout.held, dict(live.reader._waiting)) == ({}, 0, {})
