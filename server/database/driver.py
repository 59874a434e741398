"""asyncpg: a connection, and the translation of its exceptions. The only module that imports it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import asyncpg

from ..http.errors import ApiError, Conflict, Forbidden, Unavailable, Unprocessable

# Classes that mean "not now": connection, resources, operator intervention, system, rollback, read-only.
NOT_NOW: Final = ("08", "53", "57", "58", "40", "25", "F0", "XX", "55")
# The server is read-only or shutting down: the connection is no longer useful.
NOT_AGAIN: Final = ("25006", "57P")
_KNOWN: Final[dict[str, type[ApiError]]] = {"23505": Conflict, "23503": Conflict, "23P01": Conflict}


def error_for_state(state: str, name: str) -> Exception | None:
    """Returns the exception for this SQLSTATE; None for a mistake in the SQL. `name` is the error's class, for the log."""
    if state == "42501":  # refused by a policy or a grant: the row would be another tenant's
        return Forbidden("organization")
    if state in _KNOWN:
        return _KNOWN[state]()
    if state.startswith(("22", "23", "54")):
        return Unprocessable([])
    if state.startswith(NOT_NOW):
        return Unavailable(f"database: {name} ({state})")
    return None


_MOST_KEPT: Final = 256


class Connection(asyncpg.Connection):
    """A connection that keeps what `read` has prepared, by its text: asyncpg's own way from a text to its statement takes
    a twentieth of a request.

    A kept statement is dropped when Postgres says that the schema has changed under it, with the connection, and when
    there are too many (tests/database/test_driver.py).
    """

    __slots__ = ("_kept",)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._kept: dict[str, Any] = {}

    async def read(self, sql: str, *args: Any) -> Any:
        """The first column of the first row of a statement that changes nothing; prepared once for this connection."""
        statement = self._kept.get(sql)
        if statement is None:
            statement = await self._keep(sql)
        try:
            return await statement.fetchval(*args)
        except asyncpg.InvalidCachedStatementError:  # nothing was done
            self._kept.clear()
            return await (await self._keep(sql)).fetchval(*args)

    async def _keep(self, sql: str) -> Any:
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        statement = self._kept[sql] = await self.prepare(sql)
        return statement


async def connect(**arguments: Any) -> Connection:
    """Open a connection; `arguments` are asyncpg's."""
    made: Connection = await asyncpg.connect(connection_class=Connection, **arguments)
    return made


def another_host_may_do(error: Exception) -> bool:
    """Whether another host of the URL may serve where this one failed. False where the host refused our credentials."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(NOT_NOW)
    return isinstance(error, OSError | asyncpg.InternalClientError)


def is_still_cancelling(connection: Any) -> bool:
    """Whether asyncpg is still cancelling, in Postgres, a query that the connection's last user abandoned."""
    return bool(connection._protocol is None or connection._protocol._is_cancelling())


def must_discard(connection: Any) -> bool:
    """Whether to discard this connection: a cancellation is in progress, or asyncpg assumes an open transaction.

    asyncpg keeps that assumption if a BEGIN was abandoned before Postgres replied, and would treat the next transaction as a
    nested one.
    """
    return is_still_cancelling(connection) or connection._top_xact is not None


def is_server_error(error: BaseException) -> bool:
    """Whether the server reported this error. asyncpg itself raises some Postgres errors (a value that it cannot send)."""
    return isinstance(error, asyncpg.PostgresError) and error.severity is not None


def ends_the_server(error: BaseException) -> bool:
    """Whether the error means that the server is shutting down or is read-only."""
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "").startswith(NOT_AGAIN)


def translate_error(error: Exception) -> Exception:
    """The exception for the caller, without any text of Postgres. One that comes from elsewhere is returned as it is."""
    if isinstance(error, asyncpg.PostgresError):
        state, name = error.sqlstate or "", type(error).__name__
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            return Unavailable(f"database: {name} ({state})")
        return error_for_state(state, name) or error
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return ValueError("not a Postgres URL that can be used")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Unprocessable([])  # a value that asyncpg cannot send
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError | TimeoutError):
        return Unavailable(f"database: {type(error).__name__}")
    return error


async def reset(connection: Any, seconds: float) -> None:
    """Reset a connection, or close it where that fails within `seconds` a step. Its statement is cancelled in Postgres, too."""
    try:
        with suppress(asyncpg.PostgresError):  # the transaction may have failed
            await connection.execute("SELECT", timeout=seconds)  # waits for what is being cancelled
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK", timeout=seconds)
    except Exception:
        connection.terminate()
