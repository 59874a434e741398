"""Writes the gate's denials to the audit log in the background, and deletes old entries.

Changes to rows are not handled here: a trigger in schema.sql records them. A denial must never delay or fail a request, so
it goes into a bounded buffer in memory, and from there to Postgres about once a second. Equal denials (the same caller,
route and reason) in the buffer become one entry with a count: a caller who is denied a thousand times a second cannot fill
the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from ..http.errors import Unavailable
from ..telemetry.decisions import Decision
from ..telemetry.log import LOG, log_failure

MOST_WAITING: Final = 10_000
BATCH: Final = 500
INTERVAL_SECONDS: Final = 1.0
LONGEST_PAUSE: Final = 10.0
FLUSH_SECONDS: Final = 2.0
PRUNE_SECONDS: Final = 600.0
PRUNE_BATCH: Final = 10_000
"""Each batch first passes the index entries of those that VACUUM has not removed yet, so it is not small."""
MOST_TIMES: Final = 2**31 - 1

Call = Callable[..., Awaitable[list[Mapping[str, Any]]]]


class DenialBuffer:
    """A buffer of known callers' 403s. Those that do not fit are counted, and the count is logged at most once a minute."""

    def __init__(self, call: Call, *, most: int = MOST_WAITING, clock: Callable[[], float] = time.monotonic) -> None:
        """`call(function, *args)` runs a listed database function; `most` is the number of different denials held."""
        self._call, self._most, self._clock = call, most, clock
        self._waiting: dict[tuple[str | None, ...], tuple[datetime, str, int]] = {}
        self._lost, self._log_at = 0, clock()
        self.dropped = 0
        """Denials that were dropped since startup."""

    def __len__(self) -> int:
        return len(self._waiting)

    def hears(self, *, known: bool, status: int) -> bool:
        """True for a 403 of a known caller; other denials are not recorded."""
        return known and status == 403

    def __call__(self, decision: Decision) -> None:
        """Add one denial to the buffer."""
        target = f"{decision.method} {decision.route}"
        who = (decision.org_id, decision.user_id, decision.actor, decision.impersonator, decision.provider)
        self._add((*who, target, decision.reason), (datetime.now(UTC), decision.request_id, 1))

    def _add(self, key: tuple[str | None, ...], new: tuple[datetime, str, int]) -> None:
        """Add a denial or count it with an equal one, which keeps its time and request id."""
        first = self._waiting.get(key)
        if first is not None:
            self._waiting[key] = (first[0], first[1], min(first[2] + new[2], MOST_TIMES))
        elif len(self._waiting) < self._most:
            self._waiting[key] = new
        else:
            self._lose(new[2])

    def _lose(self, number: int) -> None:
        self.dropped += number
        self._lost += number
        if self._clock() >= self._log_at:
            self.log_lost()

    def log_lost(self) -> None:
        """Log how many denials were lost since this was last logged."""
        if self._lost:
            LOG.warning("denials were not recorded in the audit log", extra={"fields": {"count": self._lost}})
            self._lost, self._log_at = 0, self._clock() + 60

    def give_up(self) -> None:
        """Count everything in the buffer as lost, and log it."""
        lost = sum(times for _, _, times in self._waiting.values())
        self._lost, self.dropped = self._lost + lost, self.dropped + lost
        self._waiting.clear()
        self.log_lost()

    async def write(self) -> None:
        """Write the buffer to Postgres in batches. Raises Unavailable; what was not written then stays in the buffer."""
        while self._waiting:
            batch = [(key, self._waiting.pop(key)) for key in list(self._waiting)[:BATCH]]
            try:
                await self._write(batch)
            except (Unavailable, asyncio.CancelledError):
                for key, value in batch:
                    self._add(key, value)
                raise
            except Exception as error:  # Postgres refused this batch, and would refuse it again
                log_failure("denials were refused by the audit log", error)
                self._lose(sum(times for _, (_, _, times) in batch))

    async def _write(self, batch: list[tuple[tuple[str | None, ...], tuple[datetime, str, int]]]) -> None:
        moments, requests, times = zip(*(value for _, value in batch), strict=True)
        # (organisations, users, actors, impersonators, providers, targets, reasons), in the order of `__call__`
        columns = zip(*(key for key, _ in batch), strict=True)
        await self._call("audit_denied", moments, *columns, times, requests)


class Audit:
    """One process's background work for the audit log: writing denials and deleting old entries."""

    def __init__(self, call: Call, *, denials: bool, retention_days: int) -> None:
        """`call(function, *args)` runs a listed database function; `retention_days` 0 keeps entries forever."""
        self._call, self._days = call, retention_days
        self._denials = DenialBuffer(call) if denials else None
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        self._stop = asyncio.Event()

    @property
    def listeners(self) -> list[DenialBuffer]:
        """The listeners for the gate's denials."""
        return [] if self._denials is None else [self._denials]

    @property
    def dropped(self) -> int:
        """Denials that were dropped since startup."""
        return self._denials.dropped if self._denials is not None else 0

    async def running(self, app: web.Application) -> AsyncIterator[None]:
        """The application's cleanup context: denials are written while it is open, and the rest when it closes."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            await self._finish(task)

    async def _finish(self, task: asyncio.Task[None]) -> None:
        """Finish a write in progress and write the rest, within FLUSH_SECONDS altogether; log how many denials are lost."""
        self._stop.set()
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await task
                if self._denials is not None:
                    await self._denials.write()
        if self._denials is not None:
            self._denials.give_up()

    async def prune(self) -> int:
        """Delete entries older than `retention_days`, in batches. Returns their number."""
        total = 0
        while self._days:
            rows = await self._call("audit_prune", self._days, PRUNE_BATCH)
            total += rows[0]["audit_prune"]
            if rows[0]["audit_prune"] < PRUNE_BATCH:
                break
            await asyncio.sleep(0.05)
        return total

    async def _run(self) -> None:
        pause = INTERVAL_SECONDS
        while not await self._is_stopping_within(pause):
            try:
                if self._denials is not None:
                    await self._denials.write()
                await self._prune_sometimes()
                pause = INTERVAL_SECONDS
            except Unavailable as outage:
                if pause == INTERVAL_SECONDS:
                    LOG.warning("audit log interrupted", extra={"fields": {"why": str(outage)}})
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception as error:
                log_failure("audit log failed", error)
                pause = LONGEST_PAUSE

    async def _is_stopping_within(self, seconds: float) -> bool:
        """Wait for this time, or until the server stops. Returns whether it is stopping."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        return self._stop.is_set()

    async def _prune_sometimes(self) -> None:
        """Prune if it is time. Every process does this; the database function lets one prune at a time."""
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_SECONDS
            await self.prune()
