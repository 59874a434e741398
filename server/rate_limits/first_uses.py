"""Tells the first use of a one-time value from a repeat: in Valkey or Redis for all processes, or in this process alone."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Final

from ..http.errors import Unavailable
from .counters import Counters

MOST_VALUES: Final = 250_000
"""How many values a process keeps: more signed proofs than it can verify in two minutes; at most 25 MB."""
_BUCKET_SECONDS: Final = 5


class LocalUses:
    """Keeps values in memory until they expire. A value that has not expired is never dropped."""

    def __init__(self, most: int = MOST_VALUES, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._buckets: dict[int, set[bytes]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def first(self, value: bytes, seconds: float) -> bool:
        """Keep a value for at least `seconds`. Returns False if it is already kept. Raises Unavailable if the store is full."""
        now = self._clock()
        # Values expire by the bucket, so that nothing ever walks through all of them.
        for end in [end for end in self._buckets if end * _BUCKET_SECONDS <= now]:
            self._size -= len(self._buckets.pop(end))
        if any(value in bucket for bucket in self._buckets.values()):
            return False
        if self._size >= self._most:
            raise Unavailable("too many one-time values are in use")
        self._buckets.setdefault(math.ceil((now + seconds) / _BUCKET_SECONDS), set()).add(value)
        self._size += 1
        return True


class FirstUses:
    """Tells the first use of a value from a repeat, in the storage of the setting `limits.storage`.

    Unlike a count, the answer must not depend on one process alone: while the storage is away there is no answer.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters, self._local = counters, LocalUses()

    async def first(self, value: str, seconds: float) -> bool:
        """Returns True for the first call with this value, False for another one within `seconds`. Raises Unavailable."""
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()[:16]
        if not self._counters.shared:
            return self._local.first(digest, seconds)
        return await self._counters.claim(f"once/{digest.hex()}", seconds)
