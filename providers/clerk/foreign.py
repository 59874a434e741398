"""Names, for the log, the Clerk instance of a token that was signed with other keys than this instance's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from server import CredentialRejected

from ..jwt import jws
from ..jwt.strict_json import Malformed

_MOST: Final = 200  # characters of an issuer that go into the log: nothing has verified them


def rejected(error: Malformed | CredentialRejected, payload: str, issuers: Collection[str]) -> CredentialRejected:
    """Returns the refusal of a token that failed before or at its signature. `payload` is its encoded payload.

    The detail, which only the log has, ends with the issuer that the token names if that is none of `issuers`.
    """
    if isinstance(error, Malformed):
        return CredentialRejected("credential-rejected", error.detail)
    try:
        issuer = jws.unverified_issuer(jws.decode(payload))
    except Malformed:
        return error
    if not isinstance(issuer, str) or issuer in issuers or not 0 < len(issuer) <= _MOST:
        return error
    ours = f"and this server takes those of {', '.join(sorted(issuers))}" if issuers else "and this server names no issuer"
    return CredentialRejected(error.reason, f"{error.detail}; the token names the issuer {issuer!r}, {ours}")
