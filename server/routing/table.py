"""Builds the route table: checks every route, and decides which ones are public (both the handler and the operator say so)."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from ..auth.access import Access, access_of
from ..auth.names import with_org_prefix
from ..http.limited import Bounds, bounds_of
from ..http.streaming import streams
from ..settings.core import DEFAULT_PUBLIC
from ..settings.setting import ConfigError
from ..telemetry.metrics import Metrics, Tally
from .mistakes import how_to_open, mistake_in, registration_error
from .patterns import Pattern, PatternError, shadows
from .trie import Trie, beginning, shape_of


@dataclass(frozen=True, slots=True)
class RouteRule:
    """The gate's rule for one route: its access, its template, whether it is public, and the counter of its requests.

    optional   it is public, and a caller who shows a credential is known
    bounds     what its handler declares by `@limited`, or None
    streams    its handler answers with events or a socket
    """

    access: Access
    template: str
    public: bool
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)
    optional: bool = False
    bounds: Bounds | None = None
    plugin: str = ""
    """The plugin that offers the route; "" for a built-in one."""
    streams: bool = False

    @property
    def words(self) -> str:
        """The access in words, for `routes` and the OpenAPI document."""
        return self.access.words() if self.public or not self.access.public else "signed in (declared public, not listed)"


METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line that `routes` prints."""

    method: str
    template: str
    access: str
    handler: str


@dataclass(slots=True)
class RouteTable:
    """The routes as the gate, `routes` and `explain` use them. `unused` are default patterns that cover no route."""

    rules: dict[web.AbstractRoute, RouteRule] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def build(
    router: web.UrlDispatcher,
    offered: Iterable[tuple[str, web.RouteDef]],
    patterns: Sequence[str],
    builtin: Sequence[str],
    metrics: Metrics,
    own: Sequence[web.RouteDef] = (),
) -> RouteTable:
    """Register the routes in `router` and decide which are public. Raises ConfigError for a route that must not be served.

    offered    (plugin, route) pairs
    patterns   the setting `public_routes`
    builtin    the plugins whose routes the default patterns may open. Any other plugin's route needs a pattern of its own,
               also where the operator repeats the defaults in order to add to them
    metrics    counts the requests of each route
    own        routes of the server itself: a setting of the operator's opens them, so they need no pattern
    """
    table = RouteTable()
    public = [(text, _compile(text)) for text in patterns]
    used: set[str] = set()
    decided = []
    for plugin, route in [*(("", route) for route in own), *offered]:
        access = _checked(plugin, route)
        opening = [text for text, pattern in public if pattern.covers(route.path)]
        used |= {text for text in opening if access.public or text not in DEFAULT_PUBLIC}
        if plugin not in builtin:
            opening = [text for text in opening if text not in DEFAULT_PUBLIC]
        is_open = access.public and (bool(opening) or not plugin)
        decided.append((plugin, route, access.public, opening, is_open))
        table.warnings += _system_permission(plugin, route, access)
        for added in _register(router, plugin, route):
            live, bounds = streams(route.handler), bounds_of(route.handler)
            tally = metrics.tally(added.method, route.path, timed=not live)
            owner = "" if plugin in builtin else plugin
            rule = RouteRule(access, route.path, is_open, tally, is_open and access.optional, bounds, owner, live)
            table.rules[added] = rule
            handler = f"{route.handler.__module__}.{route.handler.__qualname__}"
            words = ", ".join([rule.words, bounds.words()]) if bounds else rule.words
            table.rows.append(Row(added.method, route.path, words, handler))
    opened = {route.path for _, route, _, _, is_open in decided if is_open}
    for plugin, route, declared, opening, is_open in decided:
        # A pattern that opens another method of the same path could not be narrower.
        if declared or route.path not in opened:
            table.warnings += _warnings(plugin, route, declared, opening, is_open)
    for text, _ in public:
        if text not in used:
            if text not in DEFAULT_PUBLIC:
                raise ConfigError(f"public_routes: the pattern {text!r} covers no route: check its spelling")
            table.unused.append(text)
    _refuse_shadows(router)
    table.rows.sort(key=lambda row: (row.template, row.method))
    return table


