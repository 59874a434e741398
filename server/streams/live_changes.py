"""What the streams of one process share to receive changes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from aiohttp import web

from .change_feed import ChangeFeed
from .change_tables import ChangeTables
from .fanout import Fanout
from .row_reader import RowReader

_OPEN_SECONDS: Final = 3.0


class LiveChanges:
    """What the streams of one process share: the feed, the subscriptions, and the reader of rows."""

    def __init__(self, feed: ChangeFeed, fanout: Fanout, tables: ChangeTables, reader: RowReader) -> None:
        self.feed, self.fanout, self.tables, self.reader = feed, fanout, tables, reader

    async def open(self) -> None:
        """Begin to listen, and wait a moment for it, so that the first streams miss nothing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_SECONDS):
                await self.feed.wait()

    async def close(self) -> None:
        """Stop listening and reading."""
        await self.feed.close()
        await self.reader.close()


CHANGES: Final = web.AppKey("live_changes", LiveChanges)
