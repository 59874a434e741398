"""Event streams and sockets: what is sent, and with which headers."""

from __future__ import annotations

from kits.live import LIVE, events, registry, until, websocket

from tests.conftest import ALICE, Serve


async def test_an_event_stream_opens_with_the_headers_of_every_response(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with events(client, "/api/ticks", ALICE) as stream:
        headers = stream.response.headers
        assert stream.response.status == 200
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert len(headers["X-Request-Id"]) == 24
        assert headers["Server"] == "gatepost"
        assert await stream.next() == {"event": "hello", "id": "1", "data": '{"user_id":"alice"}'}
        assert registry(client).number == 1
    await until(lambda: registry(client).number == 0)


async def test_a_socket_answers(serve: Serve) -> None:
    client = await serve(extra=LIVE)
    async with websocket(client, "/api/echo", ALICE) as ws:
        await ws.send_str("hello")
        assert await ws.receive_str() == "echo hello"
        assert len(ws._response.headers["X-Request-Id"]) == 24
    await until(lambda: registry(client).number == 0)
