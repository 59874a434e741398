"""Refuses an `issuer` that no token can name: the address of an endpoint, a placeholder, one of Entra ID's shared endpoints."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from .table_reader import Members

_PLACEHOLDER: Final = re.compile(r"[{}<>$]|YOUR|your[-_]|\.\.\.")
# What follows the issuer in the addresses of endpoints and key sets: OpenID providers in general, Okta, Keycloak, Entra ID.
_ENDPOINT: Final = re.compile(
    r"/(\.well-known/.*|jwks|jwks\.json|v1/(keys|token|authorize)|oauth/token|oauth2/v2\.0/(token|authorize)"
    r"|discovery/(v2\.0/)?keys|protocol/openid-connect(/.*)?)/?\Z"
)
_ENTRA: Final = ("login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn", "sts.windows.net")
_SHARED: Final = ("common", "organizations", "consumers")


def checked_issuer(table: Members) -> str:
    """Returns the member `issuer` exactly as written. Raises ValueError if it is missing or can be no token's `iss`."""
    issuer = table.url("issuer")
    if issuer is None:
        raise table.mistake("issuer", "is missing")
    path = urlsplit(issuer).path
    if found := _ENDPOINT.search(path):
        if found[0].startswith("/.well-known"):
            raise table.mistake("issuer", "is the address of a document: the issuer ends before /.well-known")
        raise table.mistake("issuer", f"is the address of an endpoint: the issuer ends before {found[0]}")
    if _PLACEHOLDER.search(issuer):
        raise table.mistake("issuer", f"{issuer!r} has a placeholder in it: write the `iss` of your tokens")
    if urlsplit(issuer).hostname in _ENTRA:
        _refuse_shared(table, path.split("/")[1] if path else "")
    return issuer


def _refuse_shared(table: Members, tenant: str) -> None:
    """Entra ID: each tenant's tokens name the tenant by its id, whatever address the client signed in at."""
    if tenant in _SHARED:
        raise table.mistake("issuer", f"names no tenant: no token has {tenant!r} in its `iss`; write the tenant's id instead")
    if "." in tenant:
        raise table.mistake("issuer", f"names the tenant by its domain {tenant!r}, but tokens have its id: write that instead")
