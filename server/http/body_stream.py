"""`body_stream`: a request's body piece by piece, within the limits on its size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from aiohttp import hdrs, web

from .body_bytes import CUT_SHORT, LATE_BODY, body_limits, check_head, is_late, send_continue
from .describe import description_of
from .errors import BadRequest, ContentTooLarge, RequestTimeout, UnsupportedMediaType

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_CHECK_SECONDS: Final = 0.5
"""How often it is checked, while the body arrives, whether the caller's access has ended."""


async def body_stream(request: web.Request) -> AsyncIterator[bytes]:
    """The request's body in pieces as they arrive, for a large upload that must not be held in memory.

        async for piece in body_stream(request):
            file.write(piece)

    A piece has at most a few hundred kilobytes; the client is read no faster than the handler takes them. The limits are
    those of `raw_body`: the route's `@limited(body_bytes=..., body_seconds=...)` or the settings'. Only the time in which
    the server waits for the client counts.

    Raises an ApiError, which becomes the response: 411, 413, 415, 408 and 400 as `raw_body` does, all of them possibly after
    some pieces; 415 for a content type that the description (`describe`) does not list; 400 `idempotency-key-unsupported`
    for a request with an `Idempotency-Key`. Raises TypeError if the handler is described without `body_stream`.
    """
    limit, seconds = body_limits(request)
    _hold_to_description(request)
    check_head(request, limit)
    if request._read_bytes is not None:
        if request.method == hdrs.METH_POST and IDEMPOTENCY_KEY in request.headers:
            raise BadRequest("idempotency-key-unsupported")  # read whole, to compare it with that of a repeat
        yield request._read_bytes
        return
    await send_continue(request)
    received, late, checked = 0, is_late(request), asyncio.get_running_loop().time()
    try:
        while True:
            started = asyncio.get_running_loop().time()
            async with asyncio.timeout(seconds):
                piece = await request.content.readany()
            seconds -= asyncio.get_running_loop().time() - started
            if late and (not piece or started - checked >= _CHECK_SECONDS):
                await request.app[LATE_BODY](request)
                checked = started
            if not piece:
                break
            received += len(piece)
            if received > limit:
                raise ContentTooLarge
            yield piece
    except TimeoutError:
        raise RequestTimeout from None
    except CUT_SHORT:
        raise BadRequest(for_log="body-malformed") from None
    request.content.set_exception(RuntimeError("the body was taken by body_stream and cannot be read again"))


def _hold_to_description(request: web.Request) -> None:
    """Raise TypeError for a handler that is described without a streamed body, and 415 for another type than it names."""
    description = description_of(request.match_info.handler)
    if description is None:
        return
    if not description.body_stream:
        raise TypeError("the handler is described without body_stream=, and uses it")
    if len(request.headers.getall(hdrs.CONTENT_TYPE, ())) > 1 or not _is_listed(request.content_type, description.body_stream):
        raise UnsupportedMediaType


def _is_listed(content_type: str, listed: Iterable[str]) -> bool:
    """Whether one of the listed types, which may be `image/*` or `*/*`, includes this one."""
    return not {content_type, content_type.partition("/")[0] + "/*", "*/*"}.isdisjoint(listed)
