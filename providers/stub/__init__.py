"""A provider that accepts any stated identity without proof, for development on the same machine and for tests.

`Authorization: Stub user_id="user_1", org_id="org_1", org_role="org:admin", org_permissions="org:invoices:read"`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import hdrs, web

from server import CredentialRejected, House, Identity, Provider, Setting, hookimpl, is_local

# RFC 9110 11.2: auth-param = token "=" ( token / quoted-string ), with names in any case, separated by commas; 5.6.1: elements
# of the list may be empty.
_PARAM = re.compile(
    r"""[\s,]*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\\x00-\x1f\x7f]|\\[ -~])*)"|([!#$%&'*+.^_`|~0-9A-Za-z:-]+))\s*(?:,|\Z)"""
)
_KNOWN = ("user_id", "org_id", "org_slug", "org_role", "org_permissions", "session_id", "impersonator")


class StubProvider:
    """Accepts the identity in `Authorization: Stub …`, from this machine only and never in production."""

    reads = (hdrs.AUTHORIZATION,)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._allowed = False

    @property
    def security_schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """For the OpenAPI document. Declared as a header, since API pages support no `http` scheme but Basic and Bearer."""
        words = 'For development: `Stub user_id="user_1", org_id="org_1", org_role="org:admin"`, the whole value of the header.'
        scheme = {"type": "apiKey", "in": "header", "name": "Authorization", "description": words}
        return {"stub": {**scheme, "x-gatepost-token-types": ["session_token"]}}

    def check(self, env: str) -> None:
        """Raises ValueError outside of development and test: the server refuses to start."""
        if env not in ("development", "test"):
            raise ValueError(f"the stub provider accepts any caller: it is for development and test, not for {env}")

    async def open(self, house: House) -> None:
        """Raises ValueError as `check` does."""
        self.check(house.env)
        self._allowed = True

    async def authenticate(self, request: web.Request) -> Identity | None:
        scheme, _, params = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "stub":
            return None
        if not self._allowed or not is_local(request):
            raise CredentialRejected("credential-rejected", "a development credential from another machine or through a proxy")
        fields = _parse(params)
        try:
            return Identity(
                provider="stub",
                token_type="session_token",
                user_id=fields["user_id"],
                org_id=fields.get("org_id"),
                org_slug=fields.get("org_slug"),
                org_role=fields.get("org_role"),
                org_permissions=fields["org_permissions"].split() if "org_permissions" in fields else None,
                session_id=fields.get("session_id"),
                impersonator=fields.get("impersonator"),
            )
        except ValueError as error:
            raise CredentialRejected("credential-rejected", str(error)) from None


def _parse(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    at, text = 0, text.rstrip(" \t,")
    while at < len(text):
        match = _PARAM.match(text, at)
        name = match[1].lower() if match is not None else ""
        if match is None or name not in _KNOWN or name in fields:
            raise CredentialRejected("credential-rejected", "malformed auth-params, or an unknown or repeated one")
        fields[name] = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        at = match.end()
    if "user_id" not in fields:
        raise CredentialRejected("credential-rejected", "user_id is missing")
    return fields


@hookimpl
def register_providers() -> Mapping[str, Callable[[Mapping[str, Any]], Provider]]:
    return {"stub": StubProvider}


@hookimpl
def register_settings() -> Mapping[str, Setting]:
    return {}
