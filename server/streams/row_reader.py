"""Reads changed rows under the scopes of the streams that hear of them, few statements at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from ..http.answers import Rows
from ..http.pagination import LARGEST_LIMIT, RowLimit
from ..http.row_json import RowJson
from .change_tables import ChangeTable

AT_ONCE: Final = 2
"""Statements in progress: streams must not take the connections that requests need."""
IDS: Final = 100
"""Ids in one statement."""
BYTES: Final = 262_144
"""Bytes of rows that one statement returns, and one row more."""
_UNIT: Final = 1024
Scope: TypeAlias = tuple[str, str, str]
"""(user, organisation, admin organisation), as in server.database: everything that a policy reads."""
_LIMIT: Final = RowLimit(IDS)
_LIMIT.page_bytes = BYTES


class _Found(msgspec.Struct):
    id: str
    row: msgspec.Raw


_found: Final = msgspec.json.Decoder(_Found)


class Read(NamedTuple):
    """The rows that the scope sees, by id, and the ids that were not reached because the rows before them were too large."""

    rows: dict[str, RowJson]
    rest: frozenset[str]


class _Batch:
    """A statement that has not begun: ids of one table under one scope. Streams that ask before it begins join it."""

    __slots__ = ("done", "ids")

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self.done: asyncio.Future[Read] = asyncio.get_running_loop().create_future()


class RowReader:
    """Reads rows by their ids.

    Streams with the very same scope share a statement, if it has not begun when they ask: one that has begun may not see the
    change that they have heard of. Scopes that differ in anything never share one.
    """

    def __init__(self, read: Callable[[Scope, str, tuple[Any, ...], str], Awaitable[Rows]], at_once: int = AT_ONCE) -> None:
        """`read(scope, sql, args, caller)` runs one SELECT under a scope: `Database.read`."""
        self._read, self._at_once = read, at_once
        self._waiting: dict[tuple[ChangeTable, Scope], deque[_Batch]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def rows(self, table: ChangeTable, scope: Scope, ids: Collection[str]) -> Read:
        """The rows with these ids, at most `IDS`, that this scope sees. Raises what `read` raises."""
        batches = self._waiting.setdefault((table, scope), deque())
        if not batches or len(batches[-1].ids.keys() | set(ids)) > IDS:
            batches.append(_Batch())
        batch = batches[-1]
        batch.ids.update(dict.fromkeys(ids))
        if len(self._workers) < self._at_once:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await asyncio.shield(batch.done)

    async def _work(self) -> None:
        """Run what waits, each scope in its turn."""
        while self._waiting:
            table, scope = next(iter(self._waiting))
            batches = self._waiting.pop((table, scope))
            batch = batches.popleft()
            if batches:
                self._waiting[table, scope] = batches
            await self._run(table, scope, batch)

    async def _run(self, table: ChangeTable, scope: Scope, batch: _Batch) -> None:
        try:
            ids = list(batch.ids)
            found = _parse(ids, await self._read(scope, table.sql, (ids, _LIMIT), "streams"))
        except BaseException as error:
            if not batch.done.done():
                batch.done.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
                batch.done.exception()  # retrieved, even where every stream has gone
            if not isinstance(error, Exception):
                raise
        else:
            if not batch.done.done():
                batch.done.set_result(found)

    async def close(self) -> None:
        """Cancel what is in progress."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)


def _parse(ids: list[str], rows: Rows) -> Read:
    """The rows by id. The statement stops at BYTES (server.database.statements), so the last ids may not have been reached."""
    most = BYTES // _UNIT + LARGEST_LIMIT + 1
    found: dict[str, RowJson] = {}
    units = 0
    for one in rows.separate():
        parsed = _found.decode(one)
        found[parsed.id] = RowJson(bytes(parsed.row).decode())
        units += min(len(one.encode()) // _UNIT, most - 1) + 1
    if units <= most or not found:
        return Read(found, frozenset())
    last = next(reversed(found))
    return Read(found, frozenset(ids[ids.index(last) + 1 :]))
