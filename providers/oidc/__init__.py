"""OpenID Connect: verifies access tokens of the issuers that the operator lists, with the keys that they publish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from server import House, Provider, Setting, hookimpl

from . import logout, security_events, sign_out
from .mapping import NAME
from .provider import OidcProvider

_HELP = "trusted issuers, a table for each; docs/guides/oidc.md lists all members, and settings for common vendors"
_SECRET_HELP = (
    "what nonces of DPoP proofs are made with, for issuers with dpop_nonce: 32 characters or more, the same in every process"
)
_EXAMPLE = {
    "issuer": "https://login.example.com", "audience": "https://api.example.com", "namespace": "example",
    "claims": {"org_id": "org_id", "org_role": "role", "org_permissions": "permissions"},
}  # fmt: skip


@hookimpl
def register_providers() -> Mapping[str, Any]:
    """Returns the provider's factory by its name."""
    return {NAME: make}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    """Returns the settings of the table [oidc] by key."""
    return {
        "issuers": Setting("tables", (), example=(_EXAMPLE,), help=_HELP),
        "dpop_nonce_secret": Setting(secret=True, help=_SECRET_HELP),
    }


@hookimpl
def register_handlers(settings: Mapping[str, Any]) -> Iterable[web.RouteDef]:
    """Returns the routes that take logout tokens and security events; none without an issuer."""
    return [*logout.routes(), *security_events.routes()] if settings.get("issuers") else []


@hookimpl
def register_services(settings: Mapping[str, Any], house: House) -> Mapping[str, Any]:
    """Returns what those routes need: the issuers with their keys."""
    return {sign_out.SERVICE: lambda: sign_out.opened(house)} if settings.get("issuers") else {}


def make(settings: Mapping[str, Any]) -> Provider:
    """Returns the provider for the table [oidc]. Raises ValueError for a mistake in it."""
    return OidcProvider(settings)
