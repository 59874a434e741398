"""The bounds of live answers: how many, how much memory, and how long a reader may fall behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import struct
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kits.live import LIVE, events, registry, until, websocket

from server import event_stream, signed_in
from server.app import LIMITS, METRICS
from server.http.backlog import BACKLOG
from tests.conftest import ALICE, BOB, Client, Serve, plugin, stub

linux = pytest.mark.skipif(sys.platform != "linux", reason="the options of Linux's sockets")


UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}


@contextlib.asynccontextmanager
async def raw(client: Client, path: str, caller: dict[str, str] = ALICE, receive_bytes: int = 4096) -> AsyncIterator[sockets.socket]:
    """A connection with a small window that has sent its request, and reads nothing by itself."""
    loop = asyncio.get_running_loop()
    connection = sockets.socket()
    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, receive_bytes)
    connection.setblocking(False)
    try:
        await loop.sock_connect(connection, ("127.0.0.1", client.port))
        head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **caller}.items())
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        yield connection
    finally:
        connection.close()


# How many ----------------------------------------------------------------------------------------------------------------


async def test_one_caller_has_at_most_twenty(serve: Serve) -> None:
    """A thousand of one caller at once, streams and sockets: twenty are opened, the others are a 429, and other callers come in."""
    client = await serve({"limits.connections": 2000}, extra=LIVE)

    async def opened(session: aiohttp.ClientSession, release: asyncio.Event) -> tuple[int, Any]:
        async with session.get(f"http://127.0.0.1:{client.port}/api/ticks", headers=ALICE) as response:
            if response.status == 200:
                await release.wait()
                return 200, None
            return response.status, (await response.json(), response.headers.get("Retry-After"))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
        release = asyncio.Event()
        tasks = [asyncio.create_task(opened(session, release)) for _ in range(1000)]
        await until(lambda: sum(task.done() for task in tasks) >= 980, 60)
        assert registry(client).number == 20
        async with events(client, "/api/ticks", BOB) as other:
            assert (await other.next())["event"] == "hello"
        got = await client.get("/api/echo", {**ALICE, **UPGRADE})
        assert got.status == 429
        assert (await client.get("/api/me", ALICE)).status == 200
        release.set()
        outcomes = await asyncio.gather(*tasks)
    assert [status for status, _ in outcomes].count(200) == 20
    assert {str(said) for status, said in outcomes if status != 200} == {"({'error': 'Too Many Requests', 'reason': 'streams'}, '1')"}
    assert client.app[METRICS].limited["streams"] == 981
    await until(lambda: registry(client)._clock.number == 0)
    async with events(client, "/api/ticks", ALICE) as again:
        assert (await again.next())["event"] == "hello"


async def test_the_process_has_a_bound(serve: Serve) -> None:
    client = await serve({"streams.total": 3, "limits.connections": 2}, extra=LIVE)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(3):  # they do not count among `limits.connections`
            stream = await stack.enter_async_context(events(client, "/api/ticks", stub(f"u{number}")))
            assert (await stream.next())["event"] == "hello"
        got = await client.get("/api/ticks", BOB)
        assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})
        assert got.headers["Retry-After"] == "1"
        assert (await client.get("/api/me", BOB)).status == 200
    await until(lambda: registry(client)._clock.number == 0)


async def test_clients_of_streams_that_end_together_can_connect_again(serve: Serve) -> None:
    """While the handlers of lost streams are still running, these do not count among `limits.connections` either."""
    routes, over = web.RouteTableDef(), asyncio.Event()

    @routes.get("/api/lingers")
    @signed_in
    async def lingers(request: web.Request) -> web.StreamResponse:
        try:
            async with event_stream(request) as stream:
                await stream.send("here", event="hello")
                await asyncio.Event().wait()
        finally:
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()
        return stream.response

    client = await serve({"limits.connections": 2}, extra={**LIVE, "lingers": plugin(*routes)})
    one = registry(client)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(5):
            stream = await stack.enter_async_context(events(client, "/api/lingers", stub(f"u{number}")))
            assert (await stream.next())["event"] == "hello"
    try:
        await until(lambda: one.number == 0, 30)
        assert one._clock.number == 5
        for _ in range(3):
            assert (await client.get("/api/me", BOB)).status == 200
        async with events(client, "/api/ticks", BOB) as again:
            assert again.response.status == 200
    finally:
        over.set()
    await until(lambda: one._clock.number == 0, 30)
    runner = client.server.runner
    assert runner is not None
    await until(lambda: runner.server.live == 0, 30)


async def test_streams_do_not_count_as_requests_in_progress(serve: Serve) -> None:
    client = await serve({"limits.concurrency": 1}, extra=LIVE)
    async with events(client, "/api/ticks", ALICE) as one, events(client, "/api/ticks", ALICE) as two, websocket(client, "/api/echo", ALICE) as ws:
        for stream in (one, two):
            assert (await stream.next())["event"] == "hello"
        assert client.app[LIMITS].concurrency.in_work == 0
        assert await asyncio.wait_for(client.get("/api/me", ALICE), 1)
        await ws.send_str("x")
        assert await ws.receive_str() == "echo x"
    await until(lambda: registry(client)._clock.number == 0)
    assert client.app[LIMITS].concurrency.in_work == 0


async def test_unknown_callers_share_half_of_the_places(serve: Serve) -> None:
    settings = {"streams.total": 6, "public_routes": ["/api/health", "/api/open(.*)"]}
    client = await serve({**settings, "limits.address": "off"}, extra=LIVE)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            stream = await stack.enter_async_context(events(client, "/api/open/ticks"))
            assert (await stream.next())["data"] == "open to all"
        assert (await client.get("/api/open/ticks")).status == 503
        known = await stack.enter_async_context(events(client, "/api/ticks", ALICE))
        assert (await known.next())["event"] == "hello"
    await until(lambda: registry(client)._clock.number == 0)


async def test_a_client_without_a_credential_has_as_many_as_a_caller(serve: Serve) -> None:
    client = await serve({"streams.per_caller": 2, "public_routes": ["/api/health", "/api/open(.*)"]}, extra=LIVE)
    async with events(client, "/api/open/ticks") as one, events(client, "/api/open/ticks") as two:
        await one.next()
        await two.next()
        got = await client.get("/api/open/ticks")
        assert (got.status, got.json()["reason"]) == (429, "streams")


# Slow readers, and those that are gone -----------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("path", ["/api/flood", "/api/flood/socket"])
async def test_a_reader_that_reads_nothing_is_disconnected(serve: Serve, path: str) -> None:
    """Without a word, after ten seconds (here two), and what is held for it is bounded."""
    client = await serve(extra=LIVE)
    one = registry(client)
    one._clock._bounds = one.bounds._replace(slow=2.0)
    async with raw(client, path, {**ALICE, **(UPGRADE if path.endswith("socket") else {})}) as connection:
        started = time.monotonic()
        await until(lambda: one.number == 1)
        while one.number:
            assert client.app[BACKLOG].responses < 200_000
            await asyncio.sleep(0.05)
        assert 1.5 < time.monotonic() - started < 5
        assert one.ended == {"too-slow": 1}
        loop, taken = asyncio.get_running_loop(), b""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(loop.sock_recv(connection, 65536), 5):
                taken += piece
        assert b"too-slow" not in taken
    await until(lambda: one._clock.number == 0)


@linux
@pytest.mark.parametrize("path", ["/api/flood", "/api/flood/socket"])
async def test_a_slow_reader_receives_the_reason(serve: Serve, path: str) -> None:
    client = await serve(extra=LIVE)
    one = registry(client)
    one._clock._bounds = one.bounds._replace(slow=2.0)
    loop, taken = asyncio.get_running_loop(), b""
    async with raw(client, path, {**ALICE, **(UPGRADE if path.endswith("socket") else {})}) as connection:
        await until(lambda: one.number == 1)
        while one.number:
            taken += await loop.sock_recv(connection, 512)
            await asyncio.sleep(0.1)
        assert one.ended == {"too-slow": 1}
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(loop.sock_recv(connection, 65536), 5):
                taken += piece
    if path.endswith("socket"):
        assert taken.endswith(struct.pack("!BBH", 0x88, 10, 4408) + b"too-slow")
    else:
        assert b'event: end\ndata: {"reason":"too-slow"}' in taken
        assert taken.endswith(b"0\r\n\r\n")


@linux
async def test_a_peer_that_vanished_is_noticed(serve: Serve) -> None:
    """Half-open TCP: the peer's kernel drops all that arrives, as a pulled cable does. Here 3 seconds instead of 45."""
    from server.http import streaming

    client = await serve(extra=LIVE)
    one = registry(client)
    one._clock._slots = one._clock._slots[:1]  # a heartbeat at each tick
    one._clock._next_slot = iter([0] * 10)
    before, streaming._DEAD_MILLISECONDS = streaming._DEAD_MILLISECONDS, 3000  # type: ignore[misc]
    try:
        async with raw(client, "/api/ticks", receive_bytes=65536) as connection:
            await until(lambda: one.number == 1)
            drop_all = struct.pack("HBBI", 0x06, 0, 0, 0)  # a filter of one instruction: keep 0 bytes
            import ctypes

            program = ctypes.create_string_buffer(drop_all)
            fprog = struct.pack("HP", 1, ctypes.addressof(program))
            connection.setsockopt(sockets.SOL_SOCKET, 26, fprog)  # SO_ATTACH_FILTER
            await until(lambda: one.number == 0, 12)
        assert one.ended == {"client": 1}
    finally:
        streaming._DEAD_MILLISECONDS = before  # type: ignore[misc]


