"""The query parameters of an operation, from the model that its handler passes to `query`."""

from __future__ import annotations

from typing import Any

from ..http.query_model import parameters_of
from .schemas import Schemas


def query_parameters(model: Any, schemas: Schemas, plugin: str) -> list[dict[str, Any]]:
    """One parameter object for each field of the model, in its order; a list is a repeated parameter."""
    if model is None:
        return []
    schema = schemas.definition(model, "validation", plugin)
    required = schema.get("required", ())
    return [
        _parameter(name, schema["properties"][name], name in required)
        for name in parameters_of(model)
        if name in schema["properties"]
    ]


def _parameter(name: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "in": "query"}
    if "description" in schema:
        made["description"] = schema["description"]
    if required:
        made["required"] = True
    rest = {key: value for key, value in schema.items() if key not in ("description", "deprecated")}
    if schema.get("deprecated"):
        made["deprecated"] = True
    return {**made, "schema": _without_null(rest)}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """No text in a URL means null: an optional parameter is left out."""
    left = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(left) == len(schema.get("anyOf", ())):
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if len(left) > 1:
        return {**rest, "anyOf": left}
    if not rest:
        return dict(left[0])
    return {**rest, "allOf": left} if "$ref" in left[0] else {**rest, **left[0]}
