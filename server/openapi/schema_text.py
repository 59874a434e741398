"""Rewrites JSON Schemas so that all generators of clients can read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_BY_NAME: Final = frozenset({"properties", "patternProperties", "$defs", "dependentSchemas"})
_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_LISTS: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_ONE: Final = frozenset({"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
                         "unevaluatedProperties", "unevaluatedItems", "contentSchema"})  # fmt: skip


def plain(schema: Any, places: Mapping[str, str]) -> Any:
    """The same schema for generators; `places` maps each `$ref` (and mapping of a discriminator) to the new one.

    Without `default`: generators make such a member required, or send it, and a PATCH would set what the user did not change.
    A `$ref` has no other members beside it: otherwise it moves into `allOf`, since many tools ignore its neighbours.
    An enumeration of several types becomes one for each type, and a tuple says what its items are, as tools expect it.
    """
    if not isinstance(schema, dict):
        return schema
    made = {key: _member(key, value, places) for key, value in schema.items() if key != "default"}
    if "$ref" in made and len(made) > 1:
        return {**{key: value for key, value in made.items() if key != "$ref"}, "allOf": [{"$ref": made["$ref"]}]}
    if "prefixItems" in made and "items" not in made:
        made["items"] = {"anyOf": made["prefixItems"]}
    if "enum" in made and "type" not in made:
        kinds: dict[str | None, list[Any]] = {}
        for value in made.pop("enum"):
            kinds.setdefault(_TYPES.get(type(value)), []).append(value)
        made["anyOf"] = [_enumeration(kind, values) for kind, values in kinds.items()]
    return made


def _enumeration(kind: str | None, values: list[Any]) -> dict[str, Any]:
    if kind == "null":
        return {"type": kind}
    return {"enum": values} if kind is None else {"type": kind, "enum": values}


def _member(key: str, value: Any, places: Mapping[str, str]) -> Any:
    if key == "$ref":
        return places.get(value, value)
    if key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
        return {**value, "mapping": {word: places.get(place, place) for word, place in value["mapping"].items()}}
    if key in _BY_NAME and isinstance(value, dict):
        return {name: plain(one, places) for name, one in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [plain(one, places) for one in value]
    return plain(value, places) if key in _ONE else value


def references(value: Any) -> set[str]:
    """Every `$ref` and discriminator's mapping in a part of the document, as texts that begin with `#/`."""
    if isinstance(value, dict):
        return {found for one in value.values() for found in references(one)}
    if isinstance(value, list):
        return {found for one in value for found in references(one)}
    return {value} if isinstance(value, str) and value.startswith("#/components/") else set()


def used(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document's components that are referenced, directly or by another one, and all security schemes."""
    components: Mapping[str, Mapping[str, Any]] = document["components"]
    left, reached = references(document["paths"]), set[str]()
    while left:
        place = left.pop()
        if place not in reached:
            reached.add(place)
            _, _, kind, name = place.split("/", 3)
            left |= references(components.get(kind, {}).get(name))
    return {
        kind: {
            name: one for name, one in named.items() if kind == "securitySchemes" or f"#/components/{kind}/{name}" in reached
        }
        for kind, named in components.items()
    }
