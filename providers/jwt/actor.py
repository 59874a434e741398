"""Reads the `act` claim of a verified token: who really acts, where that is not the token's subject (RFC 8693 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from server import CredentialRejected, is_plain_text


class Actor(NamedTuple):
    """The subject of `act`, and the issuer whose subject it is; None: the issuer of the token."""

    subject: str
    issuer: str | None


def read_actor(claims: Mapping[str, Any]) -> Actor | None:
    """Returns the current actor of a verified payload; None without `act`.

    An `act` inside `act` names an earlier actor, and RFC 8693 4.1 forbids deciding by it: it stays in the claims. Raises
    CredentialRejected("token-claims") for an `act` without a subject: the audit log could not name who acted.
    """
    if "act" not in claims:
        return None
    act = claims["act"]
    if not isinstance(act, dict):
        raise CredentialRejected("token-claims", "act is not an object")
    if "sub" not in act:
        raise CredentialRejected("token-claims", "act has no sub")
    for name in ("sub", "iss", "sid"):
        if name in act and not is_plain_text(act[name]):
            raise CredentialRejected("token-claims", f"act.{name} is not 1 to 255 characters of printable text")
    return Actor(act["sub"], act.get("iss"))
