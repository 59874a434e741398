"""The provider for `Authorization: Bearer <access token>` of the issuers in `[[oidc.issuers]]`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

from server import CredentialRejected, House, Identity, accepted_types

from ..jwt import jws
from ..jwt.bearer import bearer, digest_in, digest_of, keep_digest
from ..jwt.strict_json import Malformed
from . import settings
from .advice import announce
from .dpop import HEADER, DpopGuard, bound_token
from .issuer import Issuer
from .mapping import NAME
from .opaque import OpaqueTokens

__all__ = ["NAME", "OidcProvider", "issuers_in"]

_issuers_in: Final[WeakKeyDictionary[House, Mapping[str, Issuer]]] = WeakKeyDictionary()


def issuers_in(house: House) -> Mapping[str, Issuer]:
    """Returns the issuers of the provider that was opened with this house, by `iss`; empty if there is none.

    The receivers of logout tokens and security events share its keys.
    """
    return _issuers_in.get(house, {})


class OidcProvider:
    """Authenticates JWTs whose `iss` is one of its issuers, and the opaque tokens of issuers that introspect them."""

    def __init__(self, table: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        """`table` is the plugin's table of the settings; `clock` returns Unix seconds. Raises ValueError for mistakes."""
        checked = settings.read(table)
        self._issuers = {one.issuer: Issuer(one, clock) for one in checked}
        self._opaque = OpaqueTokens(self._issuers.values())
        proved = any(one.dpop is not None for one in checked)
        self._dpop = DpopGuard(checked, table.get("dpop_nonce_secret"), clock) if proved else None

    @property
    def issuers(self) -> frozenset[str]:
        """The `iss` values of its issuers: no other provider accepts their tokens."""
        return frozenset(self._issuers)

    @property
    def namespaces(self) -> frozenset[str]:
        """The prefixes of its ids, "" for none; the server refuses to start if another provider has one of them."""
        return frozenset(one.settings.namespace for one in self._issuers.values())

    def subject_of(self, kind: str, issuer: str, id: str) -> str:
        """Returns an issuer's id as an Identity has it: a user's or a session's with the namespace. Raises ValueError."""
        return self._issuers[issuer].settings.own(id) if kind in ("user", "session") else id

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
        schemes = {"oidc": scheme}
        if self._dpop is not None:
            what = "An access token that is bound to a key (RFC 9449), with a proof of the key in the header DPoP."
            schemes["oidcDPoP"] = scheme | {"scheme": "dpop", "description": what}
        return schemes

    @property
    def reads(self) -> tuple[str, ...]:
        """The headers that it reads."""
        return (hdrs.AUTHORIZATION,) if self._dpop is None else (hdrs.AUTHORIZATION, HEADER)

    @property
    def challenge(self) -> str | None:
        """The challenge beside `Bearer` if an issuer's tokens may be bound to a key; else None."""
        return self._dpop.challenge if self._dpop is not None else None

    @property
    def resource_metadata(self) -> Mapping[str, Any]:
        """Members of the protected resource metadata (RFC 9728 2): the algorithms of proofs, and whether all need one."""
        if self._dpop is None:
            return {}
        required = all(one.settings.dpop is not None and one.settings.dpop.required for one in self._issuers.values())
        return {"dpop_signing_alg_values_supported": self._dpop.algorithms, "dpop_bound_access_tokens_required": required}

    async def open(self, house: House) -> None:
        """Fetch all issuers' keys concurrently; a failed fetch is repeated in the background."""
        announce()
        _issuers_in[house] = self._issuers
        if self._dpop is not None:
            await self._dpop.open(house)
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
        """Returns the caller; None for anything but a JWT of one of the issuers or an opaque token that one introspects.

        Raises CredentialRejected, Unavailable.
        """
        token = bearer(request)
        if token is None:
            return await self._with_proof(request, self._dpop) if self._dpop is not None else None
        digest, _ = digest_in(request, token)
        for one in self._issuers.values():
            if (identity := one.known(digest)) is not None:
                return identity
        if (chosen := self._choose(token)) is None:
            introspecting = self._introspecting(request, token)
            return await introspecting.introspect(digest, token) if introspecting is not None else None
        issuer, segments, payload = chosen
        return await issuer.verify(digest, segments, payload)

    async def _with_proof(self, request: web.Request, dpop: DpopGuard) -> Identity | None:
        """As `authenticate`, for a token under the scheme `DPoP`. The proof is checked for every request."""
        token = bound_token(request)
        if token is None:
            return None
        digest = digest_of(token)
        for one in self._issuers.values():
            if (bound := one.known_bound(digest)) is not None:
                await dpop.check(request, digest, bound.key, one.settings)
                return bound.identity
        chosen = self._choose(token)
        issuer = chosen[0] if chosen is not None else self._introspecting(request, token)
        if issuer is None:
            return None
        dpop.shown(request)  # without a proof nothing is verified, and no issuer is asked
        try:
            bound = await (issuer.verify_bound(digest, *chosen[1:]) if chosen else issuer.introspect_bound(digest, token))
        except CredentialRejected as error:
            raise dpop.rejection(error.reason, error.detail, error="invalid_token") from None
        await dpop.check(request, digest, bound.key, issuer.settings)
        return bound.identity

    def _introspecting(self, request: web.Request, token: str) -> Issuer | None:
        """Returns the issuer that is asked about this token; None if none is. Raises CredentialRejected: no need to ask."""
        chosen = self._opaque.issuer_of(token) if self._opaque else None
        if chosen is not None and "access_token" not in accepted_types(request):
            raise CredentialRejected("credential-rejected", "the route accepts no access tokens; the issuer was not asked")
        return chosen

    def _choose(self, token: str) -> tuple[Issuer, jws.Segments, bytes] | None:
        """Returns the issuer that a JWT names, its segments and its decoded payload; None for any other text."""
        segments = jws.split(token)
        if segments is None:
            return None
        try:
            payload = jws.decode(segments.payload)
            issuer = jws.unverified_issuer(payload)
        except Malformed:
            return None  # it names no issuer; another provider may still accept it
        chosen = self._issuers.get(issuer) if isinstance(issuer, str) else None
        return (chosen, segments, payload) if chosen is not None else None
