"""Reads changed rows under the scopes of the streams that receive them, few statements at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from ..http.answers import Rows
from ..http.errors import Unavailable
from ..http.pagination import LARGEST_LIMIT, RowLimit
from ..http.row_json import RowJson
from ..telemetry.log import log_failure
from .change_tables import ChangeTable

AT_ONCE: Final = 2
"""Reads in progress: streams must not take the connections that requests need."""
IDS: Final = 100
"""Ids in one statement."""
BYTES: Final = 262_144
"""Bytes of rows after which one statement returns one row more and stops."""
TOGETHER: Final = 64
"""The most scopes whose statements are sent together, with one id each; of several ids, a quarter of it."""
_TEXT_TOGETHER: Final = 4_194_304
"""How many characters of rows may be expected in answer to what is sent together: they are in memory at once."""
_SETTLED_AT_ONCE: Final = 64
"""How many streams get their rows before the event loop does anything else."""
_UNIT: Final = 1024
Scope: TypeAlias = tuple[str, str, str]
"""(user, organisation, admin organisation), as in server.database: all values that policies compare with."""
ReadOne: TypeAlias = Callable[[Scope, str, tuple[Any, ...], str], Awaitable[Rows]]
ReadEach: TypeAlias = Callable[[str, Sequence[tuple[Scope, tuple[Any, ...]]], str], Awaitable[list[str]]]
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


NOTHING: Final = Read({}, frozenset())
Done: TypeAlias = Callable[[Read | BaseException], None]
"""Called once with the rows, or with what prevented reading them; it must return soon."""


class _Batch:
    """A read that has not begun: ids of one table under one scope. Streams that ask before it begins share it."""

    __slots__ = ("done", "ids")

    def __init__(self, ids: Collection[str], done: Done) -> None:
        self.ids: dict[str, None] = dict.fromkeys(ids)
        self.done = [done]

    def arguments(self, *, single: bool) -> tuple[Any, ...]:
        """The arguments of the table's statement for one id, or for several."""
        return tuple(self.ids) if single else (list(self.ids), _LIMIT)


_Group: TypeAlias = list[tuple[Scope, _Batch]]


class RowReader:
    """Reads rows by their ids.

    Streams with exactly the same scope share a read if it has not begun when they ask: one that has begun may not see the
    change that they were told of. Scopes that differ in anything never share one: their statements go to Postgres together,
    and each runs under its own scope.
    """

    def __init__(self, read: ReadOne, read_each: ReadEach, at_once: int = AT_ONCE) -> None:
        """`read` runs one SELECT under a scope (`Database.read`), `read_each` one for each of many (`read_for_each`)."""
        self._read, self._read_each, self._at_once = read, read_each, at_once
        self._waiting: dict[tuple[ChangeTable, Scope], deque[_Batch]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._together = TOGETHER // 4

    def ask(self, table: ChangeTable, scope: Scope, ids: Collection[str], done: Done) -> None:
        """Read the rows with these ids (1 to `IDS`) that this scope sees, and call `done`, always later."""
        batches = self._waiting.get((table, scope))
        if batches is None:
            self._waiting[table, scope] = deque((_Batch(ids, done),))
        elif len(together := batches[-1].ids | dict.fromkeys(ids)) <= IDS:
            batches[-1].ids = together
            batches[-1].done.append(done)
        else:
            batches.append(_Batch(ids, done))
        if len(self._workers) < self._at_once:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        """Run the waiting reads, each scope in its turn."""
        while self._waiting:
            table, single, group = self._next()
            if len(group) == 1 or not await self._run_together(table, group, single=single):
                for scope, batch in group:
                    await self._run(table, scope, batch)

    def _next(self) -> tuple[ChangeTable, bool, _Group]:
        """Returns the table that has waited longest, and reads of its scopes that go together: of one id each, or of more."""
        (table, _), batches = next(iter(self._waiting.items()))
        single = len(batches[0].ids) == 1
        most = self._together if single else min(self._together, TOGETHER // 4)
        looked_at = itertools.islice(self._waiting.items(), 2 * most)
        keys = [key for key, waiting in looked_at if key[0] is table and (len(waiting[0].ids) == 1) is single]
        group = []
        for key in keys[:most]:
            batches = self._waiting.pop(key)
            group.append((key[1], batches.popleft()))
            if batches:
                self._waiting[key] = batches
        return table, single, group

    async def _run_together(self, table: ChangeTable, group: _Group, *, single: bool) -> bool:
        """Read for all in one round trip. Returns False if Postgres refused it: one scope's fault is not the others'."""
        try:
            asked = [(scope, batch.arguments(single=single)) for scope, batch in group]
            texts = await self._read_each(table.one if single else table.sql, asked, _CALLER)
            reads = _parse_all([batch for _, batch in group], texts, single=single)
        except (Unavailable, asyncio.CancelledError) as error:
            for _, batch in group:
                await _settle(batch, error)
            if not isinstance(error, Exception):
                raise
        except Exception:
            return False
        else:
            self._together = max(1, min(TOGETHER, _TEXT_TOGETHER * len(texts) // (sum(map(len, texts)) + 1)))
            for (_, batch), read in zip(group, reads, strict=True):
                await _settle(batch, read)
        return True

    async def _run(self, table: ChangeTable, scope: Scope, batch: _Batch) -> None:
        outcome: Read | BaseException
        try:
            ids = list(batch.ids)
            outcome = _parse(ids, await self._read(scope, table.sql, (ids, _LIMIT), _CALLER))
        except BaseException as error:
            outcome = error
        await _settle(batch, outcome)
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome

    async def close(self) -> None:
        """Cancel the reads in progress."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)


async def _settle(batch: _Batch, outcome: Read | BaseException) -> None:
    """Pass the outcome to all streams that wait for it. A failure of one is not the others'."""
    for number, done in enumerate(batch.done, 1):
        try:
            done(outcome)
        except Exception as error:
            log_failure("a change could not be passed on", error)
        if number % _SETTLED_AT_ONCE == 0:
            await asyncio.sleep(0)


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


def _parse_one(id: str, text: str) -> Read:
    return Read({id: RowJson(text)}, frozenset()) if text else NOTHING


def _parse_all(batches: list[_Batch], texts: list[str], *, single: bool) -> list[Read]:
    """Returns each scope's rows. Scopes that got the same text share the parsed result."""
    made: dict[tuple[str, str], Read] = {}
    reads = []
    for batch, text in zip(batches, texts, strict=True):
        ids = list(batch.ids)
        key = (text, ids[0] if single else "\0".join(ids))
        if (read := made.get(key)) is None:
            made[key] = read = _parse_one(ids[0], text) if single else _parse(ids, Rows(text))
        reads.append(read)
    return reads
