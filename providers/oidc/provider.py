"""The provider for `Authorization: Bearer <access token>` of the issuers in `[[oidc.issuers]]`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import hdrs, web

from server import House, Identity

from ..jwt import jws
from ..jwt.bearer import bearer, digest_in, digest_of, keep_digest
from ..jwt.strict_json import Malformed
from . import settings
from .issuer import Issuer
from .mapping import NAME

__all__ = ["NAME", "OidcProvider"]


class OidcProvider:
    """Authenticates JWTs whose `iss` is one of its issuers; all other credentials are left to other providers."""

    def __init__(self, table: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        """`table` is the plugin's table of the settings; `clock` returns Unix seconds. Raises ValueError for mistakes."""
        self._issuers = {one.issuer: Issuer(one, clock) for one in settings.read(table)}

    @property
    def issuers(self) -> frozenset[str]:
        """The `iss` values of its issuers: no other provider accepts their tokens."""
        return frozenset(self._issuers)

    @property
    def namespaces(self) -> frozenset[str]:
        """The prefixes of its ids, "" for none; the server refuses to start if another provider has one of them."""
        return frozenset(one.settings.namespace for one in self._issuers.values())

    def subject_of(self, kind: str, issuer: str, id: str) -> str:
        """Returns an issuer's id as an Identity has it: a user's with the namespace. Raises ValueError for no such id."""
        return self._issuers[issuer].settings.own(id) if kind == "user" else id

    @property
    def security_schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """For the OpenAPI document. It is public, so it does not name the issuers."""
        scheme = {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token of an OpenID Connect issuer that this server trusts.",
            "x-gatepost-token-types": ["access_token"],
        }
        return {"oidc": scheme}

    async def open(self, house: House) -> None:
        """Fetch all issuers' keys concurrently; a failed fetch is repeated in the background."""
        await asyncio.gather(*(one.open(house) for one in self._issuers.values()))

    def not_ready(self) -> str | None:
        """Returns which issuers' tokens cannot be verified now and why, or None."""
        return "; ".join(why for one in self._issuers.values() if (why := one.not_ready())) or None

    def figures(self) -> dict[str, float]:
        """Returns the figures of all issuers together by name; the age is that of the oldest keys."""
        each = [one.figures() for one in self._issuers.values()]
        names = dict.fromkeys(name for figures in each for name in figures)
        values = {name: [figures[name] for figures in each if name in figures] for name in names}
        return {name: sum(several) if name != "keyset_age_seconds" else max(several) for name, several in values.items()}

    async def close(self) -> None:
        """Stop refreshing the keys."""
        await asyncio.gather(*(one.close() for one in self._issuers.values()))

    reads = (hdrs.AUTHORIZATION,)

    def recall(self, request: web.Request) -> Identity | None:
        """Returns the caller of a token that was verified before and is still valid, or None."""
        token = bearer(request)
        if token is None:
            return None
        digest = digest_of(token)
        for one in self._issuers.values():
            if (identity := one.recall(digest)) is not None:
                return identity
        keep_digest(request, token, digest)
        return None

    async def authenticate(self, request: web.Request) -> Identity | None:
        """Returns the caller; None for anything but a JWT of one of the issuers. Raises CredentialRejected, Unavailable."""
        token = bearer(request)
        if token is None:
            return None
        digest = digest_in(request, token)
        for one in self._issuers.values():
            if (identity := one.known(digest)) is not None:
                return identity
        segments = jws.split(token)
        if segments is None:
            return None
        try:
            payload = jws.decode(segments.payload)
            issuer = jws.unverified_issuer(payload)
        except Malformed:
            return None  # it names no issuer; another provider may still accept it
        chosen = self._issuers.get(issuer) if isinstance(issuer, str) else None
        return await chosen.verify(digest, segments, payload) if chosen is not None else None
