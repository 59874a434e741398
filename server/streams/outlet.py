"""Sends the changes of an event stream straight to its connection, without waking the task of its handler."""

from __future__ import annotations

from aiohttp import web

from ..http.streaming import at_once
from .change import Change
from .ends import GONE
from .frames import encode, frame_without_row
from .lease import Lease
from .registry import Streams


class DirectOutlet:
    """Where the changes of one event stream go while its lease lasts and its client keeps up."""

    __slots__ = ("_lease", "_protocol", "_registry", "_request")

    def __init__(self, request: web.Request, registry: Streams, lease: Lease) -> None:
        self._request, self._registry, self._lease = request, registry, lease
        self._protocol = request.protocol

    def is_open(self) -> bool:
        """Has the stream not ended?"""
        return self._lease.end is None

    def is_behind(self) -> bool:
        """Is the client behind?"""
        return self._protocol.writing_paused

    def send(self, change: Change) -> None:
        """Send a change; only while `is_open()`."""
        write_frame(self._request, self._registry, self._lease, frame_of(change))

    async def wait(self) -> None:
        """Wait while the client is behind."""
        if self._protocol.writing_paused:
            try:
                await self._request.writer.drain()
            except ConnectionError:
                self._registry.end(self._lease, GONE)


def frame_of(change: Change) -> bytes:
    """Returns the event that tells a client of a change: with the row, or `{"id": …}` of a deleted one; `{}` for `resync`."""
    if change.row is not None:
        return encode(change.row, change.event, change.id)
    return frame_without_row(change.event, change.id)


def write_frame(request: web.Request, registry: Streams, lease: Lease, frame: bytes) -> None:
    """Write a frame to the connection of a live answer that has not ended."""
    try:
        at_once(request.writer.write(frame, drain=False))  # type: ignore[call-arg]
        registry.wrote(lease)
    except ConnectionError:  # the connection is closing
        registry.end(lease, GONE)
