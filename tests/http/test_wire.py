"""What happens before any middleware, over raw sockets: limits of the head, errors of the parser, and no echo of either."""

import asyncio
import gc
import json
import logging
import re
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kits.app import Client, Reply, build_app, routes_plugin, serving, stub

from server import body, body_stream, describe, identity_of, public, signed_in
from server.http.connection_server import ConnectionServer
from server.http.protocol import Connection

CANARY = "canary-9b1f7a"
HEALTH = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def echo(request: web.Request) -> web.Response:
    return web.json_response({"length": len(await request.read())})


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(0.5)
    return web.json_response({"slow": True})


async def who(request: web.Request) -> web.Response:
    return web.json_response({"user": identity_of(request).user_id})


async def by_body(request: web.Request) -> web.Response:
    return web.json_response(await body(request, list[int]))


@describe(body_stream="*/*")
async def by_stream(request: web.Request) -> web.Response:
    return web.json_response([len(piece) async for piece in body_stream(request)])


PROBE = [web.post("/api/echo", public(echo)), web.get("/api/slow", public(slow)), web.get("/api/who", signed_in(who))]
READERS = [web.post("/api/body", public(by_body)), web.post("/api/stream", public(by_stream))]


@asynccontextmanager
async def probe(**given: Any) -> AsyncIterator[int]:
    routes = ["/api/health", "/api/echo", "/api/slow", "/api/body", "/api/stream"]
    async with serving(build_app({"probe": routes_plugin(*PROBE, *READERS)}, public_routes=routes, **given)) as port:
        yield port


def check_shape(reply: Reply, status: int) -> None:
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert set(json.loads(reply.body)) == {"error"}
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert reply.headers["vary"] == "Authorization, Cookie, X-API-Key, Origin"
    assert re.fullmatch("[0-9a-f]{24}", reply.headers["x-request-id"])
    assert reply.headers["server"] == "gatepost"


async def raw(port: int, *pieces: bytes, pause: float = 0.0) -> Reply:
    async with Client(port) as client:
        for piece in pieces:
            try:
                await client.send(piece)
            except ConnectionError:
                break
            await asyncio.sleep(pause)
        try:
            return await client.reply()
        except ConnectionResetError:
            received = bytes(getattr(client.reader, "_buffer", b""))
            if not received:
                raise
            # The reset came after the response. From Python 3.12 on it is often seen before the response is taken.
            client.reader = asyncio.StreamReader()
            client.reader.feed_data(received)
            client.reader.feed_eof()
            return await client.reply()


# What the parser refuses -----------------------------------------------------------------------------------------------

