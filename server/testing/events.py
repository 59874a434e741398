"""Clients of the test kit that read server-sent events: `client.events(path)`."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp


class ServerEvent(NamedTuple):
    """One event of a stream.

    event  its type; `message` where the server names none
    data   its data: what it means as JSON, or the text where it is no JSON
    id     the id of this event, or of the last one before it that has one; None: there was none
    """

    event: str
    data: Any
    id: str | None


class EventReader:
    """The events of one response, in order. As an asynchronous iterator it ends with the stream.

    response  aiohttp's response
    reason    why the server has ended the stream (`draining`, `session-revoked`, …); None as long as it has not, and for a
              stream that ended without a word
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.reason: str | None = None
        self._id: str | None = None

    async def next(self, seconds: float = 5.0) -> ServerEvent:
        """Returns the next event, including `end`.

        Raises TimeoutError if none comes within `seconds`, EOFError at the end of the stream, and aiohttp's
        ClientPayloadError where the connection was cut.
        """
        kind, lines = "message", []
        async with asyncio.timeout(seconds):
            while line := (await self.response.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(":")
                value = value.removeprefix(" ")
                if name == "event":
                    kind = value
                elif name == "data":
                    lines.append(value)
                elif name == "id":
                    self._id = value
                elif line == "\n" and lines:
                    return self._event(kind, "\n".join(lines))
                elif line == "\n":
                    kind = "message"
        raise EOFError

    def _event(self, kind: str, text: str) -> ServerEvent:
        try:
            data = json.loads(text)
        except ValueError:
            data = text
        if kind == "end" and isinstance(data, dict):
            self.reason = data.get("reason")
        return ServerEvent(kind, data, self._id)

    async def ended(self, seconds: float = 5.0) -> str | None:
        """Read to the end of the stream; returns its `reason`. Raises TimeoutError if that takes longer than `seconds`."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await self.next(seconds)
                except EOFError:
                    return self.reason

    async def __aiter__(self) -> AsyncIterator[ServerEvent]:
        """Yields all events but `end`, without a time limit."""
        while True:
            try:
                event = await self.next(float("inf"))
            except EOFError:
                return
            if event.event != "end":
                yield event


with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp discourages it; here only a method is added

    class KitClient(aiohttp.ClientSession):
        """aiohttp's ClientSession, with `events`. WebSockets: `ws_connect`, as in aiohttp."""

        @asynccontextmanager
        async def events(
            self, path: str, *, last_event_id: str | None = None, headers: Mapping[str, str] | None = None, **more: Any
        ) -> AsyncIterator[EventReader]:
            """`async with client.events("/api/data/events") as events:` open an event stream; `await events.next()` reads one.

            `more` are arguments of aiohttp's `get`. Raises ClientResponseError where the response is no event stream; its
            `status` is the response's, its `message` the body.
            """
            sent = {"Accept": "text/event-stream", **(headers or {})}
            if last_event_id is not None:
                sent["Last-Event-ID"] = last_event_id
            async with self.get(path, headers=sent, timeout=aiohttp.ClientTimeout(total=None), **more) as response:
                if response.status != 200 or response.content_type != "text/event-stream":
                    body = await response.text()
                    raise aiohttp.ClientResponseError(
                        response.request_info, response.history, status=response.status, message=body, headers=response.headers
                    )
                yield EventReader(response)
