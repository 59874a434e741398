"""Limits how many requests one caller may send.

Asking the storage for every request would cost more than the request. So a process takes a caller's hits from it in leases of
a few hits, and hands these out on its own. Leased hits are counted, so all processes together never grant more than the
limit; hits that a process has leased and its caller does not use are lost to the caller until the window ends. A lease is a
fiftieth of the limit, and towards the end no more than an eighth of what is left, down to one: at most `limit // 50 - 1` hits
of each process are lost, and none where a lease is one hit (limits below 100) or where all the caller's requests reach one
process.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web

from ..bounded import BoundedDict
from ..http.errors import TooManyRequests
from ..http.response import JsonResponse
from .counters import MOST_KEYS, Counters, LocalCounters
from .rate import Rate


class Lease:
    """The hits of one caller that this process may grant until the window ends."""

    __slots__ = ("_start", "end", "left", "lock", "rate", "rest")

    def __init__(self, rate: Rate, start: bytes) -> None:
        """`start` is the beginning of the two header lines, the same bytes for all callers."""
        self.rate, self._start = rate, start
        self.left = 0
        """hits that this process still holds"""
        self.rest = 1
        """hits left in the storage when it was last asked; none: do not ask again in this window"""
        self.end = 0.0
        """when the window ends, on the monotonic clock: setting the wall clock back must lock no caller out"""
        self.lock = asyncio.Lock()

    def lines(self, now: float) -> bytes:
        """The two headers as lines, each with its line end. `now` is monotonic, in seconds."""
        seconds = self.end - now
        return b"%b%d;t=%d\r\n" % (self._start, self.left + self.rest, math.ceil(seconds) if seconds > 0 else 0)

    def headers(self, now: float) -> tuple[str, str]:
        """The values of `RateLimit-Policy` and `RateLimit`, without what other processes took since the storage was asked."""
        seconds = self.end - now
        return self.rate.policy, self.rate.state(self.left + self.rest, math.ceil(seconds) if seconds > 0 else 0)


class Both:
    """Two leases of one request: those of the limit of all routes, and of the route's own."""

    __slots__ = ("_leases",)

    def __init__(self, first: Lease, second: Lease) -> None:
        self._leases = first, second

    def lines(self, now: float) -> bytes:
        """The two headers as lines; each lists both limits."""
        policies, states = self.headers(now)
        return f"RateLimit-Policy: {policies}\r\nRateLimit: {states}\r\n".encode()

    def headers(self, now: float) -> tuple[str, str]:
        """The values of `RateLimit-Policy` and `RateLimit`: lists of two members."""
        policies, states = zip(*(lease.headers(now) for lease in self._leases), strict=True)
        return ", ".join(policies), ", ".join(states)


LEASE: Final[web.RequestKey[Lease | Both]] = web.RequestKey("lease")
"""Set on a request whose caller was counted."""


class CallerLimit:
    """Counts the requests of each caller, by a key such as `server.auth.caller.caller_key` returns."""

    def __init__(
        self,
        rate: Rate,
        counters: Counters,
        *,
        reason: str | None = None,
        leases: BoundedDict[str, Lease] | None = None,
        local: LocalCounters | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reason` is that of the 429. `leases` and `local` are for limits that share a bound on what is remembered: their
        keys must differ. None: this limit has its own leases, and the local counts of `counters`.
        """
        self._rate, self._counters, self._clock, self._ticks = rate, counters, clock, ticks
        self._start = f'RateLimit-Policy: {rate.policy}\r\nRateLimit: "{rate.name}";r='.encode()
        self._leases: BoundedDict[str, Lease] = BoundedDict(MOST_KEYS) if leases is None else leases
        self._reason, self._local = reason, local
        self._largest = max(1, rate.amount // 50)

    def take(self, key: str) -> Lease | None:
        """Count one request where a lease has a hit left; None: call `ask`. Runs for every request of a known caller."""
        lease = self._leases.get(key)
        if lease is None or lease.left <= 0 or self._ticks() >= lease.end:
            return None
        lease.left -= 1
        return lease

    async def ask(self, key: str) -> Lease:
        """Count one request, with a new lease where that is needed. Raises TooManyRequests."""
        lease = self._leases.get(key)
        if lease is None:
            now = self._ticks()
            self._leases.make_room(lambda old: old.end <= now and not old.lock.locked())
            lease = self._leases[key] = Lease(self._rate, self._start)
        if self._spent(lease):
            raise self._refusal(lease)
        async with lease.lock:  # one request renews the lease for all that wait
            taken = self.take(key)
            if taken is None and not self._spent(lease):
                await self._renew(key, lease)
                if lease.left > 0:
                    lease.left -= 1
                    taken = lease
        if taken is None:
            raise self._refusal(lease)
        return taken

    def lease(self, key: str) -> Lease | None:
        """The caller's lease, whether or not a hit is left in it; None if there is none."""
        return self._leases.get(key)

    def _spent(self, lease: Lease) -> bool:
        return lease.left <= 0 and lease.rest <= 0 and self._ticks() < lease.end

    async def _renew(self, key: str, lease: Lease) -> None:
        amount, seconds = self._rate.amount, self._rate.seconds
        now, window = self._ticks(), self._rate.window(key, self._clock())
        asked = self._largest if now >= lease.end else max(1, min(self._largest, lease.rest // 8))
        name = f"{self._rate.name}/{amount}/{seconds}/{window.number}/{key}"
        count = await self._counters.add(name, asked, seconds, self._local)
        # The count says how many hits were taken before these: near the end the lease is what remains, granted to no one else.
        lease.left, lease.rest = max(0, min(asked, amount - (count - asked))), max(0, amount - count)
        lease.end = now + window.seconds_left
        if key in self._leases:
            self._leases.move_to_end(key)

    def _refusal(self, lease: Lease) -> TooManyRequests:
        now = self._ticks()
        policy, state = lease.headers(now)
        wait = str(max(1, math.ceil(lease.end - now)))
        headers = {"Retry-After": wait, "RateLimit-Policy": policy, "RateLimit": state}
        return TooManyRequests(self._reason, headers=headers, for_log="" if self._reason else "limits.caller")


def mark(response: web.StreamResponse, lease: Lease | Both) -> None:
    """Put `RateLimit-Policy` and `RateLimit` on the response to a known caller."""
    if isinstance(response, JsonResponse):
        response.add(lease.lines(time.monotonic()))
        return
    headers = response.headers
    headers["RateLimit-Policy"], headers["RateLimit"] = lease.headers(time.monotonic())
