"""Postgres: connections, the scope of one transaction, and one meaning for every way a database can fail.

The only room that knows asyncpg. Every statement of a handler runs with the caller's user, organisation and (only
where the route's access proves an administrator) admin organisation set for that transaction alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

import asyncpg

from .answers import Rows
from .errors import ApiError, Conflict, Forbidden, Unprocessable
from .identity import Unavailable

Scope = tuple[str, str, str]
NO_SCOPE: Final[Scope] = ("", "", "")
# Three settings, always all three, always for this transaction alone: what an earlier borrower left does not matter.
SET_SCOPE: Final = (
    "SELECT set_config('gatepost.user_id', $1, true), set_config('gatepost.org_id', $2, true),"
    " set_config('gatepost.admin_org_id', $3, true)"
)
_READ_ONLY: Final = re.compile(r"\s*(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)
_WRITES: Final = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE)\b(?!\s*OF\b)", re.IGNORECASE)
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
        self._pool: Any = None

    async def open(self, connect: Mapping[str, Any]) -> None:
        """Connect; `connect` goes to asyncpg (`dsn`, or host, port, user, database). Raises Unavailable."""
        settings = {} if self._pooled else {
            "timezone": "UTC",
            "statement_timeout": str(round(self._statement * 1000)),
            "idle_in_transaction_session_timeout": str(round((self._statement + 30) * 1000)),
            "application_name": "gatepost",
        }  # fmt: skip
        async with translated(), _good_url():
            self._pool = await asyncpg.create_pool(
                **connect,
                min_size=min(2, self._size),
                max_size=self._size,
                server_settings=settings,
                statement_cache_size=0 if self._pooled else 1024,
                command_timeout=self._statement + 1,  # a Postgres that does not answer at all is noticed by us
                timeout=self._acquire,
                reset=_nothing_to_reset,
            )

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A bare connection in the serving role, without a scope: it sees no tenant's row. Raises Unavailable."""
        async with translated(), self._pool.acquire(timeout=self._acquire) as connection:
            yield connection

    async def read(self, scope: Scope, sql: str, args: tuple[Any, ...]) -> Rows:
        """One SELECT in one round trip, its rows as a JSON array."""
        statement = _one_statement(sql, len(args))
        async with self.connection() as connection:
            try:
                text = await connection.fetchval(statement, *args, *scope)
            except asyncpg.InvalidCachedStatementError:  # the schema changed under a prepared statement: nothing was done
                text = await connection.fetchval(statement, *args, *scope)
        return Rows(text)

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
    async with translated(), _good_url():
        connection = await asyncpg.connect(**connect, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def _good_url() -> AsyncIterator[None]:
    try:
        yield
    except asyncpg.exceptions.ClientConfigurationError as error:
        raise ValueError("not a Postgres URL that can be used") from error


@lru_cache(maxsize=1024)
def _one_statement(sql: str, arguments: int) -> str:
    """The caller's SELECT, run after its scope is set, in one statement.

    Why it is sound: the rows come from a subquery that CASE evaluates only when its condition is true, and the
    condition sets the scope (set_config is volatile: it is never evaluated early). Were the condition ever NULL there
    would be no rows at all. tests/test_read_soundness.py holds it against every plan shape we could force.
    """
    if not _READ_ONLY.match(sql) or _WRITES.search(re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "", sql)):
        raise ValueError("read() runs one SELECT; writes go through scoped()")
    user, org, admin = (f"${arguments + n}" for n in (1, 2, 3))
    # The alias is one that no column has (else row_to_json would take the column); the line's end closes a comment.
    return (
        f"SELECT CASE WHEN set_config('gatepost.user_id', {user}, true) IS NOT NULL"  # noqa: S608 - the handler's own SQL
        f" AND set_config('gatepost.org_id', {org}, true) IS NOT NULL"
        f" AND set_config('gatepost.admin_org_id', {admin}, true) IS NOT NULL"
        f" THEN (SELECT coalesce(string_agg(row_to_json(gatepost_row)::text, E'\\x1e'), '')"
        f" FROM (\n{sql.strip().rstrip(';')}\n) AS gatepost_row) END"
    )


async def _nothing_to_reset(connection: Any) -> None:
    """asyncpg would send RESET ALL on each release, a round trip. We leave nothing behind: every scope is local."""


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turn what asyncpg raises into Unavailable (503) or an answer. No text of Postgres goes further than here."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _meaning(error) from None
    except asyncpg.InterfaceError as error:
        if isinstance(error, asyncpg.DataError | ValueError):
            raise Unprocessable([]) from None
        raise Unavailable(f"database: {type(error).__name__}") from None
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"database: {type(error).__name__}") from None


def _meaning(error: asyncpg.PostgresError) -> Exception:
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
