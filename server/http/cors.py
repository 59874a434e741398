"""Cross-origin requests: a list of origins, and preflights that say the same for every path."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from aiohttp import hdrs, web

from .response import JsonResponse

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADERS: Final = (
    "Authorization", "baggage", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID",
    "Mcp-Method", "Mcp-Name", "MCP-Protocol-Version", "sentry-trace", "traceparent", "tracestate", "X-API-Key",
    "X-Requested-With",
)  # fmt: skip
_EXPOSED: Final = (
    "ETag", "Idempotency-Replayed", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate",
    "X-Request-Id",
)  # fmt: skip
_MAX_AGE_SECONDS: Final = "600"
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:]+\])(?::([1-9][0-9]{0,4}))?")
_NO_PAGES: Final = frozenset({"file", "ftp", "ws", "wss"})  # no page has such an origin
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN: Final = re.compile(rf"(https?)://\*((?:\.{_LABEL})+)(?::([1-9][0-9]{{0,4}}))?")
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


def checked_origins(text: str) -> str:
    """Return `text` unchanged if it is an origin (`checked_origin`), or a pattern whose host's first label is `*`.

    `https://*.preview.example.com` stands for one label: `https://a.preview.example.com`, and not `https://a.b.preview.example.com`.
    Raises ValueError for any other `*`, and for a pattern as wide as `https://*.com`.
    """
    if "*" not in text:
        return checked_origin(text)
    if text == "*":
        raise ValueError("'*': any origin cannot be allowed where credentials are sent: name the origins of your front ends")
    parts = _PATTERN.fullmatch(text)
    labels = parts[2].split(".")[1:] if parts is not None else []
    if parts is None or labels[-1].isdigit() or (len(labels) < 2 and labels != ["localhost"]) or int(parts[3] or 1) > 65535:
        raise ValueError(f"{text!r}: a * must be the whole first label, above a domain: https://*.preview.example.com")
    if parts[3] is not None and _DEFAULT_PORTS[parts[1]] == parts[3]:
        raise ValueError(f"{text!r} fits no origin: browsers leave out the default port: write {text.rpartition(':')[0]!r}")
    return text


def checked_header(name: str) -> str:
    """Return `name` unchanged if it can be the name of a header (RFC 9110 5.1). Raises ValueError for others, and for `*`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    return name


class Cors:
    """Knows which origins may read our answers. `null` and `*` are not origins that can be listed."""

    def __init__(
        self,
        origins: Collection[str],
        *,
        headers: Collection[str] = (),
        exposed: Collection[str] = (),
        cookies_for_patterns: bool = True,
    ) -> None:
        """`headers` (of requests) and `exposed` (headers of responses) are added to the built-in lists.

        origins               origins, and patterns as `checked_origins` takes them
        cookies_for_patterns  False: pages whose origin only fits a pattern cannot read what a cookie gives access to
        """
        self._headers, self._exposed = _listed(_HEADERS, headers), _listed(_EXPOSED, exposed)
        self._with_cookies = cookies_for_patterns
        self._lines = {origin: self._lines_for(origin, True) for origin in origins if "*" not in origin}
        patterns = [re.escape(origin).replace(r"\*", _LABEL) for origin in origins if "*" in origin]
        self._fits = re.compile("|".join(patterns)).fullmatch if patterns else None

    def _lines_for(self, origin: str, with_cookies: bool) -> bytes:
        """The headers that `mark` adds, as lines."""
        lines = f"{hdrs.ACCESS_CONTROL_ALLOW_ORIGIN}: {origin}\r\n"
        if with_cookies:
            lines += f"{hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS}: true\r\n"
        return f"{lines}{hdrs.ACCESS_CONTROL_EXPOSE_HEADERS}: {self._exposed}\r\n".encode()

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a preflight, or None where the request is not one. Nothing is looked up and nothing runs."""
        if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        if hdrs.ORIGIN not in request.headers:
            return None
        answer = web.Response(status=204)
        if self._allowed(request) is not None:
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = self._headers
            answer.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _MAX_AGE_SECONDS
        return answer

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that let a listed origin read this answer, errors included."""
        lines = self._allowed(request)
        if lines is None:
            return
        if isinstance(response, JsonResponse):
            response.add(lines)
            return
        for line in lines.decode().split("\r\n")[:-1]:
            name, _, value = line.partition(": ")
            response.headers[name] = value

    def allows(self, request: web.Request) -> bool:
        """Is the origin of this request listed?"""
        return self._allowed(request) is not None

    def _allowed(self, request: web.Request) -> bytes | None:
        """The headers for the origin of this request; None where it may not read the answer."""
        origins = request.headers.getall(hdrs.ORIGIN, ())
        if len(origins) != 1:
            return None
        lines = self._lines.get(origins[0])
        if lines is None and self._fits is not None and self._fits(origins[0]):
            return self._lines_for(origins[0], self._with_cookies)
        return lines


def _listed(built_in: Collection[str], more: Collection[str]) -> str:
    """The names as the value of a header: in order, each once whatever its case."""
    return ", ".join(dict(sorted({name.lower(): name for name in (*more, *built_in)}.items())).values())
