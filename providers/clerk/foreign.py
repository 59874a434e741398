"""Tokens of others: of another provider, or of another Clerk instance, which is named for the log."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from server import CredentialRejected, House

from ..jwt import jws
from ..jwt.strict_json import Malformed

_MOST: Final = 200  # characters of an issuer that go into the log: nothing has verified them


def is_anothers(segments: jws.Segments, house: House, ours: str) -> bool:
    """Whether the token names an issuer of another provider than `ours`. Raises Malformed for an unreadable payload."""
    issuer = jws.unverified_issuer(jws.decode(segments.payload))
    return isinstance(issuer, str) and house.issuer_of(issuer) not in (None, ours)


def rejected(error: Malformed | CredentialRejected, payload: str, issuers: Collection[str]) -> CredentialRejected:
    """Returns the refusal of a token that failed before or at its signature. `payload` is its encoded payload.

    The detail, which only the log has, ends with the issuer that the token names if that is none of `issuers`.
    """
    if isinstance(error, Malformed):
        return CredentialRejected("credential-rejected", error.detail)
    return _OfNoKey(error, payload, issuers)


class _OfNoKey(CredentialRejected):
    """The refusal of a token that none of our keys signed. Its payload is read when the detail is: few refusals are logged."""

    def __init__(self, error: CredentialRejected, payload: str, issuers: Collection[str]) -> None:
        self._payload, self._issuers = payload, issuers
        super().__init__(error.reason, error.detail)

    @property
    def detail(self) -> str:
        """What failed, and the issuer that the token names if that is none of ours."""
        try:
            issuer = jws.unverified_issuer(jws.decode(self._payload))
        except Malformed:
            return self._failed
        if not isinstance(issuer, str) or issuer in self._issuers or not 0 < len(issuer) <= _MOST:
            return self._failed
        ours = f"takes those of {', '.join(sorted(self._issuers))}" if self._issuers else "names no issuer"
        return f"{self._failed}; the token names the issuer {issuer!r}, and this server {ours}"

    @detail.setter
    def detail(self, failed: str) -> None:
        self._failed = failed
