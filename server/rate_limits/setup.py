"""Makes the limits of callers and addresses from the settings of a server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiohttp import web

from ..http.client_address import ClientAddress
from ..http.limited import Bounds
from ..settings.sources import Settings
from .addresses import AddressLimit
from .callers import CallerLimit
from .concurrency import Concurrency
from .counters import Counters
from .first_uses import FirstUses
from .rate import parse_rate
from .routes import RouteLimit, Shared

_UNKNOWN_ADDRESSES: Final = (
    "limits.address: auto does not count refused credentials from private and loopback addresses while trusted_proxies is "
    "empty, because they may be a proxy's; set trusted_proxies (GATEPOST_TRUSTED_PROXIES) to your proxies, or limits.address"
)
_UNKNOWN_CLIENTS: Final = (
    "{route}: its @limited(rate, concurrency) does not count clients without a credential from private and loopback addresses "
    "while trusted_proxies is empty, because they may be a proxy's; set trusted_proxies (GATEPOST_TRUSTED_PROXIES) to your "
    "proxies, or limits.address to a rate"
)
_PROOFS_IN_EACH: Final = (
    "limits.storage: DPoP proofs are remembered by each of the `workers` processes alone, so that a proof counts once in each; "
    "set limits.storage to Valkey or Redis"
)


class Limits:
    """The limits `caller` and `address`, None where one is off; `concurrency`; and those of routes."""

    def __init__(
        self, settings: Settings, addresses: ClientAddress, credentials: Iterable[str], *, proofs: bool = False
    ) -> None:
        """`credentials` are the headers that hold one. Opens no connection. Raises ConfigError.

        proofs   does a provider read proofs that count once?
        """
        # Outside production only this machine is served, and tests send as much as they like.
        production = settings.get("env") == "production"
        caller = parse_rate("caller", settings.get("limits.caller"), "6000/minute" if production else "off")
        address = parse_rate("address", settings.get("limits.address"), "3000/minute" if production else "off")
        # A rate that the operator names counts every address; `auto` counts only addresses that belong to one client.
        named = settings.get("limits.address").strip().lower() not in ("auto", "off")
        self._counters = Counters(settings.get("limits.storage"))
        self.first_uses = FirstUses(self._counters)
        """Which one-time values were used before."""
        self.concurrency = Concurrency(settings.get("limits.concurrency"))
        self.caller = CallerLimit(caller, self._counters) if caller else None
        automatic = address is not None and not named
        is_known = addresses.is_known if automatic else None
        self.address = AddressLimit(address, self._counters, credentials=credentials, is_known=is_known) if address else None
        self.warnings = [_UNKNOWN_ADDRESSES] if automatic and not addresses.any_trusted else []
        """What the operator should know at the start."""
        if proofs and settings.get("workers") > 1 and not self._counters.shared:
            self.warnings.append(_PROOFS_IN_EACH)
        unsure = production and not named
        self._routes: dict[str, RouteLimit] = {}
        self._shared = Shared(self._counters, self.concurrency, addresses, addresses.is_known if unsure else None)
        self._warn_of_clients = unsure and not addresses.any_trusted

    def of_route(self, name: str, bounds: Bounds, *, public: bool) -> RouteLimit:
        """The limits of a route that has bounds of its own. `name` is its method and template, `GET` for HEAD too."""
        if name not in self._routes:
            self._routes[name] = RouteLimit(name, bounds, self._shared)
            if public and self._warn_of_clients and (bounds.rate or bounds.concurrency):
                self.warnings.append(_UNKNOWN_CLIENTS.format(route=name))
        return self._routes[name]

    def client_of(self, request: web.Request) -> str | None:
        """Returns what counts as one client without a credential, such as its address; None if that is unknown."""
        return self._shared.client(request)

    async def open(self) -> None:
        """Ask the storage once, if there is a limit and one is set."""
        if self.caller or self.address or self._routes:
            await self._counters.open()

    async def close(self) -> None:
        """Stop the background work and close the storage's connections."""
        if self.address:
            await self.address.close()
        await self._counters.close()
