"""Counting hits: in Valkey or Redis for all processes together, or in this process alone.

The storage is a help, never a condition: when it does not answer within 50 ms this process counts for itself until it does
again. Nothing is refused for an outage, and nothing goes uncounted.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ..settings.setting import ConfigError
from ..telemetry.log import LOG

if TYPE_CHECKING:
    from limits.aio.storage import RedisStorage


MOST_KEYS: Final = 100_000
_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = 0.5
_PROBE_SECONDS: Final = 2.0
_AT_ONCE: Final = 16
_SCHEMES: Final = ("valkey", "valkeys", "redis", "rediss")


class LocalCounters:
    """Counts in memory. Bounded: beyond `MOST_KEYS` the counts that were begun the longest ago are forgotten.

    The memory storage of the `limits` library walks over all its keys after each hit, which is milliseconds for many callers.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def add(self, key: str, amount: int, seconds: float) -> int:
        """Add hits to a key that is forgotten `seconds` after its first; how many there are now."""
        now = self._clock()
        count, end = self._counts.get(key, (0, now + seconds))
        if end <= now:
            del self._counts[key]
            count, end = 0, now + seconds
        self._counts[key] = (count + amount, end)
        self._forget(now)
        return count + amount

    def _forget(self, now: float) -> None:
        for _ in range(2):  # two for each that comes, so that what is over goes without a sweep of all
            first = next(iter(self._counts))
            if len(self._counts) <= MOST_KEYS and self._counts[first][1] > now:
                return
            if len(self._counts) > 1:
                del self._counts[first]


class Counters:
    """Counts where the setting `limits.storage` says. `add` never fails, and never waits longer than 50 ms."""

    def __init__(self, url: str = "memory") -> None:
        """`url` is `memory`, `valkey://host:port/db`, `redis://...`; `valkeys`, `rediss`: over TLS. Raises ConfigError."""
        self._local = LocalCounters()
        self._storage = None if url in ("memory", "memory://") else _storage(url)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._recovery: asyncio.Task[None] | None = None

    @property
    def shared(self) -> bool:
        """Do others count with us?"""
        return self._storage is not None

    async def open(self) -> None:
        """Ask the storage once, so that the operator learns of a mistake now. An outage does not stop the start."""
        if self._storage is not None:
            try:
                await self._probe(self._storage)
            except Exception as error:
                self._is_out(self._storage, error)

    async def add(self, key: str, amount: int, seconds: int) -> int:
        """Add hits to a key that is forgotten `seconds` after its first; how many there are now, by all who count together."""
        storage = self._storage
        if storage is not None and self._recovery is None:
            async with self._slots:
                if self._recovery is None:  # else it went away while we were waiting for our turn
                    try:
                        async with asyncio.timeout(_SECONDS):
                            return await storage.incr(key, seconds, amount)
                    except Exception as error:
                        self._is_out(storage, error)
        return self._local.add(key, amount, seconds)

    async def close(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()
            with suppress(asyncio.CancelledError):
                await self._recovery
        if self._storage is not None:
            client: Any = self._storage.bridge.get_connection()  # type: ignore[attr-defined]  # the library has no close
            with suppress(Exception):
                await client.aclose()

    def _is_out(self, storage: RedisStorage, error: Exception) -> None:
        """Note the outage once, and look for its end in the background, so that no request waits for that."""
        if self._recovery is None:
            # The name of the error alone: its text may hold the storage's address and user.
            LOG.error("limits.storage does not answer; this process counts alone", extra={"fields": {"error": _kind(error)}})
            self._recovery = asyncio.create_task(self._recover(storage))

    async def _recover(self, storage: RedisStorage) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            with suppress(Exception):
                await self._probe(storage)
                break
        LOG.warning("limits.storage answers again")
        self._recovery = None

    async def _probe(self, storage: RedisStorage) -> None:
        """A write, since one that only reads is of no use. Raises whatever is the matter."""
        async with asyncio.timeout(_PROBE_SECONDS):
            await storage.incr("probe", 1)


def _kind(error: Exception) -> str:
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    return type(cause).__name__


def _storage(url: str) -> RedisStorage:
    """The library's storage. No message repeats the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in _SCHEMES and parts.hostname and parts.port
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError("limits.storage: must be memory, valkey://host:port/db or redis://host:port/db")
    from limits.aio.storage import RedisStorage
    from limits.errors import ConfigurationError

    try:  # Valkey's client speaks to Redis as well: one client for both
        return RedisStorage(f"async+{url}", implementation="valkey", key_prefix="gatepost")
    except ConfigurationError as error:
        raise ConfigError("limits.storage: the client is not installed; pip install 'gatepost[valkey]'") from error
    except ValueError as error:
        raise ConfigError("limits.storage: not a URL that can be used") from error
