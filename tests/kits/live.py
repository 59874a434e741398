"""Live answers in tests: a plugin that opens them, and readers of events and frames."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from server import NotFound, answer, event_stream, identity_of, public, scoped, signed_in, socket
from server.streams.events import STREAMS
from tests.conftest import Client, plugin

routes = web.RouteTableDef()


@routes.get("/api/ticks")
@signed_in
async def ticks(request: web.Request) -> web.StreamResponse:
    """Says who is calling, then nothing."""
    async with event_stream(request) as stream:
        await stream.send({"user_id": identity_of(request).user_id}, event="hello", id="1")
        await asyncio.Event().wait()
    return stream.response


@routes.get("/api/echo")
@signed_in
async def echo(request: web.Request) -> web.StreamResponse:
    """Sends back what it receives."""
    async with socket(request) as ws:
        async for message in ws:
            await ws.send_str(f"echo {message.data}")
    return ws


@routes.get("/api/flood")
@signed_in
async def flood(request: web.Request) -> web.StreamResponse:
    """Sends events of `?bytes=` as fast as they are taken."""
    async with event_stream(request) as stream:
        while True:
            await stream.send("x" * int(request.query.get("bytes", "4096")))
    return stream.response


@routes.get("/api/flood/socket")
@signed_in
async def flood_socket(request: web.Request) -> web.StreamResponse:
    async with socket(request) as ws:
        while True:
            await ws.send_str("x" * 4096)
    return ws


@routes.get("/api/stubborn")
@signed_in
async def stubborn(request: web.Request) -> web.StreamResponse:
    """Ignores its cancellation as often as `?times=` says, and sends on. A connection to the database is held."""
    async with event_stream(request) as stream:
        await stream.send("first", event="hello")
        for _ in range(int(request.query.get("times", "3"))):
            async with scoped(request) as db:
                await db.fetchval("SELECT 1")
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(asyncio.get_running_loop().create_future())
            with contextlib.suppress(asyncio.CancelledError):
                await stream.send("after the end")
            with contextlib.suppress(ConnectionError):
                await stream.response.write(b"data: after the end\n\n")
    return stream.response


@routes.get("/api/stubborn/socket")
@signed_in
async def stubborn_socket(request: web.Request) -> web.StreamResponse:
    async with socket(request) as ws:
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            with contextlib.suppress(ConnectionError):
                await ws.send_str("after the end")
    return ws


@routes.get("/api/fails/{when}")
@signed_in
async def fails(request: web.Request) -> web.StreamResponse:
    """Fails before the stream is opened, after that, or after the first event."""
    when = request.match_info["when"]
    if when == "before":
        raise RuntimeError("canary-text")
    if when == "missing":
        raise NotFound
    async with event_stream(request) as stream:
        if when == "sent":
            await stream.send("first", event="hello")
        if when != "not":
            raise RuntimeError("canary-text")
    return stream.response


@routes.post("/api/opened")
@signed_in
async def opened(request: web.Request) -> web.StreamResponse:
    """A POST that is answered with events."""
    async with event_stream(request) as stream:
        await stream.send((await request.read()).decode(), event="hello")
        await asyncio.Event().wait()
    return stream.response


@routes.get("/api/open/ticks")
@public
async def public_ticks(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("open to all", event="hello")
        await asyncio.Event().wait()
    return stream.response


@routes.get("/api/last")
@signed_in
async def last(request: web.Request) -> web.StreamResponse:
    """Sends three events, and returns."""
    async with event_stream(request) as stream:
        await stream.send("a\nb", event="e\nx", id="7")
        await stream.send(stream.last_event_id, event="last")
        await stream.send([1, {"a": None}])
    return stream.response


@routes.get("/api/quick")
@signed_in
async def quick(request: web.Request) -> web.StreamResponse:
    return answer({})


LIVE = {"live": plugin(*routes)}


class Events:
    """The events of one response."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0

    async def next(self, seconds: float = 5) -> dict[str, Any]:
        """The next event: event, data, id. Raises EOFError at the end of the stream, TimeoutError."""
        fields: dict[str, Any] = {}
        async with asyncio.timeout(seconds):
            while True:
                line = (await self.response.content.readline()).decode()
                if not line:
                    raise EOFError
                text = line.rstrip("\n")
                if not text:
                    if fields:
                        return fields
                    continue
                name, _, value = text.partition(": ")
                if text.startswith(":"):
                    self.comments += 1
                elif name == "data" and "data" in fields:
                    fields["data"] += "\n" + value
                else:
                    fields[name] = value

    async def end(self, seconds: float = 5) -> str:
        """The reason of the last event, after which the connection ends."""
        while True:
            event = await self.next(seconds)
            if event.get("event") == "end":
                break
        with contextlib.suppress(EOFError):
            raise AssertionError(await self.next(2))
        return str(json.loads(event["data"])["reason"])


@contextlib.asynccontextmanager
async def events(client: Client | int, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> AsyncIterator[Events]:
    """Open an event stream; its first event, `hello`, is not read."""
    port = client if isinstance(client, int) else client.port
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(f"http://127.0.0.1:{port}{path}", headers=headers, **more) as response,
    ):
        yield Events(response)


@contextlib.asynccontextmanager
async def websocket(
    client: Client | int, path: str, headers: Mapping[str, str] | None = None, **more: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    port = client if isinstance(client, int) else client.port
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.ws_connect(f"http://127.0.0.1:{port}{path}", headers=headers, **more) as ws,
    ):
        yield ws


async def until(condition: Any, seconds: float = 5) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def registry(client: Client) -> Any:
    """The live answers of the server."""
    return client.app[STREAMS]
