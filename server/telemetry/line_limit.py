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
        key, window = (record.name, message), int(self._clock() / self._seconds)
        if window != self._window:
            self._window = window
            self._counts = {one: self._most - count for one, count in self._counts.items() if count > self._most}
        count = self._counts.get(key, 0)
        if count < 0:  # so many were left out in an earlier window
            record.fields = {**getattr(record, "fields", {}), "left_out": -count}
            count = 0
        if key not in self._counts and len(self._counts) >= _MOST_KINDS:
            return False
        self._counts[key] = count + 1
        return count < self._most
