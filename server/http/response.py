"""JSON responses whose head is kept as bytes: the response to nearly every request.

aiohttp builds a dictionary of headers for each response, fills in what is missing and serializes it. Here nearly all headers
are always the same, so the common part of the head is made once per status, and a response is a single write of bytes.
Code that reads `headers` gets aiohttp's dictionary as usual; aiohttp then sends the response.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from multidict import CIMultiDict

from .header_lines import DATE, line_of, put

SERVER: Final = "gatepost"
JSON: Final = "application/json"
NO_STORE: Final = "no-store"
STANDARD_HEADERS: Final = CIMultiDict(
    {
        "Content-Type": JSON,
        "Server": SERVER,
        "Vary": "Authorization, Cookie, X-API-Key, Origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    }
)
"""On every response, unless the handler sets other values. Copied; only `stamp.vary_on` modifies it, at startup.

`Cache-Control` is not among them: `stamp` sets it, and must know whether the handler has done so.
"""
# The phrases of RFC 9110, where older versions of Python still have those of RFC 2616.
_PHRASES: Final = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
PART_BYTES: Final = 65_536
"""A larger body is sent in parts of this size."""
_BODILESS: Final = frozenset({204, 304})
# If a handler sets one of these, the common head does not apply.
_SET_BY_US: Final = frozenset(
    {*map(str.lower, STANDARD_HEADERS), "cache-control", "connection", "content-length", "date", "transfer-encoding"}
    | {"cdn-cache-control", "surrogate-control", "set-cookie"}  # about caches: `stamp` looks at them
    # Set or replaced later: as lines they would be on the response twice.
    | {"x-request-id", "ratelimit", "ratelimit-policy"}
    | {f"access-control-{name}" for name in ("allow-origin", "allow-credentials", "expose-headers")}
)


@lru_cache(maxsize=128)
def phrase(status: int) -> str:
    """The reason phrase of a status (RFC 9110 15), or `Error` for an unknown status. Raises TypeError for what is no number."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        if not isinstance(status, int):
            raise TypeError(f"a status is a number such as 201, not {status!r}") from None
        return "Error"


