"""asyncpg: a connection, and the translation of its exceptions. The only module that imports it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, Final

import asyncpg

from ..http.errors import Unavailable, Unprocessable
from . import json_values
from .error_details import details_of
from .urls import refused_by_driver
from .violations import NOT_NOW, StatementError, error_for_argument, error_for_state

# The server is read-only or shutting down: the connection is no longer useful.
NOT_AGAIN: Final = ("25006", "57P")
_MOST_KEPT: Final = 256
_MOST_WORDS: Final = 300
_UNDO_SECONDS: Final = 1.0
COMMIT_SECONDS: Final = 60.0
"""How many seconds a COMMIT may keep its connection after its request has given up: usually longer than the wait for a
synchronous standby. A connection that is closed earlier continues to wait in Postgres, where nothing bounds their number."""
_MISUSE: Final = ("the server expects", "the number of query arguments", "cannot perform operation: another operation")
"""How asyncpg's messages about a handler's mistake begin. They contain no value; the exception has no other mark."""
_savepoints: Final = count(1)


class Connection(asyncpg.Connection):
    """A connection that keeps the statements that `read` has prepared, by their text: asyncpg's own lookup takes a twentieth
    of a request.

    A kept statement is dropped when Postgres says that the schema has changed, when there are too many, and with the
    connection (tests/database/test_driver.py).
    """

    __slots__ = ("_kept", "unfinished")

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._kept: dict[str, Any] = {}
        self.unfinished: float | None = None
        """Seconds to wait for the end of a COMMIT that may be running. Then the connection is closed. None: there is none.
        A COMMIT must not be cancelled: Postgres would report success and show its rows although no standby has them."""

    def _cancel_current_command(self, waiter: Any, *more: Any) -> None:
        """asyncpg calls this when a statement is given up, to have Postgres cancel it."""
        if self.unfinished is None:
            super()._cancel_current_command(waiter, *more)  # type: ignore[misc]
            return
        waiter.set_result(None)  # as if the request had been sent: what follows waits for the end of the statement
        if self.unfinished == 0:
            asyncio.get_running_loop().call_soon(self.terminate)

    async def read(self, sql: str, *args: Any) -> Any:
        """The first column of the first row of a statement, which is a transaction; prepared once for this connection."""
        statement = self._kept.get(sql)
        if statement is None:
            statement = await self._keep(sql)
        try:
            return await statement.fetchval(*args)
        except asyncpg.InvalidCachedStatementError:  # nothing was done
            self._kept.clear()
            return await (await self._keep(sql)).fetchval(*args)

    async def read_many(self, sql: str, args: Sequence[Sequence[Any]], seconds: float | None = None) -> list[Any]:
        """The rows of the same statement for each of these arguments, which are sent together; as `read` otherwise.

        Raises TimeoutError after `seconds`.
        """
        statement = self._kept.get(sql)
        if statement is None:
            statement = await self._keep(sql)
        try:
            return await statement.fetchmany(args, timeout=seconds)  # type: ignore[no-any-return]
        except asyncpg.InvalidCachedStatementError:
            self._kept.clear()
            return await (await self._keep(sql)).fetchmany(args, timeout=seconds)  # type: ignore[no-any-return]

    async def _keep(self, sql: str) -> Any:
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        statement = self._kept[sql] = await self.prepare(sql)
        return statement

    @asynccontextmanager
    async def savepoint(self, left: Callable[[], bool] = lambda: False) -> AsyncIterator[None]:
        """A part of the open transaction that is undone alone when the block raises. What it raises is raised further.

        `left()`: has the transaction's own block been left? The connection is then another request's, and is not touched.
        """
        name = f"gatepost_{next(_savepoints)}"
        await self.execute(f"SAVEPOINT {name}")
        try:
            yield
            if left():
                raise RuntimeError("used after its block was left")
            await self.execute(f"RELEASE SAVEPOINT {name}")
        except BaseException as error:
            if left():
                raise
            await self._undo(name)
            if (refused := refusal(error)) is None:
                raise
            raise refused from None

    async def _undo(self, savepoint: str) -> None:
        try:
            await self.execute(f"ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}", timeout=_UNDO_SECONDS)
        except BaseException:
            self.terminate()  # otherwise the end of the transaction might commit what should be undone


async def connect(**arguments: Any) -> Connection:
    """Open a connection; `arguments` are asyncpg's."""
    made: Connection = await asyncpg.connect(connection_class=Connection, **arguments)
    return made


async def connect_for_handlers(**arguments: Any) -> Connection:
    """As `connect`, for a connection that takes and returns values of the type jsonb as Python objects."""
    made = await connect(**arguments)
    try:
        await made.set_type_codec(
            "jsonb", schema="pg_catalog", encoder=json_values.encode, decoder=json_values.decode, format="binary"
        )
    except BaseException:
        made.terminate()
        raise
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


def refusal(error: BaseException) -> Exception | None:
    """The exception that a handler gets at once for a statement that Postgres has refused; None for any other failure.

    The connection is in order after it. Other failures say something about the connection, and are translated at the end of
    the transaction.
    """
    if not isinstance(error, Exception) or not is_server_error(error):
        return None
    translated = translate_error(error)
    return None if isinstance(translated, Unavailable) else translated


def translate_error(error: Exception) -> Exception:
    """The exception for the caller, without a value of any row. One that comes from elsewhere is returned as it is."""
    if isinstance(error, asyncpg.PostgresError):
        state, name = error.sqlstate or "", type(error).__name__
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            return Unavailable(f"database: {name} ({state})")
        if isinstance(error, asyncpg.DataError) and error.severity is None:
            return error_for_argument(str(error), error.__cause__)
        return error_for_state(state, name, error.message or "", **details_of(error))
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return refused_by_driver(str(error))
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Unprocessable([])  # a value that asyncpg cannot send
    if isinstance(error, asyncpg.InterfaceError) and str(error).startswith(_MISUSE):
        return StatementError(str(error).partition("\n")[0])
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError | TimeoutError):
        return Unavailable(f"database: {type(error).__name__}")
    return error


def connection_error(error: Exception) -> Exception:
    """The exception for a failure to open a connection: an outage, whatever Postgres has against the role or its password.

    The log gets Postgres's words, which name a role, a database or a host, and no secret.
    """
    if isinstance(error, asyncpg.PostgresError):
        words = (error.message or "").partition("\n")[0][:_MOST_WORDS]
        return Unavailable(f"database: {type(error).__name__} ({error.sqlstate}){words and ': '}{words}")
    return translate_error(error)


async def reset(connection: Any, seconds: float) -> None:
    """Reset a connection, or close it where a step fails within `seconds`. The end of a COMMIT is waited for."""
    try:
        with suppress(asyncpg.PostgresError):  # the transaction may have failed
            await connection.execute("SELECT", timeout=connection.unfinished or seconds)  # waits for what is being cancelled
        connection.unfinished = None
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK", timeout=seconds)
    except Exception:
        connection.terminate()
