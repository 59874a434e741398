"""Waits for a database that cannot be reached yet: it may start at the same time, or later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from ..http.errors import Unavailable
from ..settings.sources import Settings
from ..telemetry.log import LOG

T = TypeVar("T")
PAUSE_SECONDS: Final = 0.25
IN_PRODUCTION: Final = 30.0


def wait_seconds(settings: Settings) -> float:
    """How long to wait for a database that cannot be reached, in seconds: `database.wait_seconds`, or its default."""
    given: float | None = settings.get("database.wait_seconds")
    return given if given is not None else IN_PRODUCTION if settings.get("env") == "production" else 0.0


async def until_reachable(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Returns what `attempt()` returns, tried again while it raises Unavailable, for at most `seconds`.

    Any other exception is raised at once: a mistake does not mend itself.
    """
    end, said = time.monotonic() + seconds, False
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            if time.monotonic() + PAUSE_SECONDS > end:
                raise Unavailable(f"{error}, tried for {seconds:g} s") if said else error from None
            if not said:
                LOG.warning("waiting for the database", extra={"fields": {"seconds": seconds, "why": str(error)}})
            said = True
        await asyncio.sleep(PAUSE_SECONDS)
