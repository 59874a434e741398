"""Rates such as `6000/minute`, counted in fixed windows that start at a different time for each key.

A window is fixed: its hits are counted until it ends, and the next one starts from zero. It is computed from the clock and
the key alone, so all processes and machines agree on it without asking each other; and because the key shifts it, not all
callers start a new window in the same second.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from ..settings.rates import amount_and_seconds
from ..settings.setting import ConfigError


class Window(NamedTuple):
    """A period in which hits are counted together: its number, and the seconds until it ends."""

    number: int
    seconds_left: float


class Rate(NamedTuple):
    """`amount` hits in `seconds`. `name` is its name in the RateLimit headers."""

    name: str
    amount: int
    seconds: int

    def window(self, key: str, now: float) -> Window:
        """The window of this key at `now` (Unix seconds)."""
        number, gone = divmod(now + zlib.crc32(key.encode()) % self.seconds, self.seconds)
        return Window(int(number), self.seconds - gone)

    @property
    def policy(self) -> str:
        """The value of the `RateLimit-Policy` header (draft-ietf-httpapi-ratelimit-headers-10, 3)."""
        return f'"{self.name}";q={self.amount};w={self.seconds}'

    def state(self, remaining: int, seconds: int) -> str:
        """The value of the `RateLimit` header (the same draft, 4): hits that remain, seconds until the window ends."""
        return f'"{self.name}";r={remaining};t={seconds}'


def parse_rate(name: str, text: str, auto: str) -> Rate | None:
    """The rate in the setting `limits.<name>`; None for "off". `auto` is the rate that "auto" means. Raises ConfigError."""
    chosen = (auto if text.strip().lower() == "auto" else text).strip().lower()
    if chosen == "off":
        return None
    try:
        return Rate(name, *amount_and_seconds(chosen))
    except ValueError as error:
        raise ConfigError(f"limits.{name}: {error}; or auto, or off") from None
