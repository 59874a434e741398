"""The changes of a table's rows that one stream's caller may see: `stream.changes("todos")`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Final

from aiohttp import web

from ..auth.identity import identity_of
from ..database.scope import scope_of
from ..database.violations import StatementError
from ..http.errors import Unavailable, Unprocessable
from .change import RESYNC, Change, Outlet
from .change_tables import ChangesNotTold, ChangeTable
from .fanout import RECREATED, Key, Subscription
from .live_changes import CHANGES
from .row_reader import IDS
from .rows_read import NOTHING, Read

_RETRY_SECONDS: Final = 0.25
_LONGEST_RETRY: Final = 5.0
_SEEN: Final = {"deleted": "updated", RECREATED: "created"}
"""The event of a row that was deleted for one of its tenants at least, if the caller can see it now; `deleted` if not."""


class Changes:
    """`async for change in stream.changes("todos")`: the changes of the caller's rows from this call on.

    Reading begins when a change is reported and the next one is being waited for; so at most one read is in progress, and no
    row is read for a client that is behind. With an outlet, the changes go there, and the iteration returns only those that
    the outlet could not send.
    """

    def __init__(self, request: web.Request, table: str, outlet: Outlet | None = None) -> None:
        """Raises Unauthorized if the request has no caller."""
        self._live, self._name, self._outlet = request.app[CHANGES], table, outlet
        self._scope = scope_of(request)
        identity = identity_of(request)
        self._tenants = {"user": identity.user_id, "organization": identity.org_id}
        self._ready: deque[Change] = deque()
        self._subscription: Subscription | None = None
        self._table: ChangeTable | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failed: BaseException | None = None
        self._closed = self._reading = False
        self._taken: dict[str, str] = {}
        """The ids that are being read, with their events."""
        self._pause = _RETRY_SECONDS
        if self._live.feed.listening and (found := self._live.tables.find(table)) is not None:
            self._subscribe(found)
            if request.headers.get("Last-Event-ID"):  # it was connected before, and has missed changes since then
                self._ready.append(RESYNC)

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> Change:
        """Returns the next change. Raises ChangesNotTold if the table reports none."""
        if self._waiter is not None:
            raise RuntimeError("another task is already waiting for the next change")
        while not self._closed:
            if self._ready:
                return self._ready.popleft()
            if self._failed is not None:
                failed, self._failed = self._failed, None
                await self._wait_and_retry(failed)
            elif self._subscription is None:
                await self._begin()
            else:
                if self._outlet is not None:
                    await self._outlet.wait()
                await self._wait()
        raise StopAsyncIteration

    def close(self) -> None:
        """Unsubscribe; the iteration ends."""
        self._closed, self._outlet = True, None
        if self._subscription is not None:
            self._subscription.close()
        self._wake()

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
        self._subscription.notify = self._go_on

    def _is_outdated(self) -> bool:
        """Does the table report no changes any more, or to others than when this subscribed?"""
        found, known = self._live.tables.find(self._name), self._table
        return found is None or known is None or (found.name, found.kinds) != (known.name, known.kinds)

    async def _wait(self) -> None:
        """Read, and wait until there is something to do for this task."""
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        try:
            self._go_on()
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _go_on(self) -> None:
        """Send what is ready, and begin to read what was reported. Does nothing unless the next change is being waited for."""
        subscription, outlet = self._subscription, self._outlet
        if self._waiter is None or self._reading or subscription is None or self._closed:
            return
        sent = not self._ready if outlet is None else outlet.pass_on(self._ready)
        if sent is None:
            return  # the stream has ended: the task is being cancelled
        if self._failed is not None or not sent:
            self._wake()
        elif subscription.resync and self._is_outdated():
            subscription.close()
            self._subscription = None  # the task subscribes anew, or raises ChangesNotTold
            self._wake()
        elif subscription.resync:
            subscription.resync = False
            self._ready.append(RESYNC)
            self._go_on()
        elif subscription.pending:
            self._read(subscription)

    def _read(self, subscription: Subscription) -> None:
        """Begin to read the rows that have changed, under the caller's scope."""
        assert self._table is not None
        table = self._live.tables.find(self._table.name) or self._table  # it may have new columns
        self._taken = taken = subscription.take(IDS)
        asked: Collection[str] = taken
        # A row of two tenants can be gone for one and still be there for the other: only reading tells.
        if "deleted" in taken.values() and len(subscription.keys) < 2:
            asked = [id for id, event in taken.items() if event != "deleted"]
        if asked:
            self._reading = True
            self._live.reader.ask(table, self._scope, asked, self._done)
        else:
            self._done(NOTHING)

    def _done(self, outcome: Read | BaseException) -> None:
        """Take the rows that were read; those that the caller does not see are skipped."""
        self._reading = False
        subscription, taken = self._subscription, self._taken
        if self._closed or subscription is None:
            return
        if isinstance(outcome, BaseException):
            if isinstance(outcome, Unprocessable):  # an id that no row of this table can have: it is not from gatepost_changed
                subscription.require_resync()
                return
            subscription.put_back(taken)
            self._failed = outcome
        else:
            self._pause = _RETRY_SECONDS
            rows, rest = outcome
            if rest:
                subscription.put_back({id: taken.pop(id) for id in rest})
            for id, event in taken.items():
                if (row := rows.get(id)) is not None:
                    self._ready.append(Change(_SEEN.get(event, event), id, row))
                elif event in _SEEN:
                    self._ready.append(Change("deleted", id, None))
        self._go_on()

    async def _wait_and_retry(self, error: BaseException) -> None:
        """Wait after a failed read. After a StatementError, read the table's columns again first: they may have changed."""
        if not isinstance(error, Unavailable | StatementError):
            raise error
        if isinstance(error, StatementError):
            if self._pause > _RETRY_SECONDS:
                raise error
            await self._live.feed.reload()
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_RETRY)


_OPEN: Final = web.RequestKey("live_changes", list[Changes])
_OVER: Final = web.RequestKey("live_changes_over", bool)


def changes_of(request: web.Request, table: str, outlet: Outlet | None = None) -> Changes:
    """Returns the changes of a table for the caller of this request, until `unsubscribe_all`. Raises Unauthorized."""
    changes = Changes(request, table, outlet)
    if _OVER in request:
        changes.close()
        return changes
    if _OPEN not in request:
        request[_OPEN] = []
    request[_OPEN].append(changes)
    return changes


def unsubscribe_all(request: web.Request) -> None:
    """End all subscriptions of a live answer that is over; later ones end at once."""
    request[_OVER] = True
    for changes in request.get(_OPEN, ()):
        changes.close()
