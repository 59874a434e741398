"""The token types that a request's route accepts."""

from __future__ import annotations

from aiohttp import web

from .access import DEFAULT_TYPES, access_of


def accepted_types(request: web.Request) -> frozenset[str]:
    """The token types that the matched route accepts; the default ones where there is no route (unknown path, wrong method).

    A provider may use it to save calls for credentials that the route refuses anyway. The gate checks the token type in any
    case.
    """
    access = access_of(request.match_info.handler)
    return access.accepts if access is not None else DEFAULT_TYPES
