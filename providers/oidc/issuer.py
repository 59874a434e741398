"""Verifies the tokens of one issuer, with the keys that it publishes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from server import CredentialRejected, House, Identity, Unavailable

from ..jwt import jws
from ..jwt.cache import TokenCache, Verified
from ..jwt.jwks import KeySet
from ..jwt.signature import verify
from ..jwt.strict_json import Malformed
from ..jwt.times import Times
from . import claims
from .binding import refuse_bearer
from .discovery import Discovery
from .introspection import Answered, Introspection
from .settings import IssuerSettings

T = TypeVar("T")


class Bound(NamedTuple):
    """The caller of a verified token, and the thumbprint of the key that the token is bound to; None: to none."""

    identity: Identity
    key: str | None


class Issuer:
    """Verifies the tokens of one issuer with its own key set, header rules and cache: nothing is shared with another."""

    def __init__(self, settings: IssuerSettings, clock: Callable[[], float]) -> None:
        """`clock` returns Unix seconds."""
        self.settings = settings
        self._clock = clock
        # Any typ is read here and checked after verification, so that the rejection can state it as the reason.
        self._headers = jws.HeaderReader(settings.algorithms, types=None)
        self._cache: TokenCache[Identity] = TokenCache()
        # A cache of their own: nothing that is bound to a key can be found as a bearer token.
        self._bound: TokenCache[Bound] = TokenCache()
        self._keys: KeySet | None = None
        self._discovery: Discovery | None = None
        self._introspection: Introspection | None = None

    async def open(self, house: House) -> None:
        """Fetch the keys, then refresh them until `close`. A failed fetch is not an error."""
        self._discovery = discovery = Discovery(house, self.settings)
        name = f"the key set of {self.settings.issuer}"
        self._keys = KeySet(discovery.keys, algorithms=self.settings.algorithms, name=name)
        if self.settings.introspection is not None:
            self._introspection = Introspection(self.settings, house, discovery, self._clock)
        await self._keys.open()

    def not_ready(self) -> str | None:
        """Returns why its tokens cannot be verified now, or None."""
        if self._keys is None or self._discovery is None:
            return f"{self.settings.issuer} is not open"
        return self._keys.not_ready() or self._discovery.not_ready()

    def figures(self) -> dict[str, float]:
        """Returns the figures of its keys, its cache of verified tokens and its introspection, by name."""
        several = (self._cache.figures(), self._bound.figures())
        cached = {name: sum(figures[name] for figures in several) for name in several[0]}
        for one in (self._keys, self._introspection):
            cached |= one.figures() if one is not None else {}
        return cached

    async def close(self) -> None:
        """Stop refreshing the keys, and cancel calls in progress."""
        if self._introspection is not None:
            await self._introspection.close()
        if self._keys is not None:
            await self._keys.close()

    def known(self, digest: bytes) -> Identity | None:
        """Returns the identity of a token that was verified before and is still valid, or None."""
        return self._cache.get(digest, self._keys.generation(), self._clock()) if self._keys is not None else None

    def recall(self, digest: bytes) -> Identity | None:
        """Like `known`, for a caller that calls `known` after a miss: a miss is not counted here."""
        return self._cache.recall(digest, self._keys.generation(), self._clock()) if self._keys is not None else None

    def known_bound(self, digest: bytes) -> Bound | None:
        """Like `known`, for a token that is bound to a key. Its proof must be checked all the same."""
        return self._bound.get(digest, self._keys.generation(), self._clock()) if self._keys is not None else None

    async def verify(self, digest: bytes, segments: jws.Segments, payload: bytes) -> Identity:
        """Returns the caller of a bearer token that names this issuer. Raises CredentialRejected; Unavailable without keys."""
        caller, generation = await self._verified(segments, payload)
        refuse_bearer(caller.key, self.settings)
        self._cache.put(digest, generation, self._entry(caller.identity, caller.times))
        return caller.identity

    async def verify_bound(self, digest: bytes, segments: jws.Segments, payload: bytes) -> Bound:
        """Like `verify`, for a token that was shown with a proof, which is not checked here."""
        caller, generation = await self._verified(segments, payload)
        bound = Bound(caller.identity, caller.key)
        if caller.key is not None:
            self._bound.put(digest, generation, self._entry(bound, caller.times))
        return bound

    async def introspect(self, digest: bytes, token: str) -> Identity:
        """Returns the caller of an opaque bearer token of this issuer. Raises CredentialRejected, Unavailable."""
        (caller, until), generation = await self._introspected(digest, token)
        refuse_bearer(caller.key, self.settings)
        if until is not None:
            self._cache.put(digest, generation, self._entry(caller.identity, caller.times)._replace(expires=until))
        return caller.identity

    async def introspect_bound(self, digest: bytes, token: str) -> Bound:
        """Like `introspect`, for a token that was shown with a proof, which is not checked here."""
        (caller, until), generation = await self._introspected(digest, token)
        bound = Bound(caller.identity, caller.key)
        if until is not None and caller.key is not None:
            self._bound.put(digest, generation, self._entry(bound, caller.times)._replace(expires=until))
        return bound

    async def _introspected(self, digest: bytes, token: str) -> tuple[Answered, int]:
        if self._introspection is None or self._keys is None:
            raise Unavailable(f"{self.settings.issuer} is not open")
        return await self._introspection.ask(digest, token), self._keys.generation()

    def _entry(self, value: T, times: Times) -> Verified[T]:
        return Verified(value, times.begins(self.settings.leeway), times.expires)

    def now(self) -> float:
        """Returns the time by which its tokens are judged, in Unix seconds."""
        return self._clock()

    async def read(self, segments: jws.Segments, payload: bytes) -> tuple[jws.Header, int, dict[str, Any]]:
        """Returns header, generation of the keys and claims of any JWT that this issuer has signed.

        Raises Malformed or CredentialRejected if it has not; Unavailable without keys.
        """
        if self._keys is None:
            raise Unavailable(f"{self.settings.issuer} is not open")
        header, generation = await verify(segments, self._keys, self._headers)
        return header, generation, jws.claims(payload)

    async def _verified(self, segments: jws.Segments, payload: bytes) -> tuple[claims.Caller, int]:
        try:
            header, generation, members = await self.read(segments, payload)
        except Malformed as error:
            raise CredentialRejected("credential-rejected", error.detail) from None
        return claims.read(header.members, members, self.settings, self._clock()), generation
