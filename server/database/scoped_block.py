"""The transaction in which a handler runs its SQL: what `scoped(request)` returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

from .driver import refusal


class Scoped:
    """One transaction under one caller's scope. SQL is plain, arguments are `$1`, `$2`, ...

    A statement that Postgres refuses raises at once: `UniqueViolation` and its like, or the exception of a 403 or 422. The
    transaction is then over, unless the statement was in a `savepoint`.
    """

    __slots__ = ("_connection", "_savepoints")

    def __init__(self, connection: Any) -> None:
        self._connection, self._savepoints = connection, 0

    async def fetch(self, sql: str, *args: Any) -> list[Mapping[str, Any]]:
        """Run a statement; returns all rows."""
        try:
            return await self._connection.fetch(sql, *args)  # type: ignore[no-any-return]
        except Exception as error:
            _raise(error)

    async def fetchrow(self, sql: str, *args: Any) -> Mapping[str, Any] | None:
        """Run a statement; returns the first row, or None."""
        try:
            return await self._connection.fetchrow(sql, *args)  # type: ignore[no-any-return]
        except Exception as error:
            _raise(error)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """Run a statement; returns the first column of the first row, or None."""
        try:
            return await self._connection.fetchval(sql, *args)
        except Exception as error:
            _raise(error)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement; returns its command tag, such as `DELETE 1`."""
        try:
            return await self._connection.execute(sql, *args)  # type: ignore[no-any-return]
        except Exception as error:
            _raise(error)

    async def row(self, sql: str, *args: Any) -> str | None:
        """Run a SELECT, or a write with RETURNING, of at most one row; returns it as JSON made by Postgres, or None."""
        one = f"WITH gatepost_row AS (\n{sql}\n) SELECT row_to_json(gatepost_row)::text FROM gatepost_row"  # noqa: S608
        try:
            return await self._connection.fetchval(one, *args)  # type: ignore[no-any-return]
        except Exception as error:
            _raise(error)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """`async with db.savepoint():` a part of the transaction that is undone alone when its block raises.

        The exception leaves the savepoint: catch it around `async with db.savepoint()`, not inside.
        """
        async with self._connection.savepoint(lambda: self._connection is _LEFT):
            self._savepoints += 1
            try:
                yield
            finally:
                self._savepoints -= 1


class _Left:
    """Replaces the connection of a `Scoped` after its block: another request may use the connection by then."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("used after its block was left")


_LEFT: Final = _Left()


def leave(block: Scoped, *, whole: bool = False) -> None:
    """Take the connection away from a `Scoped`: it can run no further statement.

    whole   raise RuntimeError if one of its savepoints is still open, for example in a task that is still running
    """
    block._connection = _LEFT
    if whole and block._savepoints:
        raise RuntimeError("a savepoint was still open at the end of the block, so nothing was committed")


def _raise(error: Exception) -> NoReturn:
    """Raise what a handler gets for a failed statement."""
    if (refused := refusal(error)) is None:
        raise error
    raise refused from None
