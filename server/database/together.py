"""Reads that had to wait for a connection: several of the same statement are sent together, in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from .pool import Pool
from .turns import Read, Waiter

MOST: Final = 4
"""Reads in one round trip."""
LONGEST: Final = 0.25
"""Seconds after which the reads of a round trip are cancelled, and each is run by itself: one of them may be slow."""
SLOW: Final = 0.05
"""A round trip of more seconds: the next reads of that statement are not sent together for `PAUSE` seconds."""
PAUSE: Final = 2.0
"""Seconds, also after a failure: a client that sends what fails, or is slow, delays few others."""
_MOST_PAUSED: Final = 1024


class Together:
    """Reads for the requests that wait for a connection of one pool.

    The round trip is a fifth of what a page costs Postgres, and two of the server's system calls; it is the same for four
    reads as for one. So a request that gets a connection after waiting reads for others that still wait, if their statement
    is the same. Each is a statement of its own, which sets its own scope before it reads, as in `read_for_each`. They share a
    transaction, so if one fails none has a result: each is then run again by itself, before requests that came later.
    """

    def __init__(
        self,
        pool: Pool[Any],
        wait: Callable[[str | None, Read | None], Awaitable[Any]],
        release: Callable[[Any], None],
        release_after: Callable[[Any, BaseException], BaseException],
    ) -> None:
        """`wait`, `release` and `release_after` are those of the Database that the pool belongs to."""
        self._pool, self._wait, self._release, self._release_after = pool, wait, release, release_after
        self._paused: dict[str, float] = {}  # until when reads of this statement are run one by one
        self._loop = asyncio.get_running_loop()

    async def read(self, statement: str, values: tuple[Any, ...], caller: str | None) -> str:
        """Wait for a connection, and read with it or let another request read with its own; as `Database.read` otherwise."""
        own = Read(statement, values)
        connection = await self._wait(caller, own)
        if isinstance(connection, str):  # another request has read it
            return connection
        if others := self._others(statement, connection):
            try:
                text = await self._read_for(connection, own, others)
            except Exception as error:
                self._release_after(connection, error)  # it may be another's error, so it is not raised
                connection = await self._wait(caller, own._replace(again=True))
            except BaseException as error:
                raise self._release_after(connection, error) from None
            else:
                self._release(connection)
                return text
        try:
            text = await connection.read(statement, *values)
        except BaseException as error:
            raise self._release_after(connection, error) from None
        self._release(connection)
        return text  # type: ignore[no-any-return]

    def _others(self, statement: str, connection: Any) -> list[Waiter[Any]]:
        """The requests to read for, beside the one that has a connection."""
        if self._paused and (until := self._paused.get(statement)) is not None:
            if self._loop.time() < until:
                return []
            del self._paused[statement]
        return self._pool.take_along(statement, MOST - 1, connection)

    async def _read_for(self, connection: Any, own: Read, others: list[Waiter[Any]]) -> str:
        """Read for all of them; returns what `own` reads. If that raises, the others are next, and read by themselves."""
        began, task = self._loop.time(), asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        values = [own.values, *(one.read.values for one in others if one.read is not None)]
        try:
            rows = await connection.read_many(own.statement, values, LONGEST)
        except BaseException as error:
            self._pause(own.statement)
            self._pool.put_back(others, self._loop.time() - began)
            if task is not None and task.cancelling() > cancels:
                raise asyncio.CancelledError from error  # asyncpg loses one that comes while it waits to send large arguments
            raise
        if self._loop.time() - began > SLOW:
            self._pause(own.statement)
        self._pool.carried(others)
        for one, row in zip(others, rows[1:], strict=True):
            if not one.turn.done():  # otherwise it was cancelled
                one.turn.set_result(row[0])
        return rows[0][0]  # type: ignore[no-any-return]

    def _pause(self, statement: str) -> None:
        if len(self._paused) >= _MOST_PAUSED:
            self._paused.clear()
        self._paused[statement] = self._loop.time() + PAUSE
