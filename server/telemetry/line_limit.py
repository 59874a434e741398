"""A limit on how often the same line is logged: a client can cause some lines as often as it likes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

MOST_LINES: Final = 100
SECONDS: Final = 10.0
UNLIMITED: Final = frozenset({"request", "denied", "more were denied"})
"""`request` is one line for each request by the operator's choice (`log.requests`); denials have a limit of their own."""
FEWER: Final = {"provider unavailable": 20}
"""Lines of which a client can cause one beside another: a token with an unknown key id, while the keys cannot be fetched."""
_MOST_KINDS: Final = 1000


class LineLimit(logging.Filter):
    """At most `most` lines with the same message in `seconds`. The next line afterwards says how many were left out.

    Messages of the server are constant texts; what varies is in the fields.
    """

    def __init__(self, most: int = MOST_LINES, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._most, self._seconds, self._clock = most, seconds, clock
        self._window, self._counts = 0, dict[tuple[str, str], int]()

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a line beyond the limit. Adds the field `left_out` to the first line after some were left out."""
        message = str(record.msg)
        if message in UNLIMITED:
            return True
        most = self._kept(message)
        key, window = (record.name, message), int(self._clock() / self._seconds)
        if window != self._window:
            self._window = window
            self._counts = {one: kept - count for one, count in self._counts.items() if count > (kept := self._kept(one[1]))}
        count = self._counts.get(key, 0)
        if count < 0:  # so many were left out in an earlier window
            record.fields = {**getattr(record, "fields", {}), "left_out": -count}
            count = 0
        if key not in self._counts and len(self._counts) >= _MOST_KINDS:
            return False
        self._counts[key] = count + 1
        return count < most

    def _kept(self, message: str) -> int:
        """How many lines with this message are kept."""
        return min(self._most, FEWER.get(message, self._most))
