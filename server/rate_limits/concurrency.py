"""Limits how many requests of one caller are in progress at once; the others wait for their turn.

It is enforced before a request asks for a database connection: requests that a caller sends faster than they are handled wait
here, where they hold nothing that other callers need.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from ..http.errors import TooManyRequests

WAIT_SECONDS: Final = 2.0
"""The longest wait for a turn."""


class Concurrency:
    """Counts each caller's requests in progress. It remembers only callers that have one."""

    def __init__(self, most: int) -> None:
        """`most` is the number of requests of one caller that may be in progress at once, at least 1."""
        self._most = most
        self._in_work: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def in_work(self) -> int:
        """The number of requests in progress, of all callers."""
        return sum(self._in_work.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for another request of their caller to end."""
        return sum(map(len, self._waiting.values()))

    def enter(self, caller: str) -> bool:
        """Begin a request of this caller; False: call `wait`. Runs for every request of a known caller."""
        count = self._in_work.get(caller, 0)
        if count >= self._most:
            return False
        self._in_work[caller] = count + 1
        return True

    def hold(self, caller: str) -> None:
        """Count a request of this caller whose response is not taken yet, also beyond the limit. `leave` ends it."""
        self._in_work[caller] = self._in_work.get(caller, 0) + 1

    async def wait(self, caller: str, deadline: float | None = None) -> None:
        """Begin a request when it is its turn: first come, first served. Raises TooManyRequests after `WAIT_SECONDS`, or at
        `deadline`, a time of the event loop.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            async with asyncio.timeout_at(deadline or asyncio.get_running_loop().time() + WAIT_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # the turn came at the moment of the time-out or cancellation
                self.leave(caller)
            else:
                self._withdraw(caller, turn)
            if isinstance(error, TimeoutError):
                raise TooManyRequests("concurrency", headers={"Retry-After": "1"}) from None
            raise

    def leave(self, caller: str) -> None:
        """End a request, exactly once for each that has begun. Its place goes to the longest waiter of the same caller."""
        count = self._in_work[caller]
        if count <= self._most and self._waiting and (line := self._waiting.get(caller)) is not None:
            while line:
                turn = line.popleft()
                if not line:
                    del self._waiting[caller]
                if not turn.done():
                    turn.set_result(None)
                    return
        if count > 1:
            self._in_work[caller] = count - 1
        else:
            del self._in_work[caller]

    def _withdraw(self, caller: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(caller)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[caller]


class Turns:
    """Requests of one route: its own Concurrency, and the one of all routes. Used like a Concurrency.

    The route's place is taken first, so that a request that waits for it takes none of its caller's other places.
    """

    def __init__(self, own: Concurrency, common: Concurrency) -> None:
        self._own, self._common = own, common

    def enter(self, caller: str) -> bool:
        """Begin a request of this caller; False: call `wait`."""
        if not self._own.enter(caller):
            return False
        if self._common.enter(caller):
            return True
        self._own.leave(caller)
        return False

    def hold(self, caller: str) -> None:
        """Count a request whose response is not taken yet, in both. `leave` ends it."""
        self._own.hold(caller)
        self._common.hold(caller)

    async def wait(self, caller: str) -> None:
        """Begin a request when it is its turn in both. Raises TooManyRequests after `WAIT_SECONDS`."""
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        if not self._own.enter(caller):
            await self._own.wait(caller, deadline)
        try:
            if not self._common.enter(caller):
                await self._common.wait(caller, deadline)
        except BaseException:
            self._own.leave(caller)
            raise

    def leave(self, caller: str) -> None:
        """End a request in both."""
        self._common.leave(caller)
        self._own.leave(caller)
