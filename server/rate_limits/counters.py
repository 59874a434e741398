"""Counts hits: in Valkey or Redis for all processes together, or in this process alone.

No count depends on the storage: when it does not answer within 50 ms, this process counts on its own until the storage
answers again. An outage refuses no request, and no hit goes uncounted. Only `claim` needs the storage.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from ..bounded import BoundedDict
from ..http.errors import Unavailable
from ..settings.setting import ConfigError
from ..telemetry.log import LOG

if TYPE_CHECKING:
    from limits.aio.storage import RedisStorage


MOST_KEYS: Final = 100_000
_SECONDS: Final = 0.05
_QUEUE_SECONDS: Final = 0.025
"""Of these, the longest wait for a slot: the storage always has the other half to answer in."""
_RETRY_SECONDS: Final = 0.5
_PROBE_SECONDS: Final = 2.0
_CLAIM_SECONDS: Final = 0.5
_AT_ONCE: Final = 16
_SCHEMES: Final = ("valkey", "valkeys", "redis", "rediss")


class LocalCounters:
    """Counts in memory. Beyond `MOST_KEYS` the oldest counts are forgotten.

    The memory storage of the `limits` library walks over all its keys after each hit: milliseconds where there are many.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: BoundedDict[str, tuple[int, float]] = BoundedDict(MOST_KEYS)

    def add(self, key: str, amount: int, seconds: float) -> int:
        """Add `amount` hits to a key, whose count expires `seconds` after its first hit. Returns the new count."""
        now = self._clock()
        count, end = self._counts.get(key, (0, now))
        if end <= now:
            self._counts.pop(key, None)
            self._counts.make_room(lambda entry: entry[1] <= now)
            count, end = 0, now + seconds
        self._counts[key] = (count + amount, end)
        return count + amount


class Counters:
    """Counts in the storage of the setting `limits.storage`. `add` never fails, and never waits longer than 50 ms."""

    def __init__(self, url: str = "memory") -> None:
        """`url` is `memory`, `valkey://host:port/db` or `redis://...`; `valkeys` and `rediss` use TLS. Raises ConfigError."""
        self._local = LocalCounters()
        self._storage = None if url in ("memory", "memory://") else _storage(url)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._recovery: asyncio.Task[None] | None = None

    @property
    def shared(self) -> bool:
        """Do other processes count in the same storage?"""
        return self._storage is not None

    async def open(self) -> None:
        """Ask the storage once, so that the operator sees a mistake in the log now. An outage does not prevent startup."""
        if self._storage is not None:
            try:
                await self._probe(self._storage)
            except Exception as error:
                self._is_out(self._storage, error)

    async def add(self, key: str, amount: int, seconds: int, local: LocalCounters | None = None) -> int:
        """Add `amount` hits to a key, whose count expires `seconds` after its first hit. Returns the new count.

        It is the count of all processes that share the storage, or of this process alone while the storage is slow or away.
        `local` are the counts of this process, if not the common ones: what unknown clients fill must not displace callers.
        """
        storage, own = self._storage, local or self._local
        if storage is None or self._recovery is not None:
            return own.add(key, amount, seconds)
        deadline = asyncio.get_running_loop().time() + _SECONDS
        if await self._slot():
            try:
                if self._recovery is None:  # else it went away while this call waited for its slot
                    async with asyncio.timeout_at(deadline):
                        return await storage.incr(key, seconds, amount)
            except Exception as error:
                self._is_out(storage, error)
            finally:
                self._slots.release()
        return own.add(key, amount, seconds)

    async def claim(self, key: str, seconds: float) -> bool:
        """Store a key for `seconds` unless it is stored already. Returns whether it was new.

        Raises Unavailable where the storage does not answer within 0.5 seconds: this process alone cannot know.
        """
        storage = self._storage
        if storage is None or self._recovery is not None:
            raise Unavailable("limits.storage does not answer")
        try:
            async with asyncio.timeout(_CLAIM_SECONDS), self._slots:
                client: Any = storage.bridge.get_connection()  # type: ignore[attr-defined]
                name = storage.bridge.prefixed_key(key)
                return bool(await client.set(name, b"1", nx=True, px=math.ceil(seconds * 1000)))
        except Exception as error:
            self._is_out(storage, error)
            raise Unavailable("limits.storage does not answer") from None

    async def _slot(self) -> bool:
        """Take a slot; False where none became free in time. That is a burst of calls here, and no outage of the storage."""
        if not self._slots.locked():
            return await self._slots.acquire()
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                return await self._slots.acquire()
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Stop looking for the end of an outage, and close the connections."""
        if self._recovery is not None:
            self._recovery.cancel()
            with suppress(asyncio.CancelledError):
                await self._recovery
        if self._storage is not None:
            client: Any = self._storage.bridge.get_connection()  # type: ignore[attr-defined]  # the library has no close
            with suppress(Exception):
                await client.aclose()

    def _is_out(self, storage: RedisStorage, error: Exception) -> None:
        """Log the outage once, and wait for its end in the background, so that no request does."""
        if self._recovery is None:
            # Only the name of the error: its text may hold the address and user of the storage.
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
        """Write, since a storage that can only be read is of no use. Raises the storage's error, or TimeoutError."""
        async with asyncio.timeout(_PROBE_SECONDS):
            await storage.incr("probe", 1)


def _kind(error: Exception) -> str:
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    return type(cause).__name__


def _storage(url: str) -> RedisStorage:
    """The storage of the `limits` library. No message repeats the URL: it may hold a password. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in _SCHEMES and parts.hostname and parts.port
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError("limits.storage: must be memory, valkey://host:port/db or redis://host:port/db")
    not_installed = "limits.storage: the client is not installed; run: pip install 'gatepost[valkey]'"
    try:
        from limits.aio.storage import RedisStorage
        from limits.errors import ConfigurationError
    except ImportError as error:
        raise ConfigError(not_installed) from error
    try:  # Valkey's client works with Redis too: one client for both
        return RedisStorage(f"async+{url}", implementation="valkey", key_prefix="gatepost")
    except ConfigurationError as error:
        raise ConfigError(not_installed) from error
    except ValueError as error:
        raise ConfigError("limits.storage: not a URL that can be used") from error
