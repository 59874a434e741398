"""The notation of rates, such as `20/minute`, in settings and in a handler's declaration."""

from __future__ import annotations

import re
from typing import Final

# The notation of the `limits` library (`10/minute`, `10 per 5 seconds`), whose months have 30 days and years 12 of these.
_RATE: Final = re.compile(r"\s*([0-9]{1,20})\s*(?:/|per)\s*([0-9]{1,20})?\s*(second|minute|hour|day|month|year)s?\s*\Z")
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "month": 2592000, "year": 31104000}


def amount_and_seconds(text: str) -> tuple[int, int]:
    """The hits and the seconds of one rate. Raises ValueError, whose message begins with `must be`."""
    found = _RATE.match(text.lower())
    amount, seconds = (int(found[1]), int(found[2] or 1) * _SECONDS[found[3]]) if found else (0, 0)
    if not 1 <= amount <= 10**9 or not 1 <= seconds <= 366 * 86400:
        raise ValueError(f"must be one rate such as 6000/minute, of 1 to 1000000000 hits within a year, not {text!r}")
    return amount, seconds
