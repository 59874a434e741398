"""Reads which key a token is bound to, and refuses a bound token that is sent as a bearer token (RFC 7800, RFC 9449 6.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from server import CredentialRejected

from .settings import IssuerSettings

_THUMBPRINT: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")


def bound_key(claims: Mapping[str, Any], settings: IssuerSettings) -> str | None:
    """Returns the thumbprint (RFC 7638) of the key that a verified token is bound to; None without `cnf`.

    `claims` are the payload of a JWT, or the members of an introspection response (RFC 9449 6.2). Raises CredentialRejected
    for a binding that cannot be proved here: any at all while `dpop` is off, mutual TLS (RFC 8705 3.1), and every other member.
    """
    if "cnf" not in claims:
        return None
    cnf = claims["cnf"]
    if settings.dpop is None:
        raise CredentialRejected("token-type", "cnf binds the token to a key, and `dpop` is off for this issuer")
    if not isinstance(cnf, Mapping) or cnf.keys() != {"jkt"}:
        # A token can be bound in several ways at once, and then each of them must be proved (RFC 7800 3.1).
        raise CredentialRejected("token-type", "cnf is not an object whose only member is jkt")
    jkt = cnf["jkt"]
    if not isinstance(jkt, str) or not _THUMBPRINT.fullmatch(jkt):
        raise CredentialRejected("token-type", "cnf.jkt is not a SHA-256 thumbprint in base64url")
    return jkt


def refuse_bearer(key: str | None, settings: IssuerSettings) -> None:
    """Raise CredentialRejected for a token that must not be sent under the scheme `Bearer`. `key` is from `bound_key`."""
    if key is not None:  # RFC 9449 7.2
        raise CredentialRejected("proof-missing", "a token that is bound to a key was sent as a bearer token")
    if settings.dpop is not None and settings.dpop.required:
        raise CredentialRejected("token-unbound", "dpop is required, and the token is not bound to a key")
