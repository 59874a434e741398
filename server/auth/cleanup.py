"""Cleans up after accesses that have ended, and deletes what has expired, in the background.

Nothing waits for this: an access ends when its end is recorded. It has no part in the reading of revocations, so a locked
table or a million expired rows cannot delay them. It works in batches, through the pool of the serving role, and gives up where
it has to wait for a lock for a second (`lock_timeout` of these functions in schema.sql).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from ..http.errors import Unavailable
from ..telemetry.log import LOG, log_failure
from .revocation import Revocations

PRUNE_SECONDS: Final = 600.0
BATCH_ROWS: Final = 1000
"""Expired rows of one table in one statement; `prune_sync` in schema.sql has the same number."""
SWEEP_ROWS: Final = 200
SWEEP_SECONDS: Final = 60.0
"""How often ended accesses are looked for when no revocation was read: another process may have left some."""
WORK_SECONDS: Final = 0.2
"""How long batches follow each other before a pause. A pause after each batch would be too slow: a ban can leave tens of
thousands of ended accesses, and a batch may finish only one."""
PAUSE_SECONDS: Final = 0.05
"""The pause. There is one also after a batch that finished none: another process may be working on the only one left."""
REPEAT_SECONDS: Final = 60.0
"""How often a failure that lasts is logged."""

Call = Callable[..., Awaitable[list[Mapping[str, Any]]]]


class Cleanup:
    """One process's part of this work. Every process does it, in any order."""

    def __init__(self, revocations: Revocations, call: Call) -> None:
        """`call(function, *args)` runs a listed database function. New revocations are a reason to sweep."""
        self._call = call
        self._due = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        self._log_at = 0.0
        self.pending = 0
        """The number of ended accesses that still need cleaning up. They are refused already."""
        revocations.listeners.append(lambda _: self._due.set())

    def open(self) -> None:
        """Start the background work, with what earlier processes have left."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def sweep(self) -> None:
        """Revoke the keys and memberships of ended accesses, in batches. Raises what `call` raises."""
        until = time.monotonic() + WORK_SECONDS
        while True:
            before, self.pending = self.pending, (await self._call("sweep_ended", SWEEP_ROWS))[0]["sweep_ended"]
            if not self.pending or self._closing:
                return
            if self.pending >= before or time.monotonic() >= until:
                await asyncio.sleep(PAUSE_SECONDS)
                until = time.monotonic() + WORK_SECONDS

    async def prune(self) -> None:
        """Delete expired events, revocations and repeatable responses, in batches. Raises what `call` raises."""
        await self._prune("prune_sync")
        await self._prune("prune_idempotency", BATCH_ROWS)

    async def _prune(self, function: str, *args: int) -> None:
        while True:
            rows = await self._call(function, *args)
            if rows[0][function] < BATCH_ROWS or self._closing:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _run(self) -> None:
        while not self._closing:  # a cancellation during an outage is lost in wait_for of Python 3.11
            self._due.clear()
            try:
                await self.sweep()
                if time.monotonic() >= self._prune_at:
                    self._prune_at = time.monotonic() + PRUNE_SECONDS
                    await self.prune()
            except Exception as error:  # it is tried again at the next revocation, or a minute later
                self._failed(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._due.wait()

    def _failed(self, error: Exception) -> None:
        if (now := time.monotonic()) < self._log_at:
            return
        self._log_at = now + REPEAT_SECONDS
        if isinstance(error, Unavailable):  # an outage, or a lock that was not free
            LOG.warning("clean-up interrupted", extra={"fields": {"why": str(error)}})
        else:
            log_failure("clean-up failed", error)
