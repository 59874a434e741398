"""The request id, and the headers that every response has."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from .caching import default, permits, settle
from .response import NO_STORE, SERVER, STANDARD_HEADERS, JsonResponse, _start

REQUEST_ID: Final = web.RequestKey("request_id", str)
"""The id of this request, in the response and in the log."""


_VARY: Final = tuple(STANDARD_HEADERS[hdrs.VARY].split(", "))

OPENED: Final = web.RequestKey("opened", bool)
"""Set on requests to public routes: their credentials are not read, so the caller is unknown."""

_ID_LENGTH: Final = 24
_ids: list[str] = []


def new_request_id() -> str:
    """24 hexadecimal characters that identify one request in responses and logs.

    They are random: a counter would tell clients how busy the server is.
    """
    if not _ids:
        drawn = os.urandom(_ID_LENGTH // 2 * 512).hex()
        _ids.extend(drawn[start : start + _ID_LENGTH] for start in range(0, len(drawn), _ID_LENGTH))
    return _ids.pop()


os.register_at_fork(after_in_child=_ids.clear)  # two processes with the same ids would make their logs ambiguous


def vary_on(credentials: Iterable[str]) -> None:
    """Name the request headers that hold credentials in the header Vary of every response of this process (RFC 9110 12.5.5).

    Called once, when the application is built: a response of an earlier application in this process gets the new value.
    """
    names = {name.lower(): str(name) for name in (*_VARY, *credentials)} | {name.lower(): name for name in _VARY}
    STANDARD_HEADERS[hdrs.VARY] = ", ".join(names.values())
    _start.cache_clear()


def stamp(response: web.StreamResponse, request_id: str, *, public: bool = False) -> bool:
    """Set the headers that every response has, and `Cache-Control` by the rules of `caching`.

    public   the response is that of a public route to a caller who is not known
    Returns True if the handler's own `Cache-Control` was not permitted, and has been replaced.
    """
    if isinstance(response, JsonResponse):
        open_to_caches = public and response._cookies is None
        own = response.stamp(request_id, default(response._status, public) if open_to_caches else NO_STORE)
        if own == "" or (own is not None and permits(own, response._status, public)):
            return False
    headers = response.headers
    if not isinstance(response, JsonResponse):  # not made from STANDARD_HEADERS
        for name, value in STANDARD_HEADERS.items():
            if name != hdrs.CONTENT_TYPE or isinstance(response, web.Response):  # a file or a stream has a type of its own
                headers.setdefault(name, value)
    headers["Server"], headers["X-Content-Type-Options"] = SERVER, "nosniff"  # whatever a handler says
    if headers[hdrs.VARY] != STANDARD_HEADERS[hdrs.VARY]:
        _keep_vary(headers)
    headers["X-Request-Id"] = request_id
    return settle(headers, response.status, public, sets_cookie=response._cookies is not None)


def forbid_storing(response: web.StreamResponse) -> None:
    """Set `Cache-Control: no-store` on a stamped response, whatever its handler says."""
    if not (isinstance(response, JsonResponse) and response.forbid_storing()):
        response.headers[hdrs.CACHE_CONTROL] = NO_STORE


def _keep_vary(headers: CIMultiDict[str]) -> None:
    """Add what every response depends on to the `Vary` of a handler or of a compressed file."""
    own = ", ".join(headers.getall(hdrs.VARY))
    if "*" not in own:
        listed = {name.strip().lower(): name.strip() for name in f"{STANDARD_HEADERS[hdrs.VARY]}, {own}".split(",")}
        headers[hdrs.VARY] = ", ".join(filter(None, listed.values()))
