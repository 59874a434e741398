"""Clerk: `Authorization: Bearer <token>`, or the `__session` cookie where there is no such header."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from aiohttp import hdrs, web

from server import CredentialRejected, House, Identity, accepted_types, is_local

from ..jwt import jws
from ..jwt.bearer import bearer, digest_in, digest_of, keep_digest
from ..jwt.cache import TokenCache, Verified
from ..jwt.jwk import RSA
from ..jwt.jwks import Keys, KeySet, StaticKeys
from ..jwt.signature import verify
from ..jwt.strict_json import Malformed
from . import development_key as development
from . import foreign, session
from .advice import announce, keys_elsewhere
from .audience import MachineAudience
from .cookies import CookieReader
from .key_fetch import fetch_keys
from .machine_jwt import ACCESS_TOKEN_TYPES, MachineJwt, check_accepted, token_type
from .machine_tokens import MachineTokens
from .security_schemes import SECURITY_SCHEMES
from .settings import ClerkSettings

NAME: Final = "clerk"
_API_KEY: Final = "X-API-Key"


class ClerkProvider:
    """Session tokens in the header or in a cookie, and machine tokens in the header."""

    security_schemes: Mapping[str, Mapping[str, Any]] = SECURITY_SCHEMES
    namespaces = ("",)  # Clerk's ids have no prefix; the server refuses another provider without one

    def __init__(self, table: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        """`table` is the plugin's table of the settings; `clock` returns Unix seconds. Raises ValueError for mistakes."""
        self._set, self._settings = frozenset(key for key, value in table.items() if value), ClerkSettings.read(table)
        self._clock = clock
        self._headers = jws.HeaderReader(RSA, types=(None, "JWT", *ACCESS_TOKEN_TYPES))
        self._cache: TokenCache[Identity] = TokenCache()
        # Apart from the sessions: no number of machine tokens displaces a session, and no cookie finds a machine token.
        self._machine_cache: TokenCache[Identity] = TokenCache()
        self._has_machines = False
        self._audience = MachineAudience(self._settings)
        self._machine_jwt = MachineJwt(self._settings, self._audience)
        self._cookies = CookieReader(self._settings)
        self._machine: MachineTokens | None = None
        self._keys: Keys | None = None
        self._house: House | None = None
        self._local_only = False

    @property
    def issuers(self) -> frozenset[str]:
        """The `iss` values of this Clerk instance."""
        return self._settings.issuers or (frozenset() if self._settings.configured else frozenset({development.ISSUER}))

    @property
    def authorized_parties(self) -> frozenset[str]:
        """The origins whose pages sign in here; by default the server allows cross-origin requests from them (CORS)."""
        return self._settings.authorized_parties

    def check(self, env: str) -> None:
        """Raises ValueError for settings that do not suit `env`."""
        self._settings.check(env, keys_elsewhere(os.environ))

    async def open(self, house: House) -> None:
        """Choose the keys: the PEM, else a key set, else (never in production) the development key. Raises ValueError."""
        self.check(house.env)
        self._house = house
        announce(self._set, self._settings, house.env, self._audience)
        self._machine = MachineTokens(self._settings, house, self._clock, self._audience)
        if self._settings.jwt_key is not None:
            self._keys = StaticKeys(self._settings.jwt_key)
        elif self._settings.jwks_url is not None:
            self._keys = KeySet(lambda: fetch_keys(house, self._settings), algorithms=RSA, name="Clerk's key set")
        else:
            key = await asyncio.to_thread(development.signing_key, house.folder)
            self._keys, self._local_only = development.verification_keys(key), True
            self._settings = replace(self._settings, issuers=frozenset({development.ISSUER}))
            self._cookies, self._machine_jwt = CookieReader(self._settings), MachineJwt(self._settings, self._audience)
        await self._keys.open()

    def not_ready(self) -> str | None:
        """Returns why no token can be verified now, or None."""
        return self._keys.not_ready() if self._keys is not None else "Clerk's provider is not open"

    def figures(self) -> dict[str, float]:
        """Returns the figures of the keys, of the caches of verified tokens, and of the audience check while it observes."""
        cached, of_machines = self._cache.figures(), self._machine_cache.figures()
        figures = {name: value + of_machines[name] for name, value in cached.items()}
        figures["audience_observed_total"] = float(self._audience.observed)
        return figures | (self._keys.figures() if self._keys is not None else {})

    async def close(self) -> None:
        """Stop refreshing the keys, and cancel calls in progress."""
        if self._machine is not None:
            await self._machine.close()
        if self._keys is not None:
            await self._keys.close()

    reads = (hdrs.AUTHORIZATION, hdrs.COOKIE)

    def recall(self, request: web.Request) -> Identity | None:
        """Returns the caller of a cached, still valid bearer token. Not for cookies, which need more checks."""
        token = bearer(request)
        if token is None or self._keys is None:
            return None
        digest = digest_of(token)
        generation, now = self._keys.generation(), self._clock()
        known = self._cache.recall(digest, generation, now)
        if known is not None:
            if self._local_only:  # tested here as well: production is spared the call
                self._check_peer(request)
            return known
        known = self._machine_cache.recall(digest, generation, now) if self._has_machines else None
        if known is not None:
            return self._admitted(request, known)
        keep_digest(request, token, digest, self)
        return None

    async def authenticate(self, request: web.Request) -> Identity | None:
        """Returns the caller; None for what is neither a JWT nor a Clerk machine token, or is another provider's.

        Raises CredentialRejected; Unavailable if Clerk cannot be reached.
        """
        if self._keys is None or self._machine is None:
            return None
        token = bearer(request)
        if token is None:
            return await self._by_cookie(request, self._keys)
        kind = self._machine.kind_of(token)
        if kind is not None:
            return await self._machine.identify(token, kind, accepted_types(request))
        digest, missed_by = digest_in(request, token)
        if missed_by is self:  # `recall` has just looked for it
            self._cache.miss(digest)
            return await self._by_token(request, token, digest, self._keys)
        known = self._machine_cache.recall(digest, self._keys.generation(), self._clock())
        if known is not None:
            return self._admitted(request, known)
        return self._known(request, digest, self._keys) or await self._by_token(request, token, digest, self._keys)

    async def _by_cookie(self, request: web.Request, keys: Keys) -> Identity | None:
        headers = request.headers
        if hdrs.COOKIE not in headers or hdrs.AUTHORIZATION in headers or _API_KEY in headers:
            return None  # a header is the caller's choice, a cookie is not: never the one in place of the other
        if "session_token" not in accepted_types(request):
            return None
        cookie = self._cookies.read(request, self._clock())
        if cookie is None:
            return None
        digest = digest_of(cookie.token)
        identity = self._known(request, digest, keys) or await self._by_token(
            request, cookie.token, digest, keys, in_cookie=True
        )
        if identity is not None:
            self._cookies.check(cookie, identity)
        elif jws.split(cookie.token) is None:
            raise CredentialRejected("credential-rejected", "the session cookie holds no JWT")
        return identity

    def _known(self, request: web.Request, digest: bytes, keys: Keys) -> Identity | None:
        known = self._cache.get(digest, keys.generation(), self._clock())
        if known is not None:
            self._check_peer(request)
        return known

    async def _by_token(
        self, request: web.Request, token: str, digest: bytes, keys: Keys, *, in_cookie: bool = False
    ) -> Identity | None:
        segments = jws.split(token)
        if segments is None:
            return None
        try:
            # The issuer matters only if another provider has issuers too; otherwise nothing is read before verification.
            house = self._house
            if house is not None and house.has_issuers_beside(NAME) and foreign.is_anothers(segments, house, NAME):
                return None
            self._check_peer(request)
            header, generation = await verify(segments, keys, self._headers)
            claims = jws.claims(jws.decode(segments.payload))
        except (Malformed, CredentialRejected) as error:
            raise foreign.rejected(error, segments.payload, self._settings) from None
        now, kind = self._clock(), token_type(header.members, claims)
        if kind is None:
            identity, times = session.identity(header.members, claims, self._settings, now)
        elif in_cookie:
            raise CredentialRejected("token-type", "a machine token in the session's cookie")
        else:
            check_accepted(request, kind)
            identity, times = self._machine_jwt.identity(kind, header.members, claims, now)
            self._has_machines = True
        cache = self._cache if kind is None else self._machine_cache
        cache.put(digest, generation, Verified(identity, times.begins(self._settings.leeway), times.expires))
        return identity if kind is None else self._admitted(request, identity)

    def _admitted(self, request: web.Request, identity: Identity) -> Identity:
        """Check what can change during a machine token's life, or differs between routes. Raises as `authenticate`."""
        self._check_peer(request)
        check_accepted(request, identity.token_type)
        subject = identity.user_id or identity.key_id
        if self._house is None or subject is None or self._house.revoked("user", subject, identity.issued_at):
            raise CredentialRejected("session-revoked", "the tokens of this user or machine were revoked")
        return identity

    def _check_peer(self, request: web.Request) -> None:
        # On every request, cached or not: the same token can come from another peer.
        if self._local_only and not is_local(request):
            raise CredentialRejected("credential-rejected", "a development token from another machine or through a proxy")
