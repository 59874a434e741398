"""Reads and checks the members of `[[oidc.issuers]]` about DPoP (RFC 9449)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .table_reader import Members

MEMBERS: Final = ("dpop", "dpop_seconds", "dpop_algorithms", "dpop_nonce")
_DEFAULT: Final = ("ES256", "ES384", "ES512", "Ed25519", "EdDSA", "PS256", "RS256")
_MODES: Final = ("off", "accept", "required")


@dataclass(frozen=True, slots=True)
class DpopSettings:
    """How proofs of one issuer's tokens are checked.

    required     are tokens without a key refused?
    seconds      how far the `iat` of a proof may be from this server's clock, in either direction
    algorithms   the `alg` values of proofs, in the order in which they are announced
    nonce        must a proof contain a nonce of this server (RFC 9449 9)?
    """

    required: bool
    seconds: float
    algorithms: tuple[str, ...]
    nonce: bool


def read(table: Members, known: Sequence[str]) -> DpopSettings | None:
    """Returns the settings; None while `dpop` is off. `known` are all algorithms. Raises ValueError for a mistake."""
    mode = table.text("dpop") or "off"
    if mode not in _MODES:
        raise table.mistake("dpop", f"{mode!r} is not one of {', '.join(_MODES)}")
    if mode == "off":
        for name in MEMBERS[1:]:
            if name in table.given:
                raise table.mistake(name, 'has no effect while dpop is "off"')
        return None
    seconds = table.seconds("dpop_seconds", 60.0, 300.0)
    if seconds < 1:
        raise table.mistake("dpop_seconds", "must be a number of seconds from 1 to 300")
    nonce = table.given.get("dpop_nonce", False)
    if type(nonce) is not bool:
        raise table.mistake("dpop_nonce", "must be true or false")
    algorithms = tuple(table.words("dpop_algorithms", required=True)) if "dpop_algorithms" in table.given else _DEFAULT
    for word in algorithms:
        if word not in known:
            raise table.mistake("dpop_algorithms", f"{word!r} is not one of {', '.join(known)}")
    return DpopSettings(mode == "required", seconds, algorithms, nonce)
