"""The keys that tokens may be signed with: fixed ones, or a set that is fetched and kept fresh in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, Protocol

from server import SingleFlight, Unavailable

from .jwk import Key, read_set
from .strict_json import Malformed

log = logging.getLogger("gatepost.keys")
_RETRY: Final = 5.0


class Keys(Protocol):
    """What a verifier asks of its keys. `get` and `generation` never wait; `find` may."""

    def get(self, kid: str | None) -> Key | None:
        """The key, where it is known and fresh."""

    async def find(self, kid: str | None) -> Key | None:
        """The key; None: there is no such key. Raises Unavailable when that cannot be known."""

    def generation(self) -> int:
        """Changes whenever a key stops being trusted: what was verified under another number counts no more."""

    def not_ready(self) -> str | None:
        """Why no token can be verified now, or None."""

    def figures(self) -> dict[str, float]:
        """Age and fetches, for the metrics."""

    async def open(self) -> None:
        """Start; never raises because a service cannot be reached."""

    async def close(self) -> None:
        """Stop."""


class StaticKeys:
    """One key that never changes. `kid` None: whatever a token says its kid is."""

    def __init__(self, key: Key, kid: str | None = None) -> None:
        self._key = key
        self._kid = kid

    def get(self, kid: str | None) -> Key | None:
        """The key, unless it is bound to another kid."""
        return self._key if self._kid is None or kid == self._kid else None

    async def find(self, kid: str | None) -> Key | None:
        """As `get`."""
        return self.get(kid)

    def generation(self) -> int:
        """Always 0."""
        return 0

    def not_ready(self) -> str | None:
        """Always ready."""
        return None

    def figures(self) -> dict[str, float]:
        """There is nothing to tell."""
        return {}

    async def open(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to stop."""


class KeySet:
    """A JSON Web Key Set (RFC 7517 5) from a service, kept in memory.

    fetch        brings the set's JSON; raises anything when it cannot. It bounds its own time and size
    algorithms   the `alg` values that its keys may serve
    name         what the log calls it
    refresh, cooldown, max_stale, and `clock`'s answers are seconds. The clock must be monotonic

    A known kid costs no fetch, whatever the signature. An unknown kid fetches at most once per `cooldown`, however
    many ask; meanwhile the answer is "no such key" if the last fetch succeeded and Unavailable if it failed: an
    outage is a 503, never a 401. Keys outlive an outage by at most `max_stale`; a key that a successful fetch no
    longer brings is dropped at once. Members with the same kid are all dropped: the set does not say which is meant.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        algorithms: Collection[str],
        name: str,
        refresh: float = 300.0,
        cooldown: float = 30.0,
        max_stale: float = 86_400.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._fetch, self._algorithms, self._name = fetch, frozenset(algorithms), name
        self._refresh, self._cooldown, self._max_stale = refresh, cooldown, max_stale
        self._clock, self._sleep = clock, sleep
        self._keys: Mapping[str, Key] = {}
        self._generation = 0
        self._stale_at = self._asked_at = float("-inf")
        self._failure: str | None = "the keys were not fetched yet"
        self._flight: SingleFlight[None, None] = SingleFlight(f"fetch {name}")
        self._loop: asyncio.Task[None] | None = None
        self._logged: set[str] = set()
        self._fetched_at: float | None = None
        self._fetches = self._failures = 0

    def get(self, kid: str | None) -> Key | None:
        """The key, where it is known and fresh."""
        key = self._keys.get(kid) if kid is not None else None
        return key if key is not None and self._clock() < self._stale_at else None

    async def find(self, kid: str | None) -> Key | None:
        """The key, after a fetch if need be; None: there is no such key. Raises Unavailable during an outage."""
        key = self.get(kid)
        if key is not None or kid is None:
            return key
        if None in self._flight:
            await self._refreshed()
        elif self._clock() - self._asked_at >= self._cooldown:
            self._asked_at = self._clock()
            await self._refreshed()
        if self._failure is not None or self._clock() >= self._stale_at:
            raise Unavailable(f"{self._name}: {self._failure}", retry_after=int(_RETRY))
        return self.get(kid)

    def generation(self) -> int:
        """Changes when a key leaves the set, and when an outage has outlived `max_stale`."""
        if self._keys and self._clock() >= self._stale_at:
            self._take({})
        return self._generation

    def not_ready(self) -> str | None:
        """Why no token can be verified now: never fetched, or stale beyond the bound."""
        if self._keys and self._clock() < self._stale_at:
            return None
        return f"{self._name}: {self._failure or 'the keys are too old'}"

    def figures(self) -> dict[str, float]:
        """Seconds since the last good fetch (none before it), fetches, and those that failed."""
        age = {} if self._fetched_at is None else {"keyset_age_seconds": self._clock() - self._fetched_at}
        return {"keyset_fetches_total": self._fetches, "keyset_failures_total": self._failures, **age}

    async def open(self) -> None:
        """Fetch once, succeed or not, and keep the set fresh until `close`."""
        if self._loop is None:
            await self._refreshed()
            self._loop = asyncio.create_task(self._keep_fresh(), name=f"refresh {self._name}")

    async def close(self) -> None:
        """Stop refreshing and drop a fetch that is under way."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
            self._loop = None
        await self._flight.close()

    async def _keep_fresh(self) -> None:
        while True:
            # With no key at all nobody can be let in, so ask again soon; with old ones there is time.
            delay = self._refresh if self._failure is None else self._cooldown if self._keys else _RETRY
            await self._sleep(min(delay, self._refresh))
            await self._refreshed()

    async def _refreshed(self) -> None:
        """Fetch, or wait for the fetch under way."""
        with contextlib.suppress(RuntimeError):  # cancelled by `close`: the keys stay as they are
            await self._flight.run(None, self._fly)

    async def _fly(self) -> None:
        started = self._clock()
        self._fetches += 1
        try:
            keys = self._read(await self._fetch())
        except Exception as error:  # whatever went wrong, the keys that we have stay
            self._failures += 1
            self._failure = str(error) if isinstance(error, Unavailable | Malformed) else type(error).__name__
            log.warning("%s: the keys cannot be refreshed: %s", self._name, self._failure)
        else:
            self._take(keys)
            self._failure = None
            self._fetched_at = started
            self._stale_at = started + self._max_stale

    def _take(self, keys: Mapping[str, Key]) -> None:
        if any(kid not in keys or keys[kid].material != key.material for kid, key in self._keys.items()):
            self._generation += 1
        self._keys = keys

    def _read(self, raw: bytes) -> dict[str, Key]:
        keys, odd = read_set(raw, self._algorithms)
        for line in sorted(odd - self._logged):  # a member that stays odd is not news at every refresh
            log.warning("%s: %s", self._name, line)
        self._logged = odd
        if not keys:
            raise Malformed("the key set holds no key that can be used")
        return keys