REFUSED = {
    "a NUL in a value": b"GET /api/who HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\x00\r\n\r\n",
    "a blank before the colon": b"GET /api/who HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer %s\r\n\r\n",
    "a folded line": b"GET /api/who HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer\r\n %s\r\n\r\n",
    "a bare line feed": b"GET /api/who HTTP/1.1\r\nHost: localhost\nAuthorization: Bearer %s\r\n\r\n",
    "bare line feeds throughout": b"GET /api/who HTTP/1.1\nHost: localhost\nAuthorization: Bearer %s\n\n",
    "a line without a colon": b"GET /api/who HTTP/1.1\r\nHost: localhost\r\nBearer %s\r\n\r\n",
    "a control character in a name": b"GET /api/who HTTP/1.1\r\nHost: localhost\r\nX\x01-%s: 1\r\n\r\n",
    "a bad method": b"G=T /api/who HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n",
    "a lower-case method": b"get /api/who HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n",
    "a credential in the target": b"GET /api/who?token=%s\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a bad version": b"GET /api/who?token=%s HTTP/x.y\r\nHost: localhost\r\n\r\n",
    "not HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01%s\r\n\r\n",
}
SMUGGLED = {
    "length and chunks": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "two equal lengths": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "a signed length": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: +4\r\n\r\nabcd",
    "a negative length": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -4\r\n\r\nabcd",
    "a hexadecimal length": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x4\r\n\r\nabcd",
    "an endless length": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\nabcd",
    "an unknown coding": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a blank before the colon of a coding": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded coding": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed before a coding": b"POST /api/echo HTTP/1.1\r\nHost: localhost\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a NUL in a coding": b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"POST /api/echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nabcd",
    "two hosts": b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "two equal hosts": b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /api/health HTTP/1.1\r\nAccept: */*\r\n\r\n",
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_the_parser_refuses_is_echoed_nowhere(
    kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with probe() as port:
        reply = await raw(port, REFUSED[kind].replace(b"%s", CANARY.encode()))
        check_shape(reply, 400)
        assert CANARY.encode() not in reply.raw
    for record in caplog.records:
        assert CANARY not in record.getMessage()
        assert CANARY not in str(record.__dict__)
        assert record.exc_info is None
    written = capfd.readouterr()
    assert CANARY not in written.out + written.err


@pytest.mark.parametrize("kind", SMUGGLED)
async def test_what_could_hide_a_second_request_is_refused_and_ends_the_connection(kind: str) -> None:
    async with probe() as port, Client(port) as client:
        await client.send(SMUGGLED[kind] + HEALTH)
        check_shape(await client.reply(), 400)
        assert await client.closed_by_server()


@pytest.mark.parametrize(
    "line", [b"GET /api/health HTTP/0.9", b"GET /api/health HTTP/2.0", b"GET /api/health HTTP/3.0", b"GET /api/health HTTP/1.2", b"GET /api/health",
             b"PRI * HTTP/2.0", b"GET /api/health http/1.1", b"GET /api/health HTTP/1.1 x"],
)  # fmt: skip
async def test_only_http_1_0_and_1_1_are_spoken(line: bytes) -> None:
    async with probe() as port:
        check_shape(await raw(port, line + b"\r\nHost: localhost\r\n\r\n"), 400)


async def test_http_1_0_is_spoken() -> None:
    async with probe() as port, Client(port) as client:
        await client.send(b"GET /api/health HTTP/1.0\r\n\r\n")
        assert (await client.reply()).status == 200
        assert await client.closed_by_server()


async def test_a_websocket_upgrade_hides_nothing() -> None:
    """CVE-2026-69243: GET with an Upgrade and a body."""
    head = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: %d\r\n\r\n"
    async with probe() as port, Client(port) as client:
        hidden = b"GET /api/who HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await client.send(head % len(hidden) + hidden)
        assert (await client.reply()).status in (200, 400)
        with pytest.raises((asyncio.IncompleteReadError, TimeoutError)):
            await client.reply(timeout=0.3)


# Limits of the head ----------------------------------------------------------------------------------------------------


def many(number: int, size: int) -> bytes:
    return b"".join(b"X-%d: %s\r\n" % (n, b"v" * size) for n in range(number))


START = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n"


async def test_a_head_within_the_limit_passes() -> None:
    async with probe() as port:
        assert (await raw(port, START + b"X-Long: " + b"v" * 15_000 + b"\r\n\r\n")).status == 200
        assert (await raw(port, START + many(100, 100) + b"\r\n")).status == 200


@pytest.mark.parametrize(
    "pieces",
    [
        [START + b"X-Long: " + b"v" * 17_000 + b"\r\n\r\n"],
        [START + b"X-Long: " + b"v" * 400_000 + b"\r\n\r\n"],
        [START + b"X-" + b"v" * 17_000 + b": 1\r\n\r\n"],
        [b"GET /api/health?" + b"v" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        [START + many(40, 1_000) + b"\r\n"],
        [START + many(3, 8_000) + b"\r\n"],
        [START + many(1_100, 4) + b"\r\n"],
        [START, many(20, 500), many(20, 500), b"\r\n"],
        [START, *[many(4, 1_000)] * 6],
        [START, *[b"v" * 3_000] * 7],
        [START + many(20, 500), many(20, 500) + b"\r\n"],
        [START + many(40, 1_000) + b"Content-Length: 4\r\n\r\nabcd"],
    ],
    ids=["one field", "one huge field", "one name", "the target", "many fields", "three fields", "very many fields", "in pieces", "in drips", "a field in drips",
         "in two pieces", "with a body"],
)  # fmt: skip
async def test_a_head_over_the_limit_is_431(pieces: list[bytes]) -> None:
    async with probe() as port:
        for attempt in range(5):
            try:
                reply = await raw(port, *pieces, pause=0.02)
                break
            except ConnectionResetError:  # who sends much more than is read may be told so before the answer (RFC 9112 9.6)
                assert attempt < 4
                assert sum(map(len, pieces)) > 100_000
        check_shape(reply, 431)


def head_of(size: int, blanks: int = 0) -> bytes:
    """A head of `size` bytes from the request line to the empty line, `blanks` of them spaces before a value."""
    start = START + b"X-Long: " + b" " * blanks
    return start + b"v" * (size - len(start) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize(("pieces", "status"), [
    ([head_of(16_384)], 200),
    ([head_of(16_385)], 431),
    ([head_of(16_384, 10_000)], 200),
    ([head_of(16_385, 10_000)], 431),
    ([head_of(30_000, 29_000)], 431),
    ([head_of(16_385)[:-1], b"\n"], 431),
    ([head_of(16_384)[:-1], b"\n"], 200),
    ([head_of(16_384)[:-2], b"\r\n"], 200),
    ([head_of(16_384)[:9_000], head_of(16_384)[9_000:]], 200),
    ([head_of(16_384)[:9_000], head_of(16_384)[9_000:-4] + b" \r\n\r\n"], 431),
], ids=["16384", "16385", "16384 with blanks", "16385 with blanks", "blanks", "split before its end", "16384, split before its end",
        "16384, split in its end", "16384 in two", "16385 in two"])  # fmt: skip
async def test_the_limit_of_a_head_is_exact(pieces: list[bytes], status: int) -> None:
    async with probe() as port:
        assert (await raw(port, *pieces, pause=0.02)).status == status


async def test_a_second_head_over_the_limit_is_431_too() -> None:
    async with probe() as port, Client(port) as client:
        await client.send(HEALTH)
        assert (await client.reply()).status == 200
        await client.send(START + many(40, 1_000) + b"\r\n")
        check_shape(await client.reply(), 431)
        assert await client.closed_by_server()


async def test_a_large_head_behind_a_small_one_is_431() -> None:
    async with probe() as port, Client(port) as client:
        await client.send(HEALTH + START + many(40, 1_000) + b"\r\n")
        assert (await client.reply()).status == 200
        check_shape(await client.reply(), 431)


async def test_the_body_is_not_counted_as_head() -> None:
    async with probe() as port:
        body = b"x" * 100_000
        reply = await raw(port, b"POST /api/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert reply.json == {"length": 100_000}


async def test_what_exceeds_the_head_is_not_echoed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with probe() as port:
        reply = await raw(port, START + b"Authorization: Bearer " + CANARY.encode() * 2_000 + b"\r\n\r\n")
        check_shape(reply, 431)
        assert CANARY.encode() not in reply.raw
    assert CANARY not in caplog.text


# Deadlines -------------------------------------------------------------------------------------------------------------


async def test_a_slow_head_is_408() -> None:
    async with probe(limits__head_seconds=0.3) as port, Client(port) as client:
        started = time.monotonic()
        await client.send(START)
        check_shape(await client.reply(), 408)
        assert 0.2 < time.monotonic() - started < 3
        assert await client.closed_by_server()


async def test_a_dripped_head_is_408_however_busily_it_drips() -> None:
    async with probe(limits__head_seconds=0.3) as port, Client(port) as client:

        async def drip() -> None:
            for byte in START * 50:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        check_shape(await client.reply(), 408)
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_a_slow_second_head_is_408() -> None:
    async with probe(limits__head_seconds=0.3) as port, Client(port) as client:
        await client.send(HEALTH)
        assert (await client.reply()).status == 200
        await client.send(START)
        check_shape(await client.reply(), 408)


async def test_a_head_begun_while_another_request_runs_has_an_end_too() -> None:
    async with probe(limits__head_seconds=0.3, limits__idle_seconds=0.6) as port, Client(port) as client:
        await client.send(b"GET /api/slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0.1)
        await client.send(START)
        assert (await client.reply()).status == 200
        assert await closed(client, 5)


async def test_a_head_over_the_limit_begun_while_another_request_runs_is_not_served() -> None:
    async with probe() as port, Client(port) as client:
        await client.send(b"GET /api/slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0.1)
        await client.send(START + many(40, 1_000))
        assert (await client.reply()).status == 200
        await client.send(b"\r\n")
        check_shape(await client.reply(), 431)


async def test_a_timely_head_is_not_punished_for_a_slow_answer() -> None:
    async with probe(limits__head_seconds=0.2) as port:
        assert (await raw(port, b"GET /api/slow HTTP/1.1\r\nHost: localhost\r\n\r\n")).json == {"slow": True}


async def test_a_connection_that_never_speaks_is_closed() -> None:
    async with probe(limits__idle_seconds=0.3, limits__head_seconds=0.3) as port, Client(port) as client:
        assert await closed(client, 5)


async def test_an_idle_connection_is_closed() -> None:
    async with probe(limits__idle_seconds=0.3) as port, Client(port) as client:
        await client.send(HEALTH)
        assert (await client.reply()).status == 200
        started = time.monotonic()
        assert await closed(client, 5)
        assert time.monotonic() - started > 0.1


async def closed(client: Client, seconds: float) -> bool:
    """Whether the server closes the connection within this time, whatever it sends before."""
    assert client.reader is not None
    try:
        async with asyncio.timeout(seconds):
            await client.reader.read()
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


# What works ------------------------------------------------------------------------------------------------------------


async def test_requests_in_a_row_are_answered_in_a_row() -> None:
    async with probe() as port, Client(port) as client:
        named = [
            b"GET /api/who HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n\r\n" % tuple(part.encode() for part in stub(f"user_{n}"))
            for n in range(20)
        ]
        await client.send(b"".join(named))
        assert [(await client.reply()).json["user"] for _ in range(20)] == [f"user_{n}" for n in range(20)]


async def test_a_pipelined_request_without_a_credential_does_not_inherit_the_caller_before_it() -> None:
    async with probe() as port, Client(port) as client:
        known = b"GET /api/who HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n\r\n" % tuple(part.encode() for part in stub("user_1"))
        await client.send(known + b"GET /api/who HTTP/1.1\r\nHost: localhost\r\n\r\n" + known)
        assert [(await client.reply()).status for _ in range(3)] == [200, 401, 200]


async def test_a_connection_is_kept() -> None:
    async with probe() as port, Client(port) as client:
        for _ in range(5):
            await client.send(HEALTH)
            assert (await client.reply()).status == 200


async def test_a_request_in_pieces_is_a_request() -> None:
    async with probe() as port:
        assert (await raw(port, HEALTH[:10], HEALTH[10:30], HEALTH[30:], pause=0.02)).status == 200


async def test_the_server_does_not_say_its_version() -> None:
    async with probe() as port:
        for request in (
            HEALTH,
            HEALTH.replace(b"health", b"who"),
            HEALTH.replace(b"health", b"nothing"),
            HEALTH.replace(b"GET", b"GE\x01"),
        ):
            assert (await raw(port, request)).headers["server"] == "gatepost"


async def test_a_runner_with_its_own_ideas_still_gets_our_connections(caplog: pytest.LogCaptureFixture) -> None:
    """As gunicorn's worker makes one: its own access log, keep-alive and debugging."""
    caplog.set_level(logging.DEBUG)
    app = build_app(limits__idle_seconds=0.3)
    own = {"access_log": logging.getLogger("access"), "access_log_format": "%a %r %{Authorization}i", "keepalive_timeout": 3600.0, "debug": True,
           "lingering_time": 60.0}  # fmt: skip
    async with serving(app, **own) as port, Client(port) as client:
        check_shape(await raw(port, REFUSED["a NUL in a value"].replace(b"%s", CANARY.encode())), 400)
        await client.send(HEALTH.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer " + CANARY.encode() + b"\r\n\r\n"))
        assert (await client.reply()).status == 200
        assert await closed(client, 5)
    assert CANARY not in caplog.text


async def test_whatever_serves_the_application_serves_it_through_wire() -> None:
    runner = web.AppRunner(build_app())
    await runner.setup()
    try:
        assert isinstance(runner.server, ConnectionServer)
        assert isinstance(runner.server(), Connection)
    finally:
        await runner.cleanup()


async def test_the_parser_is_the_one_in_c() -> None:
    from aiohttp import http_parser

    assert http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy


@pytest.mark.parametrize("target", ["http://[::1]@/api/me", "http://[::1]@", "http://[@/"])
async def test_a_target_on_which_the_url_parser_fails_is_a_400_like_any_other(target: str) -> None:
    async with probe() as port:
        reply = await raw(port, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret-canary\r\n\r\n".encode())
        check_shape(reply, 400)
        assert CANARY.encode() not in reply.body


async def test_what_follows_a_malformed_request_is_not_kept() -> None:
    """Not even until the next run of the garbage collector, which an attacker who makes few objects does not cause."""

    async def push(port: int, first: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for junk in (first, *[b"x" * 65_536] * 32):
                writer.write(junk)
                await writer.drain()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    head = b"POST /api/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    async with probe() as port:
        await push(port, b"x")
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for first in (b"x", head % b"who", head % b"echo", head % b"body"):
                await asyncio.gather(*(push(port, first) for _ in range(10)))
            await asyncio.sleep(0.2)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert kept < 4_000_000  # it was 10,000,000 and more for each kind


@pytest.mark.parametrize("path", ["echo", "body", "stream"])
@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_a_client_that_leaves_within_its_body_is_no_failure_of_the_server(path: str, how: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    async with probe() as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST /api/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[1".encode())
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.transport.abort() if how == "reset" else writer.close()
        async with asyncio.timeout(10):
            while not [one for one in caplog.records if getattr(one, "fields", {}).get("reason") == "body-malformed"]:
                await asyncio.sleep(0.02)
    assert [one.message for one in caplog.records if one.levelno >= logging.ERROR] == []
