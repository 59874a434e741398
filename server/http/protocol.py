"""The HTTP connection: limits on request heads, and parser errors as JSON.

aiohttp responds to a malformed head with a text that repeats it, credentials included, and logs it too. Here the response
is a JSON error, and the log contains only the type of the error.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from ..telemetry.log import LOG
from .descriptors import bound_accept_errors, room_for
from .draining import DrainingServer
from .errors import error_response
from .response import JsonResponse, last_words
from .stamp import new_request_id, stamp

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HandOver(Protocol):
    """What a connection needs of the balancer that spreads connections over several workers."""

    def came(self, transport: asyncio.BaseTransport) -> bool:
        """Count a new connection. False if another worker has taken it over: this worker must then drop it."""

    def add(self, number: int) -> None:
        """Count a connection that came from another worker (1) or ended (-1)."""


class Connection(RequestHandler):
    """One client connection. Bytes come in, and each complete request is passed to the server's handler.

    Limits the size and the duration of an incomplete request head: 431 or 408, and the connection is closed.
    """

    __slots__ = ("_busy_bytes", "_handed", "_head_bytes", "_head_limit", "_head_seconds", "_head_timer", "_most", "_sharing")

    def __init__(
        self, manager: ConnectionServer, *, head_bytes: int, head_seconds: float, most: int, handed: bool = False, **kwargs: Any
    ) -> None:
        """`head_bytes` and `head_seconds` limit a head, `most` open connections. `handed`: it comes from another worker."""
        super().__init__(manager, max_line_size=head_bytes, max_field_size=head_bytes, **kwargs)
        self._most, self._sharing, self._handed = most, manager.sharing, handed
        self._head_limit, self._head_seconds = head_bytes, head_seconds
        self._head_bytes = self._busy_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._sharing is not None:
            if self._handed:
                self._sharing.add(1)
            elif not self._sharing.came(transport):
                self._sharing = self._manager = None  # it belongs to another worker now
                transport.abort()  # type: ignore[attr-defined]
                return
        super().connection_made(transport)
        if self._manager is not None and len(self._manager._connections) > self._most:
            self._refuse(503, b"Retry-After: 1\r\n")

    def data_received(self, data: bytes) -> None:
        # Before the first head nothing waits for messages yet: the task that will has not run.
        idle = self._request_count == 0 or (self._waiter is not None and not self._waiter.done())
        waiting = len(self._messages)
        try:
            super().data_received(data)
        except Exception as error:  # a target on which the URL parser itself fails, such as `http://[::1]@/`
            LOG.info("request refused", extra={"fields": {"status": 400, "error": type(error).__name__}})
            self._refuse(400)
            return
        received = len(self._messages) - waiting
        size = self._head_bytes + self._busy_bytes + len(data)
        if received > 0 and size > self._head_limit:
            for number in range(waiting, waiting + received):
                self._weigh_head(number)
        if not idle:
            # Part of the current request's body or of the next head: counted now, checked when the head is complete.
            self._busy_bytes = len(data) if received > 0 else self._busy_bytes + len(data)
        elif received > 0:
            if self._head_bytes or self._busy_bytes or self._head_timer is not None:
                self._head_done()
        elif data:
            self._head_grows(len(data))

    def _head_grows(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._head_limit:
            self._refuse(431)
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_seconds, self._refuse, 408)

    def _weigh_head(self, number: int) -> None:
        """Refuse a complete head that is over the limit; the bytes counted so far can include bodies."""
        message = self._messages[number][0]
        if not isinstance(message, _ErrInfo):  # the C parser has its own class of messages
            total = len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if total > self._head_limit:
                self._messages[number] = (_ErrInfo(status=431, exc=LineTooLong(b""), message=""), EMPTY_PAYLOAD)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._sharing is not None:
            self._sharing.add(-1)
        self._head_done()
        super().connection_lost(exc)

    def _head_done(self) -> None:
        self._head_bytes = self._busy_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, lines: bytes = b"") -> None:
        """Send an error response without a request, and close. `lines` are further header lines."""
        self._head_done()
        if self.transport is not None:
            self.transport.write(last_words(status, new_request_id(), lines))
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response, a JsonResponse in one write. The second value returned is whether the client has disconnected."""
        if type(resp) is JsonResponse and not self._upgraded and not self._paused and request._post is None:
            data = resp.as_bytes(request)
            if data is not None:
                transport = self.transport
                if transport is None or transport.is_closing():
                    return resp, True
                transport.write(data)
                resp._eof_sent = True
                return resp, False
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The response to an error of the parser or of the server; it contains nothing that the client sent."""
        if isinstance(exc, LineTooLong) or "many headers" in str(message).lower():
            status = 431
        LOG.info("request refused", extra={"fields": {"status": status, "error": type(exc).__name__}})
        if request.writer.output_size > 0:
            raise ConnectionError("a response has already been started")
        response = error_response(status)
        stamp(response, new_request_id())
        response.force_close()
        return response


class Request(web.Request):
    """aiohttp's request with direct `get` and `in`: those inherited from Mapping raise and catch an exception per miss."""

    def get(self, key: Any, default: Any = None) -> Any:
        return self._state.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._state


class ConnectionServer(DrainingServer):
    """aiohttp's server, which makes a Connection for each client and drains when it shuts down."""

    sharing: HandOver | None = None
    """The connection balancer, if several workers share a port."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    async def take(self, connection: socket.socket) -> None:
        """Serve an open connection that another worker has handed over."""
        made = partial(Connection, self, loop=self._loop, handed=True, **self._kwargs)
        await self._loop.connect_accepted_socket(made, connection)


def install(
    app: web.Application,
    handle: Handler,
    *,
    head_bytes: int,
    head_seconds: float,
    headers: int,
    idle_seconds: float,
    connections: int,
    descriptors: int,
) -> None:
    """Make everything that serves `app` (our own runner, a test server, gunicorn's worker) use ConnectionServer.

    head_bytes, head_seconds  the largest size and the longest duration of a request head
    headers, connections      the maximum number of header lines of a request, and of open connections
    idle_seconds              how long a connection without a request stays open
    descriptors               file descriptors that the process needs besides those of its connections
    """

    def make_handler(*, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any) -> ConnectionServer:
        app._set_loop(loop)
        app.freeze()
        # The timeouts are ours, not the runner's defaults (AppRunner keeps idle connections for an hour).
        kwargs = {name: value for name, value in kwargs.items() if name not in ("access_log_class", "access_log_format")}
        kwargs |= {"access_log": None, "keepalive_timeout": idle_seconds, "lingering_time": 1.0, "debug": False}
        kwargs |= {"head_bytes": head_bytes, "head_seconds": head_seconds, "max_headers": headers}
        kwargs |= {"most": room_for(connections, descriptors)}
        bound_accept_errors()
        return ConnectionServer(handle, request_factory=partial(app._make_request, _cls=Request), loop=loop, **kwargs)  # type: ignore[arg-type]

    object.__setattr__(app, "_make_handler", make_handler)
