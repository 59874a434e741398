"""Slows a client that tries one unknown key after another, and locks no client out.

Guessing 256 bits is hopeless; this protects the database. Each lookup of a secret that has not yet worked on this worker
is charged to the client's address. If it is a valid key the charge is paid back, so that only failures count. Debts decay
with time. Beyond the allowance each lookup from that address waits, at most a second, and is never refused: a client that
shares an address (a proxy, an office) with a guesser waits up to a second the first time. After that it does not wait: a
secret that has worked is remembered by its digest, which cannot be guessed. Only a few lookups of unknown secrets run at
the same time, so that they never take all connections from known clients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from server import BoundedDict

PER_SECOND: Final = 10.0
ALLOWANCE: Final = 20
LONGEST_WAIT: Final = 1.0
AT_ONCE: Final = 4
_MOST: Final = 10_000


class Throttle:
    """Debts by client address, in lookups. Bounded: the addresses that were idle longest are dropped first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._debts: BoundedDict[str, tuple[float, float]] = BoundedDict(_MOST)
        self._slots = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Charge one lookup, wait as long as the address must, and hold one of the few slots for unknown secrets."""
        wait = self.charge(address)
        if wait > 0:
            await asyncio.sleep(wait)
        async with self._slots:
            yield

    def charge(self, address: str) -> float:
        """Charge one lookup; returns how many seconds it must wait."""
        debt = min(self._debt(address) + 1, ALLOWANCE + PER_SECOND * LONGEST_WAIT)
        self._put(address, debt)
        return max((debt - ALLOWANCE) / PER_SECOND, 0.0)

    def pay_back(self, address: str) -> None:
        """Take back the charge of a lookup that found a key."""
        self._put(address, max(self._debt(address) - 1, 0.0))

    def _debt(self, address: str) -> float:
        debt, since = self._debts.get(address, (0.0, 0.0))
        return max(debt - (self._clock() - since) * PER_SECOND, 0.0)

    def _put(self, address: str, debt: float) -> None:
        self._debts.put(address, (debt, self._clock()))