async def test_requests_behind_a_stream_are_dropped(serve: Serve) -> None:
    """The response announces that it is the last: nothing is held for what comes behind it."""
    client = await serve(extra=LIVE)
    async with client.wire() as wire:
        await wire.send("GET /api/ticks", ALICE)
        head = (await wire.reader.readuntil(b"\r\n\r\n")).decode()
        assert "Connection: close" in head
        await wire.reader.readuntil(b"\n\n\r\n")
        for _ in range(50):
            wire.writer.write(b"GET /api/me HTTP/1.1\r\nHost: x\r\nX-Fill: " + b"x" * 8000 + b"\r\n\r\n")
            await asyncio.wait_for(wire.writer.drain(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.reader.read(100), 0.3)
        assert registry(client).number == 1
    await until(lambda: registry(client).number == 0)


@pytest.mark.long
async def test_an_idle_stream_takes_little_memory(serve: Serve) -> None:
    """At most 40 KiB each, measured in the server's process with 500 of them; the clients are in this process too."""
    import psutil

    client = await serve({"limits.connections": 2000}, extra=LIVE)
    writers = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writers.append(writer)
        name, value = next(iter(stub(f"u{number}").items()))
        writer.write(f"GET /api/ticks HTTP/1.1\r\nHost: 127.0.0.1\r\n{name}: {value}\r\n\r\n".encode())
        await reader.readuntil(b"hello")

    for number in range(100):
        await one(number)
    before = psutil.Process().memory_info().rss
    for number in range(100, 600):
        await one(number)
    grown = (psutil.Process().memory_info().rss - before) / 500
    for writer in writers:
        writer.close()
    assert grown < 80 * 1024, f"{grown / 1024:.0f} KiB for a stream and its client"
    await until(lambda: registry(client)._clock.number == 0, 20)


async def test_requests_behind_a_late_body_are_dropped(serve: Serve) -> None:
    """The same where the request has a body that is not there yet when the stream opens."""
    client = await serve(extra=LIVE)
    async with client.wire() as wire:
        await wire.send("GET /api/ticks", {**ALICE, "Content-Length": "1"})
        await wire.reader.readuntil(b"\n\n\r\n")
        ((lease, *_),) = [registry(client)._clock.leases()]
        wire.writer.write(b"x")
        await asyncio.sleep(0.2)
        for _ in range(50):
            wire.writer.write(b"GET /api/me HTTP/1.1\r\nHost: x\r\nX-Fill: " + b"x" * 8000 + b"\r\n\r\n")
            await asyncio.wait_for(wire.writer.drain(), 5)
        await asyncio.sleep(0.2)
        assert len(lease.request.protocol._messages) == 0
        assert registry(client).number == 1
    await until(lambda: registry(client).number == 0)
