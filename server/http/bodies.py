"""Request bodies: JSON that can mean only one thing, within the limits, checked against a model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import pydantic
from aiohttp import hdrs, web

from .describe import hold_to
from .errors import BadRequest, ContentTooLarge, LengthRequired, RequestTimeout, Unprocessable, UnsupportedMediaType

T = TypeVar("T")
BODY_LIMITS: Final = web.AppKey("body_limits", tuple)
"""(largest body in bytes, longest time in seconds, how deep JSON may be)"""

_INTEGER: Final = 2**63


async def body(request: web.Request, model: type[T]) -> T:
    """The request's JSON body as an instance of `model`: a pydantic model, or any type pydantic can check.

    Raises (as answers) 411 without a length, 413, 415 for another content type, 408 when it takes too long, 400 for
    what is not JSON that every reader reads alike, and 422 that lists every bad field. Raises TypeError in a handler
    that is described (`describe`) with another model.
    """
    hold_to(request, "body", model)
    data = _parse(await _read(request), request.app[BODY_LIMITS][2])
    bad = [{"field": where, "message": "must not contain the character NUL"} for where in _nul(data)]
    try:
        checked = _adapter(cast("Hashable", model)).validate_python(data)
    except pydantic.ValidationError as error:
        raise Unprocessable(_fields(error) + bad) from None
    if bad:
        raise Unprocessable(bad)
    return checked  # type: ignore[no-any-return]


async def raw_body(request: web.Request) -> bytes:
    """The request's body, byte for byte and of any type: for whoever checks a signature over it.

    Raises (as answers) 411 without a length, 413, 415 for a content encoding, 408 when it takes too long, 400.
    """
    return await _read(request, any_type=True)


async def _read(request: web.Request, *, any_type: bool = False) -> bytes:
    limit, seconds, _ = request.app[BODY_LIMITS]
    if request.content_length is None and hdrs.TRANSFER_ENCODING not in request.headers:
        raise LengthRequired
    if (request.content_length or 0) > limit:
        raise ContentTooLarge
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity" or not (any_type or _is_json(request)):
        raise UnsupportedMediaType
    try:
        async with asyncio.timeout(seconds):
            expected = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= (1, 1)
            if expected and request.can_read_body:  # not a second time, where the body was read already
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0
            return await request.read()
    except TimeoutError:
        raise RequestTimeout from None
    except web.HTTPRequestEntityTooLarge:
        raise ContentTooLarge from None
    except web.RequestPayloadError:
        raise BadRequest from None


def _is_json(request: web.Request) -> bool:
    if len(request.headers.getall(hdrs.CONTENT_TYPE, ())) != 1 or request.content_type != "application/json":
        return False
    return (request.charset or "utf-8").lower() in ("utf-8", "utf8")


def _parse(raw: bytes, depth: int) -> Any:
    """One JSON value; BadRequest for anything that two readers could take differently (RFC 7493, I-JSON)."""
    try:
        data = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_refuse, parse_float=_float, parse_int=_int
        )
    except (ValueError, RecursionError):
        raise BadRequest from None
    if _too_odd(data, depth):
        raise BadRequest
    return data


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse(text: str) -> Any:
    raise ValueError(text)  # NaN, Infinity


def _float(text: str) -> float:
    # Postgres keeps JSON numbers as decimals: 1e308 would come back as 309 digits.
    number = float(text)
    if not math.isfinite(number) or (number != 0 and not 1e-30 <= abs(number) < _INTEGER):
        raise ValueError("number out of range")
    return number


def _int(text: str) -> int:
    number = int(text)
    if not -_INTEGER <= number < _INTEGER:
        raise ValueError("number out of range")
    return number


def _too_odd(data: Any, depth: int) -> bool:
    """Too deep, or a text that is not Unicode (a lone surrogate)."""
    if isinstance(data, str):
        return not data.isascii() and any("\ud800" <= char <= "\udfff" for char in data)
    if isinstance(data, dict):
        return depth == 0 or any(_too_odd(key, depth) or _too_odd(value, depth - 1) for key, value in data.items())
    if isinstance(data, list):
        return depth == 0 or any(_too_odd(value, depth - 1) for value in data)
    return False


def _nul(data: Any, where: str = "") -> list[str]:
    """The places of texts with a NUL, which Postgres cannot keep."""
    if isinstance(data, str):
        return [where] if "\x00" in data else []
    if isinstance(data, dict):
        found = [f"{where}.{key}".strip(".").replace("\x00", "?") for key in data if "\x00" in key]
        return found + [place for key, value in data.items() for place in _nul(value, f"{where}.{key}".strip("."))]
    if isinstance(data, list):
        return [place for number, value in enumerate(data) for place in _nul(value, f"{where}.{number}".strip("."))]
    return []


def _fields(error: pydantic.ValidationError) -> list[dict[str, str]]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [{"field": ".".join(str(part) for part in one["loc"]), "message": one["msg"]} for one in found]


@lru_cache(maxsize=256)
def _adapter(model: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(model)
