"""Makes the limits of callers and addresses from the settings of a server."""

from __future__ import annotations

from ..settings.sources import Settings
from .addresses import AddressLimit
from .callers import CallerLimit
from .concurrency import Concurrency
from .counters import Counters
from .rate import parse_rate


class Limits:
    """The limits `caller` and `address`, None where one is off; and `concurrency`."""

    def __init__(self, settings: Settings) -> None:
        """Opens no connection. Raises ConfigError."""
        # Outside production only this machine is served, and tests send as much as they like.
        production = settings.get("env") == "production"
        caller = parse_rate("caller", settings.get("limits.caller"), "6000/minute" if production else "off")
        address = parse_rate("address", settings.get("limits.address"), "3000/minute" if production else "off")
        self._counters = Counters(settings.get("limits.storage"))
        self.concurrency = Concurrency(settings.get("limits.concurrency"))
        self.caller = CallerLimit(caller, self._counters) if caller else None
        self.address = AddressLimit(address, self._counters) if address else None

    async def open(self) -> None:
        """Ask the storage once, if there is a limit and one is set."""
        if self.caller or self.address:
            await self._counters.open()

    async def close(self) -> None:
        """Stop the background work and close the storage's connections."""
        if self.address:
            await self.address.close()
        await self._counters.close()
