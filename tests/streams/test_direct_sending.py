"""`stream.send_changes`: changes go to the connection without the handler's task, and every rule of a stream holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from kits.live import Events, events, registry, until

from server import event_stream, signed_in
from server.streams.change import Change
from server.streams.fanout import PENDING
from server.streams.live_changes import CHANGES
from server.testing.clerk import LoopbackClerk
from tests.conftest import Client, Serve, TestDatabase, plugin, stub
from tests.streams.test_live_changes import ABE, ANN, BEA, TODOS, change, hearing, nothing, own  # noqa: F401

routes = web.RouteTableDef()
woken: list[str] = []


async def direct(request: web.Request, table: str) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("", event="ready")
        send, stream._send = stream._send, lambda frame: woken.append(request.path) or send(frame)  # type: ignore[method-assign]
        await stream.send_changes(table)
    return stream.response


@routes.get("/api/todos/direct")
@signed_in
async def todos(request: web.Request) -> web.StreamResponse:
    return await direct(request, "todos")


@routes.get("/api/lists/direct")
@signed_in
async def lists(request: web.Request) -> web.StreamResponse:
    return await direct(request, "lists")


@routes.get("/api/silent/direct")
@signed_in
async def silent(request: web.Request) -> web.StreamResponse:
    return await direct(request, "silent")


@routes.get("/api/todos/patient")
@signed_in
async def patient(request: web.Request) -> web.StreamResponse:
    """Asks for each change with a time-out, as a handler does that has other things to do meanwhile."""
    async with event_stream(request) as stream:
        changes = stream.changes("todos")
        await stream.send("", event="ready")
        while True:
            with contextlib.suppress(TimeoutError):
                event, id, row = await asyncio.wait_for(anext(changes), 0.002)
                await stream.send(row or {"id": id}, event=event, id=id)


@routes.get("/api/todos/twice")
@signed_in
async def twice(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        changes = stream.changes("todos")
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.1)
        try:
            await anext(changes)
        except RuntimeError as error:
            await stream.send(str(error), event="refused")
        first.cancel()
    return stream.response


@routes.get("/api/todos/stubborn")
@signed_in
async def stubborn(request: web.Request) -> web.StreamResponse:
    """Asks for changes again after each cancellation, and once more when its stream is over."""
    stream = event_stream(request)
    async with stream:
        await stream.send("", event="ready")
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await stream.send_changes("todos")
    with contextlib.suppress(asyncio.CancelledError):
        await stream.send_changes("todos")
    return stream.response


LIVE = {"live": plugin(*routes)}
INSERT = "INSERT INTO todos (organization_id, created_by, title, private) VALUES ($1, $2, $3, $4) RETURNING id"


@pytest.fixture
async def client(serve: Serve, own: TestDatabase) -> Client:  # noqa: F811
    woken.clear()
    return await serve({"database.url": own.url, "streams.per_caller": 200}, extra=LIVE)


@asynccontextmanager
async def watching(client: Client, who: dict[str, str], number: int = 1) -> AsyncIterator[list[Events]]:
    """So many streams of one caller."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(hearing(client, "/api/todos/direct", who)) for _ in range(number)]


async def write(own: TestDatabase, title: str, org: str = "red", by: str = "abe", private: bool = False) -> str:  # noqa: F811
    (row,) = await own.rows(INSERT, org, by, title, private)
    return str(row["id"])


