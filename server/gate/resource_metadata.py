"""Serves OAuth 2.0 Protected Resource Metadata (RFC 9728): the issuers that this API trusts, and the scopes of its routes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict

from ..auth.access import public
from ..http.answers import answer
from ..http.describe import describe
from ..http.errors import NotFound
from ..http.resource import WELL_KNOWN, Resource
from ..plugins.providers import LoadedProvider
from ..routing.table import RouteTable

_HEADERS: Final = {"Cache-Control": "public, max-age=300"}
_OURS: Final = ("resource", "authorization_servers", "scopes_supported", "bearer_methods_supported")
_SUMMARY: Final = "How to get access to this API"


class ResourceMetadata(BaseModel):
    """RFC 9728 2. A member without a value is left out."""

    model_config = ConfigDict(extra="allow")
    resource: str
    authorization_servers: list[str] | None = None
    scopes_supported: list[str] | None = None
    bearer_methods_supported: list[str]


class ResourceRoutes:
    """The routes of the metadata. They are public because the operator has set `resource.url`; no pattern is needed."""

    def __init__(self, resource: Resource | None) -> None:
        """`resource` is None if `resource.url` is not set: then there are no routes."""
        self._resource = resource
        self._members: Mapping[str, Any] = {}

    def fill(self, table: RouteTable, providers: Iterable[LoadedProvider]) -> None:
        """Set the contents of the metadata, once all routes and providers are known."""
        self._members = members_of(table, providers)

    def routes(self) -> list[web.RouteDef]:
        """The route without a path behind it, and the one with any path."""
        if self._resource is None:
            return []

        @public
        @describe(returns=ResourceMetadata, summary=_SUMMARY, tags=["discovery"], operation_id="get_resource_metadata")
        async def resource_metadata(request: web.Request) -> web.StreamResponse:
            return self._answer(request)

        @public
        @describe(returns=ResourceMetadata, summary=_SUMMARY, tags=["discovery"], operation_id="get_resource_metadata_of_path")
        async def resource_metadata_of_path(request: web.Request) -> web.StreamResponse:
            return self._answer(request)

        return [
            web.get(WELL_KNOWN, resource_metadata),
            web.get(WELL_KNOWN + "/{path:.*}", resource_metadata_of_path),
        ]

    def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0].removeprefix(WELL_KNOWN)
        resource = self._resource.at(path) if self._resource is not None else None
        if resource is None:
            raise NotFound
        response = answer(json.dumps({"resource": resource, **self._members}), headers=_HEADERS)
        # It is the same for every client, and pages of any origin may need it; for a listed origin CORS replaces this.
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        return response


def members_of(table: RouteTable, providers: Iterable[LoadedProvider]) -> dict[str, Any]:
    """Returns all members but `resource`. RFC 9728 3.2: a list without elements is left out."""
    providers = list(providers)
    issuers = list(dict.fromkeys(issuer for one in providers for issuer in sorted(one.issuers) if _is_server(issuer)))
    scopes = sorted({scope for rule in table.rules.values() for scope in rule.access.scopes})
    members = {"authorization_servers": issuers, "scopes_supported": scopes, "bearer_methods_supported": ["header"]}
    for one in providers:
        members |= {name: value for name, value in one.resource_metadata.items() if name not in _OURS}
    return {name: value for name, value in members.items() if value != []}


def _is_server(issuer: str) -> bool:
    """Is it the URL of an authorization server? That of development tokens is not: its host is `.invalid` (RFC 2606 2)."""
    return issuer.startswith(("https://", "http://")) and not (urlsplit(issuer).hostname or "").endswith(".invalid")
