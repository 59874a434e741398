"""Values of the type jsonb: what a handler passes as bytes for Postgres, and what Postgres sends as Python objects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

_VERSION: Final = b"\x01"
"""The first byte of jsonb in Postgres's binary form."""
_MOST_DIGITS: Final = 4300  # Python's own limit for converting a text to an integer


def encode(value: Any) -> bytes:
    """A value for a parameter of the type jsonb. A str is JSON text and is passed as it is; everything else is encoded.

    Raises ValueError for what no JSON can hold (NaN, half a surrogate pair), TypeError for a type without a JSON form.
    """
    text = value if isinstance(value, str) else _encoder.encode(value)
    return _VERSION + text.encode()


def decode(raw: bytes) -> Any:
    """A jsonb value as dict, list, str, int, float, bool or None; a number beyond the range of float as Decimal."""
    try:
        return msgspec.json.decode(raw[1:])
    except msgspec.MsgspecError:  # jsonb holds larger numbers than msgspec reads
        return json.loads(raw[1:], parse_float=_float, parse_int=_int)


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _float(digits: str) -> float | Decimal:
    number = float(digits)
    return number if math.isfinite(number) else Decimal(digits)


def _int(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _MOST_DIGITS else Decimal(digits)


_encoder: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
