"""Tokens of others: of another provider, or of another Clerk instance, which is named for the log."""

from __future__ import annotations

from typing import Final

from server import CredentialRejected, House

from ..jwt import jws
from ..jwt.signature import NO_SUCH_KEY
from ..jwt.strict_json import Malformed
from .settings import ClerkSettings

_OURS: Final = "; the token names the issuer of clerk.publishable_key or clerk.issuer: is the secret key of the same instance?"
_MOST: Final = 200  # characters of an issuer that go into the log: nothing has verified them


def is_anothers(segments: jws.Segments, house: House, ours: str) -> bool:
    """Whether the token names an issuer of another provider than `ours`. Raises Malformed for an unreadable payload."""
    issuer = jws.unverified_issuer(jws.decode(segments.payload))
    return isinstance(issuer, str) and house.issuer_of(issuer) not in (None, ours)


def rejected(error: Malformed | CredentialRejected, payload: str, settings: ClerkSettings) -> CredentialRejected:
    """Returns the refusal of a token that failed before or at its signature. `payload` is its encoded payload.

    The detail, which only the log has, ends with the issuer that the token names if that is not accepted. An unknown key of an
    issuer that is accepted can mean that the secret key, with which the keys are fetched, is of another instance.
    """
    if isinstance(error, Malformed):
        return CredentialRejected("credential-rejected", error.detail)
    return _WithIssuer(error, payload, settings)


class _WithIssuer(CredentialRejected):
    """A refusal whose detail names the token's issuer. The payload is read only if the detail is: few refusals are logged."""

    def __init__(self, error: CredentialRejected, payload: str, settings: ClerkSettings) -> None:
        super().__init__(error.reason, error.detail)
        self._payload, self._settings = payload, settings

    @property
    def detail(self) -> str:
        return self._failure + _about_issuer(self._failure, self._payload, self._settings)

    @detail.setter
    def detail(self, failure: str) -> None:  # the constructor sets it
        self._failure = failure


def _about_issuer(failure: str, payload: str, settings: ClerkSettings) -> str:
    """What the log adds to a failure: the issuer that the token names, if it is not accepted. Else mostly an empty text."""
    try:
        issuer = jws.unverified_issuer(jws.decode(payload))
    except Malformed:
        return ""
    if not isinstance(issuer, str) or not issuer:
        return ""
    if issuer in settings.issuers:
        by_secret_key = settings.secret_key is not None and settings.jwt_key is None
        return _OURS if by_secret_key and failure == NO_SUCH_KEY else ""
    shown = issuer if len(issuer) <= _MOST else f"{issuer[: _MOST - 1]}…"
    ours = f"takes those of {', '.join(sorted(settings.issuers))}" if settings.issuers else "names no issuer"
    return f"; the token names the issuer {shown!r}, and this server {ours}"
