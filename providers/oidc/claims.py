"""Turns the verified payload of an access token into an Identity, or rejects it with the reason (RFC 9068 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server import CredentialRejected, Identity

from ..jwt.texts import shown
from ..jwt.times import Times, read_times
from .binding import bound_key
from .mapping import identity_of, lookup
from .settings import IssuerSettings, media_type

# Claims of other tokens that are signed with the same keys, which an access token does not have: OpenID
# Connect Core 2 and 3.3.2.11 (ID tokens), FAPI 1.0 part 2 (s_hash), RFC 8417 2.2 (events: security events and back-channel
# logout tokens).
_NOT_OURS: Final = ("nonce", "at_hash", "c_hash", "s_hash", "events")
# Claims by which some issuers mark an ID token: Cognito's token_use, Keycloak's typ.
_ID_TOKEN: Final = (("token_use", "id"), ("typ", "ID"))


class Caller(NamedTuple):
    """The caller of a verified token, when the token is valid, and the thumbprint of the key that it is bound to, if any."""

    identity: Identity
    times: Times
    key: str | None


def read(header: Mapping[str, Any], claims: dict[str, Any], settings: IssuerSettings, now: float) -> Caller:
    """Returns the caller. `header` and `claims` are verified; `now` is in Unix seconds.

    Raises CredentialRejected with the reason. `claims` is frozen and becomes the Identity's: do not modify it afterwards.
    """
    _check_type(header, claims, settings)
    key = bound_key(claims, settings)
    if claims.get("iss") != settings.issuer:  # RFC 9068 4: an exact match with the setting
        raise CredentialRejected("token-issuer", "iss is another issuer")
    check_audience(claims, settings)
    leeway, longest = settings.leeway, settings.max_lifetime
    times = read_times(claims, now, leeway=leeway, longest=longest, setting="max_token_seconds")
    check_required(claims, settings)
    return Caller(identity_of(claims, settings, times), times, key)


def _check_type(header: Mapping[str, Any], claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """RFC 9068 4: the typ must be that of an access token. ID tokens are always refused."""
    if media_type(header.get("typ", "")) not in settings.types:
        wanted = shown({one or "no typ" for one in settings.types})
        raise CredentialRejected("token-type", f"typ is not an access token's: {shown(header.get('typ'))}, not {wanted}")
    for name in _NOT_OURS:
        if name in claims:
            raise CredentialRejected("token-type", f"{name} is not an access token's")
    for name, value in _ID_TOKEN:
        if claims.get(name) == value:
            raise CredentialRejected("token-type", f"{name} marks it as an ID token")


def check_audience(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """RFC 7519 4.1.3: a string or a list of strings, one of which must equal a configured audience."""
    audience = lookup(claims, settings.audience_claim)
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named):
        raise CredentialRejected("token-audience", f"{settings.audience_claim} is neither a string nor a list of strings")
    if settings.audience.isdisjoint(named):
        names = f"{shown(audience)}, not {shown(settings.audience)}"
        raise CredentialRejected("token-audience", f"{settings.audience_claim} names no configured audience: {names}")


def check_required(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """Every claim of `require` must have one of its values. Raises CredentialRejected."""
    for name, allowed in settings.require.items():
        value = lookup(claims, name)
        values = value if isinstance(value, list) else [value]
        # The type is compared too: to Python, 1 and true are equal.
        if not any(type(value) is type(one) and value == one for value in values for one in allowed):
            raise CredentialRejected("token-claims", f"{name} has none of the required values")
