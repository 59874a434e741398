"""Finds the route of a request: with aiohttp's router, and a fast path whose cost does not grow with the number of routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from aiohttp import hdrs, web

from ..http.targets import AS_IT_STANDS, PLAINEST, malformed
from .trie import Trie, beginning, shape_of

# Templates that the router compares literally, before all others. One with a trailing slash is left out, since a template with
# a parameter may come first ("/x/{tail:.*}" matches "/x/"); so are "%" and "?", which never remain in the path it compares.
_PLAIN: Final = re.compile(rf"(?:/[{AS_IT_STANDS}]+)+\Z")
_ANY_SEGMENT: Final = "[^{}/]+"  # what aiohttp makes of a parameter without an expression


class _Candidate(NamedTuple):
    """A template with parameters: the order in which the router would try it, its routes, and which segments have names."""

    order: tuple[int, int]
    routes: Mapping[str, web.AbstractRoute]
    names: tuple[tuple[str, int], ...]


class _Match(web.UrlMappingMatchInfo):
    """A match that has its application and is frozen, in one step instead of aiohttp's three."""

    __slots__ = ()

    def __init__(self, route: web.AbstractRoute, app: web.Application) -> None:
        self._route = route
        self._apps = [app]
        self._current_app = app
        self._frozen = True


class Resolver:
    """Resolves requests to routes of one application.

    aiohttp's router parses the path and tries the templates with the same beginning one after the other: those with the most
    fixed segments first, then in the order in which they were added. This class finds templates of whole segments in a
    dictionary or a trie, and chooses the same one. Everything that could be read in another way is left to the router: an
    escape, a trailing slash, a method that the template does not have, and a path for which the router would try a template
    of another kind first.
    """

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._router: Final = app.router
        self._plain: dict[tuple[str, str], web.AbstractRoute] = {}
        self._trie: Trie[_Candidate] = Trie()
        self._others: dict[str, int] = {}
        """For templates of another kind: their beginnings, and the number of the first one with each."""
        for number, resource in enumerate(app.router.resources()):
            template = resource.canonical
            if isinstance(resource, web.PlainResource) and _PLAIN.match(template) and not malformed(template):
                for route in resource:
                    if route.method != hdrs.METH_OPTIONS:  # it may be a preflight, which no route answers
                        self._plain.setdefault((route.method, template), route)
            elif not self._add_to_trie(resource, template, number):
                self._others.setdefault(beginning(template), number)

    def _add_to_trie(self, resource: web.AbstractResource, template: str, number: int) -> bool:
        """Add a template to the trie; False where it does not consist of whole segments."""
        shape = shape_of(template)
        if shape is None or None not in shape or not isinstance(resource, web.DynamicResource):
            return False
        segments = template.split("/")[1:]
        names = tuple((segment[1:-1], at) for at, segment in enumerate(segments) if segment[0] == "{")
        if resource.get_info()["pattern"].pattern != "/".join(
            ["", *(re.escape(text) if text[0] != "{" else f"(?P<{text[1:-1]}>{_ANY_SEGMENT})" for text in segments)]
        ):
            return False  # a parameter has an expression that the template does not show
        routes = {route.method: route for route in resource}
        self._trie.add(shape, _Candidate((-shape.index(None), number), routes, names))
        return True

    def at_once(self, request: web.Request) -> web.UrlMappingMatchInfo | None:
        """The match by the fast path; None: call `resolve`. A request that gets a match here has a well-formed target."""
        message = request._message
        method, target = message.method, message.path
        route = self._plain.get((method, target))
        if route is not None:
            return _Match(route, self._app)
        if method == hdrs.METH_OPTIONS or not PLAINEST.match(target):
            return None
        path = target.partition("?")[0]
        route = self._plain.get((method, path))
        return _Match(route, self._app) if route is not None else self._in_trie(method, path)

    def _in_trie(self, method: str, path: str) -> web.UrlMappingMatchInfo | None:
        segments = path.split("/")[1:]
        candidates = [one for one in self._trie.find(segments) if method in one.routes or hdrs.METH_ANY in one.routes]
        if not candidates:
            return None
        chosen = min(candidates) if len(candidates) > 1 else candidates[0]
        if self._others and self._is_preceded(path, chosen.order):
            return None
        match = _Match(chosen.routes.get(method) or chosen.routes[hdrs.METH_ANY], self._app)
        for name, at in chosen.names:
            match[name] = segments[at]
        return match

    def _is_preceded(self, path: str, order: tuple[int, int]) -> bool:
        """Would the router try a template of another kind first?"""
        while True:
            number = self._others.get(path)
            if number is not None and (-path.count("/"), number) < order:
                return True
            if not path:
                return False
            path = path.rpartition("/")[0]

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        """The match by the router; it has an `http_exception` where there is no such path or method."""
        match = await self._router.resolve(request)
        match.add_app(self._app)
        match.freeze()
        return match
