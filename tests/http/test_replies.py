"""Answers whose head is bytes from the start: the same on the wire as aiohttp's own, and never another's."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import web
from kits.app import Client, ask, build_app, routes_plugin, serving

from server import answer, public, signed_in
from server.http.response import STANDARD_HEADERS, JsonResponse

PUBLIC = ("/api/health", "/api/x(.*)")
MORE: dict[str, dict[str, str]] = {
    "nothing more": {},
    "a location and a tag": {"Location": "/api/x/1", "ETag": '"abc"'},
    "a policy of its own": {"Content-Security-Policy": "default-src 'self'"},
    "a type of its own": {"Content-Type": "application/problem+json"},
    "letters beyond ASCII": {"X-Name": "Zo\u00eb"},
    "a connection of its own": {"Connection": "close"},
}


def by_aiohttp(body: bytes, status: int, more: dict[str, str]) -> web.Response:
    headers = STANDARD_HEADERS.copy()
    headers.update(more)
    return web.Response(body=body, status=status, headers=headers)


def app_of(*handlers: tuple[str, Any]) -> web.Application:
    routes = [web.get(path, public(handler)) for path, handler in handlers]
    return build_app({"x": routes_plugin(*routes)}, public_routes=list(PUBLIC))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 201, 204, 304, 404, 503])
@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
async def test_it_looks_like_an_answer_of_aiohttps(method: str, status: int, more: dict[str, str]) -> None:
    async def ours(request: web.Request) -> web.Response:
        return JsonResponse(b'{"a": 1}', status, more)

    async def theirs(request: web.Request) -> web.Response:
        return by_aiohttp(b'{"a": 1}', status, more)

    async with serving(app_of(("/api/x/ours", ours), ("/api/x/theirs", theirs))) as port:
        one, other = await ask(port, method, "/api/x/ours"), await ask(port, method, "/api/x/theirs")
    assert (one.status, one.body) == (other.status, other.body)
    assert one.headers.keys() == other.headers.keys()
    changing = {"x-request-id", "date"}
    assert {k: v for k, v in one.headers.items() if k not in changing} == {k: v for k, v in other.headers.items() if k not in changing}
    assert one.raw.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x=1", "a\nb", "a\x00b", "a\rb", "a\x7f"])
async def test_no_header_begins_another(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        JsonResponse(b"{}", more={"Location": value})

    async def handler(request: web.Request) -> web.Response:
        return answer({}, headers={"Location": value})

    async with serving(app_of(("/api/x", handler))) as port:
        reply = await ask(port, "GET", "/api/x")
    assert reply.status == 500
    assert b"Set-Cookie" not in reply.raw


async def test_an_answer_that_was_sent_is_not_sent_to_anybody_else() -> None:
    kept = JsonResponse(b'{"whose": "the first one\'s"}')

    async def handler(request: web.Request) -> web.Response:
        return kept

    async with serving(app_of(("/api/x", handler))) as port:
        assert (await ask(port, "GET", "/api/x")).status == 200
        second = await ask(port, "GET", "/api/x")
    assert second.status == 500
    assert b"whose" not in second.raw


async def test_who_touches_the_headers_gets_what_they_asked_for() -> None:
    async def handler(request: web.Request) -> web.Response:
        made = answer({"a": 1}, 201, {"Location": "/api/x/1"})
        assert made.headers["Content-Type"] == "application/json"
        made.headers["X-Mine"] = "1"
        made.set_cookie("a", "b")
        return made

    async with serving(app_of(("/api/x", handler))) as port:
        reply = await ask(port, "GET", "/api/x")
    assert (reply.status, reply.body) == (201, b'{"a":1}')
    assert (reply.headers["x-mine"], reply.headers["location"]) == ("1", "/api/x/1")
    assert reply.headers["set-cookie"].startswith("a=b")
    assert re.fullmatch("[0-9a-f]{24}", reply.headers["x-request-id"])


async def test_old_clients_and_those_who_close_are_answered_in_their_way() -> None:
    async def handler(request: web.Request) -> web.Response:
        return answer({})

    async with serving(app_of(("/api/x", handler))) as port:
        async with Client(port) as client:
            await client.send(b"GET /api/x HTTP/1.0\r\nHost: localhost\r\n\r\n")
            old = await client.reply()
            assert old.raw.startswith(b"HTTP/1.0 200 OK")
            assert await client.closed_by_server()
        closing = await ask(port, "GET", "/api/x", ("Connection", "close"))
        assert closing.headers["connection"] == "close"
        async with Client(port) as client:  # pipelined: each its own answer, in order
            await client.send(b"GET /api/x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5)
            ids = [(await client.reply()).headers["x-request-id"] for _ in range(5)]
    assert len(set(ids)) == 5


async def test_a_private_answer_is_never_kept_and_a_public_one_may_be() -> None:
    async def handler(request: web.Request) -> web.Response:
        return answer({})

    app = build_app({"x": routes_plugin(web.get("/api/x", public(handler)), web.get("/api/private", signed_in(handler)))},
                    public_routes=["/api/x"])  # fmt: skip
    async with serving(app) as port:
        assert "cache-control" not in (await ask(port, "GET", "/api/x")).headers
        assert (await ask(port, "GET", "/api/private")).headers["cache-control"] == "no-store"
        who = ("Authorization", 'Stub user_id="u"')
        assert (await ask(port, "GET", "/api/private", who)).headers["cache-control"] == "no-store"
