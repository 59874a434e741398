"""Live answers are opened like any request: the order of answers, cookies, origins, protocols."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from kits.live import LIVE, events, registry, until, websocket

from server import Identity, hookimpl
from server.testing.clerk import LoopbackClerk
from tests.conftest import ALICE, Serve, plugin, stub

PARTY = "http://localhost:3000"
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}


def cookie(clerk: LoopbackClerk, user: str = "alice") -> dict[str, str]:
    token, now = clerk.token(user), int(time.time())
    return {"Cookie": f"__session={token}; __client_uat={now - 60}; __clerk_db_jwt=dvb_1"}


@pytest.mark.parametrize("headers", [{}, UPGRADE])
@pytest.mark.parametrize("path", ["/api/ticks", "/api/echo"])
async def test_a_cookie_opens_nothing_without_a_good_origin(serve: Serve, path: str, headers: dict[str, str]) -> None:
    async with LoopbackClerk() as clerk:
        client = await serve(clerk.settings(), extra=LIVE)
        session = cookie(clerk)
        assert (await client.get("/api/me", session)).status == 200
        bad = ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": PARTY + "/"}, {"Origin": ""}, {"Origin": PARTY.upper()},
               {"Referer": PARTY}, {"Sec-Fetch-Site": "same-origin"})  # fmt: skip
        for origin in bad:
            got = await client.get(path, {**session, **headers, **origin})
            assert (got.status, got.json()) == (401, {"error": "Unauthorized", "reason": "token-authorized-party"}), origin
            assert "WWW-Authenticate" in got.headers
        got = await client.send("HEAD", path, {**session, **headers})
        assert got.status == 401
        assert registry(client).opened == {}


async def test_a_cookie_opens_with_the_origin_of_an_authorized_party(serve: Serve) -> None:
    async with LoopbackClerk() as clerk:
        client = await serve(clerk.settings(), extra=LIVE)
        headers = {**cookie(clerk), "Origin": PARTY}
        async with events(client, "/api/ticks", headers) as stream:
            assert (await stream.next())["data"] == '{"user_id":"alice"}'
            assert stream.response.headers["Access-Control-Allow-Origin"] == PARTY
            assert stream.response.headers["Access-Control-Allow-Credentials"] == "true"
        async with websocket(client, "/api/echo", headers) as ws:
            await ws.send_str("x")
            assert await ws.receive_str() == "echo x"


async def test_a_header_beside_a_cookie_needs_no_origin(serve: Serve) -> None:
    """A page of another site cannot make a browser send it."""
    async with LoopbackClerk() as clerk:
        client = await serve(clerk.settings(), extra=LIVE)
        headers = {**cookie(clerk, "bob"), "Authorization": f"Bearer {clerk.token('alice')}"}
        async with events(client, "/api/ticks", headers) as stream:
            assert (await stream.next())["data"] == '{"user_id":"alice"}'


async def test_the_cookie_of_another_provider_needs_an_origin_too(serve: Serve) -> None:
    class Cookies:
        reads = ("Cookie",)
        authorized_parties = (PARTY,)

        async def authenticate(self, request: Any) -> Any:
            return Identity(provider="cookies", user_id="carol") if request.cookies.get("sid") == "good" else None

    offer = SimpleNamespace(register_providers=hookimpl(lambda: {"cookies": lambda settings: Cookies()}, specname="register_providers"))
    client = await serve({"providers": ["cookies"]}, extra={**LIVE, "cookies": offer})
    got = await client.get("/api/ticks", {"Cookie": "sid=good"})
    assert (got.status, got.json()["reason"]) == (401, "token-authorized-party")
    for login in ("Basic dXNlcjpwYXNz", "basic", "Digest x", "Negotiate x", ""):  # a browser adds these by itself, as it adds the cookie
        for origin in ({}, {"Origin": "https://evil.example"}):
            got = await client.get("/api/ticks", {"Cookie": "sid=good", "Authorization": login, **origin})
            assert (got.status, got.json()["reason"]) == (401, "token-authorized-party"), login
    async with events(client, "/api/ticks", {"Cookie": "sid=good", "Origin": PARTY}) as stream:
        assert (await stream.next())["data"] == '{"user_id":"carol"}'


async def test_the_order_of_answers_is_that_of_any_request(serve: Serve) -> None:
    client = await serve({"limits.caller": "6/minute", "streams.per_caller": 1}, extra=LIVE)
    for headers in ({}, UPGRADE):
        got = await client.get("/api/ticks", headers)
        assert (got.status, got.json()["reason"]) == (401, "credential-missing")
        got = await client.get("/api/ticks", {"Authorization": "Bearer x", "X-API-Key": "gp_x", **headers})
        assert got.status == 400
        assert (await client.get("/api/%2fticks", {**ALICE, **headers})).status == 400
    assert (await client.post("/api/ticks", ALICE)).status == 405
    async with events(client, "/api/ticks", ALICE) as stream:
        assert stream.response.headers["RateLimit"].startswith('"caller";r=4')
        assert (await client.get("/api/ticks", ALICE)).json() == {"error": "Too Many Requests", "reason": "streams"}
    for _ in range(3):
        await client.get("/api/quick", ALICE)
    got = await client.get("/api/echo", {**ALICE, **UPGRADE})
    assert (got.status, "reason" in got.json()) == (429, False)


async def test_cross_origin_requests(serve: Serve) -> None:
    client = await serve({"cors_origins": [PARTY]}, extra=LIVE)
    async with events(client, "/api/ticks", {**ALICE, "Origin": PARTY}) as stream:
        assert stream.response.headers["Access-Control-Allow-Origin"] == PARTY
        assert "Origin" in stream.response.headers["Vary"]
    async with events(client, "/api/ticks", {**ALICE, "Origin": "https://evil.example"}) as stream:
        assert "Access-Control-Allow-Origin" not in stream.response.headers
    preflight = {"Origin": PARTY, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
    got = await client.send("OPTIONS", "/api/ticks", preflight)
    assert got.status == 204
    assert "Last-Event-ID" in got.headers["Access-Control-Allow-Headers"]


async def test_no_compression_holds_events_back(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with events(client, "/api/ticks", {**ALICE, "Accept-Encoding": "gzip, deflate, br"}) as stream:
        assert "Content-Encoding" not in stream.response.headers
        assert (await stream.next())["event"] == "hello"
    async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{client.port}/api/echo", headers=ALICE, compress=15) as ws:
        assert not ws.compress


async def test_http_1_0(serve: Serve) -> None:
    """What nginx speaks by default: without chunks, until the connection ends."""
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "streams.max_seconds": 1}, extra=LIVE)
        async with client.wire() as wire:
            lines = f"GET /api/ticks HTTP/1.0\r\nHost: api.example\r\nAuthorization: Bearer {clerk.token('alice')}\r\n\r\n"
            wire.writer.write(lines.encode())
            raw = await asyncio.wait_for(wire.reader.read(), 5)
    head, _, body = raw.decode().partition("\r\n\r\n")
    assert " 200 " in head
    assert "chunked" not in head.lower()
    assert body.startswith("event: hello\n")
    assert body.endswith('event: end\ndata: {"reason":"too-long"}\n\n')


async def test_a_caller_without_the_role_opens_nothing(serve: Serve) -> None:
    from aiohttp import web

    from server import event_stream, requires

    @requires(role="org:admin")
    async def admins(request: web.Request) -> web.StreamResponse:
        async with event_stream(request) as stream:
            await stream.send("hello")
        return stream.response

    client = await serve(extra={"live": plugin(web.get("/api/admins", admins))})
    assert (await client.get("/api/admins", ALICE)).json()["reason"] == "role"
    got = await client.get("/api/admins", stub("anna", org_id="org_a", org_role="org:admin"))
    assert (got.status, got.raw) == (200, b"data: hello\n\n")
    await until(lambda: registry(client)._clock.number == 0)


async def test_access_that_ended_after_the_admission_opens_nothing(serve: Serve) -> None:
    """The handler waits before it opens the stream; meanwhile the session ends."""
    from aiohttp import web
    from kits.webhooks import SETTINGS, deliver, session

    from server import event_stream, signed_in

    waiting, go = asyncio.Event(), asyncio.Event()

    @signed_in
    async def late(request: web.Request) -> web.StreamResponse:
        waiting.set()
        await go.wait()
        async with event_stream(request) as stream:
            await stream.send("hello")
        return stream.response

    client = await serve(SETTINGS, extra={"live": plugin(web.get("/api/late", late))})
    asked = asyncio.create_task(client.get("/api/late", stub("alice", session_id="sess_1")))
    await waiting.wait()
    assert (await deliver(client, session("ended", 5, id="sess_1"))).status == 204
    await asyncio.sleep(1)
    go.set()
    got = await asked
    assert (got.status, got.json()["reason"]) == (401, "session-revoked")


@pytest.mark.parametrize("key", ["", "x", "\u00e9" * 24, "\udcff" * 24, "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ==, a"])
async def test_a_handshake_with_a_bad_key_is_a_400(serve: Serve, key: str) -> None:
    """RFC 6455 4.2.1: the key is 16 bytes in base64. A header may hold any bytes."""
    client = await serve(extra=LIVE)
    async with client.wire() as wire:
        head = {"Host": "127.0.0.1", **ALICE, **UPGRADE, "Sec-WebSocket-Key": key}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        wire.writer.write(f"GET /api/echo HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogateescape"))
        status, _, raw = await wire.answer()
    assert (status, json.loads(raw)) == (400, {"error": "Bad Request"})
    assert registry(client).number == 0
