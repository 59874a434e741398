"""Authenticates API keys: static ones from the settings, managed ones from the database."""

from __future__ import annotations

import hmac
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import hdrs, web

from server import CredentialRejected, House, Identity, Unavailable, client_network

from ..jwt.variables import unread
from .key_format import PREFIX, digest_of, parse
from .lookup import DIGEST, ManagedKeys
from .owners import StaticKeys
from .static import static_keys
from .usage import Usage

SECURITY_SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "api_key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An API key of this server (`gp_…`).",
        "x-gatepost-token-types": ["api_key"],
    },
    "api_key_bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "gp_…",
        "description": "The same key as `Authorization: Bearer gp_…`.",
        "x-gatepost-token-types": ["api_key"],
    },
}
_VARIABLES = ("GATEPOST_API_KEY_SCOPES", "GATEPOST_API_KEY_MAX_PER_USER", "GATEPOST_API_KEY_MAX_PER_ORGANIZATION")
_LOG = logging.getLogger("gatepost.api_key")
_KEY = re.compile(r"gp_[!-~]{13,509}\Z")


class ApiKeyProvider:
    """Takes what begins with `gp_`, from `Authorization: Bearer` or `X-API-Key`."""

    def __init__(self, settings: Mapping[str, Any], opened: Callable[[House], None] = lambda house: None) -> None:
        """`opened(house)` is called by `open`. Raises ValueError for an invalid static key."""
        self._static = static_keys(settings["keys"])
        self._opened = opened
        self._managed: ManagedKeys | None = None
        self._statics: StaticKeys | None = None
        self._usage: Usage | None = None

    @property
    def security_schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """For the OpenAPI document: the two headers."""
        return SECURITY_SCHEMES

    async def open(self, house: House) -> None:
        for name, near in unread(os.environ, "API_KEY_", _VARIABLES):
            if near:  # others begin like this that have nothing to do with this server
                _LOG.warning(f"{name} is set and not read: the variable is {near}")
        self._statics = StaticKeys(house, self._static.values())
        self._managed = ManagedKeys(house, self._statics)
        self._usage = Usage(house.query)
        self._usage.open()
        self._opened(house)

    async def close(self) -> None:
        if self._managed is not None:
            await self._managed.close()
        if self._usage is not None:
            await self._usage.close()

    reads = (hdrs.AUTHORIZATION, "X-API-Key")

    def recall(self, request: web.Request) -> Identity | None:
        """Returns the identity of a static or remembered key that is valid; else None."""
        secret = credential(request)
        if secret is None or self._managed is None or self._usage is None or self._statics is None:
            return None
        digest = digest_of(secret)
        static = self._static.get(digest)
        if static is not None:
            return self._statics.recall(static)
        identity = self._managed.recall(digest)
        if identity is not None:
            self._usage.note(str(identity.key_id))
        return identity

    async def recheck(self, identity: Identity) -> Identity:
        """Returns the caller of a live answer as the key is now. Raises CredentialRejected, Unavailable."""
        if self._statics is None or self._managed is None:
            raise Unavailable("the provider is not open")
        static = next((one for one in self._static.values() if one.id == identity.key_id), None)
        if static is None or DIGEST in identity.derived:
            return await self._managed.recheck(identity)
        now = await self._statics.identity(static.id)
        if now is None:
            raise CredentialRejected("key-expired" if static.has_expired else "key-revoked", f"key {static.id}")
        return now

    async def authenticate(self, request: web.Request) -> Identity | None:
        secret = credential(request)
        if secret is None:
            return None
        # The digest is looked up, so the time reveals nothing about the key; the comparison is a second safeguard.
        digest = digest_of(secret)
        static = self._static.get(digest)
        if static is not None and hmac.compare_digest(static.digest, digest):
            if static.has_expired:
                raise CredentialRejected("key-expired", f"key {static.id}")
            if self._statics is None:
                raise Unavailable("the provider is not open")
            caller = await self._statics.identity(static.id)
            if caller is None:
                raise CredentialRejected("key-revoked", f"key {static.id}")
            return caller
        return await self._find(secret, client_network(request))

    async def _find(self, secret: str, network: str) -> Identity:
        """Raises CredentialRejected, Unavailable."""
        key = parse(secret)
        if key is None:  # a typo causes no query and gets the response of an unknown key
            raise CredentialRejected("credential-rejected", "no such key")
        if self._managed is None or self._usage is None:
            raise Unavailable("the provider is not open")
        identity = await self._managed.identity(key, network)
        self._usage.note(str(identity.key_id))
        return identity


def credential(request: web.Request) -> str | None:
    """The key that a request shows, or None where it shows none; an empty X-API-Key is none.

    Any other value of X-API-Key is taken for a key, whatever it looks like.
    """
    shown = request.headers.get("X-API-Key")
    if not shown:
        scheme, _, shown = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not shown.startswith(PREFIX):
            return None
    if not _KEY.match(shown):
        raise CredentialRejected("credential-rejected", "not the form of a key")
    return shown
