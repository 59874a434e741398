"""The changes of a table's rows that one stream's caller may see: `stream.changes("todos")`."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final, NamedTuple

from aiohttp import web

from ..auth.identity import identity_of
from ..database.scope import scope_of
from ..database.violations import StatementError
from ..http.errors import Unavailable, Unprocessable
from ..http.row_json import RowJson
from .change_feed import ChangeFeed
from .change_tables import ChangesNotTold, ChangeTable, ChangeTables
from .fanout import Fanout, Key, Subscription
from .row_reader import IDS, RowReader

_OPEN_SECONDS: Final = 3.0
_RETRY_SECONDS: Final = 0.25
_LONGEST_RETRY: Final = 5.0


class Change(NamedTuple):
    """One change of a row.

    event   `created`, `updated`, `deleted`, or `resync`: changes may have been missed, load everything again
    id      the row's primary key, as text; None for `resync`
    row     a mapping of its columns that the caller may see now; None for `deleted` and `resync`
    """

    event: str
    id: str | None
    row: RowJson | None


RESYNC: Final = Change("resync", None, None)


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


class Changes:
    """`async for change in stream.changes("todos")`: the changes of the caller's rows from this call on."""

    def __init__(self, request: web.Request, table: str) -> None:
        """Raises Unauthorized if the request has no caller."""
        self._live, self._name = request.app[CHANGES], table
        self._scope = scope_of(request)
        identity = identity_of(request)
        self._tenants = {"user": identity.user_id, "organization": identity.org_id}
        self._ready: deque[Change] = deque()
        self._subscription: Subscription | None = None
        self._table: ChangeTable | None = None
        self._closed = False
        self._pause = _RETRY_SECONDS
        if self._live.feed.listening and (found := self._live.tables.find(table)) is not None:
            self._subscribe(found)
            if request.headers.get("Last-Event-ID"):  # it was connected before, and has missed changes since then
                self._ready.append(RESYNC)

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Change:
        """Returns the next change. Raises ChangesNotTold if the table reports none."""
        while not self._closed:
            if self._ready:
                return self._ready.popleft()
            if self._subscription is None:
                await self._begin()
                continue
            await self._subscription.wait()
            if self._subscription.resync:
                self._subscription.resync = False
                return RESYNC
            await self._read(self._subscription)
        raise StopAsyncIteration

    def close(self) -> None:
        """Unsubscribe; the iteration ends."""
        self._closed = True
        if self._subscription is not None:
            self._subscription.close()

    async def _begin(self) -> None:
        """Subscribe once the feed listens. Changes since the call may have been missed, so `resync` comes first."""
        await self._live.feed.wait()
        found = self._live.tables.find(self._name)
        if found is None:
            await self._live.feed.reload()
            found = self._live.tables.find(self._name)
        if found is None:
            raise ChangesNotTold(self._name)
        if not self._closed:
            self._subscribe(found)
            self._ready.append(RESYNC)

    def _subscribe(self, table: ChangeTable) -> None:
        self._table = table
        keys: list[Key] = [(table.name, kind, tenant) for kind in table.kinds if (tenant := self._tenants[kind]) is not None]
        self._subscription = self._live.fanout.subscribe(tuple(keys))

    async def _read(self, subscription: Subscription) -> None:
        """Read the rows that have changed, under the caller's scope; rows that it does not see are skipped."""
        assert self._table is not None
        table = self._live.tables.find(self._table.name) or self._table  # it may have new columns
        taken = subscription.take(IDS)
        # A row of two tenants can be gone for one and still be there for the other: only reading tells.
        asked = [id for id, event in taken.items() if event != "deleted" or len(subscription.keys) > 1]
        try:
            rows, rest = await self._live.reader.rows(table, self._scope, asked) if asked else ({}, frozenset())
        except Unprocessable:  # an id that no row of this table can have: the message was not gatepost_changed's
            subscription.tell_resync()
            return
        except (Unavailable, StatementError) as error:
            subscription.put_back(taken)
            await self._wait_and_retry(error)
            return
        except BaseException:
            subscription.put_back(taken)
            raise
        self._pause = _RETRY_SECONDS
        if rest:
            subscription.put_back({id: taken.pop(id) for id in rest})
        for id, event in taken.items():
            if (row := rows.get(id)) is not None:
                self._ready.append(Change("updated" if event == "deleted" else event, id, row))
            elif event == "deleted":
                self._ready.append(Change(event, id, None))

    async def _wait_and_retry(self, error: Exception) -> None:
        """Wait after a failed read. After a StatementError, read the table's columns again first: they may have changed."""
        if isinstance(error, StatementError):
            if self._pause > _RETRY_SECONDS:
                raise error
            await self._live.feed.reload()
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_RETRY)


_OPEN: Final = web.RequestKey("live_changes", list[Changes])


def changes_of(request: web.Request, table: str) -> Changes:
    """Returns the changes of a table for the caller of this request, until `unsubscribe_all`. Raises Unauthorized."""
    changes = Changes(request, table)
    if _OPEN not in request:
        request[_OPEN] = []
    request[_OPEN].append(changes)
    return changes


def unsubscribe_all(request: web.Request) -> None:
    """End all subscriptions of a live answer that is over."""
    for changes in request.get(_OPEN, ()):
        changes.close()
