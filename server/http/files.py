"""Files and streams sent by aiohttp's own classes: what these leave undone of RFC 9110, and errors with a body."""

from __future__ import annotations

import io
import os
from functools import partial
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter

from .error_bodies import ErrorBodies

WHOLE: Final = web.RequestKey("whole", bool)
"""Set on a request whose `Range` must be ignored."""
_ABOUT_THE_FILE: Final = (
    hdrs.ETAG, hdrs.LAST_MODIFIED, hdrs.ACCEPT_RANGES, hdrs.CONTENT_ENCODING, hdrs.CONTENT_DISPOSITION, hdrs.TRANSFER_ENCODING,
)  # fmt: skip
_open_file = web.FileResponse._prepare_open_file


async def _prepare_open_file(
    self: web.FileResponse, request: web.BaseRequest, fobj: io.BufferedReader, st: os.stat_result, file_encoding: str | None
) -> AbstractStreamWriter | None:
    """aiohttp knows dates in `If-Range`, but no entity tags: a client could put parts of two versions of a file together."""
    if hdrs.RANGE in request.headers and not _range_counts(request, f'"{st.st_mtime_ns:x}-{st.st_size:x}"'):
        request[WHOLE] = True
    return await _open_file(self, request, fobj, st, file_encoding)


def respect_if_range() -> None:
    """Make aiohttp's FileResponse compare an entity tag in `If-Range` (RFC 9110 13.1.5). Can be called repeatedly."""
    web.FileResponse._prepare_open_file = _prepare_open_file  # type: ignore[method-assign]


def _range_counts(request: web.BaseRequest, tag: str) -> bool:
    """Must `Range` be taken into account? Not with other methods than GET, in another unit, or for another version."""
    if request.method != hdrs.METH_GET or not request.headers[hdrs.RANGE].lower().startswith("bytes="):
        return False  # RFC 9110 14.2
    version = request.headers.get(hdrs.IF_RANGE)
    return version is None or version.strip() == tag or request.if_range is not None


def answer_errors(response: web.FileResponse, request: web.BaseRequest, errors: ErrorBodies) -> None:
    """Give a file that is not there, or has no such part, the body that every error has. Before its head is sent."""
    # aiohttp prepares a returned response once more: a file that the handler has begun itself would be looked up again.
    response.prepare = partial(web.StreamResponse.prepare, response)  # type: ignore[method-assign]
    if response.status < 400:
        return
    body: Any = errors.of(response.status).body
    headers, writer = response.headers, cast("StreamWriter", request._payload_writer)
    for name in _ABOUT_THE_FILE:
        headers.popall(name, None)
    headers[hdrs.CONTENT_TYPE], headers[hdrs.CONTENT_LENGTH] = errors.media_type, str(len(body))
    if not response._must_be_empty_body:
        writer.chunked, writer.length = False, len(body)
        response.write_eof = partial(web.StreamResponse.write_eof, response, body)  # type: ignore[method-assign]


def discard_body(response: web.StreamResponse) -> None:
    """Let a handler that streams send no body in response to HEAD: aiohttp would, and clients take it for another response.

    Before the head is sent; nothing is done to a response whose body aiohttp leaves out itself.
    """
    if response._must_be_empty_body and not isinstance(response, web.Response | web.FileResponse | web.WebSocketResponse):
        response.write = _write_nothing  # type: ignore[method-assign]
        response.write_eof = partial(_end, response)  # type: ignore[method-assign]
        if (writer := response._payload_writer) is not None:
            writer._compress = None  # type: ignore[attr-defined]


async def _write_nothing(data: bytes | bytearray | memoryview) -> None:
    """Discard part of a body."""


async def _end(response: web.StreamResponse, data: bytes = b"") -> None:
    await web.StreamResponse.write_eof(response)
