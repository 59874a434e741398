"""Slows whoever tries one unknown key after the other, and locks nobody out.

Guessing 256 bits is hopeless; what is protected here is the database. Each lookup of a secret that this worker has not
seen succeed is charged to the client's address, and what turns out to be a key is paid back, so that only failures count.
Debts run out with time. Beyond the allowance each lookup from there waits, up to a second, and then goes on: it is never
refused, so whoever shares an address (a proxy, an office) with a guesser gets in a second late the first time. The second
time not even that: a secret that has worked here is remembered by its digest, which nobody can guess, and does not wait.
Few lookups of strangers run at the same time, so that they never take all connections from those who are known.
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
    """Debts by client address, in lookups. Bounded: the addresses that were quiet the longest are forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._debts: BoundedDict[str, tuple[float, float]] = BoundedDict(_MOST)
        self._slots = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Charge one lookup, wait as long as the address has to, and hold one of the few places for strangers."""
        wait = self.charge(address)
        if wait > 0:
            await asyncio.sleep(wait)
        async with self._slots:
            yield

    def charge(self, address: str) -> float:
        """Charge one lookup; how many seconds it has to wait."""
        debt = min(self._debt(address) + 1, ALLOWANCE + PER_SECOND * LONGEST_WAIT)
        self._put(address, debt)
        return max((debt - ALLOWANCE) / PER_SECOND, 0.0)

    def pay_back(self, address: str) -> None:
        """It was a key after all."""
        self._put(address, max(self._debt(address) - 1, 0.0))

    def _debt(self, address: str) -> float:
        debt, since = self._debts.get(address, (0.0, 0.0))
        return max(debt - (self._clock() - since) * PER_SECOND, 0.0)

    def _put(self, address: str, debt: float) -> None:
        self._debts.put(address, (debt, self._clock()))
