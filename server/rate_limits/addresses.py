"""Limits how many refused credentials one client address may send.

A bad signature costs as much to verify as a good one. So refusals are counted by address, and an address with too many gets
a 429 without any verification until its window ends. A credential that this process has accepted before is not refused for
what others at its address do.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from aiohttp import hdrs, web
from multidict import MultiMapping, istr

from ..bounded import BoundedDict
from ..http.client_address import network_of
from ..http.errors import TooManyRequests, Unauthorized
from .counters import MOST_KEYS, Counters
from .rate import Rate

T = TypeVar("T")


class _Refusals:
    """Refused credentials of one address in one window: all that are known, and those not yet sent to the storage."""

    __slots__ = ("count", "end", "key", "network", "unsent")

    def __init__(self, network: str, key: str, end: float) -> None:
        self.network, self.key, self.end = network, key, end
        self.count = self.unsent = 0


class AddressLimit:
    """Counts the refused credentials of each client address. One with too many is refused before anything is verified."""

    def __init__(
        self,
        rate: Rate,
        counters: Counters,
        *,
        credentials: Iterable[str] = (hdrs.AUTHORIZATION,),
        is_known: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`credentials` are the headers that hold one, beside the cookie. `is_known(address)` is False for one that may
        be a proxy's: its refusals are not counted. None: all are.
        """
        self._rate, self._counters, self._clock, self._ticks = rate, counters, clock, ticks
        self._credentials, self._is_known = tuple(map(istr, credentials)), is_known
        self._accepted: BoundedDict[int, None] = BoundedDict(MOST_KEYS)
        self.refusals: BoundedDict[str, _Refusals] = BoundedDict(MOST_KEYS)
        """By network."""
        self.full: BoundedDict[str, _Refusals] = BoundedDict(MOST_KEYS)
        """Those of the networks with too many. While there are none, no request needs to look up its client's address."""
        self._unsent: dict[str, _Refusals] = {}
        self._sender: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def blocked(self, address: str) -> int | None:
        """How many seconds this address must wait; None: it need not."""
        if not self.full:
            return None
        refused = self.full.get(network_of(address))
        if refused is None:
            return None
        left = refused.end - self._ticks()
        return math.ceil(left) if left > 0 else None

    def demand(self, address: str) -> None:
        """Raise TooManyRequests for an address that must wait, whatever credential it shows."""
        if (seconds := self.blocked(address)) is not None:
            raise self.refusal(seconds)

    def refusal(self, seconds: int) -> TooManyRequests:
        """The error for an address that must wait so many seconds."""
        more = {"RateLimit-Policy": self._rate.policy, "RateLimit": self._rate.state(0, seconds)}
        return TooManyRequests(headers={"Retry-After": str(seconds), **more}, for_log="limits.address")

    def remember(self, headers: MultiMapping[str]) -> None:
        """Remember that the credential in these headers was accepted, as a hash."""
        self._accepted.put(self._hash(headers), None)

    def recall(self, request: web.Request, address: str, recall: Callable[[web.Request], T | None]) -> T | None:
        """Returns `recall(request)`: the caller, or None if it must be verified.

        An address that must wait is verified only if it shows a credential that was accepted before and not refused since.
        Raises TooManyRequests.
        """
        wait, headers = self.blocked(address), request.headers
        if wait is None or not (hdrs.COOKIE in headers or any(map(headers.get, self._credentials))):
            return recall(request)
        with suppress(Unauthorized):
            caller = recall(request)
            if caller is not None or self._hash(headers) in self._accepted:
                return caller
        raise self.refusal(wait)

    def refused(self, headers: MultiMapping[str], address: str) -> None:
        """Forget the credential in these headers, and count the refusal."""
        if self._accepted:
            self._accepted.pop(self._hash(headers), None)
        self.charge(address)

    def charge(self, address: str) -> None:
        """Count a refused credential, unless the address may be a proxy's: here at once, in the storage in the background."""
        if self._is_known is not None and not self._is_known(address):
            return
        network, now = network_of(address), self._ticks()
        refused = self.refusals.get(network)
        if refused is None or refused.end <= now:
            window = self._rate.window(network, self._clock())
            key = f"address/{self._rate.amount}/{self._rate.seconds}/{window.number}/{network}"
            refused = _Refusals(network, key, now + window.seconds_left)
            self.refusals.put(network, refused)
        self._count(refused, refused.count + 1)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._rate.seconds, self._sweep)
        if self._counters.shared:
            refused.unsent += 1
            self._unsent[refused.key] = refused
            if self._sender is None:
                self._sender = asyncio.create_task(self._send())

    def _count(self, refused: _Refusals, count: int) -> None:
        refused.count = count
        if count >= self._rate.amount:
            self.full.put(refused.network, refused)

    async def close(self) -> None:
        """Stop the background work."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    def _hash(self, headers: MultiMapping[str]) -> int:
        # Python's keyed hash is enough: a credential with the hash of another one is still verified.
        shown = tuple(map(headers.get, self._credentials))
        if "" in shown:  # as if it were not there
            shown = tuple(value or None for value in shown)
        return hash(shown if any(shown) else (hdrs.COOKIE, *headers.getall(hdrs.COOKIE, ())))

    async def _send(self) -> None:
        """Send the counts to the storage, one address after the other: a flood of hits becomes few calls."""
        try:
            while self._unsent:
                key, refused = self._unsent.popitem()
                sent, refused.unsent = refused.unsent, 0
                total = await self._counters.add(key, sent, self._rate.seconds)
                self._count(refused, max(refused.count, total + refused.unsent))
        finally:
            self._sender = None

    def _sweep(self) -> None:
        now = self._ticks()
        for kept in (self.refusals, self.full):
            for network in [network for network, refused in kept.items() if refused.end <= now]:
                del kept[network]
        again = asyncio.get_running_loop().call_later
        self._sweeper = again(self._rate.seconds, self._sweep) if self.refusals or self.full else None
