"""Cross-origin requests: an exact list of origins, and preflights that say the same for every path."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from aiohttp import hdrs, web

from .response import JsonResponse

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADERS: Final = (
    "Authorization", "baggage", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID",
    "MCP-Protocol-Version", "sentry-trace", "traceparent", "tracestate", "X-API-Key", "X-Requested-With",
)  # fmt: skip
_EXPOSED: Final = (
    "ETag", "Idempotency-Replayed", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate",
    "X-Request-Id",
)  # fmt: skip
_MAX_AGE_SECONDS: Final = "600"
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:]+\])(?::([1-9][0-9]{0,4}))?")
_NO_PAGES: Final = frozenset({"file", "ftp", "ws", "wss"})  # no page has such an origin
_NAME: Final = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")  # a token without *, which allows nothing beside credentials
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def checked_origin(origin: str) -> str:
    """Return `origin` unchanged if a browser can send it in the header `Origin`.

    An origin is `scheme://host[:port]`, in lower case and without a path (RFC 6454 6.2): `https://app.example.com`,
    `http://localhost:5173`, or that of an app, such as `capacitor://localhost`. `*` and `null` are not origins here. Raises
    ValueError for anything else, and for an explicit default port (`https://app.example.com:443`), which browsers leave out.
    The message quotes the text and says what is wrong.
    """
    parts = _ORIGIN.fullmatch(origin)
    if parts is None or parts[1] in _NO_PAGES or int(parts[3] or 1) > 65535:
        raise ValueError(f"{origin!r} is not an origin (scheme://host[:port], lower case, no path)")
    if parts[3] is not None and _DEFAULT_PORTS.get(parts[1]) == parts[3]:
        raise ValueError(
            f"{origin!r} is never sent by a browser, which leaves out the default port: write '{parts[1]}://{parts[2]}'"
        )
    return origin


def checked_header(name: str) -> str:
    """Return `name` unchanged if it can be the name of a header (RFC 9110 5.1). Raises ValueError for others, and for `*`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    return name


class Cors:
    """Knows which origins may read our answers. `null` and `*` are not origins that can be listed."""

    def __init__(self, origins: Collection[str], *, headers: Collection[str] = (), exposed: Collection[str] = ()) -> None:
        """`headers` (of requests) and `exposed` (headers of responses) are added to the built-in lists."""
        self._headers, self._exposed = _listed(_HEADERS, headers), _listed(_EXPOSED, exposed)
        self._lines = {origin: self._lines_for(origin) for origin in origins}

    def _lines_for(self, origin: str) -> bytes:
        """The headers that `mark` adds, as lines."""
        return (
            f"{hdrs.ACCESS_CONTROL_ALLOW_ORIGIN}: {origin}\r\n{hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS}: true\r\n"
            f"{hdrs.ACCESS_CONTROL_EXPOSE_HEADERS}: {self._exposed}\r\n"
        ).encode()

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a preflight, or None where the request is not one. Nothing is looked up and nothing runs."""
        if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        if hdrs.ORIGIN not in request.headers:
            return None
        answer = web.Response(status=204)
        if self._allows(request):
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = self._headers
            answer.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _MAX_AGE_SECONDS
        return answer

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that let a listed origin read this answer, errors included."""
        if self._allows(request):
            if isinstance(response, JsonResponse):
                response.add(self._lines[request.headers[hdrs.ORIGIN]])
                return
            headers = response.headers
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = self._exposed

    def _allows(self, request: web.Request) -> bool:
        origins = request.headers.getall(hdrs.ORIGIN, ())
        return len(origins) == 1 and origins[0] in self._lines


def _listed(built_in: Collection[str], more: Collection[str]) -> str:
    """The names as the value of a header: in order, each once whatever its case."""
    return ", ".join(dict(sorted({name.lower(): name for name in (*more, *built_in)}.items())).values())
