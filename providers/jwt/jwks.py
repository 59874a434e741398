"""A key set that is fetched, refreshed in the background, and fetched again for key ids that it does not contain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from server import BoundedDict, SingleFlight, Unavailable

from .fetch_budget import FetchBudget
from .jwk import Key, read_set
from .keys import Keys, StaticKeys
from .strict_json import Malformed

__all__ = ["KeySet", "Keys", "StaticKeys"]

log = logging.getLogger("gatepost.keys")
_RETRY: Final = 5.0
BURST: Final = 4
REFILL: Final = 15.0
"""Unknown key ids cause at most BURST fetches at once, and one more every REFILL seconds."""
_USELESS: Final = 100


class KeySet:
    """A JSON Web Key Set (RFC 7517 5) from a service, kept in memory.

    fetch        returns the set's JSON; may raise any exception. It must bound its own time and size
    algorithms   the `alg` values that its keys may serve
    name         what the log calls it
    refresh, cooldown and max_stale are in seconds. `clock` returns seconds and must be monotonic

    A known kid costs no fetch, whatever the signature. An unknown kid is "no such key" only if a fetch that began after it
    was shown does not contain it: the key may have been published a moment ago, with no overlap. Unknown kids cause at most
    BURST fetches at once and one every REFILL seconds, however many requests bring them; while no fetch is allowed, or
    if it fails, the result is Unavailable: a 503, never a 401, with the seconds until the set can be fetched again. A kid that
    has left the set, or whose key cannot be used, is "no such key" without a fetch for `cooldown` after the last one.

    Keys are used for at most `max_stale` after the last successful fetch. A key that a successful fetch no longer contains is
    dropped at once. Different keys with the same kid are all dropped: the set does not say which is meant.
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
        self._useless: BoundedDict[str, None] = BoundedDict(_USELESS)
        self._generation = 0
        self._stale_at = self._asked_at = float("-inf")
        self._failure: str | None = "the keys have not been fetched yet"
        self._budget = FetchBudget(BURST, REFILL, clock)
        self._flight: SingleFlight[None, None] = SingleFlight(f"fetch {name}")
        self._loop: asyncio.Task[None] | None = None
        self._next_at = float("inf")  # when the background fetches again
        self._closed = False
        self._logged: set[str] = set()
        self._fetched_at: float | None = None
        self._fetches = self._failures = self._successful = 0

    def get(self, kid: str | None) -> Key | None:
        """Returns the key if it is known and fresh."""
        key = self._keys.get(kid) if kid is not None else None
        return key if key is not None and self._clock() < self._stale_at else None

    async def find(self, kid: str | None) -> Key | None:
        """Returns the key, after a fetch if needed; None if there is no such key. Raises Unavailable if that is not known."""
        key = self.get(kid)
        if key is not None or kid is None or self._is_useless(kid):
            return key
        begun = self._fetches
        while not self._closed and (None in self._flight or self._budget.take()):
            await self._refreshed()
            if self._failure is not None or self._clock() >= self._stale_at:
                break
            key = self.get(kid)
            # A fetch that was in progress already may have asked before the key was published: it proves no absence.
            if key is not None or self._successful > begun:
                return key
        why = self._failure or "an unknown key id, and the set cannot be fetched again yet"
        raise Unavailable(f"{self._name}: {why}", retry_after=self._retry_after())

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
        self._closed = True
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
            delay = max(min(delay, self._refresh), self._budget.paused())
            self._next_at = self._clock() + delay
            await self._sleep(delay)
            if self._budget.paused() <= 0:  # otherwise a request's fetch was told to wait
                await self._refreshed()

    def _retry_after(self) -> int:
        """Returns in how many seconds the set can be fetched again, by the budget or in the background."""
        soonest = min(self._budget.wait(), self._next_at - self._clock())
        return math.ceil(max(1.0, soonest, self._budget.paused()))

    def _is_useless(self, kid: str) -> bool:
        """Did the last fetch, not long ago, show that the key is gone or unusable? Then its tokens cause no further fetch."""
        lately = self._clock() < min(self._asked_at + self._cooldown, self._stale_at)
        return lately and kid in self._useless and self._failure is None

    async def _refreshed(self) -> None:
        """Fetch, or wait for the fetch in progress."""
        with contextlib.suppress(RuntimeError):  # cancelled by `close`: the keys stay as they are
            await self._flight.run(None, self._fly)

    async def _fly(self) -> None:
        started = self._asked_at = self._clock()
        self._fetches += 1
        number = self._fetches
        try:
            keys, unusable = self._read(await self._fetch())
        except Exception as error:  # whatever went wrong, the present keys stay
            self._failures += 1
            self._failure = str(error) if isinstance(error, Unavailable | Malformed) else type(error).__name__
            if isinstance(error, Unavailable) and error.retry_after > 1:
                self._budget.pause(min(error.retry_after, self._refresh))
            log.warning("%s: the keys cannot be refreshed: %s", self._name, self._failure)
        else:
            for kid in (self._keys.keys() | unusable) - keys.keys():
                self._useless.put(kid, None)
            self._take(keys)
            self._failure, self._successful = None, number
            self._fetched_at = started
            self._stale_at = started + self._max_stale

    def _take(self, keys: Mapping[str, Key]) -> None:
        if any(kid not in keys or keys[kid].material != key.material for kid, key in self._keys.items()):
            self._generation += 1
        self._keys = keys

    def _read(self, raw: bytes) -> tuple[dict[str, Key], set[str]]:
        keys, unusable, odd = read_set(raw, self._algorithms)
        for line in sorted(odd - self._logged):  # each odd member is logged once, not at every refresh
            log.warning("%s: %s", self._name, line)
        self._logged = odd
        if not keys:
            raise Malformed("the key set holds no key that can be used")
        return keys, unusable