class JsonResponse(web.Response):
    """A complete JSON response.

    body    the JSON text as UTF-8 bytes; it is sent as it is, not validated. A memoryview belongs to several responses,
            such as a file's content: it is not counted as held for this client
    status  the HTTP status
    more    headers to add to the standard ones or to replace them; ValueError for a control character in an added one
    lines   further headers as bytes, each ending in CRLF; for the server's own use, not checked
    """

    # What aiohttp's constructor would set, as class attributes: to save time, it is not called.
    _zlib_executor_size = 1024
    _zlib_executor = None
    _request_id = ""
    _cache: str | None = None
    dictionary: CIMultiDict[str] | None = None
    for_log = ""
    """Why this is an error, for the log alone."""
    media_type = JSON
    """The content type. Only errors in a format of their own have another one; a handler's is among `more`."""

    def __init__(
        self, body: bytes | memoryview, status: int = 200, more: Mapping[str, str] | None = None, lines: bytes = b""
    ) -> None:
        self._body: bytes | memoryview = body  # type: ignore[assignment]
        self._status = status
        self._reason = phrase(status)
        self._state = {}
        self._lines = lines
        if more:
            self._with(more)

    @property
    def _headers(self) -> CIMultiDict[str]:  # type: ignore[override]
        """The headers as aiohttp keeps them, built on first access; from then on they are authoritative."""
        headers = self.dictionary
        if headers is None:
            headers = self.dictionary = STANDARD_HEADERS.copy()
            headers["Content-Type"] = self.media_type
            if self._request_id:
                headers["X-Request-Id"] = self._request_id
            if self._cache:
                headers["Cache-Control"] = self._cache
            put(headers, self._lines)
        return headers

    def _with(self, more: Mapping[str, str]) -> None:
        special = [name for name in more if name.lower() in _SET_BY_US]
        if special == ["Cache-Control"]:
            line_of("Cache-Control", more["Cache-Control"])  # raises ValueError for a control character
            self._cache = more["Cache-Control"].strip() or None
        elif special:
            self._headers.update(more)
            return
        self._lines += b"".join(line_of(name, value) for name, value in more.items() if name not in special)

    def add(self, lines: bytes) -> None:
        """Add header lines as bytes, each ending in CRLF. For the server's own headers: they are not checked."""
        if self.dictionary is None:
            self._lines += lines
        else:
            put(self.dictionary, lines)

    def has_line(self, name: str) -> bool:
        """Was this header added? Only while `headers` was not used."""
        return f"\r\n{name}:".lower().encode() in (b"\r\n" + self._lines).lower()

    def replace_lines(self, change: Callable[[bytes], bytes]) -> None:
        """Replace the added header lines by what `change` returns for them. Only while `headers` was not used."""
        self._lines = change(self._lines)

    def retype(self, media_type: str) -> None:
        """Set the content type, for a body that the server has made: what `more` says about the content does not count."""
        self.media_type = media_type
        if self.dictionary is not None:
            self.dictionary["Content-Type"] = media_type
            self.dictionary.popall("Content-Length", None)
            self.dictionary.popall("Transfer-Encoding", None)

    def stamp(self, request_id: str, cache: str) -> str | None:
        """Set the request id, and `Cache-Control` unless the handler has set it: "" for none.

        Returns the handler's own `Cache-Control`, or "" if there is none; None if `headers` must be set instead.
        """
        self._request_id = request_id
        if self.dictionary is not None:
            return None
        if self._cache is None:
            self._cache = cache
            return ""
        return self._cache

    def forbid_storing(self) -> bool:
        """Set `Cache-Control: no-store`. False if `headers` must be set instead."""
        self._cache = NO_STORE
        return self.dictionary is None

    async def write_eof(self, data: bytes = b"") -> None:
        """Send a large body in parts, each when the client has taken the one before: a body is never copied whole."""
        body, request = self._body, self._req
        if len(body) <= PART_BYTES or request is None or self._must_be_empty_body or self._compression:
            await super().write_eof(data)
            return
        backlog = None if isinstance(body, memoryview) else getattr(request.protocol, "backlog", None)
        if backlog is not None:
            backlog.responses += len(body)
        try:
            view = memoryview(body)
            for start in range(0, len(body), PART_BYTES):
                await self.write(view[start : start + PART_BYTES])
            await web.StreamResponse.write_eof(self)
        finally:
            if backlog is not None:
                backlog.responses -= len(body)

    def as_bytes(self, message: RawRequestMessage) -> bytes | None:
        """The whole response to this request, head and body; None if aiohttp must send it.

        That is for HEAD, no body, a large body, HTTP/1.0, and `headers` in use.
        """
        if self.dictionary is not None or self._cookies is not None or self._compression or self._chunked:
            return None
        if len(self._body) > PART_BYTES:
            return None
        if message.version is not HttpVersion11 or message.method == "HEAD" or self._status in _BODILESS:
            return None
        keep_alive = self._keep_alive
        if keep_alive is None:
            keep_alive = self._keep_alive = not message.should_close
        now = int(time.time())
        return b"%b%b%b%d\r\n%b\r\n%b" % (
            _start(self._status, self._cache, self.media_type),
            self._request_id.encode(),
            DATE.lines if now == DATE.second else DATE.at(now),
            len(self._body),
            self._lines if keep_alive else b"Connection: close\r\n" + self._lines,
            self._body,  # type: ignore[str-format]  # a memoryview can be formatted, too
        )


@lru_cache(maxsize=128)
def _start(status: int, cache: str | None, media_type: str) -> bytes:
    """As `_head`, up to the value of the request id."""
    return _head(status, cache, media_type) + b"X-Request-Id: "


def _head(status: int, cache: str | None, media_type: str) -> bytes:
    """The status line and the standard headers, as bytes. `cache` is the Cache-Control; "" or None: the header is left out."""
    headers = {**STANDARD_HEADERS, "Content-Type": media_type, **({"Cache-Control": cache} if cache else {})}
    lines = [f"HTTP/1.1 {status} {phrase(status)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n"
