"""How often something may happen: `6000/minute`, in windows that begin at a time of their own for each key.

The notation is that of the `limits` library. A window is fixed: its hits are counted until it ends, and then from nothing. It
is found from the clock and the key alone, so that all processes and machines agree on it and ask nobody; and since it is
shifted by the key, not all callers begin anew in the same second.
"""

from __future__ import annotations

import re
import zlib
from typing import Final, NamedTuple

from ..settings.setting import ConfigError

_OFF: Final = ("", "off")
# What nearly everybody writes. For the rest of the notation the library is loaded, which takes 2 MiB of every process.
_PLAIN: Final = re.compile(r"([0-9]{1,10})/(second|minute|hour|day)\Z")
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


class Window(NamedTuple):
    """One stretch of time in which hits are counted together."""

    number: int
    seconds_left: float


class Rate(NamedTuple):
    """So many hits in so many seconds. `name` is what the headers call it."""

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
        """The value of the `RateLimit` header (the same draft, 4)."""
        return f'"{self.name}";r={remaining};t={seconds}'


def parse_rate(name: str, text: str, auto: str) -> Rate | None:
    """The rate that `limits.<name>` says, None for none; `auto` is what "auto" stands for. Raises ConfigError."""
    said = (auto if text.strip().lower() == "auto" else text).strip().lower()
    if said in _OFF:
        return None
    try:
        rates = _read(said)
    except ValueError:
        raise ConfigError(f"limits.{name}: {text!r} is not a rate such as 6000/minute, auto or off") from None
    if len(rates) != 1:
        raise ConfigError(f"limits.{name}: one rate, not {len(rates)}")
    rate = Rate(name, *rates[0])
    if not 1 <= rate.amount <= 10**9 or rate.seconds > 366 * 86400:
        raise ConfigError(f"limits.{name}: 1 to 1000000000 within a year at most; switch it off with 'off'")
    return rate


def _read(text: str) -> list[tuple[int, int]]:
    """The rates in a text, each as hits and seconds. Raises ValueError."""
    if plain := _PLAIN.match(text):
        return [(int(plain[1]), _SECONDS[plain[2]])]
    from limits import parse_many

    return [(one.amount, one.get_expiry()) for one in parse_many(text)]
