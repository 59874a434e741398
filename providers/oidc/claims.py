"""From the proven payload of an access token to an Identity, or to the reason why not (RFC 9068 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from server import CredentialRejected, Identity

from ..jwt.times import Times, read_times
from .mapping import identity_of, lookup
from .settings import IssuerSettings, media_type

# What other tokens of the same keys carry and an access token does not: OpenID Connect Core 2 and 3.3.2.11 (ID tokens),
# FAPI 1.0 part 2 (s_hash), RFC 8417 2.2 (events: security events and back-channel logout tokens).
_NOT_OURS: Final = ("nonce", "at_hash", "c_hash", "s_hash", "events")
# What some issuers write into the payload of an ID token: Cognito's token_use, Keycloak's typ.
_ID_TOKEN: Final = (("token_use", "id"), ("typ", "ID"))


def read(header: Mapping[str, Any], claims: dict[str, Any], settings: IssuerSettings, now: float) -> tuple[Identity, Times]:
    """Who the token speaks for, and when it holds. `header` and `claims` are proven; `now` is in Unix seconds.

    Raises CredentialRejected with the reason. `claims` is the Identity's from here on: it gets frozen.
    """
    _check_type(header, claims, settings)
    if claims.get("iss") != settings.issuer:  # RFC 9068 4: exactly, as the operator wrote it
        raise CredentialRejected("token-issuer", "iss is another one")
    _check_audience(claims, settings)
    leeway, longest = settings.leeway, settings.max_lifetime
    times = read_times(claims, now, leeway=leeway, longest=longest, setting="max_token_seconds")
    _check_required(claims, settings)
    return identity_of(claims, settings, times.issued), times


def _check_type(header: Mapping[str, Any], claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """RFC 9068 4: the typ must be the access token's, and any other value is refused; ID tokens always are."""
    if media_type(header.get("typ", "")) not in settings.types:
        raise CredentialRejected("token-type", "typ is not an access token's")
    for name in _NOT_OURS:
        if name in claims:
            raise CredentialRejected("token-type", f"{name} is not an access token's")
    for name, value in _ID_TOKEN:
        if claims.get(name) == value:
            raise CredentialRejected("token-type", f"{name} says that it is an ID token")
    if "cnf" in claims:
        # RFC 7800 3, RFC 9449 7.2, RFC 8705 3: it is of use only together with a key, which a bearer does not show.
        raise CredentialRejected("token-type", "cnf binds the token to a key, and no proof of that key is taken here")


def _check_audience(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """RFC 7519 4.1.3: a text or a list of texts, one of which must be one of ours, exactly."""
    audience = lookup(claims, settings.audience_claim)
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named):
        raise CredentialRejected("token-audience", f"{settings.audience_claim} is missing, or no text and no list of texts")
    if settings.audience.isdisjoint(named):
        raise CredentialRejected("token-audience", f"{settings.audience_claim} names none of ours")


def _check_required(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    for name, wanted in settings.require.items():
        found = lookup(claims, name)
        values = found if isinstance(found, list) else [found]
        # With its type: to Python, 1 and true are equal.
        if not any(type(value) is type(one) and value == one for value in values for one in wanted):
            raise CredentialRejected("token-claims", f"{name} has none of the required values")
