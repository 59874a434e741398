"""The signals that stop a server process, and the one that must not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any, Final

from ..telemetry.log import LOG
from .worker import Worker

_INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it


def stop_signal(kill_children: Callable[[], None] = lambda: None) -> asyncio.Event:
    """Set by SIGTERM or SIGINT. A SIGINT after that (a second Ctrl-C) ends the process at once."""
    stop = asyncio.Event()

    def interrupted() -> None:
        if stop.is_set():
            kill_children()
            os._exit(_INTERRUPTED)
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    return stop


async def ended_first(work: asyncio.Future[Any], stop: asyncio.Event) -> bool:
    """Wait for `work` or for `stop`. Whether the work has ended; otherwise it still runs."""
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return work.done()


def ignore_hangup(worker: Worker | None) -> None:
    """Without a handler SIGHUP would end this process. Only the parent of several workers restarts something."""

    def ignore() -> None:
        if worker is None:
            LOG.warning("SIGHUP ignored: only a server with several workers restarts without a gap")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, ignore)
