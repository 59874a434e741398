"""Keeps the revocations of a process fresh.

Each reading fetches the rows that were written since the last one, by transaction id: a transaction that was still in
progress is read the next time, however late it commits. NOTIFY is a hint to read at once, at most ten times a second.
No statement returns more than a page; a process whose feed begins anew serves from the new rows once it has the last page. It
reads from the primary alone: LISTEN is refused by a standby, and what a standby returns is not used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from ..http.errors import Unavailable
from ..telemetry.log import LOG
from .feed_connection import soonest
from .revocation import Revocations

CHANNEL: Final = "gatepost_revocations"
INTERVAL_SECONDS: Final = 0.5
SHORTEST_SECONDS: Final = 0.1
"""The shortest time between two readings, however many hints arrive."""
REPEAT_SECONDS: Final = 60.0
"""How often an outage that lasts is logged again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.5
"""Between attempts to connect. As soon as the database is back, a sign-out may be acknowledged that must be known here within a
second."""
FORGET_SECONDS: Final = 60.0
"""How often expired entries are removed from memory."""
# Longer than a healthy database takes for a page. Twice this and a new connection are within the allowed staleness.
READ_SECONDS: Final = 3.0
PAGE_ROWS: Final = 10_000
"""The most rows of one statement, so that its time and its memory do not grow with the table."""
_READ: Final = """SELECT h.horizon, h.at, h.standby, r.expires_at > h.at AS live,
       r.changed_in::text, r.kind, r.subject, r.issued_before, r.expires_at
  FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon, now() AS at, pg_is_in_recovery() AS standby) AS h
  LEFT JOIN public.revocations_page($1::text::xid8, $2, $3, $4) AS r ON true"""


class Feed:
    """Keeps a Revocations fresh, on a connection that does nothing else."""

    def __init__(
        self, revocations: Revocations, connect: Callable[[], AbstractAsyncContextManager[Any]], *, page_rows: int = PAGE_ROWS
    ) -> None:
        """`connect()` opens a connection that may LISTEN (not through a transaction pooler)."""
        self._page_rows = page_rows
        self._revocations = revocations
        self._connect = connect
        self._hint = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._first: tuple[AsyncExitStack, Any] | None = None  # the connection that `open` has opened, with what closes it
        self._forget_at = time.monotonic() + FORGET_SECONDS
        self._since, self._now = "0", 0.0
        self._silent_until = 0.0  # 0: the feed is not interrupted
        self._pause = FIRST_PAUSE

    async def open(self) -> None:
        """Read the table once before anything is served, then keep reading. After a failure it can be called again.

        Raises Unavailable where no connection can be opened, and the driver's errors where it fails later.
        """
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._connect())
            await self._begin(connection)
            self._first = stack.pop_all(), connection
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._first is not None:  # the task was cancelled before it began
            await self._first[0].aclose()

    async def _run(self) -> None:
        while True:
            try:
                async with self._connected() as connection:
                    await self._keep_reading(connection)
            except Exception as error:
                if self._closing:  # an outage during the cancellation, which wait_for of Python 3.11 then loses
                    return
                self._interrupted(error)
                await asyncio.sleep(self._pause)
                self._pause = min(self._pause * 2, LONGEST_PAUSE)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """A connection on which everything has been read: the one of `open` first, then new ones."""
        async with AsyncExitStack() as stack:
            if self._first is not None:
                (opened, first), self._first = self._first, None
                await stack.enter_async_context(opened)
            else:
                first = None
            connection = first or await stack.enter_async_context(soonest(self._connect))
            try:
                if first is None:
                    await self._begin(connection)
                    self._resumed()
                yield connection
            except Exception:
                connection.terminate()  # closing it in order would take a second where the server has vanished
                raise

    async def _begin(self, connection: Any) -> None:
        """Read all revocations, then listen: it may be another server, with rows that the last one had lost."""
        self._since = "0"
        await self._read(connection)
        await connection.add_listener(CHANNEL, lambda *_: self._hint.set())
        self._hint.set()  # what was written before it listened is read at once

    async def _keep_reading(self, connection: Any) -> None:
        """Read what is new until that fails."""
        begun = time.monotonic()
        while True:
            self._pause = FIRST_PAUSE
            self._forget_sometimes()
            await self._wait(begun)
            begun = time.monotonic()
            await self._read(connection)

    def _interrupted(self, error: Exception) -> None:
        """Log an outage when it begins, and then once a minute."""
        if (now := time.monotonic()) >= self._silent_until:
            self._silent_until = now + REPEAT_SECONDS
            why = {"why": str(error)} if isinstance(error, Unavailable) else {}
            LOG.warning("revocation feed interrupted", extra={"fields": {"error": type(error).__name__, **why}})

    def _resumed(self) -> None:
        if self._silent_until:
            self._silent_until = 0.0
            LOG.info("revocation feed resumed")

    async def _wait(self, begun: float) -> None:
        """Wait for a hint or the end of the interval, at least until the shortest time after the last reading began."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + INTERVAL_SECONDS):
                await self._hint.wait()
        await asyncio.sleep(max(0.0, begun + SHORTEST_SECONDS - time.monotonic()))
        self._hint.clear()

    def _forget_sometimes(self) -> None:
        """Remove expired entries from memory, if it is time."""
        if (now := time.monotonic()) >= self._forget_at:
            self._forget_at = now + FORGET_SECONDS
            self._revocations.forget(self._now)

    async def _read(self, connection: Any) -> None:
        if self._since != "0":
            await self._read_pages(connection, self._revocations)
            return
        fresh = self._revocations.successor()
        if await self._read_pages(connection, fresh) > 1:
            await self._read_pages(connection, fresh)  # what was written while the pages were read
        self._revocations.become(fresh)

    async def _read_pages(self, connection: Any, into: Revocations) -> int:
        """Add what was written since the last reading. Returns the number of pages.

        The next reading begins with the oldest transaction that was in progress at the first page: each earlier one had ended
        by then, so every page shows what it wrote, and what a later one writes has a place behind it.
        """
        begun, horizon, pages = time.monotonic(), "", 0
        place: tuple[str, str, str] | None = (self._since, "", "")
        while place is not None:
            rows = await connection.fetch(_READ, *place, self._page_rows, timeout=READ_SECONDS)
            if rows[0]["standby"]:  # it may lag behind the primary by any time
                raise Unavailable("the revocations were read from a standby")
            at, last, pages = rows[0]["at"], rows[-1], pages + 1
            horizon = horizon or rows[0]["horizon"]
            place = (last["changed_in"], last["kind"], last["subject"]) if len(rows) >= self._page_rows else None
            live = [row for row in rows if row["live"]]
            self._now = at.timestamp()
            into.add(live, begun if place is None else None, self._now)
        self._since = horizon
        return pages
