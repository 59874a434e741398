"""A cache of verified tokens, so that a signature is verified once and not at every request."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from server import BoundedDict

T = TypeVar("T")


class Verified(NamedTuple, Generic[T]):
    """The content of a verified token. `value` must be frozen: many requests share it.

    It is valid from `not_before` (inclusive, the permitted clock skew already subtracted) until `expires` (exclusive: the
    token's own `exp`, no skew added), both Unix seconds.
    """

    value: T
    not_before: float
    expires: float


class TokenCache(Generic[T]):
    """At most `limit` verified tokens by the SHA-256 of their text, the oldest dropped first. The tokens are not kept.

    An entry is no longer used
    - from the token's `exp` on, by the `now` of each `get`, so that a wrong clock does no lasting harm;
    - before its `not_before`, in case the clock goes back;
    - when `generation` differs from the last call's: a key left the key set, so all entries are dropped.
    Settings need no such rule: they do not change while a provider is open, and a new provider has a new cache.
    Nothing else is cached: what can change during a token's life (revocation, route, origin, peer) is checked on
    every request by the code that owns it. A miss says nothing about a token except that it must be verified.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._generation: int | None = None
        self._entries: BoundedDict[bytes, Verified[T]] = BoundedDict(limit)
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes, generation: int, now: float) -> T | None:
        """Returns the value stored for this digest under this generation if it is valid at `now` (Unix seconds)."""
        self._follow(generation)
        entry = self._entries.get(digest)
        if entry is None or now < entry.not_before:
            self.misses += 1
            return None
        if now >= entry.expires:
            self.misses += 1
            del self._entries[digest]
            return None
        self.hits += 1
        return entry.value

    def figures(self) -> dict[str, float]:
        """Returns the hits, the misses and the number of cached tokens, for the metrics."""
        return {"cache_hits_total": self.hits, "cache_misses_total": self.misses, "cache_tokens": len(self)}

    def recall(self, digest: bytes, generation: int, now: float) -> T | None:
        """As `get`, for a caller that calls `get` or `miss` after a miss: a miss is not counted here."""
        if generation != self._generation:
            self._follow(generation)
        entry = self._entries.get(digest)
        if entry is None or not entry.not_before <= now < entry.expires:
            return None
        self.hits += 1
        return entry.value

    def miss(self, digest: bytes) -> None:
        """Count a miss, in place of `get`, for a digest that `recall` has just not found; what has expired is dropped."""
        self.misses += 1
        self._entries.pop(digest, None)

    def put(self, digest: bytes, generation: int, entry: Verified[T]) -> None:
        """Store a verified token. `generation` is the key set's at the time when its key was looked up."""
        self._follow(generation)
        self._entries.put(digest, entry)

    def _follow(self, generation: int) -> None:
        if generation != self._generation:
            self._entries.clear()
            self._generation = generation
