"""Recognises the token of a client that acts for itself (client credentials, RFC 6749 4.4), which is no user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# Claims that name the client: RFC 9068 2.2, OpenID Connect Core 2, Okta.
_CLIENT: Final = ("client_id", "azp", "cid")


def is_clients_own(claims: Mapping[str, Any]) -> bool:
    """Does this payload's `sub` stand for the client itself?

    By RFC 9068 2.2 it then equals the client's id. Some issuers give the client another `sub`, and mark its tokens by
    claims that no user's token has: Auth0, Entra ID, and Keycloak for service accounts.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str):
        return False
    for name in _CLIENT:
        client = claims.get(name)
        if isinstance(client, str) and (subject == client or _is_marked(claims, subject, client)):
            return True
    return claims.get("gty") == "client-credentials" or claims.get("idtyp") == "app" or _is_apps(claims, subject)


def _is_marked(claims: Mapping[str, Any], subject: str, client: str) -> bool:
    """Auth0's `sub`; the name that Keycloak gives to the user of a client's service account."""
    return subject == f"{client}@clients" or claims.get("preferred_username") == f"service-account-{client.lower()}"


def _is_apps(claims: Mapping[str, Any], subject: str) -> bool:
    """Entra ID, where the optional claim `idtyp` is left out: users' tokens have `scp`, and an app's `sub` is its `oid`."""
    return "tid" in claims and "scp" not in claims and subject == claims.get("oid")
