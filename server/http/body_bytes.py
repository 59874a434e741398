"""Reading a request's body within the limits on its size, its time, and what is held for all clients."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import hdrs, web

from .backlog import BACKLOG
from .errors import BadRequest, ContentTooLarge, LengthRequired, RequestTimeout, ServiceUnavailable, UnsupportedMediaType
from .stamp import OPENED

BODY_LIMITS: Final = web.AppKey("body_limits", tuple)
"""(maximum body size in bytes, maximum time in seconds, maximum depth of the JSON, maximum number of values in it)"""
UNPROVEN_BYTES: Final = 256 * 1024
"""The largest body, in bytes, that is read from a caller without a verified credential."""


async def raw_body(request: web.Request) -> bytes:
    """The request's body as the bytes that were sent, of any content type: for example to verify a signature over it.

    Raises an ApiError, which becomes the response: 411, 413, 415 (a content encoding), 408 as `body` does, and 400.
    """
    return await read_body(request, any_type=True)


async def read_body(request: web.Request, *, any_type: bool = False) -> bytes:
    """The request's body within the limits: of any content type, or only of JSON. Raises what `raw_body` says."""
    limit, seconds, *_ = request.app[BODY_LIMITS]
    if OPENED in request:
        limit = min(limit, UNPROVEN_BYTES)
    if request.content_length is None and hdrs.TRANSFER_ENCODING not in request.headers:
        raise LengthRequired
    if (request.content_length or 0) > limit:
        raise ContentTooLarge
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity" or not (any_type or _is_json(request)):
        raise UnsupportedMediaType
    try:
        async with asyncio.timeout(seconds):
            expected = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= (1, 1)
            if expected and request.can_read_body:  # not again if the body has already been read
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0
            return await _collected(request, limit)
    except TimeoutError:
        raise RequestTimeout from None
    except web.RequestPayloadError:
        raise BadRequest from None


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
                raise ServiceUnavailable
    finally:
        backlog.bodies -= len(received)
    request._read_bytes = bytes(received)
    return request._read_bytes


def _is_json(request: web.Request) -> bool:
    if len(request.headers.getall(hdrs.CONTENT_TYPE, ())) != 1 or request.content_type != "application/json":
        return False
    return (request.charset or "utf-8").lower() in ("utf-8", "utf8")
