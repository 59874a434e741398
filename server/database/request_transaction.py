"""One transaction for everything that one request does in the database.

Each `scoped`, `read` and `write` of its handler becomes a savepoint under its own scope: it can fail alone, and takes
effect only when the whole transaction is committed. So an effect and its record are committed together or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

from aiohttp import web

from ..http.answers import Rows
from .connections import NO_WRITER, Database, Scope, Writer
from .driver import COMMIT_SECONDS
from .one_write import one_write_in_transaction
from .savepoint import Savepoint
from .scoped_block import Scoped
from .statements import SET_SCOPE

_PATIENCE_SECONDS: Final = 2.0
_innermost: ContextVar[Savepoint | None] = ContextVar("innermost savepoint", default=None)
"""The savepoint that the running code is in, or was in last. A task inherits the savepoint that it is started in."""


class Rollback(Exception):
    """Raised inside the transaction to roll it back; `one_transaction` does not raise it further."""


class RequestTransaction:
    """The transaction of one request, on one connection."""

    def __init__(self, database: Database, connection: Any, scope: Scope) -> None:
        self._database, self._connection = database, connection
        self.root = Savepoint(scope, None)
        self._current_scope: Scope | None = scope  # the scope that the connection has now; None: not known

    @property
    def outermost(self) -> Scoped:
        """The transaction outside of all savepoints, under the scope with which it was opened."""
        return Scoped(_SavepointConnection(self, self.root))

    @asynccontextmanager
    async def scoped(self, scope: Scope, writer: Writer = NO_WRITER, caller: str | None = None) -> AsyncIterator[Scoped]:
        """A savepoint: rolled back when it raises, committed with the whole transaction. As `Database.scoped`.

        The writer and the connection's caller are those of the transaction, because it belongs to one request.
        """
        async with self._savepoint(scope) as block:
            yield Scoped(_SavepointConnection(self, block))

    async def read(self, scope: Scope, sql: str, args: tuple[Any, ...], caller: str | None = None) -> Rows:
        """One SELECT, in a savepoint. As `Database.read`."""
        statement = self._database.statement(sql, args)
        async with self._savepoint(scope) as block:
            self._current_scope = scope  # the statement sets it itself
            return Rows(await self.run(block, "fetchval", statement, *args, *scope))

    async def write(
        self, scope: Scope, writer: Writer, sql: str, args: tuple[Any, ...], caller: str | None = None
    ) -> str | None:
        """One write of at most one row, in a savepoint; committed with the whole transaction. As `Database.write`."""
        statement = one_write_in_transaction(sql, len(args))
        async with self._savepoint(scope) as block:
            return await self.run(block, "fetchval", statement, *args)  # type: ignore[no-any-return]

    @asynccontextmanager
    async def savepoint(self, block: Savepoint) -> AsyncIterator[None]:
        """A savepoint inside `block`, under its scope: what is run with the block's `Scoped` meanwhile belongs to it."""
        block.check_open()
        async with self._savepoint(block.scope):
            yield

    @asynccontextmanager
    async def _savepoint(self, scope: Scope) -> AsyncIterator[Savepoint]:
        async with self._turn() as above:
            above.check_open()
            block = Savepoint(scope, above)
            _innermost.set(block)
            try:
                async with self._connection.savepoint():
                    self._current_scope = None  # each savepoint sets its scope again, because earlier SQL may have changed it
                    async with self.closing(block):
                        yield block
            except BaseException as error:
                self._current_scope = None  # the rollback of the savepoint has undone its settings
                raise self._database.failed(self._connection, error) from None

    @asynccontextmanager
    async def closing(self, block: Savepoint) -> AsyncIterator[None]:
        """At the end, close the savepoint to new work and wait for work in progress; after a failure that work is refused."""
        try:
            yield
        except BaseException:
            block.closed = True
            await self._close(block)
            raise
        await self._close(block)

    async def _close(self, block: Savepoint) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await block.close()
        except BaseException:
            block.closed = True
            self._connection.terminate()  # a task still uses one of its savepoints, so it must not be reused
            raise

    async def run(self, block: Savepoint, method: str, sql: str, *args: Any) -> Any:
        """Run a statement of this savepoint under its scope, after the statements before it."""
        async with self._turn(block):
            block.check_open()
            return await self._run(block.scope, method, sql, *args)

    async def run_last(self, sql: str, *args: Any) -> None:
        """Run a statement outside of all savepoints and after them; no new savepoint can be opened.

        Raises the same exceptions as the end of a savepoint.
        """
        await self._close(self.root)
        try:
            await self._run(self.root.scope, "execute", sql, *args)
        except Exception as error:
            raise self._database.failed(self._connection, error) from None

    async def _run(self, scope: Scope, method: str, sql: str, *args: Any) -> Any:
        if self._current_scope != scope:
            await self._connection.execute(SET_SCOPE, *scope)
            self._current_scope = scope
        return await getattr(self._connection, method)(sql, *args)

    @asynccontextmanager
    async def _turn(self, block: Savepoint | None = None) -> AsyncIterator[Savepoint]:
        """Hold the lock of the innermost open savepoint around the running code; with `block`, of `block` or one inside it.

        A savepoint may close while a task waits for it: the task then waits for the one around it.
        """
        while True:
            here = self._current()
            if block is not None and not here.is_within(block):
                here = block
            async with here.lock:
                if not here.closed or here in (block, self.root):
                    yield here
                    return

    def _current(self) -> Savepoint:
        """The innermost open savepoint around the running code; the root if that savepoint is of another transaction."""
        here = _innermost.get()
        if here is None or not here.is_within(self.root):
            return self.root
        while here.closed and here.above is not None:
            here = here.above
        return here


class _SavepointConnection:
    """The connection as one savepoint may use it: the methods that `Scoped` needs."""

    __slots__ = ("_savepoint", "_transaction")

    def __init__(self, transaction: RequestTransaction, block: Savepoint) -> None:
        self._transaction, self._savepoint = transaction, block

    async def fetch(self, sql: str, *args: Any) -> Any:
        return await self._transaction.run(self._savepoint, "fetch", sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        return await self._transaction.run(self._savepoint, "fetchrow", sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return await self._transaction.run(self._savepoint, "fetchval", sql, *args)

    async def execute(self, sql: str, *args: Any) -> Any:
        return await self._transaction.run(self._savepoint, "execute", sql, *args)

    def savepoint(self, left: object) -> Any:
        return self._transaction.savepoint(self._savepoint)


JOINED: Final = web.RequestKey("joined", RequestTransaction)
"""Set while all database work of the request is one transaction."""


@asynccontextmanager
async def one_transaction(
    database: Database, scope: Scope, lock: int, writer: Writer = NO_WRITER, caller: str | None = None
) -> AsyncIterator[RequestTransaction | None]:
    """A request's transaction, under this scope and of this writer. None if another transaction holds `lock`, the 64-bit key of
    an advisory lock, which is not waited for.

    Committed at the end; rolled back when the block raises. `Rollback` rolls back and is not raised further.
    Raises Unavailable, also when the commit fails: then nothing was applied, or all of it.
    """
    try:
        async with database.connection(caller) as connection:
            async with connection.transaction():
                (*_, free) = await connection.fetchrow(
                    f"{database.set_scope}, pg_try_advisory_xact_lock($6)", *scope, *writer, lock
                )
                if not free:
                    yield None
                    return
                transaction = RequestTransaction(database, connection, scope)
                async with transaction.closing(transaction.root):
                    yield transaction
                connection.unfinished = COMMIT_SECONDS
            connection.unfinished = None
    except Rollback:
        pass
