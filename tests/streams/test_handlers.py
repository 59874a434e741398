"""Handlers of live answers: what they send, how they fail, and that none outlives its lease."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kits.live import LIVE, events, registry, until, websocket
from kits.webhooks import SETTINGS, deliver, session

from server import event_stream, signed_in
from server.app import SERVER_DATABASE
from server.database.scope import DATABASE
from server.streams.frames import encode
from server.streams.live_changes import CHANGES
from server.testing.clerk import LoopbackClerk
from tests.conftest import ALICE, Client, Serve, TestDatabase, plugin, stub

SESSION = stub("alice", session_id="sess_1")


async def sign_out(client: Client) -> None:
    assert (await deliver(client, session("ended", 5, id="sess_1"))).status == 204


# What is sent ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("plain", b"data: plain\n\n"),
        ("", b"data: \n\n"),
        ("a\nb", b"data: a\ndata: b\n\n"),
        ("a\r\nb\rc", b"data: a\ndata: b\ndata: c\n\n"),
        ("a\n\nevent: end\ndata: x", b"data: a\ndata: \ndata: event: end\ndata: data: x\n\n"),
        (": not a comment", b"data: : not a comment\n\n"),
        ("\u2028ü", "data: \u2028ü\n\n".encode()),
        ("\ud800", b"data: ?\n\n"),
        ({"a": [1, None]}, b'data: {"a":[1,null]}\n\n'),
        (None, b"data: null\n\n"),
        ({"a": "x\ny"}, b'data: {"a":"x\\ny"}\n\n'),
    ],
)
def test_the_text_of_an_event(data: Any, lines: bytes) -> None:
    assert encode(data) == lines


def test_line_ends_are_removed_from_fields() -> None:
    assert encode("x", "a\nevent: end\r\n\r\ndata: y", "1\r\0\ndata: z") == b"event: aevent: enddata: y\nid: 1data: z\ndata: x\n\n"


@pytest.mark.parametrize("data", [b"x", object(), {1, object()}])
def test_what_has_no_json_form_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError):
        encode(data)


async def test_events_arrive_as_they_were_sent(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with events(client, "/api/last", {**ALICE, "Last-Event-ID": "6"}) as stream:
        assert await stream.next() == {"event": "ex", "id": "7", "data": "a\nb"}
        assert await stream.next() == {"event": "last", "data": "6"}
        assert await stream.next() == {"data": '[1,{"a":null}]'}
        with pytest.raises(EOFError):  # the handler has returned: nothing more is said
            await stream.next()
    assert registry(client).ended == {"finished": 1}


async def test_a_last_event_id_that_is_not_utf_8_can_be_sent_back(serve: Serve) -> None:
    @signed_in
    async def last(request: web.Request) -> web.StreamResponse:
        async with event_stream(request) as stream:
            await stream.send({"last": stream.last_event_id})
        return stream.response

    client = await serve(extra={"live": plugin(web.get("/api/last/json", last))})
    async with client.wire() as wire:
        head = f"GET /api/last/json HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ALICE['Authorization']}\r\n"
        wire.writer.write(head.encode() + b"Last-Event-ID: 7\xff\r\n\r\n")
        assert b'data: {"last":"7?"}\n\n' in await wire.reader.readuntil(b"\n\n")


# Failing -----------------------------------------------------------------------------------------------------------------


async def test_an_error_before_the_stream_is_an_error_response(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    got = await client.get("/api/fails/before", ALICE)
    assert (got.status, got.json()) == (500, {"error": "Internal Server Error"})
    got = await client.get("/api/fails/missing", ALICE)
    assert (got.status, got.json()) == (404, {"error": "Not Found"})
    assert registry(client).opened == {}


@pytest.mark.parametrize("when", ["opened", "sent"])
async def test_an_error_in_the_stream_closes_the_connection(
    serve: Serve, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the last chunk: the client must know that something is missing."""
    client = await serve(extra=LIVE)
    async with client.wire() as wire:
        await wire.send(f"GET /api/fails/{when}", ALICE)
        raw = await asyncio.wait_for(wire.reader.read(), 5)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1" not in body
    assert not body.endswith(b"0\r\n\r\n")
    assert (b"first" in body) == (when == "sent")
    assert registry(client).ended == {"error": 1}
    assert "handler failed" in caplog.text
    assert "canary" not in caplog.text


