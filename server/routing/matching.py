"""Finds the route of a request line without a request: for `explain` and tests of the access."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from ..http.targets import malformed


@dataclass(frozen=True, slots=True)
class _Target:
    """The parts of a request that the router reads."""

    method: str
    rel_url: URL


def _url(target: str) -> URL:
    """Returns the URL as aiohttp reads it: a target with a leading slash is a path, even `//host/path`. Raises ValueError."""
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return URL.build(path=path, query_string=query, encoded=True)
    url = URL(target, encoded=True)
    if not url.raw_host:
        raise ValueError("no host")
    return url.relative()


async def matched(router: web.UrlDispatcher, method: str, target: str) -> web.UrlMappingMatchInfo | None:
    """Returns the router's match; None for a target that is refused with 400."""
    try:
        request: Any = _Target(method, _url(target))
    except ValueError:
        return None
    return None if malformed(target) else await router.resolve(request)
