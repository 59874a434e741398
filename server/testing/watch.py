"""What the conformance kit watches with: is the event loop blocked, does a task run on, is a credential shown."""

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
"""A word of a header that is shorter is no secret: a scheme, a name."""


def credentials_in(headers: Mapping[str, str]) -> set[str]:
    """The words of these headers that are long enough to be secrets; of a cookie, its value."""
    words = {word for value in headers.values() for word in re.split(r"[\s;,]+", value)}
    words |= {word.partition("=")[2] for word in words}
    return {word for word in words if len(word) >= LONG_ENOUGH}


def words_of(got: object) -> list[str]:
    """All that an answer may show of itself in a log."""
    if not isinstance(got, BaseException):
        return [repr(got), str(got)]
    return ["".join(traceback.format_exception(got)), str(got), repr(got), str(getattr(got, "detail", ""))]


def foreign_tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    """Tasks that are new since `before` and not aiohttp's own."""
    new = asyncio.all_tasks() - before
    codes = [getattr(task.get_coro(), "cr_code", None) for task in new if not task.done()]
    return [code.co_qualname for code in codes if code is not None and "/aiohttp/" not in code.co_filename]


class Pulse:
    """`async with Pulse() as pulse:` how many beats of a thread passed between two turns of the loop, at most."""

    every = 0.005
    most = 40
    """Beats, which are 0.2 s or more: far beyond what a busy machine does, far below a blocking call that matters."""

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
    """Break into a call that blocks for ever, such as one to a service in the very loop that it blocks (main thread only)."""
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
