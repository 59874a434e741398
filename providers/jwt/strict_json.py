"""Reads JSON with only one reading (UTF-8, no duplicate members, finite numbers, bounded depth), and freezes it."""

from __future__ import annotations

import copy
import json
import math
from typing import Any, Final, NoReturn

import msgspec

MAX_DEPTH: Final = 32
_CONTAINERS: Final = frozenset({dict, list})
MAX_DIGITS: Final = 4300  # Python's own limit for converting a text to an integer


class Malformed(Exception):
    """The input breaks a rule. The message is logged, so it names the rule and never the value."""

    @property
    def detail(self) -> str:
        """The rule that was broken."""
        return str(self)


def read_object(raw: bytes, what: str) -> dict[str, Any]:
    """Returns the JSON object in `raw`. Raises Malformed, whose message calls the input `what`."""
    value = _plain(raw)
    return value if value is not None else _read_slowly(raw, what)


def _plain(raw: bytes) -> dict[str, Any] | None:
    """Returns the object if it is in compact form; None if the slower checks must decide.

    Input that decoding and encoding reproduce byte for byte has no second reading: a duplicate member, a byte order
    mark or a number out of range would not be reproduced.
    """
    try:
        value = msgspec.json.decode(raw)
        same: bool = msgspec.json.encode(value) == raw
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    shallow = raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH
    return value if same and shallow and type(value) is dict else None


def _read_slowly(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = _decoder.decode(_text(raw))
    except Malformed as error:
        raise Malformed(f"the {what} {error}") from None
    except (ValueError, RecursionError):
        raise Malformed(f"the {what} is not JSON") from None
    if type(value) is not dict:
        raise Malformed(f"the {what} is not a JSON object")
    # These rare characters show whether the slower checks are needed at all.
    if b"\\u" in raw and _has_surrogate(value):
        raise Malformed(f"the {what} holds half a character")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _too_deep(value):
        raise Malformed(f"the {what} is nested too deeply")
    return value


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed. Every JSON encoder takes it for the dictionary that it is."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("these claims serve many requests and cannot be changed; dict(...) makes a copy")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {name: copy.deepcopy(member, memo) for name, member in self.items()}

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def freeze(value: Any) -> Any:
    """Returns the JSON value read-only at every depth: objects become FrozenDicts, arrays become tuples.

    It also changes `value`. One verified payload serves many requests, so no handler must be able to change it.
    """
    if type(value) is dict:
        if not _CONTAINERS.isdisjoint(map(type, value.values())):
            for name, member in value.items():
                if type(member) in _CONTAINERS:
                    value[name] = freeze(member)
        return FrozenDict(value)
    if type(value) is not list:
        return value
    return tuple(value) if _CONTAINERS.isdisjoint(map(type, value)) else tuple(freeze(member) for member in value)


def _text(raw: bytes) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise Malformed("starts with a byte order mark")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("is not UTF-8") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("has duplicate members")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Malformed("holds too large a number")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Malformed("holds too large a number")
    return value


def _constant(name: str) -> NoReturn:
    raise Malformed("holds NaN or Infinity")


def _has_surrogate(value: object) -> bool:
    # json joins proper pairs; what is left in the surrogate range cannot be encoded.
    try:
        json.dumps(value, ensure_ascii=False, check_circular=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    except RecursionError:
        raise Malformed("the text is nested too deeply") from None
    return False


def _too_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for node in level:
            children.extend(node.values() if isinstance(node, dict) else node)
        level = [node for node in children if isinstance(node, dict | list)]
        if not level:
            return False
    return True


_decoder: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
