"""The real application without a socket: requests are bytes given to its protocol class, answers are what it writes.

The kernel, the loader and other processes have no part in the figures then: they are the CPU time of this thread, the least of
many repetitions, which other work on the machine hardly changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

Step = Callable[[], Awaitable[Any]]


class _Socket(asyncio.Transport):
    """Takes what is written, and wakes the task that waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.wrote: asyncio.Future[bytes] | None = None
        self.closed = False

    def write(self, data: Any) -> None:
        if self.wrote is not None and not self.wrote.done():
            self.wrote.set_result(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50000) if name in ("peername", "sockname") else default

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


class Client:
    """One connection of an application: `await client.send(request)` gives the bytes of the answer."""

    def __init__(self, runner: web.AppRunner) -> None:
        assert runner.server is not None
        self._socket = _Socket()
        self._protocol: Any = runner.server()
        self._protocol.connection_made(self._socket)
        self._loop = asyncio.get_running_loop()

    async def send(self, request: bytes) -> bytes:
        wrote = self._socket.wrote = self._loop.create_future()
        self._protocol.data_received(request)
        answer: bytes = await wrote
        return answer

    async def must(self, request: bytes, status: bytes) -> None:
        """The same, for a request whose answer is known."""
        async with asyncio.timeout(10):
            answer = await self.send(request)
        assert answer[9:12] == status, answer[:300]

    def close(self) -> None:
        self._protocol.connection_lost(None)


async def cheapest(
    steps: Mapping[str, Step], repetitions: int, batch: int, clock: Callable[[], Sequence[float]] | None = None
) -> dict[str, list[float]]:
    """CPU microseconds of each step: the least of `repetitions`, each of `batch` runs.

    The steps take turns, repetition by repetition. `clock` gives the seconds of several clocks at once; one value comes
    back for each. Without it: this thread's.
    """
    read = clock or (lambda: (time.thread_time(),))
    best = {name: [float("inf")] * len(read()) for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            before = read()
            for _ in range(batch):
                await step()
            best[name] = [
                min(least, (after - was) / batch * 1e6) for least, was, after in zip(best[name], before, read(), strict=True)
            ]
    return best