def _compile(text: str) -> Pattern:
    try:
        return Pattern(text)
    except PatternError as error:
        raise ConfigError(f"public_routes: {error}") from error


def _checked(plugin: str, route: web.RouteDef) -> Access:
    """The access of a valid route. Raises ConfigError."""
    where = f"plugin {plugin!r}: {route.method} {route.path}"
    if mistake := mistake_in(route.method, route.path):
        raise ConfigError(f"{where}: {mistake}")
    if route.method not in METHODS:
        raise ConfigError(f"{where}: the method must be one of {', '.join(sorted(METHODS))}")
    if inspect.isclass(route.handler) or not inspect.iscoroutinefunction(route.handler):
        raise ConfigError(f"{where}: the handler must be an `async def` function, not a class")
    if set(route.kwargs) - {"name", "allow_head"}:
        raise ConfigError(f"{where}: a route takes a name and nothing else")
    access = access_of(route.handler)
    if access is None:
        raise ConfigError(
            f"{where}: no access is declared. Put @public, @signed_in or @requires(...) on the handler, below @routes"
        )
    if access.organization is not None and not re.search(rf"\{{{re.escape(access.organization)}[:}}]", route.path):
        raise ConfigError(f"{where}: the path has no parameter {{{access.organization}}}, which its access names")
    return access


def _register(router: web.UrlDispatcher, plugin: str, route: web.RouteDef) -> list[web.AbstractRoute]:
    """Add the route, and HEAD for every GET with the same access."""
    methods = ["GET", "HEAD"] if route.method == "GET" else [route.method]
    try:
        resource = router.add_resource(route.path, name=route.kwargs.get("name"))
        return [resource.add_route(method, route.handler) for method in methods]
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"plugin {plugin!r}: {route.method} {route.path}: {registration_error(error)}") from error


def _warnings(plugin: str, route: web.RouteDef, declared: bool, opening: list[str], is_open: bool) -> list[str]:
    where = f"{route.method} {route.path} (plugin {plugin!r})"
    if opening and not declared:
        return [f"public_routes: {opening[0]!r} also covers {where}, which is not declared @public: it stays locked"]
    if declared and not is_open:
        return [
            f"{where} is declared @public, but no pattern in public_routes covers it (the default ones "
            f"open built-in routes only): it stays locked{how_to_open(route.path)}"
        ]
    return []


def _system_permission(plugin: str, route: web.RouteDef, access: Access) -> list[str]:
    """Warn of a route that requires one of Clerk's system permissions: no token has them, so it refuses every caller."""
    if access.permission is None or not with_org_prefix(access.permission).startswith("org:sys_"):
        return []
    return [
        f"{route.method} {route.path} (plugin {plugin!r}) requires the permission {access.permission!r}: Clerk puts system "
        "permissions into no token, so its users are refused; require the role, or a permission of your own"
    ]


def _refuse_shadows(router: web.UrlDispatcher) -> None:
    """Raise ConfigError where one route matches every path of a later one with its method, so that the later never runs."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for resource in router.resources():
        template = _full_template(resource)
        for route in resource:
            groups[route.method, beginning(template)].append(template)
    for (method, _), templates in groups.items():
        for later, earlier in _shadowed(templates):
            raise ConfigError(f"{method} {later}: it can never be reached: {earlier} comes first and matches every such path")


def _shadowed(templates: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (template, an earlier one that matches all its paths). Templates of whole segments are compared in a trie."""
    trie: Trie[str] = Trie()
    others: list[str] = []
    for number, later in enumerate(templates):
        shape = shape_of(later)
        found = trie.find(shape) if shape is not None else []
        rest = others if shape is not None else templates[:number]
        yield from ((later, earlier) for earlier in found)
        yield from ((later, earlier) for earlier in rest if later == earlier or shadows(earlier, later))
        if shape is not None:
            trie.add(shape, later)
        else:
            others.append(later)


def _full_template(resource: web.AbstractResource) -> str:
    return str(getattr(resource, "_orig_path", resource.canonical))
