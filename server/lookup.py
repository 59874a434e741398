"""Which route a request takes: aiohttp's router, and a short way to the routes without parameters."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import hdrs, web

from .targets import malformed

# Templates that the router compares as they stand, before all others. At a slash in the end one with a parameter may come
# first ("/x/{tail:.*}" matches "/x/"), and a "%" or "?" is never left in the path that it compares.
_AS_IT_STANDS: Final = re.compile(r"(?:/[A-Za-z0-9_~!$&'()*+,;=:@.-]+)+\Z")


class _Plain(web.UrlMappingMatchInfo):
    """A match without parameters, with its application in it and frozen, as aiohttp would have made it in three steps."""

    __slots__ = ()

    def __init__(self, route: web.AbstractRoute, app: web.Application) -> None:
        self._route = route
        self._apps = [app]
        self._current_app = app
        self._frozen = True


class Lookup:
    """Asks the router of one application.

    Most requests name a route without parameters, by exactly its path. The router would go the same way each time: parse
    the path, try what begins like it, and come to the first resource of that very path (a template with a parameter is
    never among those: it needs at least a slash more). So these are found by their text. Anything else, a query, an
    escape, a slash at the end, a method that is not there, takes the long way.
    """

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._router: Final = app.router
        self._plain: dict[tuple[str, str], web.AbstractRoute] = {}
        for resource in app.router.resources():
            template = resource.canonical
            if isinstance(resource, web.PlainResource) and _AS_IT_STANDS.match(template) and not malformed(template):
                for route in resource:
                    if route.method != hdrs.METH_OPTIONS:  # it may be a preflight, which is answered before any route
                        self._plain.setdefault((route.method, template), route)

    def at_once(self, request: web.Request) -> web.UrlMappingMatchInfo | None:
        """The match of a plain route; None: ask `resolve`. The target of such a request is well-formed."""
        message = request._message
        route = self._plain.get((message.method, message.path))
        return None if route is None else _Plain(route, self._app)

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        """The match, which has an `http_exception` where there is no such path or method."""
        match = await self._router.resolve(request)
        match.add_app(self._app)
        match.freeze()
        return match
