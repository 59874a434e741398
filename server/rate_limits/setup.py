"""The two rate limits of one server, as its settings say."""

from __future__ import annotations

from ..settings.sources import Settings
from .addresses import AddressLimit
from .callers import CallerLimit
from .counters import Counters
from .rate import parse_rate


class Limits:
    """`caller` and `address`; None where a limit is switched off."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing. Raises ConfigError."""
        # Elsewhere than in production only this machine is served, and tests send what they like.
        production = settings.get("env") == "production"
        caller = parse_rate("caller", settings.get("limits.caller"), "6000/minute" if production else "off")
        address = parse_rate("address", settings.get("limits.address"), "3000/minute" if production else "off")
        self._counters = Counters(settings.get("limits.storage"))
        self.caller = CallerLimit(caller, self._counters) if caller else None
        self.address = AddressLimit(address, self._counters) if address else None

    async def open(self) -> None:
        if self.caller or self.address:
            await self._counters.open()

    async def close(self) -> None:
        if self.address:
            await self.address.close()
        await self._counters.close()
