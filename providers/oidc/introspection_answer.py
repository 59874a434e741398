"""Reads an issuer's answer about an opaque token strictly (RFC 7662 2.2): it becomes an Identity, or is rejected.

A status of 200 proves nothing: the answer may be about an inactive token, one for another API, or a refresh token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from server import CredentialRejected

from ..jwt.times import Times, read_times
from .binding import bound_key
from .claims import Caller, check_audience, check_required
from .mapping import identity_of
from .settings import IssuerSettings

# RFC 7662 2.2: the type of RFC 6749 5.1, of which `Bearer` is the only one without a proof. Some issuers name the kind of token
# instead (RFC 8693 3).
_BEARER: Final = frozenset({"bearer", "access_token", "urn:ietf:params:oauth:token-type:access_token"})
# How issuers mark what is no access token: Keycloak's `typ`, and the `token_use` of Cognito and Hydra.
_OTHER_TOKENS: Final = {
    "typ": frozenset({"id", "refresh", "offline", "logout"}),
    "token_use": frozenset({"id", "id_token", "refresh", "refresh_token"}),
}
_NO_END: Final = float(2**40)


def read(members: Mapping[str, Any], settings: IssuerSettings, now: float) -> Caller:
    """Returns the caller; `times.expires` is infinite if the issuer does not say. `now` is in Unix seconds.

    A member that is null counts as missing. Raises CredentialRejected with the reason.
    """
    if members.get("active") is not True:  # "true" and 1 are not what RFC 7662 2.2 demands
        raise CredentialRejected("credential-rejected", "the issuer says that the token is not active")
    claims = {name: value for name, value in members.items() if value is not None}
    key = bound_key(claims, settings)
    _check_type(claims, key)
    if claims.get("iss", settings.issuer) != settings.issuer:
        raise CredentialRejected("token-issuer", "iss is another issuer")
    check_audience(claims, settings)
    times = _times(claims, settings, now)
    check_required(claims, settings)
    return Caller(identity_of(claims, settings, times, opaque=True), times, key)


def _check_type(claims: Mapping[str, Any], key: str | None) -> None:
    kind = claims.get("token_type", "bearer")
    bound = key is not None and isinstance(kind, str) and kind.lower() == "dpop"  # RFC 9449 6.2
    if not bound and (not isinstance(kind, str) or kind.lower() not in _BEARER):
        raise CredentialRejected("token-type", "token_type is not that of an access token")
    for name, others in _OTHER_TOKENS.items():
        value = claims.get(name)
        if isinstance(value, str) and value.lower() in others:
            raise CredentialRejected("token-type", f"{name} marks it as another kind of token")


def _times(claims: Mapping[str, Any], settings: IssuerSettings, now: float) -> Times:
    """RFC 7662 2.2: every time is optional, `exp` too; those that are there must hold."""
    if "exp" in claims:
        longest = settings.max_lifetime
        return read_times(claims, now, leeway=settings.leeway, longest=longest, setting="max_token_seconds")
    times = read_times({**claims, "exp": _NO_END}, now, leeway=settings.leeway, longest=0, setting="")
    return times._replace(expires=math.inf)
