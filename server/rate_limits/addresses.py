"""How often one address may show credentials that are refused, and be told so by a verification each time.

A bad signature costs as much to verify as a good one. So refusals are counted by address, and an address with too many gets a
429 without any verification, until its window ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from ..http.client_address import network_of
from ..http.errors import TooManyRequests
from .counters import MOST_KEYS, Counters
from .rate import Rate


class _Debt:
    """Refused credentials of one address in one window: how many are known of, and how many of them the storage is not told."""

    __slots__ = ("count", "end", "key", "unsent")

    def __init__(self, key: str, end: float) -> None:
        self.key, self.end = key, end
        self.count = self.unsent = 0


class AddressLimit:
    """Counts the refused credentials of each client address. Whoever has too many is refused before anything is verified."""

    def __init__(
        self,
        rate: Rate,
        counters: Counters,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._counters, self._clock, self._ticks = rate, counters, clock, ticks
        self.refusals: OrderedDict[str, _Debt] = OrderedDict()
        """Empty as long as nobody was refused: then there is no need to ask for anybody's address."""
        self._unsent: dict[str, _Debt] = {}
        self._sender: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def blocked(self, address: str) -> int | None:
        """How many seconds an address has to wait, None for not at all."""
        if not self.refusals:
            return None
        debt = self.refusals.get(network_of(address))
        if debt is None or debt.count < self._rate.amount:
            return None
        left = debt.end - self._ticks()
        return math.ceil(left) if left > 0 else None

    def refusal(self, seconds: int) -> TooManyRequests:
        """The answer to an address that has to wait."""
        more = {"RateLimit-Policy": self._rate.policy, "RateLimit": self._rate.state(0, seconds)}
        return TooManyRequests(headers={"Retry-After": str(seconds), **more})

    def charge(self, address: str) -> None:
        """Count a refused credential. At once here; the storage is told in the background."""
        network, now = network_of(address), self._ticks()
        debt = self.refusals.get(network)
        if debt is None or debt.end <= now:
            window = self._rate.window(network, self._clock())
            key = f"address/{self._rate.amount}/{self._rate.seconds}/{window.number}/{network}"
            debt = self.refusals[network] = _Debt(key, now + window.seconds_left)
            self.refusals.move_to_end(network)
            if len(self.refusals) > MOST_KEYS:
                self.refusals.popitem(last=False)
        debt.count += 1
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._rate.seconds, self._sweep)
        if self._counters.shared:
            debt.unsent += 1
            self._unsent[debt.key] = debt
            if self._sender is None:
                self._sender = asyncio.create_task(self._send())

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _send(self) -> None:
        """Tell the storage what it does not know, one address after the other: a flood is many hits in few calls."""
        try:
            while self._unsent:
                key, debt = self._unsent.popitem()
                sent, debt.unsent = debt.unsent, 0
                total = await self._counters.add(key, sent, self._rate.seconds)
                debt.count = max(debt.count, total + debt.unsent)
        finally:
            self._sender = None

    def _sweep(self) -> None:
        now = self._ticks()
        for network in [network for network, debt in self.refusals.items() if debt.end <= now]:
            del self.refusals[network]
        again = asyncio.get_running_loop().call_later
        self._sweeper = again(self._rate.seconds, self._sweep) if self.refusals else None
