"""How many connections one process takes, and what happens when descriptors run out all the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..telemetry.log import LOG

# What asyncio says when an accept fails, and when it tries again on a port that was closed meanwhile.
_ACCEPT: Final = ("socket.accept() out of system resource", "Exception in callback BaseSelectorEventLoop._start_serving(")
_RESERVE: Final = 64
"""descriptors for all that is neither a client nor a database connection: key sets, logs, the loop, the operations port"""


def room_for(connections: int, others: int) -> int:
    """How many client connections this process can really take, at most `connections`, beside `others`.

    A low soft limit of descriptors is raised as far as the hard one lets it; where that is not enough, there is a warning.
    """
    try:
        import resource
    except ImportError:  # no such limits on this system
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
    """asyncio logs every accept that fails for want of descriptors, thousands a second. One a second says the same."""

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
    """Let asyncio's log of failing accepts through once a second, whoever writes the log. May be called again."""
    logging.getLogger("asyncio").addFilter(_filter)
