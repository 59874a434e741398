"""Reads a compact JWS (RFC 7515) strictly, so that it has only one reading before and after verification.

PyJWT and cryptography verify the signature. This module decides what they leave open: encodings with two readings,
duplicate members, odd headers, numbers that are not numbers.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from .strict_json import Malformed, read_object

MAX_BYTES: Final = 16 * 1024
MAX_DATE: Final = float(2**40)
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# RFC 4648 3.5: the bits that are left over in the last character must be zero, else one text has several spellings.
_LAST: Final = {0: None, 1: frozenset(), 2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}
_PADDING: Final = ("", "===", "==", "=")
# RFC 7515 4.1.11 (crit), RFC 7797 (b64), RFC 7516 (enc, zip): they change what is signed, and none is supported.
_REFUSED: Final = ("crit", "b64", "enc", "zip")
_REMEMBERED: Final = 256


class Segments(NamedTuple):
    """The three parts of a token as text: encoded header, encoded payload, encoded signature."""

    header: str
    payload: str
    signature: str


@dataclass(frozen=True, slots=True)
class Header:
    """A header that passed every rule. `members` holds all of it, for what a provider reads besides alg, kid and typ."""

    alg: str
    kid: str | None
    members: Mapping[str, Any]


class _Issuer(msgspec.Struct):
    iss: Any = None


_issuer_decoder: Final = msgspec.json.Decoder(_Issuer)


def split(token: str) -> Segments | None:
    """Returns the segments of a text shaped like a JWT; None for any other text (an opaque token, garbage).

    The shape: at most 16 KiB, exactly three segments of the base64url alphabet without padding, the first of
    which starts like a JSON object does (`{` is encoded as `e`).
    """
    if len(token) > MAX_BYTES or token[:1] != "e" or not token.isascii():
        return None
    if token.encode().translate(None, _ALPHABET) != b"..":
        return None
    header, payload, signature = token.split(".")
    return Segments(header, payload, signature) if payload and signature else None


def decode(segment: str) -> bytes:
    """Returns the bytes of one segment from `split`. Raises Malformed unless it is canonical, unpadded base64url."""
    rest = len(segment) % 4
    allowed = _LAST[rest]
    if allowed is not None and segment[-1] not in allowed:
        raise Malformed("a segment is not canonical base64url")
    return a2b_base64(segment.replace("-", "+").replace("_", "/") + _PADDING[rest])


def unverified_issuer(payload: bytes) -> object:
    """Returns the `iss` of a decoded payload before verification: use it only to choose who verifies the token.

    It may be any JSON value; None if absent. Raises Malformed if the payload is not a JSON object.
    """
    try:
        return _issuer_decoder.decode(payload).iss
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed("the payload is not a readable JSON object") from None


def claims(payload: bytes) -> dict[str, Any]:
    """Returns the claims of a decoded payload, strictly read. Call it after verification. Raises Malformed."""
    return read_object(payload, "payload")


class HeaderReader:
    """Reads headers under one set of rules, and caches those that came with a valid signature.

    algorithms   the allowed `alg` values; `none` and HMAC raise ValueError
    types        the allowed `typ` values, compared exactly; None among them: it may be absent. None instead of the
                 collection: any text or none, for a caller that checks `members["typ"]` after verification
    """

    def __init__(self, algorithms: Collection[str], types: Collection[str | None] | None = (None, "JWT")) -> None:
        self._algorithms = frozenset(algorithms)
        self._types = frozenset(types) if types is not None else None
        if any(name.lower() == "none" or name.upper().startswith("HS") for name in self._algorithms):
            raise ValueError("only signatures with a public key are allowed")
        self._known: dict[str, Header] = {}

    def read(self, segment: str) -> Header:
        """Returns the header of an encoded segment. Ignores `jku`, `jwk`, `x5u` and `x5c`. Raises Malformed."""
        known = self._known.get(segment)
        return known if known is not None else self._check(read_object(decode(segment), "header"))

    def remember(self, segment: str, header: Header) -> None:
        """Cache this segment's header. Only after verification: otherwise any client could fill the cache."""
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[segment] = header

    def _check(self, members: dict[str, Any]) -> Header:
        alg = members.get("alg")
        if not isinstance(alg, str) or alg not in self._algorithms:
            raise Malformed("alg is not allowed")
        typ = members.get("typ")
        if ("typ" in members and not isinstance(typ, str)) or (self._types is not None and typ not in self._types):
            raise Malformed("typ is not allowed")
        for name in _REFUSED:
            if name in members:
                raise Malformed(f"{name} in the header is refused")
        kid = members.get("kid")
        if "kid" in members and not (isinstance(kid, str) and 0 < len(kid) <= 255):
            raise Malformed("kid is not a string of 1 to 255 characters")
        return Header(alg, kid, MappingProxyType(members))


def numeric_date(members: Mapping[str, Any], name: str) -> float | None:
    """Returns the NumericDate `name` (RFC 7519 2: seconds since 1970), or None if the member is absent.

    Raises Malformed for anything but a plain finite JSON number from 0 to 2**40.
    """
    if name not in members:
        return None
    value = members[name]
    # `type`, not isinstance: a bool is an int to Python. NaN fails the comparison.
    if type(value) not in (int, float) or not 0 <= value <= MAX_DATE:
        raise Malformed(f"{name} is not a time")
    return float(value)
