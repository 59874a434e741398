"""How many connections one process accepts, and what it logs when file descriptors run out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..telemetry.log import LOG

# What asyncio logs when an accept fails, and when it retries on a port that has been closed in the meantime.
_ACCEPT: Final = ("socket.accept() out of system resource", "Exception in callback BaseSelectorEventLoop._start_serving(")
_RESERVE: Final = 64
"""Descriptors for everything but client and database connections: key sets, logs, the event loop, the operations port."""


def room_for(connections: int, others: int) -> int:
    """How many client connections this process can accept, at most `connections`, if it needs `others` descriptors besides.

    A soft limit of descriptors that is too low is raised as far as the hard limit allows; if that is not enough, the
    shortage is logged as a warning.
    """
    try:
        import resource
    except ImportError:  # this system has no such limits
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + others + _RESERVE
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    room = min(connections, max(soft - others - _RESERVE, soft // 2))
    if room < connections:
        LOG.warning("too few descriptors for limits.connections", extra={"fields": {"descriptors": soft, "connections": room}})
    return room


class _AcceptErrors(logging.Filter):
    """Lets one accept error a second through: without descriptors, asyncio logs thousands a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(_ACCEPT):
            return True
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + 1
        return True


_filter = _AcceptErrors()


def bound_accept_errors() -> None:
    """Limit asyncio's log of failed accepts to one line a second, for every log handler. Can be called repeatedly."""
    logging.getLogger("asyncio").addFilter(_filter)