async def test_changes_arrive_and_no_task_is_woken(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """The same events as those of a loop over `changes`, each with the row's id."""
    async with watching(client, ANN) as (ann,), watching(client, BEA) as (bea,):
        id = await write(own, "a")
        first = await ann.next()
        assert (first["event"], first["id"], json.loads(first["data"])["title"]) == ("created", id, "a")
        await own.rows("UPDATE todos SET title = 'b'")
        assert (await change(ann))[1]["title"] == "b"
        await own.rows("DELETE FROM todos")
        last = await ann.next()
        assert (last["event"], last["id"], json.loads(last["data"])) == ("deleted", id, {"id": id})
        assert woken == []
        await own.rows("TRUNCATE todos")
        assert [await change(one) for one in (ann, bea)] == [("resync", {})] * 2
        await nothing(ann, bea)


async def test_each_scope_gets_what_it_may_see(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """Frames are shared only between streams whose own reads had the same result."""
    async with watching(client, ANN, 3) as ann, watching(client, ABE, 3) as abe, watching(client, BEA) as bea:
        for turn in range(10):
            await write(own, f"hidden {turn}", private=True)
            await write(own, f"open {turn}")
            for one in abe:
                assert [(await change(one))[1]["title"] for _ in range(2)] == [f"hidden {turn}", f"open {turn}"]
            for one in ann:
                assert (await change(one))[1]["title"] == f"open {turn}"
        await nothing(*ann, *bea)


async def test_a_row_that_is_hidden_between_the_change_and_the_read(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """The policy is asked when the row is read, and its values are those of that moment."""
    async with watching(client, ANN) as (ann,), watching(client, ABE) as (abe,):
        async with own.server.as_admin(own.name) as admin:
            await admin.execute("INSERT INTO todos (organization_id, created_by, title) VALUES ('red', 'abe', 'a')")
            # The lock makes the read of a stream that was late wait: it began before the row was hidden, and ends after that.
            async with admin.transaction():
                await admin.execute("LOCK TABLE todos IN ACCESS EXCLUSIVE MODE")
                await admin.execute("UPDATE todos SET private = true, title = 'b'")
                await asyncio.sleep(0.3)
        seen = [(await change(abe))[1]["title"]]
        while seen[-1] != "b":
            seen.append((await change(abe))[1]["title"])
        with contextlib.suppress(TimeoutError):  # the change before it may have been read in time
            assert json.loads((await ann.next(0.5))["data"])["title"] == "a"
        await nothing(ann)


async def test_the_order_of_one_rows_changes(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """Changes of one row may be merged, but none arrives before an older one; the last is what the row is."""
    async with watching(client, ANN, 5) as streams:
        id = await write(own, "0")

        async def updates() -> None:
            async with own.server.as_admin(own.name) as admin:
                for number in range(1, 100):
                    await admin.execute("UPDATE todos SET title = $1", str(number))
                await admin.execute("DELETE FROM todos")

        writing = asyncio.create_task(updates())
        for stream in streams:
            titles = []
            while True:
                found = await stream.next(20)
                assert found["id"] == id
                if found["event"] == "deleted":
                    break
                titles.append(int(json.loads(found["data"])["title"]))
            assert titles == sorted(titles)
        await writing
        await nothing(*streams)


async def test_nothing_comes_after_the_end(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """A session ends while its rows are being read, and others' are: `end` is the last event, for others all arrive."""
    gone = stub("ann", org_id="red", session_id="sess_ann")
    async with watching(client, gone, 20) as ann, watching(client, ABE, 5) as abe:
        writing = asyncio.create_task(own.rows("INSERT INTO todos (organization_id, title) SELECT 'red', i FROM generate_series(1, 200) AS i"))
        await asyncio.sleep(0.02)
        await own.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('user', 'ann', now() + interval '1 hour')")
        await writing
        for stream in ann:
            assert await stream.end() == "session-revoked"  # which asserts that nothing follows
        for stream in abe:
            assert len({(await stream.next())["id"] for _ in range(200)}) == 200
    live = client.app[CHANGES]
    await until(lambda: len(live.fanout) == 0)
    assert (live.fanout.held, dict(live.reader._waiting), list(live.fanout._due)) == (0, {}, [])


async def test_a_drain_in_the_middle_of_a_batch(client: Client, own: TestDatabase) -> None:  # noqa: F811
    async with watching(client, ANN, 100) as streams:
        await write(own, "a")
        streams_of = registry(client)
        await until(lambda: any(one.request.writer.output_size > 600 for one in streams_of._clock.leases()))
        streams_of.drain()
        for stream in streams:
            assert await stream.end() == "draining"


async def test_nothing_is_read_for_a_stream_that_ends_while_it_is_sent_to(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """Its connection is found to be closing by the first of two changes: no read begins for the second."""
    async with watching(client, ANN):
        live = client.app[CHANGES]
        await until(lambda: len(live.fanout) == 1)
        (lease,), (subscription,) = registry(client)._clock.leases(), live.fanout._all
        changes = subscription.notify.__self__  # type: ignore[union-attr]
        await until(lambda: changes._waiter is not None)
        lease.transport.close()
        subscription.pending["2"], live.fanout.held = "created", 1
        changes._ready.append(Change("deleted", "1", None))
        changes._go_on()
        assert (lease.end.reason, dict(live.reader._waiting), list(live.reader._workers)) == ("client", {}, [])
    await until(lambda: len(live.fanout) == 0)
    assert live.fanout.held == 0


async def test_a_client_that_reads_nothing(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """What waits for it is bounded, no row is read for it, and others are not delayed; it receives `resync` if it reads again."""
    bounds = registry(client).bounds
    with socket.create_connection(("127.0.0.1", client.port)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /api/todos/direct HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + BEA["Authorization"].encode() + b"\r\n\r\n")
        await until(lambda: registry(client).number == 1)
        async with watching(client, ABE) as (abe,):
            (lease,) = [one for one in registry(client)._clock.leases() if one.identity.user_id == "bea"]
            for number in range(60):
                await write(own, str(number) + "x" * 60_000, org="blue")
                if lease.request.protocol.writing_paused:
                    break
            assert lease.request.protocol.writing_paused
            sent = lease.request.writer.output_size
            for number in range(PENDING + 10):
                await own.rows("INSERT INTO todos (organization_id, title) VALUES ('blue', $1), ('red', $1)", str(number))
            for number in range(PENDING + 10):
                assert (await change(abe))[1]["title"] == str(number)
            waiting = [one for one in client.app[CHANGES].fanout._all if one.keys[0][2] == "blue"]
            assert lease.end is not None or [one.resync for one in waiting] == [True]
            assert lease.request.writer.output_size - sent < 2 * bounds.unsent  # at most what was being read when it fell behind
            await until(lambda: lease.end is not None, bounds.slow + 5)
            assert lease.end.reason == "too-slow"


async def test_a_client_that_reads_late_gets_a_resync(client: Client, own: TestDatabase) -> None:  # noqa: F811
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port, limit=2**20)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"GET /api/todos/direct HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + BEA["Authorization"].encode() + b"\r\n\r\n")
    await until(lambda: registry(client).number == 1)
    (lease,) = registry(client)._clock.leases()
    for number in range(200):
        await write(own, str(number) + "x" * 100_000, org="blue")
        if lease.request.protocol.writing_paused:
            break
    assert lease.request.protocol.writing_paused
    await own.rows("INSERT INTO todos (organization_id, title) SELECT 'blue', i FROM generate_series(1, 999) AS i")
    await until(lambda: any(one.resync for one in client.app[CHANGES].fanout._all))
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while (await reader.readline()) != b"event: resync\n":
            pass
        await write(own, "after", org="blue")
        while b'"after"' not in await reader.readline():
            pass
    writer.close()


async def test_a_table_of_two_tenants_tells_one_event(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """The two messages of one row, for its user and for its organisation, arrive together and are one event."""
    async with events(client, "/api/lists/direct", ANN) as stream:
        assert (await stream.next())["event"] == "ready"
        for turn in range(20):
            await own.rows("""INSERT INTO lists (user_id, org_id, "update") VALUES ('ann', 'red', $1)""", str(turn))
            assert await change(stream) == ("created", {"id": turn + 1, "user_id": "ann", "org_id": "red", "update": str(turn)})
        await nothing(stream)


async def test_a_read_that_fails_is_repeated(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    client = await serve({"database.url": own.url, "database.statement_seconds": 0.3}, extra=LIVE)
    async with watching(client, ANN) as (ann,), watching(client, ABE) as (abe,):
        async with own.server.as_admin(own.name) as admin, admin.transaction():
            await write(own, "a")
            await admin.execute("LOCK TABLE todos IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(1.0)
        for stream in (ann, abe):
            assert [(await change(stream))[1]["title"]] == ["a"]
        await write(own, "b")
        for stream in (ann, abe):
            assert [(await change(stream))[1]["title"]] == ["b"]


async def test_the_listener_is_killed(client: Client, own: TestDatabase) -> None:  # noqa: F811
    live = client.app[CHANGES]
    async with watching(client, ANN, 3) as streams:
        async with own.server.as_admin(own.name) as admin:
            await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1", live.feed.process_id)
        for stream in streams:
            assert await change(stream) == ("resync", {})
        await write(own, "again")
        for stream in streams:
            assert (await change(stream))[1]["title"] == "again"


async def test_two_servers(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    one, two = await serve({"database.url": own.url}, extra=LIVE), await serve({"database.url": own.url}, extra=LIVE)
    async with watching(one, ANN) as (ann,), watching(two, ABE) as (abe,):
        for title in "abc":
            await write(own, title)
            assert [(await change(stream))[1]["title"] for stream in (ann, abe)] == [title, title]
        await one.app[CHANGES].feed.close()
        await write(own, "d")
        assert (await change(abe))[1]["title"] == "d"
        await nothing(ann)


async def test_a_table_that_reports_no_changes(client: Client, own: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    async with events(client, "/api/silent/direct", ANN) as stream:
        assert (await stream.next())["event"] == "ready"
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.next()
    (failure,) = [record.fields for record in caplog.records if record.getMessage() == "handler failed"]
    assert "call gatepost_changes for it" in str(failure)


async def test_http_1_0_has_no_chunks(serve: Serve, own: TestDatabase) -> None:  # noqa: F811
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "database.url": own.url}, extra=LIVE)
        async with client.wire() as wire, asyncio.timeout(5):
            lines = f"GET /api/lists/direct HTTP/1.0\r\nHost: api.example\r\nAuthorization: Bearer {clerk.token('alice')}\r\n\r\n"
            wire.writer.write(lines.encode())
            head = await wire.reader.readuntil(b"\r\n\r\n")
            assert b"chunked" not in head.lower()
            assert await wire.reader.readuntil(b"\n\n") == b"event: ready\ndata: \n\n"
            await own.rows("INSERT INTO lists (user_id) VALUES ('alice')")
            frame = await wire.reader.readuntil(b"\n\n")
            assert frame == b'event: created\nid: 1\ndata: {"id":1,"user_id":"alice","org_id":null,"update":null}\n\n'


async def test_a_column_may_have_any_name(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """The names that the statements use themselves are no names of columns, and the row is whole."""
    async with own.server.as_admin(own.name) as admin:
        await admin.execute("ALTER TABLE todos ADD COLUMN r text DEFAULT 'r', ADD COLUMN t text DEFAULT 't', ADD COLUMN row text DEFAULT 'x'")
    await client.app[CHANGES].feed.reload()
    async with watching(client, ANN) as (ann,):
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'a')")
        first = (await change(ann))[1]
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'b'), ('red', 'c')")
        for row in (first, (await change(ann))[1], (await change(ann))[1]):
            assert (row["r"], row["t"], row["row"], row["organization_id"]) == ("r", "t", "x", "red")


async def test_a_handler_that_waits_with_a_time_out_misses_nothing(client: Client, own: TestDatabase) -> None:  # noqa: F811
    async with hearing(client, "/api/todos/patient", ANN) as ann:
        for number in range(50):
            await write(own, str(number))
        seen: list[str] = []
        while len(seen) < 50:
            seen.append((await change(ann))[1]["title"])
        assert seen == [str(number) for number in range(50)]


async def test_two_tasks_cannot_wait_for_the_next_change(client: Client, own: TestDatabase) -> None:  # noqa: F811
    async with events(client, "/api/todos/twice", ANN) as stream:
        assert (await stream.next())["event"] == "refused"


async def test_a_handler_that_asks_again_after_the_end_gets_nothing(client: Client, own: TestDatabase) -> None:  # noqa: F811
    """And leaves no subscription behind, and does not keep the event loop busy."""
    live = client.app[CHANGES]
    async with hearing(client, "/api/todos/stubborn", ANN) as ann:
        await own.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('user', 'ann', now() + interval '1 hour')")
        assert await ann.end() == "session-revoked"
    await write(own, "a")
    assert (await asyncio.wait_for(client.get("/api/me", BEA), 2)).status == 200
    await until(lambda: len(live.fanout) == 0 and registry(client)._clock.number == 0, 15)
    assert (live.fanout._by_key, live.fanout.held) == ({}, 0)
