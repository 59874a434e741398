"""How often one caller may ask.

Asking a storage for every request would cost more than the request. So a caller's hits are taken from it in leases: a few at a
time, handed out here without asking anybody. What is leased is counted, so all processes together never grant more than the
limit; what a process has leased and its caller does not use is lost to the caller until the window ends. A lease is a fiftieth
of the limit, and towards the end no more than an eighth of what is left, down to one: at most `limit // 50 - 1` hits of each
process are lost, and none where a lease is one hit (limits below 100) or where all the caller's requests reach one process.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import web

from ..auth.identity import Identity
from ..http.errors import TooManyRequests
from ..http.response import JsonResponse
from .counters import MOST_KEYS, Counters
from .rate import Rate

_KEY: Final = "limits.key"


class Lease:
    """A caller's hits that this process may hand out until the window ends."""

    __slots__ = ("_start", "end", "left", "lock", "rate", "rest")

    def __init__(self, rate: Rate, start: bytes) -> None:
        """`start` is what the two header lines begin with. All callers share it."""
        self.rate, self._start = rate, start
        self.left = 0
        """hits in our hands"""
        self.rest = 1
        """hits that were left for everybody when we last asked; none: do not ask again in this window"""
        self.end = 0.0
        """when the window ends, on the monotonic clock: whoever sets the other clock back locks nobody out"""
        self.lock = asyncio.Lock()

    def lines(self, now: float) -> bytes:
        """The same two headers as lines."""
        seconds = self.end - now
        return b"%b%d;t=%d\r\n" % (self._start, self.left + self.rest, math.ceil(seconds) if seconds > 0 else 0)

    def headers(self, now: float) -> tuple[str, str]:
        """The values of `RateLimit-Policy` and `RateLimit`; what other processes took since we asked is not in it."""
        seconds = self.end - now
        return self.rate.policy, self.rate.state(self.left + self.rest, math.ceil(seconds) if seconds > 0 else 0)


LEASE: Final = web.RequestKey("lease", Lease)
"""On a request whose caller's hit was counted."""


class CallerLimit:
    """Counts the requests of each known caller."""

    def __init__(
        self,
        rate: Rate,
        counters: Counters,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._counters, self._clock, self._ticks = rate, counters, clock, ticks
        self._start = f'RateLimit-Policy: {rate.policy}\r\nRateLimit: "{rate.name}";r='.encode()
        self._leases: OrderedDict[str, Lease] = OrderedDict()
        self._largest = max(1, rate.amount // 50)

    def take(self, identity: Identity) -> Lease | None:
        """Count one request, if a lease has a hit left; None: `await ask(identity)`. On the path of every request."""
        lease = self._leases.get(identity.derived.get(_KEY) or _key(identity))
        if lease is None or lease.left <= 0 or self._ticks() >= lease.end:
            return None
        lease.left -= 1
        return lease

    async def ask(self, identity: Identity) -> Lease:
        """Count one request, after a new lease where that is needed. Raises TooManyRequests."""
        key = _key(identity)
        lease = self._leases.get(key)
        if lease is None:
            self._forget()
            lease = self._leases[key] = Lease(self._rate, self._start)
        if self._spent(lease):
            raise self._refusal(lease)
        async with lease.lock:  # one asks for all who wait
            taken = self.take(identity)
            if taken is None and not self._spent(lease):
                await self._renew(key, lease)
                if lease.left > 0:
                    lease.left -= 1
                    taken = lease
        if taken is None:
            raise self._refusal(lease)
        return taken

    def _spent(self, lease: Lease) -> bool:
        return lease.left <= 0 and lease.rest <= 0 and self._ticks() < lease.end

    async def _renew(self, key: str, lease: Lease) -> None:
        amount, seconds = self._rate.amount, self._rate.seconds
        now, window = self._ticks(), self._rate.window(key, self._clock())
        wanted = self._largest if now >= lease.end else max(1, min(self._largest, lease.rest // 8))
        count = await self._counters.add(f"caller/{amount}/{seconds}/{window.number}/{key}", wanted, seconds)
        # The count tells how many there were before us: near the end we get what is there, and nobody got it too.
        lease.left, lease.rest = max(0, min(wanted, amount - (count - wanted))), max(0, amount - count)
        lease.end = now + window.seconds_left
        if key in self._leases:
            self._leases.move_to_end(key)

    def _forget(self) -> None:
        """Make place for one. What was renewed the longest ago stands first: two of these may go if they are over."""
        now = self._ticks()
        for _ in range(min(2, len(self._leases))):
            first = next(iter(self._leases.values()))
            if len(self._leases) >= MOST_KEYS or (first.end <= now and not first.lock.locked()):
                self._leases.popitem(last=False)

    def _refusal(self, lease: Lease) -> TooManyRequests:
        now = self._ticks()
        policy, state = lease.headers(now)
        wait = str(max(1, math.ceil(lease.end - now)))
        return TooManyRequests(headers={"Retry-After": wait, "RateLimit-Policy": policy, "RateLimit": state})


def _key(identity: Identity) -> str:
    """Who is counted: the user of a provider, whatever the organisation; else the key; else the organisation."""
    who = identity.user_id, identity.key_id, identity.org_id
    kind, name = next(((kind, name) for kind, name in zip("uko", who, strict=True) if name is not None), ("-", ""))
    key: str = identity.derived.setdefault(_KEY, f"{identity.provider}/{kind}/{name}")
    return key


def mark(response: web.StreamResponse, lease: Lease) -> None:
    """Put `RateLimit-Policy` and `RateLimit` on a known caller's answer."""
    if isinstance(response, JsonResponse):
        response.add(lease.lines(time.monotonic()))
        return
    headers = response.headers
    headers["RateLimit-Policy"], headers["RateLimit"] = lease.headers(time.monotonic())
