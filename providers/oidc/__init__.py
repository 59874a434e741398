"""Any OpenID Connect issuer: access tokens of the issuers that the operator names, verified by their published keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server import Provider, Setting, hookimpl

from .mapping import NAME
from .provider import OidcProvider

_HELP = "issuers to believe, as many tables as there are issuers; docs/guides/oidc.md has all members, and the usual vendors"
_EXAMPLE = {
    "issuer": "https://login.example.com", "audience": "https://api.example.com", "namespace": "example",
    "claims": {"org_id": "org_id", "org_role": "role", "org_permissions": "permissions"},
}  # fmt: skip


@hookimpl
def register_providers() -> Mapping[str, Any]:
    """The provider's name and factory."""
    return {NAME: make}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    """The keys of the table [oidc]."""
    return {"issuers": Setting("tables", (), example=(_EXAMPLE,), help=_HELP)}


def make(settings: Mapping[str, Any]) -> Provider:
    """The provider for the table [oidc]. Raises ValueError for a mistake in it."""
    return OidcProvider(settings)
