"""An answer in JSON whose head is bytes from the start: what nearly every request of ours ends with.

aiohttp builds a dictionary of headers for each answer, fills in what is missing and writes it out again. Ours are always
the same but for a few, so the common part of a head is made once for each status, and an answer is one write of bytes.
Whoever looks at `headers` gets aiohttp's dictionary as usual, and the answer then goes aiohttp's way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDict

SERVER: Final = "gatepost"
STANDARD_HEADERS: Final = CIMultiDict(
    {
        "Content-Type": "application/json",
        "Server": SERVER,
        "Cache-Control": "no-store",
        "Vary": "Authorization, Cookie, X-API-Key, Origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    }
)
"""On every answer, unless a handler chose otherwise. Copied, never changed."""
# RFC 9110's names, where Python's older tables still have those of RFC 2616.
_PHRASES: Final = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
# RFC 9110 5.5: no control character in a field but the tab. A line's end would begin a header of somebody else's choice.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BODILESS: Final = frozenset({204, 304})
# With one of these in a handler's hands the common head is not the right one.
_SET_BY_US: Final = frozenset({*map(str.lower, STANDARD_HEADERS), "connection", "content-length", "date", "transfer-encoding"})


@lru_cache(maxsize=128)
def phrase(status: int) -> str:
    """The reason phrase of a status, as RFC 9110 names it."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class JsonResponse(web.Response):
    """A complete JSON answer. `more` are headers beside the standard ones, or in their place.

    `lines` are such headers as bytes, each with its end: the server's own, not checked again.
    """

    # What aiohttp's own constructor would set, as attributes of the class: it is not called, that is the point.
    _zlib_executor_size = 1024
    _zlib_executor = None

    def __init__(self, body: bytes, status: int = 200, more: Mapping[str, str] | None = None, lines: bytes = b"") -> None:
        self._body: bytes = body
        self._status = status
        self._reason = phrase(status)
        self._state = {}
        self._lines = lines
        self._request_id = ""
        self._cacheable = False
        self._dictionary: CIMultiDict[str] | None = None
        if more:
            self._with(more)

    @property
    def _headers(self) -> CIMultiDict[str]:  # type: ignore[override]
        """The headers as aiohttp keeps them, made when somebody asks; from then on they are the truth."""
        made = self._dictionary
        if made is None:
            made = self._dictionary = STANDARD_HEADERS.copy()
            if self._request_id:
                made["X-Request-Id"] = self._request_id
            if self._cacheable:
                del made["Cache-Control"]
            _put(made, self._lines)
        return made

    def _with(self, more: Mapping[str, str]) -> None:
        if any(name.lower() in _SET_BY_US for name in more):
            self._headers.update(more)
        else:
            self._lines += b"".join(_line(name, value) for name, value in more.items())

    def add(self, lines: bytes) -> None:
        """Add header lines, each with its end. They are the server's own, not checked again."""
        if self._dictionary is None:
            self._lines += lines
        else:
            _put(self._dictionary, lines)

    def stamp(self, request_id: str, cacheable: bool) -> bool:
        """Note what every answer bears; False where the dictionary has to be told instead."""
        self._request_id, self._cacheable = request_id, cacheable
        return self._dictionary is None

    def as_bytes(self, request: web.BaseRequest) -> bytes | None:
        """The whole answer, head and body; None where aiohttp has to write it (HEAD, no body, HTTP/1.0, a dictionary)."""
        if self._dictionary is not None or self._cookies is not None or self._compression or self._chunked:
            return None
        message = request._message
        if message.version != (1, 1) or message.method == "HEAD" or self._status in _BODILESS:
            return None
        keep_alive = self._keep_alive
        if keep_alive is None:
            keep_alive = self._keep_alive = not message.should_close
        return b"%bX-Request-Id: %b\r\nDate: %b\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
            _head(self._status, self._cacheable),
            self._request_id.encode(),
            rfc822_formatted_time().encode(),
            len(self._body),
            b"" if keep_alive else b"Connection: close\r\n",
            self._lines,
            self._body,
        )


def _line(name: str, value: str) -> bytes:
    line = f"{name}: {value}"
    if _CONTROL.search(line):
        raise ValueError(f"a control character in the header {name!r}")
    return line.encode() + b"\r\n"


def _put(headers: CIMultiDict[str], lines: bytes) -> None:
    for line in lines.decode().split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        headers[name] = value


@lru_cache(maxsize=128)
def _head(status: int, cacheable: bool) -> bytes:
    """The status line and the standard headers."""
    kept = {name: value for name, value in STANDARD_HEADERS.items() if not (cacheable and name == "Cache-Control")}
    lines = [f"HTTP/1.1 {status} {phrase(status)}", *(f"{name}: {value}" for name, value in kept.items())]
    return "\r\n".join(lines).encode() + b"\r\n"


def last_words(status: int, request_id: str, lines: bytes = b"") -> bytes:
    """A whole answer for a connection that ends with it, where no request was understood. `lines`: further header lines."""
    body = json.dumps({"error": phrase(status)}).encode()
    last = b"Connection: close\r\nContent-Length: %d\r\nX-Request-Id: %b\r\n%b\r\n" % (len(body), request_id.encode(), lines)
    return _head(status, False) + last + body
