"""Request bodies: unambiguous JSON within the limits, validated against a model."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import pydantic
from aiohttp import web

from .body_bytes import BODY_LIMITS, body_limits, read_body
from .describe import hold_to
from .error_texts import LONGEST_FIELD, MOST_FIELDS
from .errors import BadRequest, Unprocessable

T = TypeVar("T")
_PATHS_PER_BYTE: Final = 16
"""Limit on the total length of all values' paths, in multiples of the largest body: a validation error contains the paths."""

LARGEST_INTEGER: Final = 2**63
"""Integers are at least minus this, and less than this: what 64 bits hold."""


async def body(request: web.Request, model: type[T]) -> T:
    """The request's JSON body as an instance of `model`: a pydantic model, or any type pydantic can validate.

    Raises an ApiError, which becomes the response: 411 without a length, 413 if the body is too large, 415 for another
    content type or encoding, 408 if it is not received in time, 400 if it is not unambiguous JSON (RFC 7493), and 422
    with every invalid field. Raises TypeError if the handler is described (`describe`) with another model.
    """
    hold_to(request, "body", model)
    _, _, depth, values = request.app[BODY_LIMITS]
    limit, seconds = body_limits(request)
    data = _parse(await read_body(request, limit, seconds), depth)
    bad = [{"field": where, "message": "must not contain the character NUL"} for where in _nul(data)]
    if _too_many(data, values, _PATHS_PER_BYTE * limit):
        raise Unprocessable(bad or [{"field": "", "message": f"must not have more than {values} values, or overlong names"}])
    try:
        checked = _adapter(cast("Hashable", model)).validate_python(data)
    except pydantic.ValidationError as error:
        raise Unprocessable((invalid_fields(error) + bad)[:MOST_FIELDS]) from None
    if bad:
        raise Unprocessable(bad)
    return checked  # type: ignore[no-any-return]


def _parse(raw: bytes, depth: int) -> Any:
    """One JSON value. Raises BadRequest for anything that two parsers could read differently (RFC 7493, I-JSON)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("json-encoding") from None
    if text.startswith("\ufeff"):
        raise BadRequest("json-byte-order-mark")
    try:
        data = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_refuse, parse_float=_float, parse_int=_int)
    except json.JSONDecodeError as error:
        raise BadRequest("json-malformed", detail=f"not JSON at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadRequest("json-depth") from None
    _refuse_odd(data, depth)
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadRequest("json-duplicate-member")
    return members


def _refuse(text: str) -> Any:
    raise BadRequest("json-number")  # NaN, Infinity


def _float(text: str) -> float:
    # Postgres stores JSON numbers as decimals: 1e308 would come back as 309 digits.
    number = float(text)
    if not math.isfinite(number) or (number != 0 and not 1e-30 <= abs(number) < LARGEST_INTEGER):
        raise BadRequest("json-number")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -LARGEST_INTEGER <= (number := int(text)) < LARGEST_INTEGER:
        raise BadRequest("json-number")
    return number


def _refuse_odd(data: Any, depth: int) -> None:
    """Raise BadRequest for data that is nested too deeply, or has a string that is not valid Unicode (a lone surrogate)."""
    if isinstance(data, str):
        if not data.isascii() and not _is_unicode(data):
            raise BadRequest("json-unicode")
    elif isinstance(data, dict | list):
        if depth == 0:
            raise BadRequest("json-depth")
        if isinstance(data, dict):
            for key in data:
                _refuse_odd(key, depth)
        for value in data.values() if isinstance(data, dict) else data:
            _refuse_odd(value, depth - 1)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_many(data: Any, values: int, paths: int) -> bool:
    """Whether there are more than `values` values, or their paths (which errors contain) exceed `paths` characters."""
    left, length = values, paths
    pending: list[tuple[Any, int]] = [(data, 0)]
    while pending:
        value, here = pending.pop()
        left -= 1
        length -= here
        if left < 0 or length < 0:
            return True
        if isinstance(value, dict):
            pending += [(one, here + len(key)) for key, one in value.items()]
        elif isinstance(value, list):
            pending += [(one, here) for one in value]
    return False


def _nul(data: Any) -> list[str]:
    """The paths of strings that contain NUL, which Postgres cannot store; at most MOST_FIELDS of them."""
    found: list[str] = []
    _find_nul(data, [], found)
    return found


def _find_nul(data: Any, path: list[Any], found: list[str]) -> None:
    """Append to `found`. A path is built only for a hit, so the cost is one look at each value."""
    if len(found) >= MOST_FIELDS:
        return
    if isinstance(data, str):
        if "\x00" in data:
            found.append(field_path(path))
    elif isinstance(data, dict):
        for key, value in data.items():
            path.append(key)
            if "\x00" in key and len(found) < MOST_FIELDS:
                found.append(field_path(path))
            if isinstance(value, str | dict | list):
                _find_nul(value, path, found)
            path.pop()
    elif isinstance(data, list):
        for number, value in enumerate(data):
            if isinstance(value, str | dict | list):
                path.append(number)
                _find_nul(value, path, found)
                path.pop()


def field_path(path: Iterable[Any]) -> str:
    """A field's path as errors show it, truncated to LONGEST_FIELD characters."""
    named, length = [], 0
    for part in path:
        text = str(part)[: LONGEST_FIELD + 1]
        named.append(text)
        length += len(text) + 1
        if length > LONGEST_FIELD + 1:
            break
    return ".".join(named).replace("\x00", "?")[:LONGEST_FIELD]


def invalid_fields(error: pydantic.ValidationError) -> list[dict[str, str]]:
    """The invalid fields, at most MOST_FIELDS of them."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[:MOST_FIELDS]
    return [{"field": field_path(one["loc"]), "message": one["msg"][:LONGEST_FIELD]} for one in found]


@lru_cache(maxsize=256)
def _adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(model)