# Not outliving the lease -------------------------------------------------------------------------------------------------


async def test_a_handler_that_ignores_its_cancellation_sends_nothing_more(serve: Serve, db: TestDatabase) -> None:
    client = await serve(SETTINGS, extra=LIVE)
    async with client.wire() as wire:
        await wire.send("GET /api/stubborn", SESSION)
        await wire.reader.readuntil(b"hello")
        await sign_out(client)
        rest = await asyncio.wait_for(wire.reader.read(), 60)
        assert b"session-revoked" in rest
        assert b"after" not in rest
        assert rest.endswith(b"0\r\n\r\n")
    pool = client.app[DATABASE].pool
    assert pool is not None
    await until(lambda: registry(client)._clock.number == 0 and pool.lent == 0, 8)


async def test_a_socket_that_ignores_its_cancellation_sends_nothing_more(serve: Serve) -> None:
    client = await serve(SETTINGS, extra=LIVE)
    async with websocket(client, "/api/stubborn/socket", SESSION) as ws:
        await until(lambda: registry(client).number == 1)
        await sign_out(client)
        message = await asyncio.wait_for(ws.receive(), 2)
        assert (ws.close_code, message.extra) == (4401, "session-revoked")
    await until(lambda: registry(client)._clock.number == 0, 8)


async def test_a_handler_that_never_ends_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(SETTINGS, extra=LIVE)
    async with events(client, "/api/stubborn?times=12", SESSION) as stream:
        await stream.next()
        await sign_out(client)
        assert await stream.end() == "session-revoked"
        assert registry(client).number == 0
        assert registry(client)._clock.number == 1  # it still counts among `streams.total`
        await until(lambda: "does not end when its stream has ended" in caplog.text, 20)
        await until(lambda: registry(client)._clock.number == 0, 8)


