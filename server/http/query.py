"""Query parameters of a request, validated against a model."""

from __future__ import annotations

from typing import TypeVar

import pydantic
from aiohttp import web

from .describe import description_of, hold_to
from .error_texts import MOST_FIELDS
from .errors import Unprocessable
from .pagination import page_faults
from .query_values import validated

M = TypeVar("M", bound=pydantic.BaseModel)


def query(request: web.Request, model: type[M]) -> M:
    """The request's query parameters as an instance of `model`, a pydantic model of scalars and lists of scalars.

    A list (or set, or tuple) takes a repeated parameter: `?status=open&status=done`. What becomes of an unknown parameter
    is the model's `extra`: `forbid` refuses it, the default ignores it. `limit` and `cursor` belong to `page` if the handler
    is described with `page=True`, and are not passed to the model. Text is converted as pydantic does it, without `strict`.

    Raises Unprocessable (422) with every invalid parameter, the page's included: also a repeated one that is not a list,
    a number that is not finite or an integer of more than 64 bits, and more than 500 parameters. Raises TypeError if the
    handler is described (`describe`) with another model, and for a model that is none of query parameters.
    """
    hold_to(request, "query", model)
    checked, bad = validated(request, model)
    if checked is None or bad:
        description = description_of(request.match_info.handler)
        if description is not None and description.page:
            bad += page_faults(request)
        raise Unprocessable(bad[:MOST_FIELDS])
    return checked
