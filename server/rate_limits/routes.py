"""The limits of one route, as its handler declares them by `@limited`: how often, and how many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiohttp import web

from ..bounded import BoundedDict
from ..http.client_address import ClientAddress, network_of
from ..http.errors import TooManyRequests
from ..http.limited import Bounds, bind
from ..settings.rates import amount_and_seconds
from .callers import LEASE, Both, CallerLimit, Lease
from .concurrency import Concurrency, Turns
from .counters import MOST_KEYS, Counters, LocalCounters
from .rate import Rate

TURN: Final[web.RequestKey[tuple[Concurrency | Turns, str]]] = web.RequestKey("turn")
"""Set on a request that is counted among those in progress of its route: where, and as whose."""


class Shared:
    """What the limits of all routes use together: counters, addresses, and the bound on what is remembered.

    Clients without a credential have memory of their own: they may be very many, and must not displace what is counted for
    callers.
    """

    def __init__(
        self, counters: Counters, concurrency: Concurrency, addresses: ClientAddress, is_known: Callable[[str], bool] | None
    ) -> None:
        """`is_known(address)` is False for an address that may be a proxy's: it is not counted. None: all are."""
        self.counters, self.concurrency, self.addresses, self._is_known = counters, concurrency, addresses, is_known
        self.leases: BoundedDict[str, Lease] = BoundedDict(MOST_KEYS)
        self.leases_of_clients: BoundedDict[str, Lease] = BoundedDict(MOST_KEYS)
        self.clients = LocalCounters()

    def client(self, request: web.Request) -> str | None:
        """What counts as one client among those without a credential; None where that is not known."""
        address = self.addresses.of(request)
        if self._is_known is not None and not self._is_known(address):
            return None
        return f"address/{network_of(address)}"


class RouteLimit:
    """The limits of one route. GET and HEAD of a path are one route."""

    def __init__(self, name: str, bounds: Bounds, shared: Shared) -> None:
        """`name` is the method and the template, as they are part of the keys in the storage."""
        self._name, self._bounds, self._shared = name, bounds, shared
        self._callers = self._clients = None
        if bounds.rate is not None:
            rate, counters = Rate("route", *amount_and_seconds(bounds.rate)), shared.counters
            self._callers = CallerLimit(rate, counters, reason="rate", leases=shared.leases)
            self._clients = CallerLimit(rate, counters, reason="rate", leases=shared.leases_of_clients, local=shared.clients)
        self._own = Concurrency(bounds.concurrency) if bounds.concurrency is not None else None
        self._turns = Turns(self._own, shared.concurrency) if self._own is not None else shared.concurrency

    async def count(self, request: web.Request, caller: str) -> Concurrency | Turns:
        """Count one request of a known caller. Returns where the request takes its turn. Raises TooManyRequests."""
        bind(request, self._bounds)
        if self._callers is not None:
            await self._count(self._callers, request, caller)
        if self._own is not None:
            request[TURN] = self._turns, caller
        return self._turns

    async def count_within(self, request: web.Request, caller: str) -> Concurrency | None:
        """The same for a request within another one of its caller, which has its turn among those of all routes already.

        Returns where it takes its turn among those of the route; None where their number is not limited.
        """
        bind(request, self._bounds)
        if self._callers is not None:
            await self._count(self._callers, request, caller)
        return self._own

    async def enter(self, request: web.Request) -> tuple[Concurrency, str] | None:
        """Count one request of a client without a credential, and wait for its turn. Raises TooManyRequests.

        Returns where the request has begun and as whose, which its end must `leave`; None where it is not counted.
        """
        bind(request, self._bounds)
        client = self._shared.client(request)
        if client is None:
            return None
        if self._clients is not None:
            await self._take(self._clients, client)
        if self._own is None:
            return None
        if not self._own.enter(client):
            await self._own.wait(client)
        request[TURN] = self._own, client
        return self._own, client

    async def _count(self, limit: CallerLimit, request: web.Request, caller: str) -> None:
        """Count one request, and let its response tell of this limit beside that of all routes, also if it is refused."""
        lease: Lease | None = None
        try:
            lease = await self._take(limit, caller)
        except TooManyRequests as refusal:
            lease, headers = limit.lease(self._key(caller)), refusal.headers or {}
            raise TooManyRequests(refusal.reason, headers={"Retry-After": headers["Retry-After"]}) from None
        finally:
            common = request.get(LEASE)
            if lease is not None:
                request[LEASE] = Both(common, lease) if isinstance(common, Lease) else lease

    async def _take(self, limit: CallerLimit, caller: str) -> Lease:
        key = self._key(caller)
        return limit.take(key) or await limit.ask(key)

    def _key(self, caller: str) -> str:
        return f"{self._name}/{caller}"
