"""Reads changed rows under the scopes of the streams that receive them, few statements at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, Protocol, TypeAlias

from ..http.answers import Rows
from ..http.errors import Unavailable
from ..http.pagination import RowLimit
from ..telemetry.log import log_failure
from .change_tables import ChangeTable
from .rows_read import BYTES, Read, parse, parse_each

AT_ONCE: Final = 2
"""Reads in progress: streams must not take the connections that requests need."""
IDS: Final = 100
"""Ids in one statement."""
TOGETHER: Final = 64
"""The most scopes whose statements are sent together, with one id each; of several ids, a quarter of it."""
_TEXT_TOGETHER: Final = 4_194_304
"""How many characters of rows may be expected in answer to what is sent together: they are in memory at once."""
_SETTLED_AT_ONCE: Final = 64
"""How many streams get their rows before the event loop does anything else."""
Scope: TypeAlias = tuple[str, str, str]
"""(user, organisation, admin organisation), as in server.database: all values that policies compare with."""
ReadOne: TypeAlias = Callable[[Scope, str, tuple[Any, ...], str], Awaitable[Rows]]
_CALLER: Final = "streams"
_LIMIT: Final = RowLimit(IDS)
_LIMIT.page_bytes = BYTES


class ReadEach(Protocol):
    """Runs one SELECT for each of many scopes (server.database.many_scopes.read_for_each)."""

    def __call__(
        self, sql: str, asked: Sequence[tuple[Scope, tuple[Any, ...]]], caller: str, *, single: bool
    ) -> Awaitable[list[str]]: ...


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
        self._waiting: dict[tuple[ChangeTable, Scope], list[_Batch]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._together = TOGETHER // 4

    def ask(self, table: ChangeTable, scope: Scope, ids: Collection[str], done: Done) -> None:
        """Read the rows with these ids (1 to `IDS`) that this scope sees, and call `done`, always later."""
        batches = self._waiting.get((table, scope))
        if batches is None:
            self._waiting[table, scope] = [_Batch(ids, done)]
        elif len(together := batches[-1].ids | dict.fromkeys(ids)) <= IDS:
            batches[-1].ids = together
            batches[-1].done.append(done)
        else:
            batches.append(_Batch(ids, done))
        if len(self._workers) < self._at_once:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)  # one that was cancelled before it began

    async def _work(self) -> None:
        """Run the waiting reads, each scope in its turn."""
        try:
            while self._waiting:
                table, single, group = self._next()
                if len(group) == 1 or not await self._run_together(table, group, single=single):
                    for scope, batch in group:
                        await self._run(table, scope, batch)
        finally:  # at once: what is asked for from now on needs another worker
            self._workers.discard(asyncio.current_task())

    def _next(self) -> tuple[ChangeTable, bool, _Group]:
        """Returns the table that has waited longest, and reads of its scopes that go together: of one id each, or of more."""
        (table, _), batches = next(iter(self._waiting.items()))
        single = len(batches[0].ids) == 1
        most = self._together if single else min(self._together, TOGETHER // 4)
        group: _Group = []
        for key, batches in list(itertools.islice(self._waiting.items(), 2 * most)):
            batch = batches[0]
            if key[0] is table and (len(batch.ids) == 1) is single:
                group.append((key[1], batch))
                del self._waiting[key]
                if len(batches) > 1:  # the scope's next read takes its turn behind those of the others
                    self._waiting[key] = batches[1:]
                if len(group) == most:
                    break
        return table, single, group

    async def _run_together(self, table: ChangeTable, group: _Group, *, single: bool) -> bool:
        """Read for all in one round trip. Returns False if Postgres refused it: one scope's fault is not the others'."""
        try:
            asked = [(scope, batch.arguments(single=single)) for scope, batch in group]
            texts = await self._read_each(table.one if single else table.sql, asked, _CALLER, single=single)
            reads = parse_each([batch.ids for _, batch in group], texts, single=single)
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
                if len(batch.done) == 1:
                    _pass_on(batch.done[0], read)
                else:
                    await _settle(batch, read)
        return True

    async def _run(self, table: ChangeTable, scope: Scope, batch: _Batch) -> None:
        outcome: Read | BaseException
        try:
            ids = list(batch.ids)
            outcome = parse(ids, await self._read(scope, table.sql, (ids, _LIMIT), _CALLER))
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
        _pass_on(done, outcome)
        if number % _SETTLED_AT_ONCE == 0:
            await asyncio.sleep(0)


def _pass_on(done: Done, outcome: Read | BaseException) -> None:
    try:
        done(outcome)
    except Exception as error:
        log_failure("a change could not be passed on", error)
