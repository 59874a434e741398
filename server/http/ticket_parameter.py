"""The query parameter `ticket` of a request for a live answer: it is taken out of the target before anything can record it."""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web
from yarl import URL

PARAMETER: Final = "ticket"
_DERIVED: Final = ("path", "path_qs", "query", "query_string", "raw_path", "rel_url", "url")
"""What aiohttp computes from the target, once."""


def has_ticket(request: web.Request) -> bool:
    """Is this a GET whose query has the parameter `ticket`?"""
    target = request._message.path
    return request.method == hdrs.METH_GET and "?" in target and bool(_split(target)[1])


def take_ticket(request: web.Request) -> str | None:
    """Remove the parameter from the request's target; returns its value, or None where it is there more than once."""
    target, tickets = _split(request._message.path)
    url = URL(target, encoded=True)
    request._message = request._message._replace(path=target, url=url)
    request._rel_url = url
    for name in _DERIVED:
        request._cache.pop(name, None)
    return tickets[0] if len(tickets) == 1 else None


def _split(target: str) -> tuple[str, list[str]]:
    """Returns (the target without the parameter, its values as they are written)."""
    path, _, query = target.partition("?")
    kept, tickets = [], []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == PARAMETER:
            tickets.append(value)
        else:
            kept.append(part)
    return (f"{path}?{'&'.join(kept)}" if any(kept) else path), tickets