async def test_a_client_that_goes_ends_the_handler_at_once(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with events(client, "/api/ticks", ALICE) as stream, websocket(client, "/api/stubborn/socket", ALICE):
        await stream.next()
    await until(lambda: registry(client).number == 0, 1)
    await until(lambda: registry(client)._clock.number == 0, 8)
    assert registry(client).ended == {"client": 2}


async def test_each_end_is_one_log_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = await serve(SETTINGS, extra=LIVE)
    async with events(client, "/api/ticks", SESSION) as stream:
        await stream.next()
        await sign_out(client)
        await stream.end()
        id = stream.response.headers["X-Request-Id"]
    lines = [record.fields for record in caplog.records if record.message == "stream ended"]  # type: ignore[attr-defined]
    assert [{**line, "seconds": 0} for line in lines] == [
        {"request_id": id, "route": "/api/ticks", "kind": "events", "reason": "session-revoked", "seconds": 0, "provider": "stub",
         "user_id": "alice"}
    ]  # fmt: skip


async def test_ended_streams_leave_nothing_in_memory(serve: Serve) -> None:
    """Credentials that end in an hour must not keep the streams of a client that comes and goes."""
    async with LoopbackClerk() as clerk:
        client = await serve(clerk.settings(), extra=LIVE)
        bearer = {"Authorization": f"Bearer {clerk.token('alice', org_id='org_a')}"}
        for _ in range(150):
            async with events(client, "/api/last", bearer) as stream:
                await stream.next()
        one = registry(client)
        await until(lambda: one._clock.number == 0)
        assert (one._by_subject, len(one._watching), one._places._of) == ({}, 0, {})
        clock = one._clock
        assert (clock._writing, [slot for slot in clock._slots if slot]) == (set(), [])
        assert len(clock._expiries) <= 70
        await until(lambda: clock._timer is None, 2)


async def test_a_failure_at_one_end_does_not_affect_others(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve(SETTINGS, extra=LIVE)
    async with events(client, "/api/ticks", SESSION) as one, events(client, "/api/ticks", SESSION) as two:
        await one.next()
        await two.next()
        first = registry(client)._clock.leases()[0]
        first.finish = lambda end: 1 / 0
        await sign_out(client)
        assert await two.end() == "session-revoked"
        with pytest.raises((aiohttp.ClientError, EOFError)):
            await one.next()
    assert "could not be ended" in caplog.text
    await sign_out(client)
    await asyncio.sleep(0.6)
    assert client.app[SERVER_DATABASE].revocations.age < 0.6  # the feed goes on


# HEAD, POST, sockets -----------------------------------------------------------------------------------------------------


async def test_head_holds_nothing_open(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    for path in ("/api/ticks", "/api/flood", "/api/stubborn"):
        got = await client.send("HEAD", path, ALICE)
        assert (got.status, got.headers["Content-Type"], got.raw) == (200, "text/event-stream", b"")
        assert got.headers["Cache-Control"] == "no-store"
    await until(lambda: registry(client)._clock.number == 0, 8)
    assert registry(client).ended == {"head": 3}
    got = await client.send("HEAD", "/api/echo", ALICE)
    assert (got.status, got.headers["Upgrade"]) == (426, "websocket")


async def test_a_socket_route_without_an_upgrade_is_a_426(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    got = await client.get("/api/echo", ALICE)
    assert (got.status, got.json()) == (426, {"error": "Upgrade Required"})
    assert got.headers["Upgrade"] == "websocket"
    for headers in ({"Upgrade": "h2c", "Connection": "Upgrade"}, {"Upgrade": "websocket"}):
        assert (await client.get("/api/echo", {**ALICE, **headers})).status == 426
    odd = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "12", "Sec-WebSocket-Key": "x" * 16}
    got = await client.get("/api/echo", {**ALICE, **odd})
    assert (got.status, got.headers["Sec-WebSocket-Version"]) == (426, "13")
    got = await client.get("/api/echo", {**ALICE, **odd, "Sec-WebSocket-Version": "13"})
    assert got.status == 400
    assert registry(client)._clock.number == 0
    assert (await client.get("/api/echo")).status == 401


async def test_a_message_that_is_too_large_closes_the_socket(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with websocket(client, "/api/echo", ALICE) as ws:
        await ws.send_str("x" * 65_000)
        assert len(await ws.receive_str()) == 65_005
        await ws.send_str("x" * 70_000)
        await asyncio.wait_for(ws.receive(), 5)
        assert ws.close_code == 1009


async def test_a_message_of_the_largest_size_is_accepted(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with websocket(client, "/api/echo", ALICE, max_msg_size=0) as ws:
        await ws.send_str("x" * 65_536)
        assert len(await ws.receive_str()) == 65_541
        await ws.send_str("x" * 65_537)
        await asyncio.wait_for(ws.receive(), 5)
        assert ws.close_code == 1009


UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
REFUSED = [
    (b"\x82\xff" + (4_000_000).to_bytes(8) + b"mask", 1009),  # the frame of a message of 4 MB
    (b"\x81\x82\0\0\0\0\xff\xff", 1007),  # text that is not UTF-8
    (b"\x83\xfe\0\x04mask", 1002),  # an unknown kind of frame
]


@pytest.mark.parametrize(("frame", "code"), REFUSED)
async def test_a_client_that_is_still_sending_learns_why_its_message_is_refused(serve: Serve, frame: bytes, code: int) -> None:
    """A connection that is closed while something arrives is reset, and takes the close frame with it."""
    client = await serve(extra=LIVE)
    async with client.wire() as wire:
        await wire.send("GET /api/echo", ALICE, UPGRADE)
        assert (await wire.answer())[0] == 101
        wire.writer.write(frame)
        for _ in range(20):
            await asyncio.sleep(0.01)
            wire.writer.write(b"x" * 200_000)  # raises nothing, as the connection is still there
            await wire.writer.drain()
        assert await asyncio.wait_for(wire.reader.read(), 5) == b"\x88\x02" + code.to_bytes(2)
    await until(lambda: registry(client)._clock.number == 0)


async def test_a_client_that_goes_on_sending_after_a_refusal_is_disconnected(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with client.wire() as wire:
        await wire.send("GET /api/echo", ALICE, UPGRADE)
        assert (await wire.answer())[0] == 101
        wire.writer.write(REFUSED[0][0])

        async def go_on() -> None:
            while True:
                wire.writer.write(b"x" * 1000)
                await wire.writer.drain()
                await asyncio.sleep(0.02)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(go_on(), 10)
    await until(lambda: registry(client)._clock.number == 0)


async def test_a_post_opens_a_stream_but_not_with_an_idempotency_key(serve: Serve) -> None:
    """Its transaction would hold a connection as long as the stream lasts."""
    client = await serve({"database.pool_size": 1}, extra=LIVE)
    async with client._session.post(f"http://127.0.0.1:{client.port}/api/opened", headers=ALICE, data=b"hello") as response:
        assert (await response.content.readuntil(b"\n\n")) == b"event: hello\ndata: hello\n\n"
        got = await client.post("/api/opened", {**ALICE, "Idempotency-Key": "k"}, data=b"hello")
        assert (got.status, got.json()["reason"]) == (400, "idempotency-key-unsupported")
        assert (await client.get("/api/data", ALICE)).status == 200


async def test_the_server_says_which_routes_stream(serve: Serve) -> None:
    from server.app import TABLE

    client = await serve(extra=LIVE)
    live = {rule.template for rule in client.app[TABLE].rules.values() if rule.streams and rule.plugin == "live"}
    assert live == {"/api/ticks", "/api/echo", "/api/flood", "/api/flood/socket", "/api/stubborn", "/api/stubborn/socket",
                    "/api/fails/{when}", "/api/opened", "/api/open/ticks", "/api/last"}  # fmt: skip
    got = await client.get("/api/quick", ALICE)
    assert json.loads(got.raw) == {}


async def test_a_request_is_answered_by_one_stream(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    from aiohttp import web

    from server import event_stream, signed_in
    from tests.conftest import plugin

    @signed_in
    async def twice(request: web.Request) -> web.StreamResponse:
        async with event_stream(request) as stream, event_stream(request):
            await stream.send("never")
        return stream.response

    client = await serve(extra={"live": plugin(web.get("/api/twice", twice))})
    with pytest.raises(aiohttp.ClientError):
        await client.get("/api/twice", ALICE)
    assert "handler failed" in caplog.text
    await until(lambda: registry(client)._clock.number == 0)
    assert client.server.handler.live == 0  # type: ignore[union-attr]


async def test_changes_begin_with_an_open_stream_only(serve: Serve) -> None:
    """A subscription ends with its stream: before it is open, or where it was refused, nothing would end one."""
    told: list[str] = []

    @signed_in
    async def early(request: web.Request) -> web.StreamResponse:
        stream = event_stream(request)
        try:
            stream.changes("todos")
        except RuntimeError as error:
            told.append(str(error))
        async with stream:
            await asyncio.Event().wait()
        return stream.response

    client = await serve({"streams.per_caller": 1}, extra={"early": plugin(web.get("/api/early", early))})
    async with events(client, "/api/early", ALICE) as stream:
        assert stream.response.status == 200
        for _ in range(3):
            assert (await client.get("/api/early", ALICE)).status == 429
    assert told == ["the stream is not open"] * 4
    assert len(client.app[CHANGES].fanout) == 0
