"""Verifies the tokens of one issuer, with the keys that it publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from server import CredentialRejected, House, Identity, Unavailable

from ..jwt import jws
from ..jwt.cache import TokenCache, Verified
from ..jwt.jwks import KeySet
from ..jwt.signature import verify
from ..jwt.strict_json import Malformed, read_object
from ..jwt.texts import is_loopback_http, is_safe_url, retry_after
from ..jwt.times import Times
from . import claims
from .binding import refuse_bearer
from .settings import IssuerSettings

T = TypeVar("T")
_WELL_KNOWN: Final = "/.well-known/openid-configuration"
_FETCH_SECONDS: Final = 5.0
_JSON: Final = {"Accept": "application/json"}


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

    async def open(self, house: House) -> None:
        """Fetch the keys, then refresh them until `close`. A failed fetch is not an error."""
        name = f"the key set of {self.settings.issuer}"

        async def fetch() -> bytes:
            return await fetch_keys(house, self.settings)

        self._keys = KeySet(fetch, algorithms=self.settings.algorithms, name=name)
        await self._keys.open()

    def not_ready(self) -> str | None:
        """Returns why its tokens cannot be verified now, or None."""
        return self._keys.not_ready() if self._keys is not None else f"{self.settings.issuer} is not open"

    def figures(self) -> dict[str, float]:
        """Returns the figures of its keys and of its cache of verified tokens, by name."""
        several = (self._cache.figures(), self._bound.figures())
        cached = {name: sum(figures[name] for figures in several) for name in several[0]}
        return cached | (self._keys.figures() if self._keys is not None else {})

    async def close(self) -> None:
        """Stop refreshing the keys."""
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


async def fetch_keys(house: House, settings: IssuerSettings) -> bytes:
    """Returns the issuer's key set (JSON), from `jwks_uri` or the discovered URL, within 5 seconds. Raises Unavailable."""
    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            return await _get(house, settings.jwks_uri or await _discover(house, settings.issuer))
    except TimeoutError:
        raise Unavailable(f"{settings.issuer} took longer than {_FETCH_SECONDS:g} seconds") from None


async def _discover(house: House, issuer: str) -> str:
    """Returns the `jwks_uri` of the issuer's discovery document (OpenID Connect Discovery 1.0, 4). Raises Unavailable."""
    url = issuer.rstrip("/") + _WELL_KNOWN  # 4.1: a final slash of the issuer is removed
    try:
        document = read_object(await _get(house, url), "discovery document")
    except Malformed as error:
        raise Unavailable(f"{url}: {error.detail}") from None
    if document.get("issuer") != issuer:  # 4.3: exactly; otherwise one issuer could impersonate another
        raise Unavailable(f"{url}: the document is another issuer's")
    uri = document.get("jwks_uri")
    # Only the operator may name a URL of this machine for a remote issuer's keys (the setting `jwks_uri`), never the issuer.
    if not isinstance(uri, str) or not is_safe_url(uri) or (is_loopback_http(uri) and not is_loopback_http(issuer)):
        raise Unavailable(f"{url}: its jwks_uri is not a URL that starts with https://")
    return uri


async def _get(house: House, url: str) -> bytes:
    answer = await house.fetch(url, headers=_JSON, timeout=_FETCH_SECONDS)
    if answer.status != 200:  # redirects are refused too: their target could choose the keys
        raise Unavailable(f"{url} answered {answer.status}", retry_after=retry_after(answer.headers))
    return answer.body
