"""How late the machine itself is while the cluster's drill runs: measured beside the load, without Gatepost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg

PAUSE = 0.2


@dataclass
class Canary:
    """Wakes up five times a second and opens a connection to the primary, through HAProxy: the work of a worker that learns
    of a sign-out. On a quiet machine both take a few hundredths of a second."""

    primary: Mapping[str, Any]
    """asyncpg's arguments."""
    wakes: list[tuple[float, float]] = field(default_factory=list)
    """(when it should have woken, seconds later)."""
    answers: list[tuple[float, float]] = field(default_factory=list)
    """(when it began to connect, seconds until a statement was answered), without those that failed."""

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + PAUSE
            await asyncio.sleep(PAUSE)
            began = time.monotonic()
            self.wakes.append((due, began - due))
            try:
                async with asyncio.timeout(10):
                    connection = await asyncpg.connect(**self.primary)
                    try:
                        await connection.fetchval("SELECT 1")
                        self.answers.append((began, time.monotonic() - began))
                    finally:
                        connection.terminate()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                continue

    def late(self, since: float, until: float) -> float:
        """By how many seconds this machine was late at most between two moments. Connections that were begun before do not
        count: they may have waited for a primary."""
        wakes = [late for due, late in self.wakes if due + late >= since and due <= until]
        answers = [seconds for began, seconds in self.answers if since <= began <= until]
        return max(wakes, default=0.0) + max(answers, default=0.0)
