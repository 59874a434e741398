"""Server-sent events: `event_stream(request)`, over aiohttp's StreamResponse."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from aiohttp import hdrs, web

from ..http.response import NO_STORE
from ..http.streaming import at_once, opens_stream
from .changes import Changes, changes_of, unsubscribe_all
from .ends import FAILED, FINISHED, GONE, HEAD, End
from .frames import encode, end_frame
from .lease import Lease
from .outlet import DirectOutlet, frame_of
from .registry import Streams

STREAMS: Final = web.AppKey("streams", Streams)
_HEADERS: Final = {hdrs.CONTENT_TYPE: "text/event-stream", hdrs.CACHE_CONTROL: NO_STORE, "X-Accel-Buffering": "no"}


class Stream:
    """An open event stream; `event_stream` makes it.

    response        what the handler returns
    last_event_id   the header `Last-Event-ID`: the `id` of the last event that the client has received, or None. The client
                    sends it: treat it as any other input
    """

    def __init__(self, request: web.Request) -> None:
        self._request, self._registry = request, request.app[STREAMS]
        self._lease: Lease | None = None
        self.response = web.StreamResponse(headers=_HEADERS)
        # Bytes that are not UTF-8 are lone surrogates here, which no JSON can contain: the handler may send the id back.
        last = request.headers.get("Last-Event-ID", "").encode("utf-8", "replace").decode()
        self.last_event_id: str | None = last or None

    async def send(self, data: Any, *, event: str | None = None, id: str | None = None) -> None:
        """Send one event, and wait while the client is behind.

        data   a `str` is sent as it is, each of its lines as a `data:` line; anything else as JSON
        event  the event's type; without it, browsers call it `message`
        id     the value that the client sends as `Last-Event-ID` when it reconnects

        Line ends and NUL in `event` and `id` are removed. Raises TypeError for data that has no JSON form, and
        asyncio.CancelledError once the stream has ended.
        """
        await self._send(encode(data, event, id))

    async def _send(self, frame: bytes) -> None:
        lease = self._lease
        if lease is None or lease.end is not None:
            await asyncio.sleep(0)  # a handler that ignores the error must not stop the event loop
            raise asyncio.CancelledError("the stream has ended")
        writer, protocol = self._request.writer, self._request.protocol
        try:
            at_once(writer.write(frame, drain=False))  # type: ignore[call-arg]
            self._registry.wrote(lease)
            if protocol.writing_paused:
                await writer.drain()
        except ConnectionError:  # the connection is closing
            self._registry.end(lease, GONE)
            await asyncio.sleep(0)

    async def send_changes(self, table: str) -> None:
        """Send each change of `changes(table)` until the stream ends: the row, or `{"id": …}` for `deleted`; `{}` for `resync`.

            async with event_stream(request) as stream:
                await stream.send_changes("todos")
            return stream.response

        The event is the change's, its `id` that of the row. It is much cheaper than a loop over `changes`, because rows go to
        the connection without waking the handler. Raises what `changes` raises, and RuntimeError before the stream is open.
        """
        lease = self._check_open()
        async for change in changes_of(self._request, table, DirectOutlet(self._request, self._registry, lease)):
            await self._send(frame_of(change))  # one that could not be sent directly

    def changes(self, table: str) -> Changes:
        """`async for change in stream.changes("todos")`: each change of a row of the caller's user or active organisation.

            async for change in stream.changes("todos"):
                await stream.send(change.row or {"id": change.id}, event=change.event, id=change.id)

        The changes begin with this call; the table needs `gatepost_changes`. Each is a `Change(event, id, row)`, whose event is
        `created`, `updated`, `deleted` or `resync`. Rows are read again under the caller's scope: one that row-level security
        hides is left out. `resync` means that changes may have been missed: the client should load everything again.

        Raises Unauthorized (401) if the request has no caller, RuntimeError before the stream is open, and, when the first
        change is asked for, ChangesNotTold (a LookupError) if the table reports no changes.
        """
        self._check_open()
        return changes_of(self._request, table)

    def _check_open(self) -> Lease:
        """Returns the lease. Without one, nothing would end a subscription to changes."""
        if self._lease is None:
            raise RuntimeError("the stream is not open")
        return self._lease

    async def __aenter__(self) -> Stream:
        if self._lease is not None:
            raise RuntimeError("an event stream can be opened only once")
        if self.response.compression:
            raise RuntimeError("an event stream cannot be compressed: the compressor would hold events back")
        self._lease = lease = self._registry.open(self._request, "events")
        lease.finish = self._finish
        self.response.force_close()
        await begun(self._registry, lease, self.response)
        if self._request.method == hdrs.METH_HEAD:
            self._registry.end(lease, HEAD)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._lease is not None
        return await leave(self._registry, self._lease, error)

    def _finish(self, end: End) -> None:
        """Send the client the reason of the end, and close the connection. Nothing is sent after this."""
        if end is HEAD:
            return
        writer, protocol = self._request.writer, self._request.protocol
        with suppress(ConnectionError):
            if end.code is not None:
                at_once(writer.write(end_frame(end.reason), drain=False))  # type: ignore[call-arg]
                writer.set_eof()  # type: ignore[attr-defined]
        protocol.force_close()


async def begun(registry: Streams, lease: Lease, response: web.StreamResponse) -> None:
    """Send the head of a live answer. Raises what its preparation raises; CancelledError if the client has disconnected."""
    try:
        await response.prepare(lease.request)
    except BaseException as error:
        unsubscribe_all(lease.request)
        registry.left(lease, GONE)
        if isinstance(error, ConnectionError):
            raise asyncio.CancelledError("the client has gone") from None
        raise


async def leave(registry: Streams, lease: Lease, error: BaseException | None) -> bool:
    """Close a live answer whose block ends, with `error` or None. Returns True if the error is only the end of the lease."""
    unsubscribe_all(lease.request)
    ended = lease.end is not None
    cancelled = isinstance(error, asyncio.CancelledError)
    registry.left(lease, FINISHED if error is None else GONE if cancelled else FAILED)
    if not ended:
        return False
    if not cancelled and lease.task.cancelling():  # the cancellation has not arrived yet: it must not hit what comes after
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
    while lease.cancels > 0 and lease.task.cancelling():
        lease.cancels -= 1
        lease.task.uncancel()
    lease.cancels = 1
    return cancelled and not lease.task.cancelling()


@opens_stream
def event_stream(request: web.Request) -> Stream:
    """`async with event_stream(request) as stream:` respond with server-sent events until the client leaves or access ends.

        async with event_stream(request) as stream:
            while True:
                await stream.send({"time": time.time()}, event="tick")
                await asyncio.sleep(1)
        return stream.response

    The stream is a lease: it ends when the caller's credential expires or is revoked, after `streams.max_seconds`, when the
    client reads too slowly, and when the server drains. A last event, `end`, tells the client the reason; the block is
    cancelled, and the code after it runs.

    Raises, on entry, TooManyRequests (429 `streams`) beyond `streams.per_caller`, ServiceUnavailable (503) beyond
    `streams.total` and while the server drains, Unauthorized (401) if access has just ended, and BadRequest (400) for a request
    with an `Idempotency-Key`.
    """
    return Stream(request)
