"""Clients that take their responses slowly, or not at all: bounded memory, bounded time, and one response for each request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kits.app import LOCAL, Client, ask, build_app, request_bytes, routes_plugin, serving, stub

from server import answer, body, signed_in
from server.app import SETTINGS
from server.http.backlog import BACKLOG, Backlog

MIB = 2**20
SHARED = memoryview(b"x" * 2 * MIB)
FINISHED = web.Response(text="once")
FINISHED_JSON = answer({"once": True})


@signed_in
async def large(request: web.Request) -> web.Response:
    return answer("[" + "1," * MIB + "1]")


@signed_in
async def shared(request: web.Request) -> web.Response:
    return answer(SHARED)


@signed_in
async def aiohttps(request: web.Request) -> web.Response:
    return web.Response(text="x" * 2 * MIB)


@signed_in
async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(64):
        await response.write(b"x" * 65536)
    await response.write_eof()
    return response


@signed_in
async def from_a_file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(request.query["of"])


@signed_in
async def small(request: web.Request) -> web.Response:
    COUNTED.append(1)
    return answer({"a": 1})


@signed_in
async def taken(request: web.Request) -> web.Response:
    return answer(await body(request, dict[str, str]))


@signed_in
async def fails_after_its_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"all of it")
    await response.write_eof()
    raise RuntimeError


@signed_in
async def fails_in_the_middle(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half of it")
    raise web.HTTPConflict


@signed_in
async def answers_twice(request: web.Request) -> web.Response:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half of it")
    return answer({"second": True})


@signed_in
async def returns_another(request: web.Request) -> web.Response:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half of it")
    return web.Response(text="second")


@signed_in
async def reused(request: web.Request) -> web.Response:
    return FINISHED


@signed_in
async def reused_json(request: web.Request) -> web.Response:
    return FINISHED_JSON


COUNTED: list[int] = []
HANDLERS: dict[str, Callable[[web.Request], Any]] = {
    "/large": large, "/shared": shared, "/aiohttps": aiohttps, "/streamed": streamed, "/small": small, "/after-end": fails_after_its_end,
    "/in-the-middle": fails_in_the_middle, "/twice": answers_twice, "/another": returns_another, "/reused": reused,
    "/reused-json": reused_json, "/file": from_a_file,
}  # fmt: skip


def app_of(**given: Any) -> web.Application:
    routes = [web.get(path, handler) for path, handler in HANDLERS.items()]
    return build_app({"slow": routes_plugin(*routes, web.post("/taken", taken))}, **given)


def unread(port: int, *paths: str) -> socket.socket:
    """A connection that has sent these requests and takes nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(b"".join(request_bytes("GET", path, [("Host", LOCAL), stub()]) for path in paths))
    client.setblocking(False)
    return client


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def at_rest(backlog: Backlog) -> bool:
    return backlog.bodies == 0 and backlog.responses == 0


@pytest.mark.parametrize("path", ["/large", "/shared", "/aiohttps", "/streamed"])
async def test_a_client_that_takes_nothing_is_cut_and_nothing_is_held_afterwards(path: str) -> None:
    app = app_of(limits__write_seconds=0.5)
    async with serving(app) as port:
        clients = [unread(port, path) for _ in range(5)]
        await until(lambda: app[BACKLOG].responses > 0)
        assert (await ask(port, "GET", "/small", stub("other"))).status == 200
        await until(lambda: app[BACKLOG].cut == 5)
        await until(lambda: at_rest(app[BACKLOG]))
        for client in clients:
            client.close()


async def test_a_client_that_does_not_take_a_file_is_cut(tmp_path: Path) -> None:
    """Whatever event loop serves: with sendfile(2), as in asyncio's own, the transport would not know of the bytes."""
    (tmp_path / "file").write_bytes(b"x" * 16 * MIB)
    app = app_of(limits__write_seconds=0.5)
    async with serving(app) as port:
        client = unread(port, f"/file?of={tmp_path}/file")
        await until(lambda: app[BACKLOG].cut == 1)
        await until(lambda: at_rest(app[BACKLOG]))
        client.close()


