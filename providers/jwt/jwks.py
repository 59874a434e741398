"""The keys that verify tokens: fixed ones, or a key set that is fetched and refreshed in the background."""

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
    """The keys of a verifier. `get` and `generation` never wait; `find` may."""

    def get(self, kid: str | None) -> Key | None:
        """Returns the key if it is known and fresh."""

    async def find(self, kid: str | None) -> Key | None:
        """Returns the key, or None if there is no such key. Raises Unavailable if that cannot be determined."""

    def generation(self) -> int:
        """Changes whenever a key stops being trusted. What was verified under another number must be verified again."""

    def not_ready(self) -> str | None:
        """Returns why no token can be verified now, or None."""

    def figures(self) -> dict[str, float]:
        """Returns the age of the keys and the number of fetches, for the metrics."""

    async def open(self) -> None:
        """Start. An unreachable service is not an error."""

    async def close(self) -> None:
        """Stop."""


class StaticKeys:
    """One key that never changes. With `kid` None it serves tokens of any kid."""

    def __init__(self, key: Key, kid: str | None = None) -> None:
        self._key = key
        self._kid = kid

    def get(self, kid: str | None) -> Key | None:
        """Returns the key, or None if it is bound to another kid."""
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
        """Always empty."""
        return {}

    async def open(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to stop."""


class KeySet:
    """A JSON Web Key Set (RFC 7517 5) from a service, kept in memory.

    fetch        returns the set's JSON; may raise any exception. It must bound its own time and size
    algorithms   the `alg` values that its keys may serve
    name         what the log calls it
    refresh, cooldown and max_stale are in seconds. `clock` returns seconds and must be monotonic

    A known kid costs no fetch, whatever the signature. Unknown kids cause at most one fetch per `cooldown`, however
    many requests bring them; until then the result is "no such key" if the last fetch succeeded, and Unavailable if it
    failed: an outage is a 503, never a 401. Keys are used for at most `max_stale` after the last successful fetch. A key
    that a successful fetch no longer contains is dropped at once. Members with the same kid are all dropped: the set
    does not say which is meant.
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
        self._failure: str | None = "the keys have not been fetched yet"
        self._flight: SingleFlight[None, None] = SingleFlight(f"fetch {name}")
        self._loop: asyncio.Task[None] | None = None
        self._logged: set[str] = set()
        self._fetched_at: float | None = None
        self._fetches = self._failures = 0

    def get(self, kid: str | None) -> Key | None:
        """Returns the key if it is known and fresh."""
        key = self._keys.get(kid) if kid is not None else None
        return key if key is not None and self._clock() < self._stale_at else None

    async def find(self, kid: str | None) -> Key | None:
        """Returns the key, after a fetch if needed; None if there is no such key. Raises Unavailable during an outage."""
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
        """Changes when a key leaves the set, and when an outage has lasted longer than `max_stale`."""
        if self._keys and self._clock() >= self._stale_at:
            self._take({})
        return self._generation

    def not_ready(self) -> str | None:
        """Returns why no token can be verified now (never fetched, or too old), or None."""
        if self._keys and self._clock() < self._stale_at:
            return None
        return f"{self._name}: {self._failure or 'the keys are too old'}"

    def figures(self) -> dict[str, float]:
        """Returns seconds since the last successful fetch (absent before it), fetches, and failed fetches."""
        age = {} if self._fetched_at is None else {"keyset_age_seconds": self._clock() - self._fetched_at}
        return {"keyset_fetches_total": self._fetches, "keyset_failures_total": self._failures, **age}

    async def open(self) -> None:
        """Fetch once, then refresh the set until `close`. A failed fetch is not an error."""
        if self._loop is None:
            await self._refreshed()
            self._loop = asyncio.create_task(self._keep_fresh(), name=f"refresh {self._name}")

    async def close(self) -> None:
        """Stop refreshing and cancel a fetch in progress."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
            self._loop = None
        await self._flight.close()

    async def _keep_fresh(self) -> None:
        while True:
            # Without any key no caller can be verified, so fetch again soon; with old keys there is time.
            delay = self._refresh if self._failure is None else self._cooldown if self._keys else _RETRY
            await self._sleep(min(delay, self._refresh))
            await self._refreshed()

    async def _refreshed(self) -> None:
        """Fetch, or wait for the fetch in progress."""
        with contextlib.suppress(RuntimeError):  # cancelled by `close`: the keys stay as they are
            await self._flight.run(None, self._fly)

    async def _fly(self) -> None:
        started = self._clock()
        self._fetches += 1
        try:
            keys = self._read(await self._fetch())
        except Exception as error:  # whatever went wrong, the present keys stay
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
        for line in sorted(odd - self._logged):  # each odd member is logged once, not at every refresh
            log.warning("%s: %s", self._name, line)
        self._logged = odd
        if not keys:
            raise Malformed("the key set holds no key that can be used")
        return keys
