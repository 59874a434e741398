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

from ..telemetry.log import LOG
from .backlog import Backlog, Mark, bound_kernel_buffer
from .error_bodies import ErrorBodies, last_words
from .live_connection import LiveConnection
from .parser_errors import log_refused
from .request import Request
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
    """One client connection. Bytes come in, and each complete request is passed to the server's handler."""

    __slots__ = (
        "_errors", "_handed", "_hold", "_most", "_sharing", "_wire", "backlog", "mark",
    )  # fmt: skip

    def __init__(
        self, manager: Manager, *, head_bytes: int, head_seconds: float, most: int, handed: bool = False, **kwargs: Any
    ) -> None:
        """`head_bytes` and `head_seconds` limit a head, `most` open connections. `handed`: it comes from another worker."""
        super().__init__(cast("web.Server", manager), head_bytes=head_bytes, head_seconds=head_seconds, **kwargs)
        self._most, self._sharing, self._handed = most, manager.sharing, handed
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
            self.refuse(503, b"Retry-After: 1\r\n", "limits.connections")

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._sharing is not None:
            self._sharing.add(-1)
        self.head_done()
        self.backlog.resumed(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._wire is not None:
            self.backlog.paused(self, self._wire, self._loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self.backlog.resumed(self)

    def refuse(self, status: int, lines: bytes = b"", cause: str = "incomplete request") -> None:
        """Send an error response without a request, and close. `lines` are further header lines, `cause` is for the log."""
        self.head_done()
        if self.transport is not None:
            self.transport.write(last_words(self._errors.of(status), log_refused(status, cause), lines))
        self.force_close()

    def send_whole(self, request: Request, response: web.StreamResponse) -> bool | None:
        """Send a response in one write if that is possible; None: call `finish_response`. False: the client has disconnected.

        If `_paused` is set afterwards, `is_lost` must be awaited.
        """
        if (
            type(response) is not JsonResponse
            or request.has_begun
            or self._upgraded
            or self._paused
            or request._post is not None
        ):
            return None
        data = response.as_bytes(request._message)
        if data is None:
            return None
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        transport.write(data)
        response._eof_sent = True
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response in any way. The second value returned is whether the client has disconnected.

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
        ended = self._hold(request)
        try:
            done, lost = await super().finish_response(request, resp, start_time)
        finally:
            ended()
        return done, lost or (self._paused and await self.is_lost(request))

    async def is_lost(self, request: web.BaseRequest) -> bool:
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
