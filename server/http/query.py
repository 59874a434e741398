"""Query parameters of a request, validated against a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import pydantic
from aiohttp import web

from .bodies import LARGEST_INTEGER, field_path, invalid_fields
from .describe import description_of, hold_to
from .error_texts import MOST_FIELDS
from .errors import Unprocessable
from .query_model import PAGE_PARAMETERS, QueryParameter, parameters_of

M = TypeVar("M", bound=pydantic.BaseModel)
MOST_PARAMETERS: Final = 500
"""How many query parameters a request may have, repeated ones included. Their size is bounded by `limits.head_bytes`."""


def query(request: web.Request, model: type[M]) -> M:
    """The request's query parameters as an instance of `model`, a pydantic model of scalars and lists of scalars.

    A list (or set, or tuple) takes a repeated parameter: `?status=open&status=done`. What becomes of an unknown parameter
    is the model's `extra`: `forbid` refuses it, the default ignores it. `limit` and `cursor` belong to `page` if the handler
    is described with `page=True`, and are not passed to the model. Text is converted as pydantic does it, without `strict`.

    Raises Unprocessable (422) with every invalid parameter: also a repeated one that is not a list, a number that is not
    finite or an integer of more than 64 bits, and more than 500 parameters. Raises TypeError if the handler is described
    (`describe`) with another model, and for a model that is none of query parameters.
    """
    hold_to(request, "query", model)
    known, given = parameters_of(model), request.query
    if len(given) > MOST_PARAMETERS:
        raise Unprocessable([{"field": "", "message": f"must not have more than {MOST_PARAMETERS} query parameters"}])
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
        found = [one for one in invalid_fields(error) if one["field"] not in mentioned]
        raise Unprocessable((bad + found)[:MOST_FIELDS]) from None
    bad += _out_of_range(checked, known)
    if bad:
        raise Unprocessable(bad[:MOST_FIELDS])
    return checked


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