async def test_small_responses_that_are_not_taken_are_cut_too() -> None:
    """They are less than what the transport takes at once, so that nothing is paused."""
    app = app_of(limits__write_seconds=0.5)
    async with serving(app) as port:
        client = unread(port, *["/small"] * 60)
        await asyncio.sleep(0.1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        for _ in range(2000):
            try:
                client.sendall(request_bytes("GET", "/small", [("Host", LOCAL), stub()]))
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except ConnectionError:
                break
        await until(lambda: app[BACKLOG].cut == 1, 20)
        client.close()


async def test_the_next_request_waits_until_the_response_is_taken() -> None:
    COUNTED.clear()
    app = app_of()
    async with serving(app) as port:
        client = unread(port, "/large", "/small")
        await until(lambda: app[BACKLOG].responses > 0)
        await asyncio.sleep(0.2)
        assert COUNTED == []
        received = await all_of(client, b'{"a":1}')
        assert COUNTED == [1]
        assert received.count(b"HTTP/1.1 200") == 2


async def test_a_slow_client_that_goes_on_taking_gets_everything() -> None:
    app = app_of(limits__write_seconds=0.5)
    async with serving(app) as port:
        client = unread(port, "/large")
        received, loop = 0, asyncio.get_running_loop()
        began = loop.time()
        while received < 2 * MIB:
            received += len(await loop.sock_recv(client, 65536))
            await asyncio.sleep(0.02)
        assert loop.time() - began > 0.5
        assert app[BACKLOG].cut == 0
        client.close()


async def test_shared_content_is_not_counted_for_each_client_whole() -> None:
    app = app_of()
    async with serving(app) as port:
        clients = [unread(port, "/shared") for _ in range(20)]
        await until(lambda: app[BACKLOG].responses > 0)
        await asyncio.sleep(0.2)
        assert app[BACKLOG].responses < 20 * 300_000
        for client in clients:
            client.close()
        await until(lambda: at_rest(app[BACKLOG]))


async def test_beyond_the_bound_new_work_is_503_and_then_all_is_well() -> None:
    app = app_of(limits__buffered_bytes=3 * MIB)
    async with serving(app) as port:
        clients = [unread(port, "/large") for _ in range(3)]
        await until(lambda: app[BACKLOG].full)
        refused = await ask(port, "GET", "/small", stub("other"))
        assert (refused.status, refused.json, refused.headers["retry-after"]) == (503, {"error": "Service Unavailable"}, "1")
        for client in clients:
            client.close()
        await until(lambda: at_rest(app[BACKLOG]))
        assert (await ask(port, "GET", "/small", stub("other"))).status == 200


async def test_bodies_that_are_arriving_are_counted() -> None:
    app = app_of(limits__buffered_bytes=65536)
    async with serving(app) as port, Client(port) as one, Client(port) as two:
        head = [("Host", LOCAL), stub(), ("Content-Type", "application/json"), ("Content-Length", "200000")]
        await one.send(request_bytes("POST", "/taken", head) + b'{"a": "' + b"x" * 40_000)
        await until(lambda: app[BACKLOG].bodies > 39_000)
        await two.send(request_bytes("POST", "/taken", head) + b'{"a": "' + b"x" * 40_000)
        replies = [await two.reply()]
        assert [reply.status for reply in replies] == [503]
        await one.close()
        await until(lambda: at_rest(app[BACKLOG]))
    assert app[SETTINGS].get("limits.write_seconds") == 30


async def all_of(client: socket.socket, until_seen: bytes) -> bytes:
    loop, received = asyncio.get_running_loop(), b""
    async with asyncio.timeout(20):
        while until_seen not in received and (part := await loop.sock_recv(client, 2**20)):
            received += part
    client.close()
    return received


# One response for one request ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/after-end", "/in-the-middle", "/twice", "/another"])
async def test_once_bytes_are_out_the_only_error_is_closing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(app_of()) as port:
        client = unread(port, path, "/small")
        received = await all_of(client, b"never")
        assert received.count(b"HTTP/1.1 ") == 1
        assert received.endswith(b"of it\r\n" if path != "/after-end" else b"0\r\n\r\n")
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(("path", "first"), [("/reused", 200), ("/reused-json", 200)])
async def test_a_response_object_used_twice_is_an_error_that_says_so(path: str, first: int, caplog: pytest.LogCaptureFixture) -> None:
    global FINISHED, FINISHED_JSON
    FINISHED, FINISHED_JSON = web.Response(text="once"), answer({"once": True})
    async with serving(app_of()) as port, Client(port) as client:
        assert (await client.ask("GET", path, [("Host", LOCAL), stub()])).status == first
        for _ in range(2):
            again = await client.ask("GET", path, [("Host", LOCAL), stub()])
            assert (again.status, again.json) == (500, {"error": "Internal Server Error"})
    expected = "a response object was used for two requests"
    assert expected in [record.message for record in caplog.records]


BAD = [b"GET http://[::1]@/ HTTP/1.1\r\nHost: a\r\n\r\n", b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_malformed_request_is_answered_after_those_before_it(bad: bytes, apart: bool) -> None:
    async with serving(app_of()) as port, Client(port) as client:
        good = request_bytes("GET", "/small", [("Host", LOCAL), stub()]) * 2
        if apart:
            await client.send(good)
            await client.send(bad + good)
        else:
            await client.send(good + bad + good)
        assert [(await client.reply()).status for _ in range(3)] == [200, 200, 400]
        assert await client.closed_by_server()


async def test_a_malformed_request_costs_no_response_to_many_requests_in_the_same_bytes() -> None:
    async with serving(app_of()) as port, Client(port) as client:
        good = request_bytes("GET", "/small", [("Host", LOCAL), stub()])
        await client.send(good * 100 + BAD[0] + good)
        assert [(await client.reply()).status for _ in range(101)] == [200] * 100 + [400]
        assert await client.closed_by_server()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_malformed_request_behind_a_refused_upgrade_costs_no_response(bad: bytes, apart: bool) -> None:
    async with serving(app_of()) as port, Client(port) as client:
        good = request_bytes("GET", "/small", [("Host", LOCAL), stub()])
        upgrade = request_bytes("GET", "/small", [("Host", LOCAL), stub(), ("Upgrade", "websocket"), ("Connection", "Upgrade")])
        if apart:
            await client.send(upgrade)
            await client.send(good + bad + good)
        else:
            await client.send(upgrade + good + bad + good)
        assert [(await client.reply()).status for _ in range(3)] == [200, 200, 400]
        assert await client.closed_by_server()


H2C = [("Host", LOCAL), stub(), ("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "AAMAAABk")]


@pytest.mark.parametrize("body", [None, b"{}"])
async def test_nothing_behind_an_upgrade_to_an_unknown_protocol_is_taken_for_a_request(body: bytes | None) -> None:
    """aiohttp's parser drops the bytes behind it: what comes later would be the beginning of a request that nobody has sent."""
    inner = request_bytes("GET", "/small", [("Host", LOCAL), stub()])
    head = b"POST /taken HTTP/1.1\r\nX-Value: "
    framed = H2C if body is None else [*H2C, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    upgrade = request_bytes("GET" if body is None else "POST", "/small" if body is None else "/taken", framed)
    async with serving(app_of()) as port:
        for first, rest in ((upgrade + (body or b"") + head, inner), (upgrade, (body or b"") + head + inner)):
            if body is None and first == upgrade:
                continue  # the head stands alone, and what follows is parsed as it is
            async with Client(port) as client:
                await client.send(first)
                await asyncio.sleep(0.1)
                with contextlib.suppress(ConnectionError):
                    await client.send(rest)
                assert (await client.reply()).status in (200, 422)
                assert await client.closed_by_server()


async def test_a_connection_is_kept_behind_an_upgrade_to_an_unknown_protocol_alone() -> None:
    async with serving(app_of()) as port, Client(port) as client:
        for _ in range(2):
            await client.send(request_bytes("GET", "/small", H2C))
            assert (await client.reply()).status == 200
        await client.send(request_bytes("GET", "/small", [("Host", LOCAL), stub()]))
        assert (await client.reply()).status == 200


async def test_a_connection_of_http_1_0_is_closed_behind_a_chunked_body() -> None:
    """RFC 9112 6.1: a proxy of HTTP/1.0 may see the end of the request elsewhere."""
    async with serving(app_of()) as port, Client(port) as client:
        head = b"POST /taken HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"0\r\n\r\n")
        await client.send(request_bytes("GET", "/small", [("Host", LOCAL), stub()]))
        assert (await client.reply()).status == 401  # the test stub takes no credential over HTTP/1.0
        assert await client.closed_by_server()


async def test_a_body_that_breaks_off_in_nonsense_is_one_400() -> None:
    async with serving(app_of()) as port, Client(port) as client:
        head = [("Host", LOCAL), stub(), ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
        await client.send(request_bytes("POST", "/taken", head) + b"2\r\n{}\r\n")
        await asyncio.sleep(0.1)
        await client.send(b"ZZ\r\nnonsense\r\n\r\n")
        assert (await client.reply()).status == 400
        assert await client.closed_by_server()


async def test_responses_that_are_not_taken_count_for_their_caller() -> None:
    app = app_of(limits__concurrency=3)
    async with serving(app) as port:
        clients = [unread(port, "/large") for _ in range(3)]
        await until(lambda: app[BACKLOG].responses > 3 * MIB)
        mine = await ask(port, "GET", "/small", stub())
        assert (mine.status, mine.json["error"]) == (429, "Too Many Requests")
        assert (await ask(port, "GET", "/small", stub("other"))).status == 200
        for client in clients:
            client.close()
        await until(lambda: at_rest(app[BACKLOG]))
        assert (await ask(port, "GET", "/small", stub())).status == 200


@pytest.mark.parametrize("apart", [False, True])
async def test_a_handler_that_reads_the_body_by_aiohttps_own_means_is_a_400_too(apart: bool) -> None:
    @signed_in
    async def read(request: web.Request) -> web.Response:
        return answer({"length": len(await request.read())})

    app = build_app({"slow": routes_plugin(web.post("/read", read))})
    async with serving(app) as port, Client(port) as client:
        head = request_bytes("POST", "/read", [("Host", LOCAL), stub(), ("Transfer-Encoding", "chunked")])
        await client.send(head + b"2\r\n{}\r\n" if apart else head + b"4_0\r\nabcd\r\n0\r\n\r\n")
        if apart:
            await asyncio.sleep(0.1)
            await client.send(b"4_0\r\nabcd\r\n0\r\n\r\n" + request_bytes("GET", "/small"))
        assert (await client.reply()).status == 400
        assert await client.closed_by_server()
