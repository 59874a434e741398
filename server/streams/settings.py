"""The bounds of live answers, from the settings `streams.*`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class StreamBounds(NamedTuple):
    """How many live answers there may be, and how long. Times are in seconds.

    per_caller  open live answers of one caller
    total       open live answers of the process
    longest     after how many seconds one ends
    heartbeat   every so many seconds an idle event stream gets a comment, and a WebSocket a ping
    slow        for how many seconds a reader may leave `unsent` bytes or more unread
    """

    per_caller: int = 20
    total: int = 5000
    longest: float = 3600.0
    heartbeat: float = 15.0
    slow: float = 10.0
    unsent: int = 65_536


def bounds_from(get: Callable[[str], Any]) -> StreamBounds:
    """Returns the bounds in the settings; `get` returns the value of a setting."""
    return StreamBounds(get("streams.per_caller"), get("streams.total"), get("streams.max_seconds"))
