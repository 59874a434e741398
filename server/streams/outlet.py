"""Sends the changes of an event stream straight to its connection, without waking the task of its handler."""

from __future__ import annotations

from collections import deque

from aiohttp import web

from .change import Change
from .ends import GONE
from .frames import frame_of_row, frame_without_row, in_a_chunk
from .lease import Lease
from .registry import Streams


class DirectOutlet:
    """Where the changes of one event stream go while its lease lasts and its client keeps up.

    What it writes is what aiohttp's StreamWriter would write for the same frame: the head of the response has been sent, and
    the response is neither compressed nor of a known length.
    """

    __slots__ = ("_chunked", "_lease", "_protocol", "_registry", "_writer")

    def __init__(self, request: web.Request, registry: Streams, lease: Lease) -> None:
        self._registry, self._lease = registry, lease
        self._protocol, self._writer = request.protocol, request.writer
        self._chunked: bool = self._writer.chunked  # type: ignore[attr-defined]

    def pass_on(self, ready: deque[Change]) -> bool | None:
        """Send these changes, oldest first, and remove each that is sent.

        Returns False if the client is or falls behind, and None if the stream has ended.
        """
        protocol, lease = self._protocol, self._lease
        while ready and lease.end is None and not protocol.writing_paused:
            frame = frame_of(ready.popleft())
            self._write(in_a_chunk(frame) if self._chunked else frame)
        return not protocol.writing_paused if lease.end is None else None

    def _write(self, data: bytes) -> None:
        lease = self._lease
        if lease.transport.is_closing():
            self._registry.end(lease, GONE)
            return
        self._writer.output_size += len(data)
        lease.transport.write(data)
        self._registry.wrote(lease)

    async def wait(self) -> None:
        """Wait while the client is behind."""
        if self._protocol.writing_paused:
            try:
                await self._writer.drain()
            except ConnectionError:
                self._registry.end(self._lease, GONE)


def frame_of(change: Change) -> bytes:
    """Returns the event that tells a client of a change: with the row, or `{"id": …}` of a deleted one; `{}` for `resync`."""
    if change.row is not None:
        return frame_of_row(change.row, change.event, change.id)
    return frame_without_row(change.event, change.id)
