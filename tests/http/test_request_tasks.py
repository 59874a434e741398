"""A connection has one task for each request: what one request leaves behind, the next one does not find."""

import asyncio
import contextvars
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from kits.app import Client, build_app, routes_plugin, serving

from server import answer, public
from server.http.request import Request
from tests.conftest import ALICE, Serve

LEFT: contextvars.ContextVar[str] = contextvars.ContextVar("left", default="nothing")
SEEN: list[Any] = []
HELD = asyncio.Event()


@public
async def leaves(request: web.Request) -> web.Response:
    found = LEFT.get()
    LEFT.set(request.query["what"])
    await asyncio.sleep(0)
    SEEN.append((request.task, asyncio.current_task()))
    return answer({"found": found, "now": LEFT.get()})


@public
async def reads(request: web.Request) -> web.Response:
    LEFT.set("a body's")
    await asyncio.sleep(0.1)  # more arrives than is held: the connection is paused
    return answer({"bytes": len(await request.read())})


@public
async def compared(request: web.Request) -> web.Response:
    """The request beside the one that aiohttp's constructor makes of the same message."""
    message, payload, task, loop = request._message, request._payload, request.task, request._loop
    usual = Request(
        message, payload, request.protocol, request._payload_writer, task, loop,
        client_max_size=request._client_max_size, client_max_fields=request._client_max_fields, state=request._state,
    )  # fmt: skip
    usual._match_info = request._match_info
    ours, theirs = dict(vars(request)), dict(vars(usual))
    for one in (ours, theirs):
        del one["_cache"]  # what was looked up so far
    return answer({name: ours.get(name, 0) is value or ours.get(name) == value for name, value in theirs.items()})


@public
async def cancelled(request: web.Request) -> web.Response:
    raise asyncio.CancelledError


@asynccontextmanager
async def serve(**given: Any) -> AsyncIterator[int]:
    routes = [web.get("/api/leaves", leaves), web.get("/api/compared", compared), web.get("/api/cancelled", cancelled)]
    routes.append(web.post("/api/reads", reads))
    routes.append(web.get("/api/waits", waits))
    paths = ["/api/leaves", "/api/compared", "/api/cancelled", "/api/reads", "/api/waits"]
    SEEN.clear()
    async with serving(build_app({"tasks": routes_plugin(*routes)}, public_routes=paths, **given)) as port:
        yield port


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("together", [True, False], ids=["pipelined", "one after the other"])
async def test_each_request_has_a_task_and_a_context_of_its_own(together: bool) -> None:
    async with serve() as port, Client(port) as client:
        sent = [get(f"/api/leaves?what={number}") for number in range(40)]  # more than the parser's queue holds
        if together:
            await client.send(b"".join(sent))
        for number, one in enumerate(sent):
            if not together:
                await client.send(one)
            assert (await client.reply()).json == {"found": "nothing", "now": str(number)}
    tasks = [task for task, _ in SEEN]
    assert all(task is current for task, current in SEEN)
    assert len(set(map(id, tasks))) == 40


@public
async def waits(request: web.Request) -> web.Response:
    await HELD.wait()
    return answer({"queued": len(request.protocol._messages), "kept": len(request.protocol._rest)})


async def test_a_connection_queues_few_requests_however_many_arrive_at_once() -> None:
    """aiohttp's parser stops after 32, but each call of it makes one more, and there is a call for each request."""
    HELD.clear()
    async with serve() as port, Client(port) as client:
        large = b"GET /api/leaves HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"x" * 10_000 + b"\r\nY: " + b"y" * 10_000 + b"\r\n\r\n"
        sent = [get("/api/waits"), *(get(f"/api/leaves?what={number}") for number in range(2000)), large]
        writing = asyncio.create_task(client.send(b"".join(sent)))
        await asyncio.sleep(0.3)
        HELD.set()
        first = (await client.reply()).json
        assert first["queued"] <= 40
        assert first["kept"] > 10_000
        for number in range(2000):
            assert (await client.reply()).json == {"found": "nothing", "now": str(number)}
        assert (await client.reply()).status == 431
        assert await client.closed_by_server()
        await writing


