"""Which route a request takes: aiohttp's router, and a short way to the usual routes, however many there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from aiohttp import hdrs, web

from ..http.targets import AS_IT_STANDS, PLAINEST, malformed
from .trie import Trie, beginning, shape_of

# Templates that the router compares as they stand, before all others. At a slash in the end one with a parameter may come
# first ("/x/{tail:.*}" matches "/x/"), and a "%" or "?" is never left in the path that it compares.
_PLAIN: Final = re.compile(rf"(?:/[{AS_IT_STANDS}]+)+\Z")
_ANY_SEGMENT: Final = "[^{}/]+"  # what aiohttp makes of a parameter without an expression


class _Branch(NamedTuple):
    """A template with parameters. `order` is when the router would try it; `names` says which segments they are."""

    order: tuple[int, int]
    routes: Mapping[str, web.AbstractRoute]
    names: tuple[tuple[str, int], ...]


class _Match(web.UrlMappingMatchInfo):
    """A match with its application in it and frozen, as aiohttp would have made it in three steps."""

    __slots__ = ()

    def __init__(self, route: web.AbstractRoute, app: web.Application) -> None:
        self._route = route
        self._apps = [app]
        self._current_app = app
        self._frozen = True


class Resolver:
    """Asks the router of one application.

    The router parses the path, and tries one template after the other of those that begin like it: those with the most fixed
    segments first, then as they were added. Here templates of whole segments are found by their text, or in a tree, and the
    same one is chosen. Whatever could be read otherwise takes the long way: an escape, a slash at the end, a method that is
    not there; and so does a path for which the router would try a template of another kind first.
    """

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._router: Final = app.router
        self._plain: dict[tuple[str, str], web.AbstractRoute] = {}
        self._tree: Trie[_Branch] = Trie()
        self._others: dict[str, int] = {}
        """Where templates of another kind begin, and the number of the first one there."""
        for number, resource in enumerate(app.router.resources()):
            template = resource.canonical
            if isinstance(resource, web.PlainResource) and _PLAIN.match(template) and not malformed(template):
                for route in resource:
                    if route.method != hdrs.METH_OPTIONS:  # it may be a preflight, which is answered before any route
                        self._plain.setdefault((route.method, template), route)
            elif not self._grows(resource, template, number):
                self._others.setdefault(beginning(template), number)

    def _grows(self, resource: web.AbstractResource, template: str, number: int) -> bool:
        """Add a template to the tree; False where it is not of whole segments."""
        shape = shape_of(template)
        if shape is None or None not in shape or not isinstance(resource, web.DynamicResource):
            return False
        segments = template.split("/")[1:]
        names = tuple((segment[1:-1], at) for at, segment in enumerate(segments) if segment[0] == "{")
        if resource.get_info()["pattern"].pattern != "/".join(
            ["", *(re.escape(text) if text[0] != "{" else f"(?P<{text[1:-1]}>{_ANY_SEGMENT})" for text in segments)]
        ):
            return False  # a parameter has an expression, which the template does not show
        routes = {route.method: route for route in resource}
        self._tree.add(shape, _Branch((-shape.index(None), number), routes, names))
        return True

    def at_once(self, request: web.Request) -> web.UrlMappingMatchInfo | None:
        """The match by the short way; None: ask `resolve`. The target of such a request is well-formed."""
        message = request._message
        method, target = message.method, message.path
        route = self._plain.get((method, target))
        if route is not None:
            return _Match(route, self._app)
        if method == hdrs.METH_OPTIONS or not PLAINEST.match(target):
            return None
        path = target.partition("?")[0]
        route = self._plain.get((method, path))
        return _Match(route, self._app) if route is not None else self._in_tree(method, path)

    def _in_tree(self, method: str, path: str) -> web.UrlMappingMatchInfo | None:
        segments = path.split("/")[1:]
        there = [one for one in self._tree.find(segments) if method in one.routes or hdrs.METH_ANY in one.routes]
        if not there:
            return None
        chosen = min(there) if len(there) > 1 else there[0]
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
        """The match, which has an `http_exception` where there is no such path or method."""
        match = await self._router.resolve(request)
        match.add_app(self._app)
        match.freeze()
        return match
