"""Requests that a handler makes to another route of this server for its own caller, checked by the gate like any other."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ..auth.access import check
from ..auth.caller import caller_key
from ..auth.identity import IDENTITY, Identity
from ..http.calls_tools import NESTED
from ..http.errors import ApiError, TooManyRequests, Unauthorized
from ..http.stamp import REQUEST_ID
from ..rate_limits.callers import LEASE
from ..telemetry.log import LOG
from .admission import Gate
from .dispatcher import Dispatcher
from .idempotency import respond
from .refusals import REPORTED

_KEPT: Final = frozenset(
    {"baggage", "forwarded", "host", "traceparent", "tracestate", "user-agent", "via", "x-real-ip", "x-request-id"}
)
"""What a handler may want to know about its client. No credential, no cookie, no `Origin`, and nothing about the body."""


class NestedGate(Gate):
    """The same gate for nested requests: the caller is known, counted and in progress already, and is not identified again."""

    def __init__(self, gate: Gate) -> None:
        """Everything is shared with `gate`."""
        vars(self).update(vars(gate))

    async def admit_for(
        self, request: web.Request, match: web.UrlMappingMatchInfo, identity: Identity, fault: ApiError | None
    ) -> web.StreamResponse:
        """The response of the route's handler, if this caller may call it. Raises the refusal, and after all checks `fault`."""
        rule, started = self.rules[match.route], time.perf_counter()
        if rule.public and not rule.optional:  # it knows no caller
            if fault is not None:
                raise fault
            return await self.admit(request, match, started)
        caller, turns = caller_key(identity), None
        try:
            if self._revocations.denies(identity):
                raise Unauthorized("session-revoked")
            if rule.bounds is not None:
                turns = await self._route_limits[match.route].count_within(request, caller)
            check(rule.access, identity, match)
            if turns is not None and not turns.enter(caller):
                await self._wait_for_turn(turns, request, identity, caller)
        except (ApiError, web.HTTPException) as error:
            if isinstance(error, TooManyRequests):
                self._limited[error.reason or "caller"] += 1
            self._notify(request, rule, identity, error, started)
            raise
        request[IDENTITY] = identity
        try:
            if fault is not None:
                raise fault
            return await respond(request, match, rule)
        finally:
            if turns is not None:
                turns.leave(caller)


class NestedDispatcher(Dispatcher):
    """The same dispatcher for nested requests. Their id is that of the request that they belong to."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Everything is shared with `dispatcher`, but the gate."""
        vars(self).update(vars(dispatcher))
        self._nested, self._completing, self._challenges = NestedGate(self._gate), self._challenges, None

    async def handle_for(
        self, parent: web.Request, request: web.Request, match: web.UrlMappingMatchInfo, fault: ApiError | None
    ) -> web.Response:
        """The response to `request`, which the handler of `parent` makes for its caller; it is not sent.

        match   the route, and the path parameters
        fault   what is wrong with the request: the response if the caller may call the route
        """
        started = time.perf_counter()
        request_id = request[REQUEST_ID] = parent[REQUEST_ID]
        request[NESTED] = True
        request._match_info = match
        if LEASE in parent:
            request[LEASE] = parent[LEASE]
        try:
            response = await self._nested.admit_for(request, match, parent[IDENTITY], fault)
        except Exception as error:
            response = self._response_to(request, error, started)
        response = self._whole(response, request)
        rule = self._nested.rule_of(request)
        if response.status >= 400:
            self._log_error(request, rule, response, started)
        if self._completing is not None and response.status in (401, 403):
            self._completing.complete(parent, response, rule)  # the resource is the one that the client asked
        if LEASE in request:  # the response that is sent tells of the route's limit too, and it may be this one
            parent[LEASE] = request.pop(LEASE)
        self._finish(request, response, request_id, rule)
        seconds = time.perf_counter() - started
        if rule is not None:
            rule.tally.add(response.status, seconds)
            if self._served is not None:
                self._report(request, response, rule, seconds)
        return response

    def _whole(self, response: object, request: web.Request) -> web.Response:
        """A handler's result if it is a response with all of its body; 500 for another one, such as a file."""
        if isinstance(response, web.HTTPException):  # returned instead of raised
            return self._errors.of_http(response)
        if isinstance(response, web.Response) and not response.prepared:
            body: object = response.body  # for a handler's own use it can be a payload
            if body is None or isinstance(body, bytes | bytearray | memoryview):
                return response
        fields = {"type": type(response).__name__, "request_id": request[REQUEST_ID]}
        LOG.error("the handler of a tool returned no whole response", extra={"fields": fields})
        request[REPORTED] = True
        return self._errors.of(500)


def nested_request(parent: web.Request, method: str, target: str, headers: dict[str, str], body: bytes | None) -> web.Request:
    """A request of the same client as `parent`, with these headers and body (None: no body), that nothing can be sent to."""
    kept = [(name, value) for name, value in parent.headers.items() if _is_kept(name)]
    if body is not None:
        kept += [(hdrs.CONTENT_TYPE, "application/json"), (hdrs.CONTENT_LENGTH, str(len(body)))]
    given = CIMultiDictProxy(CIMultiDict([*kept, *headers.items()]))
    raw = tuple((name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in given.items())
    path, _, query = target.partition("?")
    url = URL.build(path=path, query_string=query, encoded=True)
    message = RawRequestMessage(method, target, HttpVersion11, given, raw, False, None, False, False, url)
    content = EMPTY_PAYLOAD if body is None else _reader(body, parent._loop)
    limit = parent._client_max_size
    connection = cast("Any", _Connection(parent))
    return web.Request(message, content, connection, _Unsent(), parent.task, parent._loop, client_max_size=limit)


def _is_kept(name: str) -> bool:
    return name.lower() in _KEPT or name.lower().startswith("x-forwarded-")


def _reader(body: bytes, loop: asyncio.AbstractEventLoop) -> StreamReader:
    reader = StreamReader(BaseProtocol(loop), 2**16, loop=loop)  # a protocol of its own: the client's must not be paused
    reader.feed_data(body)
    reader.feed_eof()
    return reader


class _Connection:
    """The addresses of the client's connection, which is all that a nested request may know of it: no writing, no closing."""

    __slots__ = ("_messages", "peername", "sockname", "ssl_context", "transport")

    def __init__(self, parent: web.Request) -> None:
        self.ssl_context, self.peername = parent._transport_sslcontext, parent._transport_peername
        self.sockname = parent._transport_sockname
        self.transport = _Transport(parent.transport) if parent.transport is not None else None
        self._messages = ()


class _Transport(asyncio.BaseTransport):
    """Reads the details of a transport and does nothing else: all other methods raise NotImplementedError."""

    def __init__(self, real: asyncio.BaseTransport) -> None:
        super().__init__()
        self._real = real

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._real.get_extra_info(name, default) if name in ("peername", "sockname") else default

    def is_closing(self) -> bool:
        return self._real.is_closing()


class _Unsent(AbstractStreamWriter):
    """The writer of a nested request: its response is returned, not sent."""

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        raise _streams()

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise _streams()

    async def write_headers(self, status_line: str, headers: CIMultiDict[str]) -> None:
        raise _streams()

    async def drain(self) -> None:
        raise _streams()

    def enable_compression(self, *_: Any, **__: Any) -> None:
        raise _streams()

    def enable_chunking(self) -> None:
        raise _streams()


def _streams() -> TypeError:
    return TypeError("the handler of a tool must return a whole response, and sends nothing itself")
