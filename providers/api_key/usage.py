"""Collects in memory when keys were last used and writes it in the background, so that no request waits or fails for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from server import BoundedDict

LOG = logging.getLogger("gatepost.api_key")
ONCE_IN: Final = 60.0
"""Seconds in which a key is noted at most once: the precision of `last_used_at`."""
FLUSH_SECONDS: Final = 5.0
_AT_A_TIME: Final = 1000
_MOST: Final = 100_000

Query = Callable[..., Awaitable[Sequence[Mapping[str, Any]]]]


class Usage:
    """The notes still to be written, and the recent ones. Bounded: under a flood of keys notes are dropped."""

    def __init__(self, query: Query) -> None:
        """`query` is `House.query`."""
        self._query = query
        self._noted: BoundedDict[str, float] = BoundedDict(_MOST)
        self._pending: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Write the remaining notes, for at most two seconds."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self.flush()

    def note(self, key_id: str) -> None:
        """Note that this key was used now."""
        now = time.monotonic()
        before = self._noted.get(key_id)
        if (before is not None and now - before < ONCE_IN) or len(self._pending) >= _MOST:
            return
        self._noted.put(key_id, now)
        self._pending[key_id] = time.time()

    async def flush(self) -> None:
        """Write the pending notes. If the database accepts no writes, only the notes are lost."""
        pending, self._pending = list(self._pending.items()), {}
        for start in range(0, len(pending), _AT_A_TIME):
            part = pending[start : start + _AT_A_TIME]
            times = [datetime.fromtimestamp(used, UTC) for _, used in part]
            try:
                await self._query("touch_keys", [key_id for key_id, _ in part], times)
            except Exception as error:
                LOG.warning("last use of API keys not written: %s", type(error).__name__)
                return

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            if self._pending:
                await self.flush()
