"""Validation of query parameters against a model: every fault at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import pydantic
from aiohttp import web

from .bodies import LARGEST_INTEGER, field_path, invalid_fields
from .describe import description_of
from .query_model import PAGE_PARAMETERS, QueryParameter, parameters_of

M = TypeVar("M", bound=pydantic.BaseModel)
MOST_PARAMETERS: Final = 500
"""How many query parameters a request may have, repeated ones included. Their size is bounded by `limits.head_bytes`."""


def validated(request: web.Request, model: type[M]) -> tuple[M | None, list[dict[str, str]]]:
    """Returns (the request's query parameters as an instance of `model`, or None; every invalid parameter)."""
    known, given = parameters_of(model), request.query
    if len(given) > MOST_PARAMETERS:
        return None, [{"field": "", "message": f"must not have more than {MOST_PARAMETERS} query parameters"}]
    texts: dict[str, list[str]] = {}
    for name, text in given.items():
        texts.setdefault(name, []).append(text)
    for name in _of_the_page(request, known):
        texts.pop(name, None)
    repeated = [name for name, several in texts.items() if len(several) > 1 and name in known and not known[name].repeated]
    bad = [{"field": field_path([name]), "message": "must be given once"} for name in repeated]
    try:
        checked = model.model_validate(
            {name: _value(known.get(name), several) for name, several in texts.items()}, strict=False
        )
    except pydantic.ValidationError as error:
        mentioned = {one["field"] for one in bad}
        return None, bad + [one for one in invalid_fields(error) if one["field"] not in mentioned]
    return checked, bad + _out_of_range(checked, known)


def _of_the_page(request: web.Request, known: Mapping[str, QueryParameter]) -> Iterable[str]:
    """The parameters that are the page's. Without a description: those that the model does not declare."""
    description = description_of(request.match_info.handler)
    if description is not None:
        return PAGE_PARAMETERS if description.page else ()
    return PAGE_PARAMETERS - known.keys()


def _value(parameter: QueryParameter | None, texts: list[str]) -> Any:
    """What pydantic validates: a text, or a list of texts if the parameter is a list (or unknown, and given repeatedly)."""
    if parameter is None:
        return texts[0] if len(texts) == 1 else texts
    values = [parameter.words.get(text, text) for text in texts] if parameter.words else texts
    return values if parameter.repeated else values[0]


def _out_of_range(checked: pydantic.BaseModel, known: Mapping[str, QueryParameter]) -> list[dict[str, str]]:
    """The numbers that JSON bodies cannot have either: infinite ones, and integers of more than 64 bits."""
    bad = []
    for name, parameter in known.items():
        value = checked.__dict__[parameter.attribute]  # getattr would warn of a deprecated one
        values = value if isinstance(value, list | tuple | set | frozenset) else (value,)
        if any(isinstance(one, float) and not math.isfinite(one) for one in values):
            bad.append({"field": name, "message": "must be a finite number"})
        elif any(isinstance(one, int) and not -LARGEST_INTEGER <= one < LARGEST_INTEGER for one in values):
            bad.append({"field": name, "message": "must be an integer of at most 64 bits"})
    return bad