async def test_a_request_whose_body_paused_the_connection_leaves_no_context_behind() -> None:
    """asyncio's transport calls data_received in the context of the code that resumed reading: here a handler's."""
    size = 900_000
    async with serve() as port, Client(port) as client:
        await client.send(f"POST /api/reads HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))
        assert (await client.reply()).json == {"bytes": size}
        await client.send(get("/api/leaves?what=1"))
        assert (await client.reply()).json == {"found": "nothing", "now": "1"}


async def test_a_request_is_what_aiohttps_constructor_makes_of_it() -> None:
    async with serve() as port, Client(port) as client:
        for target in ("/api/compared", "/api/compared?a=b", f"http://127.0.0.1:{port}/api/compared"):
            await client.send(get(target))
            got = (await client.reply()).json
            assert [name for name, same in got.items() if not same] == []
            assert len(got) > 12


UNDECODABLE = ["http://xn--a/api/leaves?what=1", "http://xn--/", "http://xn--zzzzzz/", "http://u:p@xn--a:80/x", "ftp://xn--a/"]


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
@pytest.mark.parametrize("target", UNDECODABLE)
async def test_a_target_with_a_host_that_cannot_be_decoded_is_a_400(
    target: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a response the connection would wait for ever, and no time-out would end it."""
    async with serve() as port, Client(port) as client:
        body = b"Content-Length: 4\r\n\r\nbody" if method == "POST" else b"\r\n"
        await client.send(get("/api/leaves?what=1") + f"{method} {target} HTTP/1.1\r\nHost: x\r\n".encode() + body)
        assert (await client.reply()).status == 200
        refused = await client.reply()
        assert (refused.status, "error" in refused.json) == (400, True)
        assert await client.closed_by_server()
    gc.collect()
    assert "xn--" not in caplog.text
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize(("target", "status"), [("/api/locked", 401), ("/api/reads", 400)])
async def test_a_body_that_is_not_what_its_encoding_says_is_no_failure_of_the_server(
    target: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as port, Client(port) as client:
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
        await client.send(head.encode())
        await asyncio.sleep(0.05)  # the first route responds before the body arrives, the second waits for it
        await client.send(b"abcde")
        assert (await client.reply()).status == status
        assert await client.closed_by_server()
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []


async def test_a_cancelled_handler_ends_its_connection_and_no_other() -> None:
    async with serve() as port, Client(port) as client, Client(port) as other:
        await client.send(get("/api/cancelled") + get("/api/leaves?what=1"))
        assert client.reader is not None
        assert await asyncio.wait_for(client.reader.read(), 5) == b""
        await other.send(get("/api/leaves?what=1"))
        assert (await other.reply()).status == 200


async def test_nothing_of_a_request_is_kept_while_its_connection_waits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serve() as port, Client(port) as client:
        await client.send(get("/api/leaves?what=1"))
        assert (await client.reply()).status == 200
        await asyncio.sleep(0.01)
        left = weakref.ref(SEEN.pop()[0])
        gc.collect()
        assert left() is None
    assert "never retrieved" not in caplog.text


async def test_a_request_leaves_no_reference_cycle(serve: Serve) -> None:
    """Otherwise the request stays in memory, with what has arrived of its body, until the next run of the cyclic collector."""
    client = await serve({})
    row = (await client.post("/api/data", ALICE, {"name": "x"})).json()["id"]
    json_body = {**ALICE, "Content-Type": "application/json"}
    asked: list[tuple[str, str, dict[str, str], bytes | None, int]] = [
        ("GET", "/api/data", ALICE, None, 200), ("GET", f"/api/data/{row}", ALICE, None, 200), ("GET", "/api/data", {}, None, 401),
        ("GET", "/api/me", {"Authorization": "Bearer x.y.z"}, None, 401), ("GET", "/api/orgs/org_b/data", ALICE, None, 403),
        ("POST", "/api/nothing", json_body, b"x" * 9999, 404), ("PUT", "/api/data", json_body, b"x" * 9999, 405),
        ("POST", "/api/data", json_body, b'{"name": "y"}', 201), ("POST", "/api/data", json_body, b'{"name": 5}', 422),
        ("POST", "/api/data", json_body, b"{", 400), ("POST", "/api/data", ALICE, b"{}", 415), ("GET", "/api/data?limit=x", ALICE, None, 422),
        ("GET", "/api/public/docs", {}, None, 200), ("GET", "/api/health", {}, None, 200), ("GET", f"/api/data/{uuid4()}", ALICE, None, 404),
    ]  # fmt: skip
    for method, path, headers, data, status in asked:
        await client.send(method, path, headers, data=data)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            got = await client.send(method, path, headers, data=data)
            await asyncio.sleep(0.02)
            gc.collect()
            # The router's own error and its match hold each other, and nothing else.
            kept = [one for one in gc.garbage if not isinstance(one, web.HTTPException)]
            left = [type(one).__name__ for one in kept if isinstance(one, web.BaseRequest | web.Response)]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert (method, path, got.status, left) == (method, path, status, [])
