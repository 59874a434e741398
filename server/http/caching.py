"""Which `Cache-Control` a response may have (RFC 9111): a handler's own stays where no shared cache could mix up callers."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from multidict import CIMultiDict

from .response import NO_STORE

CACHE_CONTROL: Final = "Cache-Control"
SHARED_ONLY: Final = ("CDN-Cache-Control", "Surrogate-Control")
"""Fields that shared caches obey in place of Cache-Control (RFC 9213): never on a response that is one caller's."""


def default(status: int, public: bool) -> str:
    """The `Cache-Control` where a handler sets none; "" for no such header.

    public   the response is that of a public route to a caller who is not known
    A 304 updates a cached 200: with `no-store` it would forbid caching that (RFC 9111 4.3.4).
    """
    return "" if public and (200 <= status < 300 or status == 304) else NO_STORE


def permits(own: str, status: int, public: bool) -> bool:
    """May a response have this `Cache-Control` of its handler?

    An error must not be stored. Any other response of a public route may be cached as its handler says; one that is meant
    for a known caller must not be stored by a cache that several callers share.
    """
    if own == NO_STORE:
        return True
    if status >= 400:
        return _is_private(own) and NO_STORE in _directives(own)
    return public or _is_private(own)


@lru_cache(maxsize=256)
def _is_private(own: str) -> bool:
    """Does this keep every shared cache from storing the response?"""
    names = _directives(own)
    if '"' in own or "public" in names or any(name.startswith("s-maxage") for name in names):
        return False  # `private="field"` is about that field alone
    # RFC 9111 5.2.2.3: beside `must-understand` a cache may ignore `no-store`.
    return "private" in names or (NO_STORE in names and "must-understand" not in names)


def _directives(own: str) -> list[str]:
    return [name.strip().lower() for name in own.split(",")]


def settle(headers: CIMultiDict[str], status: int, public: bool, sets_cookie: bool = False) -> bool:
    """Set `Cache-Control`, or keep the handler's own where that is permitted. True if some of the handler's was replaced.

    sets_cookie   a cookie will be set that is not among the headers yet. RFC 6265 leaves it to the server to forbid caching;
                  a cache would give one client's cookie to all, so without a word of the handler it is forbidden
    """
    own = ", ".join(headers.getall(CACHE_CONTROL, ()))
    replaced = False
    if not own:
        headers.pop(CACHE_CONTROL, None)
        if made := NO_STORE if sets_cookie or "Set-Cookie" in headers else default(status, public):
            headers[CACHE_CONTROL] = made
    elif not permits(own, status, public):
        headers[CACHE_CONTROL] = NO_STORE
        replaced = True
    if not public or status >= 400:
        for name in SHARED_ONLY:
            if name in headers:
                del headers[name]
                replaced = True
    return replaced
