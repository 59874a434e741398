"""Checks when a verified token is valid: exp, nbf and iat (RFC 7519 4.1.4 to 4.1.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from server import CredentialRejected

from .jws import numeric_date
from .strict_json import Malformed


class Times(NamedTuple):
    """A token's own times in Unix seconds; None for a missing one."""

    expires: float
    not_before: float | None
    issued: float | None

    def begins(self, leeway: float) -> float:
        """Returns when it becomes valid (Unix seconds), with `leeway` (seconds) subtracted; 0 without nbf and iat."""
        starts = [start for start in (self.not_before, self.issued) if start is not None]
        return max(starts) - leeway if starts else 0.0


def read_times(claims: Mapping[str, Any], now: float, *, leeway: float, longest: float, setting: str) -> Times:
    """Returns the times of a token that is valid at `now` (Unix seconds). Raises CredentialRejected with the reason.

    leeway    how far the clocks may differ, in seconds
    longest   the longest permitted life of a token, in seconds; 0: no limit. `setting` is the name of its setting
    The checks are in the order of Clerk's own verifier, so that a token with several faults gets the same reason.
    """
    try:
        expires = numeric_date(claims, "exp")
        not_before, issued = numeric_date(claims, "nbf"), numeric_date(claims, "iat")
    except Malformed as error:
        raise CredentialRejected("token-claims", error.detail) from None
    if expires is None:
        raise CredentialRejected("token-claims", "exp is missing")
    if expires <= now - leeway:
        raise CredentialRejected("token-expired", "exp is past")
    if not_before is not None and not_before > now + leeway:
        raise CredentialRejected("token-not-active-yet", "nbf is to come")
    if issued is not None and issued > now + leeway:
        raise CredentialRejected("token-not-active-yet", "iat is to come")
    if not_before is not None and not_before > expires:
        raise CredentialRejected("token-claims", "nbf is after exp")
    if issued is not None and issued > expires:
        raise CredentialRejected("token-claims", "iat is after exp")
    # Without iat, the remaining time is the shortest life that the token can have.
    if longest and expires - (issued if issued is not None else now) > longest:
        raise CredentialRejected("token-claims", f"the token lives longer than {setting}")
    return Times(expires, not_before, issued)
