"""Checks the `Origin` of a live answer opened with a cookie: any page can make a browser connect and send its cookies."""

from __future__ import annotations

from collections.abc import Container

from aiohttp import hdrs, web

from ..http.errors import Unauthorized


def demand_origin(request: web.Request, parties: Container[str]) -> None:
    """Raise Unauthorized (401 `token-authorized-party`) unless `Origin` is one of `parties`."""
    origins = request.headers.getall(hdrs.ORIGIN, ())
    if len(origins) != 1 or origins[0] not in parties:
        raise Unauthorized("token-authorized-party", "a cookie opens a live answer only with the Origin of an authorized party")
