"""The serving role's connections: each statement runs under a scope, and a connection in an unknown state is reset.

Every statement of a handler runs under its caller's scope, which is set for that transaction alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

from ..http.answers import Rows
from ..http.errors import Unavailable
from ..settings.setting import ConfigError
from . import driver
from .hosts import Hosts
from .limits import Limits
from .one_write import one_write, one_write_in_transaction
from .pool import Pool
from .resets import RESET_SECONDS, Resets
from .scoped_block import Scoped, leave
from .statements import IN_UTC, call_of, statement_of
from .together import Together
from .turns import Read

Scope: TypeAlias = tuple[str, str, str]
NO_SCOPE: Final[Scope] = ("", "", "")
Writer: TypeAlias = tuple[str, str]
"""(actor, request id): what the audit log records about a write; empty texts if there is none."""
NO_WRITER: Final[Writer] = ("", "")
_IGNORED: Final = "the server at this URL ignores start-up parameters, as a pooler does; see database.pooler"


class Database:
    """A pool of connections in the serving role."""

    def __init__(self, *, size: int, acquire_seconds: float, statement_seconds: float, pooled: bool) -> None:
        """`size`: the most connections; `pooled`: they go through a transaction pooler."""
        self._size, self._acquire, self.pooled = size, acquire_seconds, pooled
        self._limits = Limits(acquire_seconds, statement_seconds, pooled=pooled)
        self.set_scope = self._limits.set_scope()
        """The SQL that sets a scope ($1 to $3), a writer ($4, $5) and the limits of one transaction."""
        self._set_time_zone = IN_UTC if pooled else ""
        self._pool: Pool[Any] | None = None
        self._together: Together | None = None  # not behind a pooler, where nothing stays prepared
        self._uncertain: set[Any] = set()
        self._resets: Resets | None = None
        self._hosts: Hosts[Any] | None = None

    async def open(self, connect: Mapping[str, Any], renewed: Callable[[], str | None] = lambda: None) -> None:
        """Connect; `connect` goes to asyncpg (`dsn`, or host, port, user, database). Raises Unavailable, ConfigError.

        `renewed()` returns the URL as it is now, after Postgres has refused its role or password.
        """
        arguments = {**connect, **self._limits.arguments()}
        hosts = Hosts(
            driver.connect_for_handlers, arguments, self._acquire * 0.9, elsewhere=driver.another_host_may_do, renewed=renewed
        )
        self._pool, self._hosts = Pool(hosts.open, self._size, must_discard=driver.must_discard), hosts
        self._resets = Resets(self._pool.release, None if self.pooled else hosts.open)
        if not self.pooled:
            self._together = Together(self._pool, self._wait_for_one, self._release, self._release_after)
        async with self.connection() as connection:
            if not self.pooled and await connection.fetchval("SHOW statement_timeout") == "0":
                raise ConfigError(f"database.url (DATABASE_URL): {_IGNORED}")

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._resets is not None:
            await self._resets.wait()

    @property
    def pool(self) -> Pool[Any] | None:
        """The connections; None before `open`."""
        return self._pool

    @asynccontextmanager
    async def connection(self, caller: str | None = None) -> AsyncIterator[Any]:
        """A connection in the serving role without a scope: it sees no tenant's rows. Raises Unavailable.

        `caller` is who it is counted for, as in `caller_key`; None: the server itself.
        """
        connection = self._opened.take(caller) or await self._wait_for_one(caller)
        try:
            yield connection
        except BaseException as error:
            raise self._release_after(connection, error) from None
        self._release(connection)

    def statement(self, sql: str, args: tuple[Any, ...], *, single: bool = False) -> str:
        """A SELECT with its scope around it; the scope's three values follow its arguments. `single`: of at most one row."""
        return statement_of(sql, args, self._set_time_zone, single=single)

    async def read(self, scope: Scope, sql: str, args: tuple[Any, ...], caller: str | None = None) -> Rows:
        """Run one SELECT in one round trip; returns its rows as a JSON array. `caller`: as in `connection`."""
        statement = self.statement(sql, args)
        if (connection := self._opened.take(caller)) is None:
            if self._together is not None:
                return Rows(await self._together.read(statement, (*args, *scope), caller))
            connection = await self._wait_for_one(caller)
        try:
            # Behind a pooler a prepared statement may belong to another server connection.
            fetch = connection.fetchval if self.pooled else connection.read
            rows = Rows(await fetch(statement, *args, *scope))
        except BaseException as error:
            raise self._release_after(connection, error) from None
        self._release(connection)
        return rows

    async def write(
        self, scope: Scope, writer: Writer, sql: str, args: tuple[Any, ...], caller: str | None = None
    ) -> str | None:
        """Run one write with RETURNING of at most one row, in one round trip; returns the row's JSON, or None.

        It is committed before this returns; if this raises Unavailable, all of it was committed or nothing.
        """
        if self.pooled:  # a time-out that is set in a statement does not apply to it, and here the connection has none
            async with self.scoped(scope, writer, caller) as db:
                return await db.fetchval(one_write_in_transaction(sql, len(args)), *args)  # type: ignore[no-any-return]
        statement = one_write(sql, len(args), self._limits.lock)
        connection = self._opened.take(caller) or await self._wait_for_one(caller)
        try:
            connection.unfinished = driver.COMMIT_SECONDS  # it commits at its end
            row = await connection.read(statement, *args, *scope, *writer)
            connection.unfinished = None
        except BaseException as error:
            raise self._release_after(connection, error) from None
        self._release(connection)
        return row  # type: ignore[no-any-return]

    async def _wait_for_one(self, caller: str | None, read: Read | None = None) -> Any:
        try:
            return await self._opened.acquire_for(read, caller, self._acquire)
        except Exception as error:
            raise driver.connection_error(error) from None

    @property
    def _opened(self) -> Pool[Any]:
        if self._pool is None:
            raise Unavailable("the database is not open")
        return self._pool

    def failed(self, connection: Any, error: BaseException) -> BaseException:
        """Returns the exception to raise after a failure on a connection that stays in use.

        A connection to a server that is shutting down or read-only is not used again. After a time-out, a cancellation or
        a value that could not be sent the connection's state is unknown (a statement may still run, or be half sent): it
        is reset when it is returned to the pool.
        """
        translated = driver.translate_error(error) if isinstance(error, Exception) else error
        if driver.is_server_error(error):
            connection.unfinished = None  # it has ended
        if driver.ends_the_server(error):
            self._leave_server(connection)
        if not driver.is_server_error(error) and not (translated is error and isinstance(error, Exception)):
            self._uncertain.add(connection)
        return translated

    def _release_after(self, connection: Any, error: BaseException) -> BaseException:
        """Return a connection to the pool after `error` was raised on it; returns the exception to raise."""
        translated = self.failed(connection, error)
        self._release(connection)
        return translated

    def _release(self, connection: Any) -> None:
        """Return a connection to the pool; one in an unknown state is reset first, in the background."""
        if connection in self._uncertain:
            self._uncertain.discard(connection)
            if self._resets is not None and not connection.is_closed():
                self._resets.start(connection)
                return
        self._opened.release(connection)

    def _leave_server(self, connection: Any) -> None:
        """Close a connection to a server that can no longer be used, and all idle connections.

        A connection opened just now is kept: no better server was found, and this one may still read. Otherwise every write
        would open a connection.
        """
        if self._hosts is not None and not self._hosts.is_new(connection):
            connection.terminate()
            self._opened.expire()

    @asynccontextmanager
    async def scoped(self, scope: Scope, writer: Writer = NO_WRITER, caller: str | None = None) -> AsyncIterator[Scoped]:
        """A transaction under this scope, for this caller: committed at the end of the block, rolled back when it raises."""
        block = Scoped(connection := self._opened.take(caller) or await self._wait_for_one(caller))
        try:
            await connection.execute("BEGIN")
            await connection.execute(self.set_scope, *scope, *writer)
            yield block
            leave(block, whole=True)
            connection.unfinished = driver.COMMIT_SECONDS
            done, connection.unfinished = await connection.execute("COMMIT"), None
            if done != "COMMIT":
                # Postgres turns COMMIT into a rollback if a statement has failed: that must not look like success.
                raise RuntimeError("a failed statement was ignored, so nothing was committed")
        except BaseException as error:
            leave(block)
            if isinstance(error, Exception) and not driver.is_still_cancelling(connection) and connection.is_in_transaction():
                with suppress(Exception):  # if this fails, it is closed or still in the transaction, and is not used again
                    await connection.execute("ROLLBACK", timeout=RESET_SECONDS)
            raise self._release_after(connection, error) from None
        self._release(connection)

    async def call(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        """Call a listed definer function, which works without an identity; returns its rows. Raises ValueError, Unavailable."""
        statement = call_of(function, len(args))
        async with self.connection() as connection:
            connection.unfinished = 0.0  # it commits at its end
            rows = await connection.fetch(statement, *args)
            connection.unfinished = None
        return [dict(row) for row in rows]
