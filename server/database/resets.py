"""Resets connections that are in an unknown state, in the background, before they go back to their pool.

A COMMIT that was given up keeps its connection for up to a minute, because it may wait for a standby. If Postgres no longer
runs it, because its machine has vanished or another has taken over, the connection would wait in vain, and with it its place
in the pool. So Postgres is asked each second, on another connection, which of these statements it still runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from . import driver

RESET_SECONDS: Final = 1.0
"""How long each step of a reset may take."""
_LOOK_SECONDS: Final = 1.0
# The session of another user with the same number is not the one that is looked for. An idle one has ended its statement.
_RUNNING: Final = """
    SELECT pid FROM pg_stat_activity
    WHERE pid = ANY ($1::int[]) AND usename = session_user AND state IS DISTINCT FROM 'idle'
"""


class Resets:
    """The resets of one pool that are in progress."""

    def __init__(self, release: Callable[[Any], None], another: Callable[[], Awaitable[Any]] | None) -> None:
        """`release(connection)` returns one to the pool.

        `another()` opens a connection in the same role, beside those of the pool. None: behind a pooler, which does not say
        what process of Postgres a connection has.
        """
        self._release, self._another = release, another
        self._tasks: set[asyncio.Task[None]] = set()
        self._committing: set[Any] = set()
        self._looking: asyncio.Task[None] | None = None

    def start(self, connection: Any) -> None:
        """Reset this connection, then release it; it is closed if that fails."""
        self._keep(asyncio.get_running_loop().create_task(self._reset(connection)))

    async def wait(self) -> None:
        """Wait for the resets that have been started."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reset(self, connection: Any) -> None:
        if connection.unfinished and self._another is not None:
            self._committing.add(connection)
            if self._looking is None:
                self._looking = asyncio.get_running_loop().create_task(self._look(self._another))
                self._keep(self._looking)
        try:
            await driver.reset(connection, RESET_SECONDS)
        finally:
            self._committing.discard(connection)
            if not self._committing and self._looking is not None:
                self._looking.cancel()
                self._looking = None
            self._release(connection)

    async def _look(self, another: Callable[[], Awaitable[Any]]) -> None:
        """Close the connections whose statement Postgres no longer runs, as long as there are any."""
        other: Any = None
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                try:
                    other = other or await another()
                    await self._close_ended(other)
                except Exception:  # nothing is known about them now
                    if other is not None:
                        other.terminate()
                    other = None
        finally:
            if other is not None:
                other.terminate()

    async def _close_ended(self, other: Any) -> None:
        asked = {connection: connection.get_server_pid() for connection in self._committing if not connection.is_closed()}
        rows = await other.fetch(_RUNNING, list(asked.values()), timeout=RESET_SECONDS)
        running = {row["pid"] for row in rows}
        for connection, process in asked.items():
            if process not in running and connection in self._committing:
                connection.terminate()
