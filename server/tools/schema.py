"""The JSON Schemas of a tool: of its arguments, and of its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from ..http.describe import Description, is_json
from ..openapi.components import PARAMETERS
from ..openapi.operation import path_parameters
from ..openapi.parameters import query_parameters
from ..openapi.schemas import PLACE, Schemas
from ..routing.table import RouteRule
from ..settings.setting import ConfigError

BODY: Final = "body"
"""The argument that is the whole body, if the body is not an object with fixed members."""
IF_MATCH: Final = "if_match"
_LOCAL: Final = "#/$defs/"
_MIXED: Final = frozenset({"anyOf", "oneOf", "allOf", "$ref", "patternProperties"})


class Inputs(NamedTuple):
    """Where each argument goes: the names of the parameters in the path and in the query, and the form of the body.

    organization   the path parameter that may be left out: it defaults to the active organisation
    members        True: all other arguments are members of the body; False: there is the argument `body`; None: no body
    """

    path: tuple[str, ...]
    query: tuple[str, ...]
    organization: str | None
    members: bool | None
    if_match: bool
    schema: dict[str, Any]


def inputs_of(where: str, rule: RouteRule, said: Description, schemas: Schemas, named: Mapping[str, Any]) -> Inputs:
    """Returns the arguments of a tool. `named` are the components of `schemas`. Raises ConfigError if two have one name."""
    path = path_parameters(rule.template, rule.access.organization)
    query = [*query_parameters(said.query, schemas, rule.plugin), *(_of_page() if said.page else ())]
    arguments = _Arguments(where)
    for one in (*path, *query, *([_if_match()] if said.if_match else [])):
        words = {"description": one["description"]} if "description" in one else {}
        needed = bool(one.get("required")) and one["name"] != rule.access.organization
        arguments.add(one["name"], {**one["schema"], **words}, needed=needed)
    members = arguments.add_body(rule, said, schemas) if said.body is not None else None
    names = tuple(one["name"] for one in path), tuple(one["name"] for one in query)
    return Inputs(*names, rule.access.organization, members, said.if_match, standalone(arguments.schema(), named))


class _Arguments:
    """Collects the arguments of one tool."""

    def __init__(self, where: str) -> None:
        self._where, self._closed = where, True
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []

    def add(self, name: str, schema: dict[str, Any], *, needed: bool) -> None:
        """Add an argument. Raises ConfigError if there is one of this name already."""
        if name in self._properties:
            raise ConfigError(f"{self._where}: two arguments of the tool are named {name!r} (among path, query, page and body)")
        self._properties[name] = schema
        self._required += [name] if needed else []

    def add_body(self, rule: RouteRule, said: Description, schemas: Schemas) -> bool:
        """Add the body. Returns True if its members are arguments, False if the whole body is one argument."""
        body = schemas.definition(said.body, "validation", rule.plugin)
        if body.get("type") != "object" or "properties" not in body or _MIXED & body.keys():
            self.add(BODY, schemas.of(said.body, "validation", rule.plugin), needed=not said.body_optional)
            return False
        self._closed = body.get("additionalProperties") is False
        for name, schema in body["properties"].items():
            self.add(name, schema, needed=name in body.get("required", ()) and not said.body_optional)
        return True

    def schema(self) -> dict[str, Any]:
        required = {"required": self._required} if self._required else {}
        closed = {"additionalProperties": False} if self._closed else {}
        return {"type": "object", "properties": self._properties, **required, **closed}


def output_of(rule: RouteRule, said: Description, schemas: Schemas, named: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the schema of a tool's result; None if the successes have no body, different ones, or no JSON."""
    kinds = [kind for status, kind in said.answers.items() if status < 300]
    if not kinds or not is_json(said.content_type) or any(kind is None or kind != kinds[0] for kind in kinds):
        return None
    return standalone(schemas.definition(kinds[0], "serialization", rule.plugin), named)


def standalone(schema: dict[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema with everything that it refers to in its own `$defs`, not in the OpenAPI document's components."""
    made = _relocated(schema)
    left, definitions = _names(schema), {}
    while left:
        name = left.pop()
        if name not in definitions:
            definitions[name] = _relocated(named[name])
            left |= _names(named[name])
    return {**made, "$defs": dict(sorted(definitions.items()))} if definitions else dict(made)


def _of_page() -> Iterable[dict[str, Any]]:
    limit, cursor = PARAMETERS["limit"], PARAMETERS["cursor"]
    return limit, {**cursor, "description": "Where the page begins: the cursor that the previous page ended with."}


def _if_match() -> dict[str, Any]:
    words = "Change the row only if its ETag, which is part of a result, still has this value."
    return {"name": IF_MATCH, "description": words, "schema": {"type": "string"}}


def _relocated(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _relocated(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_relocated(one) for one in value]
    return _LOCAL + value.removeprefix(PLACE) if isinstance(value, str) and value.startswith(PLACE) else value


def _names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {name for one in value.values() for name in _names(one)}
    if isinstance(value, list):
        return {name for one in value for name in _names(one)}
    return {value.removeprefix(PLACE)} if isinstance(value, str) and value.startswith(PLACE) else set()
