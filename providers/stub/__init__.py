"""A provider that believes what it is told: for development on one's own machine, and for tests.

`Authorization: Stub user_id="user_1", org_id="org_1", org_role="org:admin", org_permissions="org:invoices:read"`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import hdrs, web

from server import CredentialRejected, House, Identity, Provider, Setting, hookimpl, is_local

# RFC 9110 11.2: auth-param = token "=" ( token / quoted-string ), a comma between two.
_PARAM = re.compile(
    r"""\s*([a-z_]+)\s*=\s*(?:"((?:[^"\\\x00-\x1f\x7f]|\\[ -~])*)"|([!#$%&'*+.^_`|~0-9A-Za-z:-]+))\s*(?:,|\Z)"""
)
_KNOWN = ("user_id", "org_id", "org_slug", "org_role", "org_permissions", "session_id")


class StubProvider:
    """Takes a caller's word for it, from this machine alone, and never in production."""

    reads = (hdrs.AUTHORIZATION,)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._allowed = False

    @property
    def security_schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """For the OpenAPI document. As a header, since pages to try an API know no `http` scheme but Basic and Bearer."""
        words = 'For development: `Stub user_id="user_1", org_id="org_1", org_role="org:admin"`, the whole value of the header.'
        scheme = {"type": "apiKey", "in": "header", "name": "Authorization", "description": words}
        return {"stub": {**scheme, "x-gatepost-token-types": ["session_token"]}}

    async def open(self, house: House) -> None:
        """Raises ValueError in production: the start stops."""
        if house.env not in ("development", "test"):
            raise ValueError(f"the stub believes anybody; it is for development and test, not for {house.env}")
        self._allowed = True

    async def authenticate(self, request: web.Request) -> Identity | None:
        scheme, _, params = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "stub":
            return None
        if not self._allowed or not is_local(request):
            raise CredentialRejected("credential-rejected", "a development credential from elsewhere than this machine")
        said = _parse(params)
        try:
            return Identity(
                provider="stub",
                token_type="session_token",
                user_id=said["user_id"],
                org_id=said.get("org_id"),
                org_slug=said.get("org_slug"),
                org_role=said.get("org_role"),
                org_permissions=said["org_permissions"].split() if "org_permissions" in said else None,
                session_id=said.get("session_id"),
            )
        except ValueError as error:
            raise CredentialRejected("credential-rejected", str(error)) from None


def _parse(text: str) -> dict[str, str]:
    said: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _PARAM.match(text, at)
        if match is None or match[1] not in _KNOWN or match[1] in said:
            raise CredentialRejected("credential-rejected", "not well-formed auth-params, or one unknown or twice")
        said[match[1]] = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        at = match.end()
    if "user_id" not in said:
        raise CredentialRejected("credential-rejected", "user_id is missing")
    return said


@hookimpl
def register_providers() -> Mapping[str, Callable[[Mapping[str, Any]], Provider]]:
    return {"stub": StubProvider}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    return {}
