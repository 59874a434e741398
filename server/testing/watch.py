"""Instruments of the conformance kit: they find a blocked event loop, a task that runs on, and a shown credential."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

LONG_ENOUGH: Final = 16
"""Characters. A shorter word of a header is not a secret but a scheme or a name."""


def credentials_in(headers: Mapping[str, str]) -> set[str]:
    """The words of these headers that are long enough to be secrets; for a cookie its value too."""
    words = {word for value in headers.values() for word in re.split(r"[\s;,]+", value)}
    words |= {word.partition("=")[2] for word in words}
    return {word for word in words if len(word) >= LONG_ENOUGH}


def words_of(got: object) -> list[str]:
    """Every text by which an answer could appear in a log."""
    if not isinstance(got, BaseException):
        return [repr(got), str(got)]
    return ["".join(traceback.format_exception(got)), str(got), repr(got), str(getattr(got, "detail", ""))]


def foreign_tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    """The names of running tasks that are not in `before` and not aiohttp's own."""
    new = asyncio.all_tasks() - before
    codes = [getattr(task.get_coro(), "cr_code", None) for task in new if not task.done()]
    return [code.co_qualname for code in codes if code is not None and "/aiohttp/" not in code.co_filename]


class Pulse:
    """`async with Pulse() as pulse:` measures the most beats of a thread between two turns of the loop: `pulse.longest`."""

    every = 0.005
    most = 40
    """Beats: 0.2 seconds or more, far more than a busy machine causes and far less than a blocking call that matters."""

    def __init__(self) -> None:
        self.longest = self._beats = self._seen = 0
        self._end = threading.Event()

    async def __aenter__(self) -> Pulse:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        self._task = asyncio.create_task(self._turn())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._look()
        self._end.set()
        self._task.cancel()
        await asyncio.wait({self._task})
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self.every):
            self._beats += 1

    async def _turn(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(self.every)

    def _look(self) -> None:
        now = self._beats
        self.longest, self._seen = max(self.longest, now - self._seen), now


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt a call that blocks for ever, such as one to a service in the same loop. Main thread only.

    Raises AssertionError in the block after `seconds`.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: object) -> None:
        raise AssertionError("it blocks the event loop")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
