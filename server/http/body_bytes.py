"""Reading a request's body within the limits on its size, its time, and what is held for all clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from .backlog import BACKLOG
from .errors import BadRequest, ContentTooLarge, LengthRequired, RequestTimeout, ServiceUnavailable, UnsupportedMediaType
from .limited import bounds_of
from .stamp import OPENED

BODY_LIMITS: Final = web.AppKey("body_limits", tuple)
"""(maximum body size in bytes, maximum time in seconds, maximum depth of the JSON, maximum number of values in it)"""
LATE_BODY: Final[web.AppKey[Callable[[web.Request], Awaitable[None]]]] = web.AppKey("late_body")
"""Raises an ApiError if the caller's access has ended while a body was awaited that came after the head."""
CUT_SHORT: Final = (web.RequestPayloadError, ConnectionResetError)
"""Raised while a body is read: its framing is wrong, or the client closes the connection before its end."""
UNPROVEN_BYTES: Final = 256 * 1024
"""The largest body, in bytes, that is read from a caller without a verified credential, unless the route has its own bound."""


async def raw_body(request: web.Request) -> bytes:
    """The request's body as the bytes that were sent, of any content type: for example to verify a signature over it.

    Raises an ApiError, which becomes the response: 411, 413, 415 (a content encoding), 408 as `body` does, and 400; 401 if
    the caller's access ended while the body was still coming.
    """
    return await read_body(request, *body_limits(request), any_type=True)


def body_limits(request: web.Request) -> tuple[int, float]:
    """The largest body of this request in bytes, and the longest time for it in seconds: the route's own, or the settings'."""
    limit, seconds, *_ = request.app[BODY_LIMITS]
    if OPENED in request:
        limit = min(limit, UNPROVEN_BYTES)
    bounds = bounds_of(request.match_info.handler)
    if bounds is not None:
        limit, seconds = bounds.body_bytes or limit, bounds.body_seconds or seconds
    return limit, seconds


async def read_body(request: web.Request, limit: int, seconds: float, *, any_type: bool = False) -> bytes:
    """The request's body within the limits (bytes, seconds): of any content type, or only of JSON. Raises as `raw_body`."""
    check_head(request, limit)
    if not (any_type or _is_json(request)):
        raise UnsupportedMediaType
    try:
        async with asyncio.timeout(seconds):
            if hdrs.EXPECT in request.headers:
                await send_continue(request)
            late = is_late(request)
            received = await _collected(request, limit)
    except TimeoutError:
        raise RequestTimeout from None
    except CUT_SHORT:
        raise BadRequest(for_log="body-malformed") from None
    if late:
        await request.app[LATE_BODY](request)
    return received


def is_late(request: web.Request) -> bool:
    """Is a part of the body still to come?"""
    return request._read_bytes is None and not request.content.is_eof()


def check_head(request: web.Request, limit: int) -> None:
    """Raise 411, 413 or 415 for what the head says about the body: no length, one over `limit` bytes, an encoding."""
    if request.content_length is None and hdrs.TRANSFER_ENCODING not in request.headers:
        raise LengthRequired
    if (request.content_length or 0) > limit:
        raise ContentTooLarge
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise UnsupportedMediaType


async def send_continue(request: web.Request) -> None:
    """Send `100 Continue` to a client that waits for it (RFC 9110 10.1.1)."""
    expected = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= (1, 1)
    if expected and request.can_read_body:  # not again if the body has already been read
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


async def _collected(request: web.Request, limit: int) -> bytes:
    """The whole body, kept by the request for the next call. What has arrived is counted while the rest is awaited."""
    if request._read_bytes is not None:
        return request._read_bytes
    backlog, received = request.app[BACKLOG], bytearray()
    try:
        while chunk := await request.content.readany():
            received += chunk
            backlog.bodies += len(chunk)
            if len(received) > limit:
                raise ContentTooLarge
            if backlog.full:
                raise ServiceUnavailable(for_log="overload")
    finally:
        backlog.bodies -= len(received)
    request._read_bytes = bytes(received)
    return request._read_bytes


def _is_json(request: web.Request) -> bool:
    if len(request.headers.getall(hdrs.CONTENT_TYPE, ())) != 1 or request.content_type != "application/json":
        return False
    return (request.charset or "utf-8").lower() in ("utf-8", "utf8")
