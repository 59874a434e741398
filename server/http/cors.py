"""Cross-origin requests: an exact list of origins, and preflights that say the same for every path."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web

from .response import JsonResponse

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADERS: Final = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-API-Key"
_EXPOSED: Final = (
    "ETag, Idempotency-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-Id"
)
_MAX_AGE_SECONDS: Final = "600"


@lru_cache(maxsize=64)
def _lines(origin: str) -> bytes:
    """The same headers as lines, for an origin that is listed."""
    return (
        f"{hdrs.ACCESS_CONTROL_ALLOW_ORIGIN}: {origin}\r\n{hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS}: true\r\n"
        f"{hdrs.ACCESS_CONTROL_EXPOSE_HEADERS}: {_EXPOSED}\r\n"
    ).encode()


class Cors:
    """Knows which origins may read our answers. `null` and `*` are not origins that can be listed."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a preflight, or None where the request is not one. Nothing is looked up and nothing runs."""
        if request.method != hdrs.METH_OPTIONS or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers:
            return None
        if hdrs.ORIGIN not in request.headers:
            return None
        answer = web.Response(status=204)
        if self._allows(request):
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
            answer.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _HEADERS
            answer.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _MAX_AGE_SECONDS
        return answer

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that let a listed origin read this answer, errors included."""
        if self._allows(request):
            if isinstance(response, JsonResponse):
                response.add(_lines(request.headers[hdrs.ORIGIN]))
                return
            headers = response.headers
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def _allows(self, request: web.Request) -> bool:
        origins = request.headers.getall(hdrs.ORIGIN, ())
        return len(origins) == 1 and origins[0] in self._origins
