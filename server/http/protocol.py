"""The HTTP connection: limits on request heads, and parser errors as JSON.

aiohttp responds to a malformed head with a text that repeats it, credentials included, and logs it too. Here the response
is a JSON error, and the log contains only the type of the error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from ..telemetry.log import LOG
from .backlog import Backlog, Mark, bound_kernel_buffer
from .error_bodies import ErrorBodies, last_words
from .live_connection import LiveConnection
from .parser_errors import log_refused
from .response import JsonResponse
from .stamp import stamp

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Hold: TypeAlias = Callable[[web.BaseRequest], Callable[[], None]]


class HandOver(Protocol):
    """What a connection needs of the balancer that spreads connections over several workers."""

    def came(self, transport: asyncio.BaseTransport) -> bool:
        """Count a new connection. False if another worker has taken it over: this worker must then drop it."""

    def add(self, number: int) -> None:
        """Count a connection that came from another worker (1) or ended (-1)."""


class Manager(Protocol):
    """What a connection needs of its server (server.http.connection_server.ConnectionServer)."""

    sharing: HandOver | None
    backlog: Backlog
    hold: Hold
    errors: ErrorBodies
    live: int


class Connection(LiveConnection):
    """One client connection. Bytes come in, and each complete request is passed to the server's handler.

    Limits the size and the duration of an incomplete request head: 431 or 408, and the connection is closed.
    """

    __slots__ = (
        "_busy_bytes", "_errors", "_handed", "_head_bytes", "_head_limit", "_head_seconds", "_head_timer", "_hold", "_most",
        "_sharing", "_wire", "backlog", "mark",
    )  # fmt: skip

    def __init__(
        self, manager: Manager, *, head_bytes: int, head_seconds: float, most: int, handed: bool = False, **kwargs: Any
    ) -> None:
        """`head_bytes` and `head_seconds` limit a head, `most` open connections. `handed`: it comes from another worker."""
        super().__init__(cast("web.Server", manager), max_line_size=head_bytes, max_field_size=head_bytes, **kwargs)
        self._most, self._sharing, self._handed = most, manager.sharing, handed
        self._head_limit, self._head_seconds = head_bytes, head_seconds
        self._head_bytes = self._busy_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.backlog, self._hold, self._errors = manager.backlog, manager.hold, manager.errors
        self.mark: Mark | None = None
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._sharing is not None:
            if self._handed:
                self._sharing.add(1)
            elif not self._sharing.came(transport):
                self._sharing = self._manager = None  # it belongs to another worker now
                transport.abort()  # type: ignore[attr-defined]
                return
        super().connection_made(transport)
        self._wire = cast("asyncio.Transport", transport)  # `transport` is None from the moment the connection closes
        bound_kernel_buffer(transport)
        if self._manager is not None:
            self.backlog.watch(self._loop, self._manager._connections)
        if self._manager is not None and len(self._manager._connections) - self._manager.live > self._most:  # type: ignore[attr-defined]
            self._refuse(503, b"Retry-After: 1\r\n")

    def data_received(self, data: bytes) -> None:
        # Before the first head nothing waits for messages yet: the task that will has not run.
        idle = self._request_count == 0 or (self._waiter is not None and not self._waiter.done())
        waiting = len(self._messages)
        super().data_received(data)
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
        self.backlog.resumed(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._wire is not None:
            self.backlog.paused(self, self._wire, self._loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self.backlog.resumed(self)

    def _head_done(self) -> None:
        self._head_bytes = self._busy_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, lines: bytes = b"") -> None:
        """Send an error response without a request, and close. `lines` are further header lines."""
        self._head_done()
        if self.transport is not None:
            self.transport.write(last_words(self._errors.of(status), log_refused(status, "incomplete request"), lines))
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response, a JsonResponse in one write. The second value returned is whether the client has disconnected.

        It returns when the client has taken (nearly) all of it: the next request of the connection is not begun before.
        """
        if request._payload_writer.output_size and not _continues(resp, request):
            LOG.error(
                "a response had already been started: the connection is closed", extra={"fields": {"status": resp.status}}
            )
            self.force_close()
            return resp, True
        if self._upgraded:
            self._resume_after_refused_upgrade()
        if type(resp) is JsonResponse and not self._upgraded and not self._paused and request._post is None:
            data = resp.as_bytes(request)
            if data is not None:
                transport = self.transport
                if transport is None or transport.is_closing():
                    return resp, True
                transport.write(data)
                resp._eof_sent = True
                return resp, self._paused and await self._is_lost(request)
        ended = self._hold(request)
        try:
            done, lost = await super().finish_response(request, resp, start_time)
        finally:
            ended()
        return done, lost or (self._paused and await self._is_lost(request))

    async def _is_lost(self, request: web.BaseRequest) -> bool:
        """Wait until the client has taken the response. True if the connection ends first."""
        ended = self._hold(request)
        try:
            await self._drain_helper()
        except ConnectionError:
            return True
        finally:
            ended()
        return self.transport is None

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The response to an error of the parser or of the server; it contains nothing that the client sent."""
        if isinstance(exc, LineTooLong) or "many headers" in str(message).lower():
            status = 431
        request_id = log_refused(status, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("a response has already been started")
        response = self._errors.of(status)
        stamp(response, request_id)
        response.force_close()
        return response


def _continues(response: web.StreamResponse, request: web.BaseRequest) -> bool:
    """Whether this response is the one that the bytes already sent for the request belong to."""
    writer = request._payload_writer
    return response._payload_writer is writer or (response._eof_sent and writer._eof)  # type: ignore[attr-defined]
