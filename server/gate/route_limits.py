"""Makes the limits that handlers declare for their own routes."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import hdrs, web

from ..rate_limits.routes import RouteLimit
from ..rate_limits.setup import Limits
from ..routing.table import RouteRule


def route_limits(rules: Mapping[web.AbstractRoute, RouteRule], limits: Limits) -> dict[web.AbstractRoute, RouteLimit]:
    """The limits of every route that has bounds. GET and HEAD of one template share theirs, so that HEAD is no way around."""
    made = {}
    for route, rule in rules.items():
        if rule.bounds is not None:
            method = hdrs.METH_GET if route.method == hdrs.METH_HEAD else route.method
            made[route] = limits.of_route(f"{method} {rule.template}", rule.bounds, public=rule.public)
    return made
