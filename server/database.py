"""Postgres: connections, the scope of one transaction, and one meaning for every way a database can fail.

The only room that knows asyncpg. Every statement of a handler runs with the caller's user, organisation and (only
where the route's access proves an administrator) admin organisation set for that transaction alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from .answers import Rows
from .deadline import within
from .errors import ApiError, Conflict, Forbidden, Unprocessable
from .identity import Unavailable
from .pool import Pool
from .statements import SET_SCOPE, one_statement

Scope: TypeAlias = tuple[str, str, str]
NO_SCOPE: Final[Scope] = ("", "", "")
_FUNCTION: Final = re.compile(r"[a-z_]+\Z")
# Classes of SQLSTATE that mean "not now": connection, resources, operator intervention, system, rollback, read-only.
_NOT_NOW: Final = ("08", "53", "57", "58", "40", "25", "F0", "XX", "55")


class Scoped:
    """One transaction under one caller's scope. SQL is plain, arguments are `$1`, `$2`, ..."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, *args: Any) -> list[Mapping[str, Any]]:
        """All rows."""
        return await self._connection.fetch(sql, *args)  # type: ignore[no-any-return]

    async def fetchrow(self, sql: str, *args: Any) -> Mapping[str, Any] | None:
        """The first row, or None."""
        return await self._connection.fetchrow(sql, *args)  # type: ignore[no-any-return]

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        return await self._connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement; its command tag, like `DELETE 1`."""
        return await self._connection.execute(sql, *args)  # type: ignore[no-any-return]

    async def row(self, sql: str, *args: Any) -> str | None:
        """The one row of a SELECT, or of a write with RETURNING, as JSON made by Postgres; None where there is none."""
        one = f"WITH gatepost_row AS (\n{sql}\n) SELECT row_to_json(gatepost_row)::text FROM gatepost_row"  # noqa: S608
        row: str | None = await self._connection.fetchval(one, *args)
        return row


class Database:
    """A pool of connections in the serving role."""

    def __init__(self, *, size: int, acquire_seconds: float, statement_seconds: float, pooled: bool) -> None:
        """`size` connections at the most; `pooled`: a transaction pooler stands between."""
        self._size, self._acquire, self._statement, self._pooled = size, acquire_seconds, statement_seconds, pooled
        self._pool: Pool[Any] | None = None

    async def open(self, connect: Mapping[str, Any]) -> None:
        """Connect; `connect` goes to asyncpg (`dsn`, or host, port, user, database). Raises Unavailable."""
        settings = {} if self._pooled else {
            "timezone": "UTC",
            "statement_timeout": str(round(self._statement * 1000)),
            "idle_in_transaction_session_timeout": str(round((self._statement + 30) * 1000)),
            "application_name": "gatepost",
        }  # fmt: skip
        arguments = {
            **connect,
            "server_settings": settings,
            "statement_cache_size": 0 if self._pooled else 1024,
            "max_cached_statement_lifetime": 0,  # a statement stays prepared; what the schema changes under it is told apart
            "command_timeout": self._statement + 1,  # a Postgres that does not answer at all is noticed by us
            "timeout": self._acquire,
        }
        self._pool = Pool(lambda: asyncpg.connect(**arguments), self._size, busy=_still_cancelling)
        async with self.connection():
            pass

    @property
    def pool(self) -> Pool[Any] | None:
        """The connections; None before `open`."""
        return self._pool

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A bare connection in the serving role, without a scope: it sees no tenant's row. Raises Unavailable."""
        connection = await self._take()
        try:
            yield connection
        except Exception as error:
            raise self.failed(connection, error) from None
        finally:
            self._opened.release(connection)

    async def read(self, scope: Scope, sql: str, args: tuple[Any, ...]) -> Rows:
        """One SELECT in one round trip, its rows as a JSON array."""
        statement = one_statement(sql, len(args))
        connection = await self._take()
        try:
            return Rows(await connection.fetchval(statement, *args, *scope))
        except asyncpg.InvalidCachedStatementError:  # the schema changed under a prepared statement: nothing was done
            async with translated():
                return Rows(await connection.fetchval(statement, *args, *scope))
        except Exception as error:
            raise self.failed(connection, error) from None
        finally:
            self._opened.release(connection)

    async def _take(self) -> Any:
        try:
            return await within(self._acquire, self._opened.acquire())
        except Exception as error:
            raise _meaning(error) from None

    @property
    def _opened(self) -> Pool[Any]:
        if self._pool is None:
            raise Unavailable("the database is not open")
        return self._pool

    def failed(self, connection: Any, error: Exception) -> Exception:
        """What a failure means; a connection to a server that is going away or only reads is not used again."""
        if isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith(("25006", "57P")):
            connection.terminate()
        return _meaning(error)

    @asynccontextmanager
    async def scoped(self, scope: Scope) -> AsyncIterator[Scoped]:
        """A transaction under this scope: committed at the end of the block, rolled back when it raises."""
        async with self.connection() as connection, connection.transaction():
            await connection.execute(SET_SCOPE, *scope)
            yield Scoped(connection)

    async def call(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        """Call a listed definer function by name: what must work without an identity."""
        if not _FUNCTION.match(function):
            raise ValueError("not the name of a function")
        holes = ", ".join(f"${n}" for n in range(1, len(args) + 1))
        async with self.connection() as connection:
            rows = await connection.fetch(f"SELECT * FROM public.{function}({holes})", *args)  # noqa: S608 - a name we checked
        return [dict(row) for row in rows]


@asynccontextmanager
async def direct_connection(connect: Mapping[str, Any]) -> AsyncIterator[Any]:
    """A connection of its own, closed at the end: for migrations and commands. Raises Unavailable, ValueError."""
    async with translated():
        connection = await asyncpg.connect(**connect, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


def _still_cancelling(connection: Any) -> bool:
    """Did its last borrower give up while a query ran? asyncpg is still telling Postgres; such a one is thrown away."""
    return bool(connection._protocol is None or connection._protocol._is_cancelling())


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn what asyncpg raises into Unavailable (503) or an answer. No text of Postgres goes further than here."""
    try:
        yield
    except Exception as error:
        raise _meaning(error) from None


def _meaning(error: Exception) -> Exception:
    """What the caller of the database is to be told; an exception that is not the database's is itself."""
    if isinstance(error, asyncpg.PostgresError):
        return _of_state(error)
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return ValueError("not a Postgres URL that can be used")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Unprocessable([])  # a value that asyncpg cannot send
    if isinstance(error, asyncpg.InterfaceError | OSError | TimeoutError):
        return Unavailable(f"database: {type(error).__name__}")
    return error


def _of_state(error: asyncpg.PostgresError) -> Exception:
    state = error.sqlstate or ""
    known: dict[str, type[ApiError]] = {"23505": Conflict, "23503": Conflict, "23P01": Conflict}
    if state == "42501":  # a policy or a grant said no: the row would be another tenant's
        return Forbidden("organization")
    if state in known:
        return known[state]()
    if state.startswith(("22", "23", "54")):
        return Unprocessable([])
    if state.startswith(_NOT_NOW) or isinstance(error, asyncpg.InvalidCachedStatementError):
        return Unavailable(f"database: {type(error).__name__} ({state})")
    return error
