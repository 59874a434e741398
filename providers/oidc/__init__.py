"""Any OpenID Connect issuer: access tokens of the issuers that the operator names, verified by their published keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server import Provider, Setting, hookimpl

from .provider import NAME, OidcProvider

_HELP = "issuers: issuer, audience, namespace, claims … (docs/oidc.md)"


@hookimpl
def register_providers() -> Mapping[str, Any]:
    """The provider's name and factory."""
    return {NAME: make}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    """The keys of the table [oidc]."""
    return {"issuers": Setting("tables", (), help=_HELP)}


def make(settings: Mapping[str, Any]) -> Provider:
    """The provider for the table [oidc]. Raises ValueError for a mistake in it."""
    return OidcProvider(settings)
