"""Models of query parameters: which names a model takes, and which of them may be repeated."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, get_origin

import pydantic

PAGE_PARAMETERS: Final = frozenset({"limit", "cursor"})
"""The query parameters of a page: `page` reads them, and a model never gets them."""
_DEEPEST: Final = 8
"""How many references and unions deep a type may be; a deeper one is cyclic."""


class QueryParameter(NamedTuple):
    """One query parameter that a model takes."""

    attribute: str
    """The model's attribute."""
    repeated: bool
    """May it be given more than once? Then the attribute is a list, a set or a tuple."""
    words: Mapping[str, Any]
    """Values of a Literal or an Enum that are not strings, by their text: `{"1": 1, "true": True}`."""


@lru_cache(maxsize=256)
def parameters_of(model: Any) -> Mapping[str, QueryParameter]:
    """The query parameters of a pydantic model by name. A field is a scalar, or a list of scalars that is given repeatedly.

    Raises TypeError for anything else: a nested model, a mapping, JSON in a string, a list of lists, a field with several
    names or a path, and for what is not a pydantic model with fields.
    """
    if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)) or issubclass(model, pydantic.RootModel):
        raise TypeError(f"query parameters are described by a pydantic model with fields, not by {model!r}")
    if model.model_config.get("validate_by_alias") is False:
        raise TypeError(f"{model.__name__}: a model of query parameters must accept its aliases")
    try:
        schema = model.model_json_schema(mode="validation")
    except pydantic.PydanticUserError as error:
        raise TypeError(f"{model.__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    definitions = schema.get("$defs", {})
    if "$ref" in schema:  # the model contains itself
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    found: dict[str, QueryParameter] = {}
    for attribute, field in model.model_fields.items():
        name = field.validation_alias or field.alias or attribute
        if not isinstance(name, str):
            raise TypeError(f"{model.__name__}.{attribute}: a query parameter has one name, not {name!r}")
        words: dict[str, Any] = {}
        shapes = _shapes(schema["properties"][name], definitions, words, _DEEPEST) - {"null"}
        # pydantic validates an Iterable only while the handler reads it: too late for a 422.
        if shapes not in ({"scalar"}, {"list"}) or get_origin(field.annotation) in (Iterable, Generator):
            raise TypeError(f"{model.__name__}.{attribute}: a query parameter is a scalar or a list of scalars")
        found[name] = QueryParameter(attribute, shapes == {"list"}, words)
        if model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name"):
            found.setdefault(attribute, found[name])
    return found


def _shapes(schema: Mapping[str, Any], definitions: Mapping[str, Any], words: dict[str, Any], depth: int) -> set[str]:
    """What a value of this JSON Schema can be: `scalar`, `list` (of scalars), `null`, `other`. Adds to `words`."""
    if depth == 0:
        return {"other"}
    if "$ref" in schema:
        return _shapes(definitions[schema["$ref"].rpartition("/")[2]], definitions, words, depth - 1)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return {shape for one in schema[union] for shape in _shapes(one, definitions, words, depth - 1)}
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        words.update({_text(value): value for value in values if isinstance(value, bool | int | float)})
        return {"scalar"}
    if schema.get("type") == "array":
        items = [one for one in (schema.get("items"), *schema.get("prefixItems", ())) if isinstance(one, Mapping)]
        inner = {shape for one in items for shape in _shapes(one, definitions, words, depth - 1)}
        return {"list"} if inner <= {"scalar"} else {"other"}
    if schema.get("type") == "object" or "contentMediaType" in schema:
        return {"other"}
    return {"null"} if schema.get("type") == "null" else {"scalar"}


def _text(value: bool | int | float) -> str:
    """The value as JSON writes it, which is how a client writes it into a URL."""
    return str(value).lower() if isinstance(value, bool) else str(value)
