"""All tools of one server: the routes that are described with `tool=`, checked and described once, at startup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from ..auth.access import check
from ..auth.identity import Identity
from ..http.calls_tools import may_call_tools
from ..http.describe import Description, description_of, is_secret
from ..http.errors import ApiError
from ..openapi.schemas import Schemas
from ..routing.table import RouteRule, RouteTable
from ..settings.setting import ConfigError
from .schema import Inputs, inputs_of, output_of


@dataclass(frozen=True, slots=True)
class Tool:
    """A route that agents may call.

    name            the value of `@describe(tool=...)`
    description     its `summary`
    method          the method of its route, such as `POST`
    input_schema    the JSON Schema (2020-12) of its arguments, an object
    output_schema   the JSON Schema of its result; None if the result is not always JSON of one type
    pages           whether its result is a page of a list, with a cursor to the next one
    """

    name: str
    description: str
    method: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    pages: bool = False


@dataclass(frozen=True, slots=True)
class ToolRoute:
    """A tool with its route and the places of its arguments."""

    tool: Tool
    route: web.AbstractRoute = field(repr=False)
    rule: RouteRule = field(repr=False)
    inputs: Inputs = field(repr=False)
    body_optional: bool = False

    def is_for(self, identity: Identity) -> bool:
        """May this caller call it, in its own organisation if the path names one? Nothing is counted, logged or recorded."""
        if self.rule.public:
            return True
        named = self.rule.access.organization
        try:
            check(self.rule.access, identity, {named: identity.org_id} if named and identity.org_id else {})
        except ApiError:
            return False
        return True


def tools_in(table: RouteTable) -> dict[str, ToolRoute]:
    """Returns the tools of these routes by name, sorted. Raises ConfigError for a duplicate name or an unsuitable route."""
    found: dict[str, tuple[web.AbstractRoute, RouteRule, Description]] = {}
    schemas = Schemas()
    for route, rule in table.rules.items():
        said = description_of(route.handler)
        if said is None or said.tool is None or route.method == "HEAD":
            continue
        where = f"{route.method} {rule.template}"
        if said.tool in found:
            other = found[said.tool]
            raise ConfigError(f"{where}: the tool {said.tool!r} already exists: {other[0].method} {other[1].template}")
        if may_call_tools(route.handler):
            raise ConfigError(f"{where}: a handler that calls tools cannot be the tool {said.tool!r} itself")
        if is_secret(route.handler):
            raise ConfigError(f"{where}: its response holds a secret, so it cannot be the tool {said.tool!r}")
        found[said.tool] = route, rule, said
        for kind in filter(None, (said.body, said.query)):
            schemas.add(where, kind, "validation", rule.plugin)
        for kind in filter(None, said.answers.values()):
            schemas.add(where, kind, "serialization", rule.plugin)
    named = schemas.components() if found else {}
    return {name: _tool(name, *found[name], schemas, named) for name in sorted(found)}


def _tool(
    name: str, route: web.AbstractRoute, rule: RouteRule, said: Description, schemas: Schemas, named: Mapping[str, Any]
) -> ToolRoute:
    inputs = inputs_of(f"{route.method} {rule.template}", rule, said, schemas, named)
    output = output_of(rule, said, schemas, named)
    tool = Tool(name, said.summary or "", route.method, inputs.schema, output, said.page)
    return ToolRoute(tool, route, rule, inputs, said.body_optional)
