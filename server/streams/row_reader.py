"""Reads changed rows under the scopes of the streams that receive them, few statements at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from ..database.many_scopes import MOST
from ..http.answers import Rows
from ..http.errors import Unavailable
from ..http.pagination import LARGEST_LIMIT, RowLimit
from ..http.row_json import RowJson
from .change_tables import ChangeTable

AT_ONCE: Final = 2
"""Statements in progress: streams must not take the connections that requests need."""
IDS: Final = 100
"""Ids in one statement."""
BYTES: Final = 262_144
"""Bytes of rows after which one statement returns one row more and stops."""
_UNIT: Final = 1024
Scope: TypeAlias = tuple[str, str, str]
"""(user, organisation, admin organisation), as in server.database: all values that policies compare with."""
ReadOne: TypeAlias = Callable[[Scope, str, tuple[Any, ...], str], Awaitable[Rows]]
ReadEach: TypeAlias = Callable[[str, RowLimit, Sequence[tuple[Scope, list[str]]], str], Awaitable[list[Rows]]]
_CALLER: Final = "streams"
_LIMIT: Final = RowLimit(IDS)
_LIMIT.page_bytes = BYTES


class _Found(msgspec.Struct):
    id: str
    row: msgspec.Raw


_found: Final = msgspec.json.Decoder(_Found)


class Read(NamedTuple):
    """The rows that the scope sees, by id, and the ids that were not reached because earlier rows were too large."""

    rows: dict[str, RowJson]
    rest: frozenset[str]


class _Batch:
    """A SELECT that has not begun: ids of one table under one scope. Streams that ask before it begins share it."""

    __slots__ = ("_waiters", "ids")

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self._waiters: list[asyncio.Future[Read]] = []

    def wait(self) -> asyncio.Future[Read]:
        """Returns a future for one stream, whose cancellation does not affect the others."""
        self._waiters.append(waiter := asyncio.get_running_loop().create_future())
        return waiter

    def succeed(self, read: Read) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(read)

    def fail(self, error: BaseException) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())


class RowReader:
    """Reads rows by their ids.

    Streams with exactly the same scope share a SELECT if it has not begun when they ask: one that has begun may not see the
    change that they were told of. Scopes that differ in anything never share one: their SELECTs go to Postgres together, in
    one statement, and each runs under its own scope.
    """

    def __init__(self, read: ReadOne, read_each: ReadEach, at_once: int = AT_ONCE) -> None:
        """`read` runs one SELECT under a scope (`Database.read`), `read_each` one for each of many (`read_for_each`)."""
        self._read, self._read_each, self._at_once = read, read_each, at_once
        self._waiting: dict[tuple[ChangeTable, Scope], deque[_Batch]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def rows(self, table: ChangeTable, scope: Scope, ids: Collection[str]) -> Read:
        """Returns the rows with these ids (at most `IDS`) that this scope sees. Raises what `read` raises."""
        batches = self._waiting.setdefault((table, scope), deque())
        if not batches or len(batches[-1].ids.keys() | set(ids)) > IDS:
            batches.append(_Batch())
        batch = batches[-1]
        batch.ids.update(dict.fromkeys(ids))
        if len(self._workers) < self._at_once:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await batch.wait()

    async def _work(self) -> None:
        """Run the waiting SELECTs, each scope in its turn."""
        while self._waiting:
            table, _ = next(iter(self._waiting))
            group = self._next(table)
            if len(group) == 1 or not await self._run_together(table, group):
                for scope, batch in group:
                    await self._run(table, scope, batch)

    def _next(self, table: ChangeTable) -> list[tuple[Scope, _Batch]]:
        """Returns the batches of this table that have waited longest, one for each scope."""
        keys = [key for key in itertools.islice(self._waiting, 2 * MOST) if key[0] == table][:MOST]
        group = []
        for key in keys:
            batches = self._waiting.pop(key)
            group.append((key[1], batches.popleft()))
            if batches:
                self._waiting[key] = batches
        return group

    async def _run_together(self, table: ChangeTable, group: list[tuple[Scope, _Batch]]) -> bool:
        """Read for all of them in one statement. Returns False if Postgres refused it: one scope's fault is not the others'."""
        try:
            asked = [(scope, list(batch.ids)) for scope, batch in group]
            found = await self._read_each(table.sql, _LIMIT, asked, _CALLER)
            parsed = _parse_all([ids for _, ids in asked], found)
        except (Unavailable, asyncio.CancelledError) as error:
            for _, batch in group:
                batch.fail(error)
            if not isinstance(error, Exception):
                raise
        except Exception:
            return False
        else:
            for (_, batch), read in zip(group, parsed, strict=True):
                batch.succeed(read)
        return True

    async def _run(self, table: ChangeTable, scope: Scope, batch: _Batch) -> None:
        try:
            ids = list(batch.ids)
            batch.succeed(_parse(ids, await self._read(scope, table.sql, (ids, _LIMIT), _CALLER)))
        except BaseException as error:
            batch.fail(error)
            if not isinstance(error, Exception):
                raise

    async def close(self) -> None:
        """Cancel the reads in progress."""
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


def _parse_all(asked: list[list[str]], found: list[Rows]) -> list[Read]:
    """Returns each scope's rows. Scopes that got the same text share the parsed result."""
    made: dict[tuple[str, str], Read] = {}
    reads = []
    for ids, rows in zip(asked, found, strict=True):
        key = (str(rows), ids[0] if len(ids) == 1 else "\0".join(ids))
        if (read := made.get(key)) is None:
            read = made[key] = _parse(ids, rows)
        reads.append(read)
    return reads
