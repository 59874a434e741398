"""The resolver and the dispatcher of an API below a path (`path_prefix`)."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from aiohttp.web_urldispatcher import MatchInfoError

from ..http.path_prefix import OUTSIDE, PathPrefix
from ..routing.resolver import Resolver
from ..routing.table import RouteRule
from .dispatcher import Dispatcher


class PrefixResolver(Resolver):
    """Resolves requests to routes; one whose target is not below the prefix matches none, whatever templates there are."""

    def at_once(self, request: web.Request) -> web.UrlMappingMatchInfo | None:
        return None if OUTSIDE in request else super().at_once(request)

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        if OUTSIDE not in request:
            return await super().resolve(request)
        match = MatchInfoError(web.HTTPNotFound())
        match.add_app(self._app)
        match.freeze()
        return match


class PrefixDispatcher(Dispatcher):
    """A dispatcher whose responses name paths as clients see them."""

    def __init__(self, prefix: PathPrefix, *args: Any) -> None:
        """`args` are those of Dispatcher."""
        super().__init__(*args)
        self._prefix = prefix

    def _finish(self, request: web.Request, response: web.StreamResponse, request_id: str, rule: RouteRule | None) -> None:
        super()._finish(request, response, request_id, rule)
        self._prefix.mark(response)


def resolver_of(app: web.Application, prefix: PathPrefix | None) -> Resolver:
    """The resolver of an application; without a prefix the plain one, so that its requests pay nothing."""
    return Resolver(app) if prefix is None else PrefixResolver(app)


def dispatcher_of(prefix: PathPrefix | None, *args: Any) -> Dispatcher:
    """The dispatcher; without a prefix the plain one. `args` are those of Dispatcher."""
    return Dispatcher(*args) if prefix is None else PrefixDispatcher(prefix, *args)
