"""A connection pool that hands a released connection straight to a waiting request, caller by caller.

In asyncpg's own pool a newcomer can overtake a woken waiter (at 32 requests on 10 connections its slowest 1 % waited thirty
times the median), and each release makes a task. Here callers that wait take turns, and a caller's first request is its first
to be served. This module imports no database library.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final, Generic, cast

from .poolable import C
from .turns import Read, Shares, Turns, Waiter

PROMPT: Final = 10
"""Connections that are lent without waiting."""
PATIENCE: Final = 0.005
"""Seconds after which a waiting request gets a connection beyond `PROMPT`, if there is one."""


class Pool(Generic[C]):
    """At most `size` connections, opened when they are needed, with a lower limit on how many are in use at once.

    Each connection is a Postgres process. Thirty of them on a few cores need a third more time for the same queries than ten
    do, because they evict each other from the processor's caches. So no more than `PROMPT` are lent at once, and other requests
    wait for these. A request that has waited for `PATIENCE` seconds, for example behind slow queries, gets one more.

    No caller holds more than half of the connections (another caller's counts while it reads for this one): its other requests
    wait, even while connections are idle. The caller None is the server itself, which has no such bound.
    """

    def __init__(self, connect: Callable[[], Awaitable[C]], size: int, *, must_discard: Callable[[C], bool]) -> None:
        """`must_discard(connection)` is true if a connection cannot be used again: its last query may still run."""
        self._connect, self._size, self._must_discard = connect, size, must_discard
        self._idle: list[C] = []
        self._shares = Shares(max(1, size // 2))
        self._waiting: Turns[C] = Turns(self._shares)
        self.carried = self._waiting.end_carrying
        self._lent: dict[C, str | None] = {}
        self.opening, self._closed = 0, False  # `opening`: connections that are being opened
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def open(self) -> int:
        """Connections that are open, or being opened."""
        return len(self._idle) + len(self._lent) + self.opening

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def lent(self) -> int:
        return len(self._lent)

    @property
    def waiting(self) -> int:
        """How many requests have waited for longer than `PATIENCE`: there are too few connections, or the queries are slow."""
        return sum(map(self._is_late, self._waiting))

    def take(self, caller: str | None = None) -> C | None:
        """Returns an idle connection without waiting; None: call `acquire`."""
        return self._take(caller) if len(self._lent) + self.opening < PROMPT else None

    def _take(self, caller: str | None) -> C | None:
        if self._idle and self._shares.take(caller):
            while self._idle:
                connection = self._idle.pop()  # the last one used: its caches are warm
                if not connection.is_closed():
                    self._lent[connection] = caller
                    return connection
            self._shares.remove(caller)
        return None

    async def acquire(self, caller: str | None = None, seconds: float = math.inf) -> C:
        """Returns a connection within `seconds`. Raises TimeoutError, what `connect` raises, and ConnectionError if closed."""
        return cast("C", await self.acquire_for(None, caller, seconds))

    async def acquire_for(self, read: Read | None, caller: str | None, seconds: float) -> C | str:
        """As `acquire`; or returns what `read` returned, if another request has read it meanwhile (`take_along`)."""
        prompt = len(self._lent) + self.opening < PROMPT
        deadline = self._loop.time() + seconds
        while not self._closed:
            if prompt:
                if (taken := self._take(caller)) is not None:
                    return taken
                if self.open < self._size and not self._shares.is_at_bound(caller):
                    try:
                        async with asyncio.timeout_at(deadline if seconds < math.inf else None):
                            return await self._open_one(caller)
                    except Exception:
                        if self._loop.time() >= deadline:
                            raise
                        if self._idle:
                            continue  # one was returned meanwhile
                        if not self._lent:
                            raise  # otherwise a lent one will be returned
            if (handed := await self._wait(caller, deadline, read)) is not None:
                return handed
            prompt = True  # it was woken to take or open one itself
        raise ConnectionError("the pool is closed")

    def take_along(self, statement: str, most: int, connection: C) -> list[Waiter[C]]:
        """Requests that wait to read with this statement. `connection` reads for them; then call `carried` or `put_back`."""
        return self._waiting.take_along(statement, most, self._lent.get(connection)) if self._waiting.queues else []

    def put_back(self, waiters: list[Waiter[C]], seconds: float) -> None:
        """Let requests wait again that were taken along for so many seconds: as the next ones to get a connection."""
        for waiter in self._waiting.put_back(waiters, seconds):
            if self._closed:
                self._wake(waiter, None)
        self._start_timer()

    def release(self, connection: C) -> None:
        """Take a connection back, for a waiting request or as an idle one. One with unfinished work is closed."""
        if connection not in self._lent:
            return
        if self._closed or self._must_discard(connection) or connection.is_in_transaction() or connection.is_closed():
            self.discard(connection)
            return
        self._shares.remove(self._lent[connection])
        first = self._waiting.first() if self._waiting.queues else None
        if first is not None and (len(self._lent) <= PROMPT or self._is_late(first)):
            self._lent[connection] = first.caller  # it stays lent, to another request
            self._wake(first, connection)
            return
        del self._lent[connection]
        self._idle.append(connection)

    def discard(self, connection: C) -> None:
        """Close a lent connection; a waiting request may open another in its place."""
        if connection in self._lent:
            self._shares.remove(self._lent.pop(connection))
        if not connection.is_closed():
            connection.terminate()
        self._wake_one()

    def expire(self) -> None:
        """Close the idle connections, because they lead to the same server as a failed one."""
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()

    def close(self) -> None:
        """Close every connection, lent ones too; waiting requests get a ConnectionError."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in [*self._idle, *self._lent]:
            connection.terminate()
        self._idle.clear()
        for waiter in list(self._waiting):
            self._wake(waiter, None)

    async def _open_one(self, caller: str | None) -> C:
        self.opening += 1
        self._shares.add(caller)
        try:
            connection = await self._connect()
        except BaseException:
            self.opening -= 1
            self._shares.remove(caller)
            self._wake_one()
            raise
        self.opening -= 1
        self._lent[connection] = caller
        return connection

    async def _wait(self, caller: str | None, deadline: float, read: Read | None) -> C | str | None:
        waiter: Waiter[C] = Waiter(self._loop.create_future(), self._loop.time(), caller, deadline, read)
        self._waiting.add(waiter, first=read is not None and read.again)
        self._start_timer()
        try:
            handed = await waiter.turn
        except BaseException:
            if waiter.taken or (waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is not None):
                pass  # it holds nothing: another read for it, or its time was up
            elif not waiter.turn.done() or waiter.turn.cancelled():
                self._waiting.remove(waiter, served=False)
            elif (handed := waiter.turn.result()) is not None:  # it was handed over at the moment of the cancellation
                self.release(cast("C", handed))
            else:
                self._shares.remove(caller)
                self._wake_one()
            raise
        if handed is None:
            self._shares.remove(caller)  # the promised share is counted again when one is taken or opened
        return handed

    def _serve_late_waiters(self) -> None:
        """Wake the requests that have waited for `PATIENCE` seconds, so that they take connections beyond `PROMPT`."""
        self._timer = None
        self._waiting.end_expired(self._loop.time())
        spare = len(self._idle) + self._size - self.open
        while spare > 0 and (first := self._waiting.first()) is not None and self._is_late(first):
            self._wake(first, None)
            spare -= 1
        self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None and self._waiting.queues and not self._closed:
            self._timer = self._loop.call_later(PATIENCE, self._serve_late_waiters)

    def _wake_one(self) -> None:
        if (first := self._waiting.first()) is not None:
            self._wake(first, None)

    def _wake(self, waiter: Waiter[C], connection: C | None) -> None:
        self._waiting.remove(waiter, served=True)
        self._shares.add(waiter.caller)
        waiter.turn.set_result(connection)

    def _is_late(self, waiter: Waiter[C]) -> bool:
        """Whether a request has waited for `PATIENCE` seconds."""
        return self._loop.time() - waiter.since >= PATIENCE
