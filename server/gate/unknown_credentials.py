"""Says, for the log, why no provider takes a credential: its scheme, or the issuer of a JWT that belongs to none of them."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import hdrs
from multidict import MultiMapping

from ..plugins.providers import LoadedProvider

_NOT_TAKEN: Final = "no provider takes this kind of credential"
# Only these words are logged: any other first word of the header may be a credential without a scheme.
_SCHEMES: Final = ("Basic", "Digest", "DPoP", "Negotiate", "NTLM", "Stub", "Token", "ApiKey", "AWS4-HMAC-SHA256")
_MOST_TOKEN: Final = 16 * 1024
_MOST_ISSUER: Final = 200  # characters that go into the log: nothing has verified them
_MOST_NAMED: Final = 5


class _Issuer(msgspec.Struct):
    iss: Any = None


_decoder: Final = msgspec.json.Decoder(_Issuer)


def why_unknown(headers: MultiMapping[str], providers: Sequence[LoadedProvider]) -> str:
    """Returns a sentence for the log, without the credential. `providers` are those that were asked."""
    scheme, blank, token = headers.get(hdrs.AUTHORIZATION, "").strip().partition(" ")
    if scheme and not blank:
        return f"{_NOT_TAKEN}: Authorization has one word; a token follows the word Bearer"
    if scheme.lower() != "bearer":
        named = next((f": the scheme is {one}" for one in _SCHEMES if one.lower() == scheme.lower()), "")
        return _NOT_TAKEN + named
    issuer = _issuer(token.strip())
    return f"{_NOT_TAKEN}: the token names the issuer {issuer!r}, {_taken(providers)}" if issuer else _NOT_TAKEN


def _issuer(token: str) -> str | None:
    """Returns the `iss` of a text shaped like a JWT, before any verification; None for any other text."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > _MOST_TOKEN:
        return None
    try:
        issuer = _decoder.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))).iss
    except (Base64Error, ValueError, msgspec.DecodeError, RecursionError):
        return None
    return issuer if isinstance(issuer, str) and 0 < len(issuer) <= _MOST_ISSUER else None


def _taken(providers: Iterable[LoadedProvider]) -> str:
    issuers = sorted({issuer for one in providers for issuer in one.issuers})
    if not issuers:
        return "and no provider names an issuer"
    more = f" and {len(issuers) - _MOST_NAMED} more" if len(issuers) > _MOST_NAMED else ""
    return f"and this server takes those of {', '.join(map(repr, issuers[:_MOST_NAMED]))}{more}"
