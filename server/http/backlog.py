"""What is held in memory for clients: bodies that are still arriving, and responses that a client has not taken yet.

Both together have one bound. A client that takes too little of a response loses its connection: it would otherwise decide
how long the server keeps the response, the connection and a place among `limits.connections`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from aiohttp import web

from .draining import is_idle

LEAST_BYTES: Final = 65_536
"""What a client must take of a response within `limits.write_seconds`, or all that is left: at 30 s about 2 KiB a second."""
_LOOKS: Final = 4
"""How many times within `limits.write_seconds` the connections are looked at."""

_UNSENT_IN_KERNEL: Final = 131_072
"""Bytes of a connection that the kernel may hold without having sent them. By default it takes megabytes."""


class Mark:
    """What a connection had not sent at one time. `counted`: these bytes are part of `Backlog.responses`."""

    __slots__ = ("counted", "requests", "since", "unsent")

    def __init__(self, unsent: int, since: float, requests: int) -> None:
        self.unsent, self.since, self.requests = unsent, since, requests
        self.counted = 0


class Client(Protocol):
    """What the backlog needs of a connection (server.http.protocol.Connection)."""

    mark: Mark | None
    _paused: bool
    _request_count: int


class Backlog:
    """The bytes that one process holds for its clients.

    bodies     bytes of request bodies that have arrived in part
    responses  bytes of responses that wait in connections because a client takes them slowly
    cut        how many connections were closed because the client took too little
    most       the bound in bytes
    """

    def __init__(self, most: int, seconds: float) -> None:
        """`most` is the bound in bytes (`limits.buffered_bytes`), `seconds` is `limits.write_seconds`."""
        self.bodies = self.responses = self.cut = 0
        self.most, self._seconds = most, seconds
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether the bound is reached: new requests and bodies are then refused with 503."""
        return self.bodies + self.responses > self.most

    def watch(self, loop: asyncio.AbstractEventLoop, connections: Mapping[Any, asyncio.Transport]) -> None:
        """Look at `connections`, a mapping that changes, until none is left. Does nothing if that is happening already."""
        if self._timer is None:
            self._timer = loop.call_later(self._seconds / _LOOKS, self._look, loop, connections)

    def paused(self, client: Client, transport: asyncio.WriteTransport, now: float) -> None:
        """Count a response that the client does not take as fast as it is written."""
        self._forget(client)
        client.mark = Mark(transport.get_write_buffer_size(), now, client._request_count)
        self._count(client.mark, client.mark.unsent)

    def resumed(self, client: Client) -> None:
        """The client has taken (nearly) everything, or the connection has ended."""
        self._forget(client)

    def _count(self, mark: Mark, unsent: int) -> None:
        self.responses += unsent - mark.counted
        mark.counted = unsent

    def _forget(self, client: Client) -> None:
        if client.mark is not None:
            self.responses -= client.mark.counted
            client.mark = None

    def _look(self, loop: asyncio.AbstractEventLoop, connections: Mapping[Any, asyncio.Transport]) -> None:
        self._timer = None
        now = loop.time()
        for client, transport in list(connections.items()):
            if self._is_stuck(client, transport, now):
                self.cut += 1
                transport.abort()
        if connections:
            self.watch(loop, connections)

    def _is_stuck(self, client: Any, transport: asyncio.WriteTransport, now: float) -> bool:
        """Whether the client has taken too little for too long. Without a mark this is the first look: it begins now."""
        unsent = transport.get_write_buffer_size()
        if unsent == 0 or not (client._paused or transport.is_closing() or is_idle(client)):
            self._forget(client)  # nothing waits, or a handler is at work and may have written only just now
            return False
        mark: Mark | None = client.mark
        if mark is None or (not client._paused and mark.requests != client._request_count):
            self._forget(client)
            mark = client.mark = Mark(unsent, now, client._request_count)
        self._count(mark, unsent)
        if mark.unsent - unsent >= LEAST_BYTES:
            mark.unsent, mark.since = unsent, now
        mark.unsent = max(mark.unsent, unsent)  # more was written meanwhile
        return now - mark.since >= self._seconds


def bound_kernel_buffer(transport: asyncio.BaseTransport) -> None:
    """Bytes that a client does not take must stay where they are counted (server.http.backlog), not in the kernel."""
    connection, option = transport.get_extra_info("socket"), getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if connection is not None and option is not None:
        with suppress(OSError):  # a unix socket has no such option
            connection.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_IN_KERNEL)


BACKLOG: Final = web.AppKey("backlog", Backlog)
