"""Runs a product's own SQL files as the owner: each in one transaction, rolled back if it fails or leaves a problem."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from ..database.driver import translate_error
from ..messages import one_line
from ..settings.setting import ConfigError
from .migrate import LOCK
from .numbered import Numbered, record
from .sql_file import NO_TRANSACTION, SqlFile, Statement
from .startup import StartFailed

Judge: TypeAlias = Callable[[Any], Awaitable[list[str]]]
"""What makes the database unsafe to serve from, a sentence per problem, as the transaction of this connection sees it."""

# What a file may have changed in its session, back to what the session began with. Within the file's transaction, so that
# behind a pooler no other client gets it.
_EXISTS: Final = "a file runs at every migrate unless it is numbered: write IF NOT EXISTS, or OR REPLACE"
_ROWS: Final = "rows that exist break this rule: change them first"
_LOCKED: Final = "another session has the lock: run migrate again when it is free"
_RIGHTS_AND_LOCKS: Final = frozenset({"42501", "55P03", "40P01"})
# What to do about an error, by its SQLSTATE, where the message does not say it.
_TODO: Final = {
    "42501": "migrate runs as the role of DATABASE_OWNER_URL, which must own what it changes and have CREATEROLE",
    "42P07": _EXISTS, "42710": _EXISTS, "42701": _EXISTS, "42723": _EXISTS, "42P06": _EXISTS,
    "42P01": "what a file uses must exist before it: files run in the order given",
    "42703": "a table that exists is not changed by CREATE TABLE IF NOT EXISTS: write ALTER TABLE … ADD COLUMN IF NOT EXISTS",
    "23505": _ROWS, "23502": _ROWS, "23514": _ROWS, "23503": _ROWS,
    "55P03": _LOCKED, "40P01": _LOCKED,
}  # fmt: skip
_ARGUMENTS: Final = 'its arguments are organization, author, "user" and admin_deletes'
_RESERVED: Final = "SQL reserves the word user: write \"user\" => 'user_id', in double quotes"
_RESET: Final = "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL"
_FORGET: Final = f"{_RESET}; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD TEMP"


class OwnFiles:
    """Runs files on one connection of the owner, which nothing else uses."""

    def __init__(self, connection: Any, serving_role: str, judge: Judge) -> None:
        """`serving_role`: the files find its name in the setting `gatepost.serving_role`."""
        self._connection, self._role, self._judge = connection, serving_role, judge
        self._before: list[str] | None = None

    async def problems(self) -> list[str]:
        """What makes the database unsafe now."""
        if self._before is None:
            self._before = await self._judge(self._connection)
        return self._before

    async def run(self, file: SqlFile, numbered: Numbered | None = None) -> None:
        """Run the file; `numbered`: and record it in the same transaction.

        Raises ConfigError if a statement is not allowed or the result is less safe than what was there, StartFailed if SQL
        fails. Then nothing of the file has happened, unless it runs outside a transaction.
        """
        statements = file.statements()
        known = await self.problems()
        if file.in_transaction:
            async with self._transaction(file.name):
                await self._in_transaction(file, statements, numbered, known)
        else:
            await self._one_by_one(file, statements)
            async with self._transaction(file.name):
                await self._refuse_new(file, known)
                if numbered is not None:
                    await record(self._connection, numbered)
        await self._forget()

    @asynccontextmanager
    async def _transaction(self, name: str) -> AsyncIterator[None]:
        try:
            async with self._connection.transaction():
                await self._connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
                yield
        except (ConfigError, StartFailed):
            raise
        except Exception as error:
            raise failed(name, error) from None

    async def _in_transaction(
        self, file: SqlFile, statements: Sequence[Statement], numbered: Numbered | None, known: list[str]
    ) -> None:
        began = await self._connection.fetchval("SELECT pg_current_xact_id()::text")
        await self._settings(local=True)
        for statement in statements:
            await self._execute(file, statement, "; rolled back")
        await self._connection.execute(_RESET)
        if await self._connection.fetchval("SELECT pg_current_xact_id()::text") != began:
            raise StartFailed(f"migrate: {file.name}: it ended its transaction, so it cannot be rolled back or recorded")
        if numbered is not None:
            await record(self._connection, numbered)
        await self._refuse_new(file, known)

    async def _one_by_one(self, file: SqlFile, statements: Sequence[Statement]) -> None:
        try:
            await self._settings(local=False)
            for number, statement in enumerate(statements):
                kept = f"; the {number} statement(s) before it stay" if number else ""
                await self._execute(file, statement, f"{kept}; mend it, and run migrate again")
        finally:
            await self._forget()

    async def _settings(self, *, local: bool) -> None:
        # Row-level security is forced on the owner too, so a backfill would silently change nothing. With this it raises.
        await self._connection.execute(
            "SELECT set_config('row_security', 'off', $1), set_config('gatepost.serving_role', $2, $1)", local, self._role
        )

    async def _execute(self, file: SqlFile, statement: Statement, after: str) -> None:
        try:
            await self._connection.execute(statement.text)
        except Exception as error:
            line = line_of(statement.text, error, statement.line) or statement.line
            raise failed(f"{file.name}, line {line}", error, after) from None

    async def _refuse_new(self, file: SqlFile, known: list[str]) -> None:
        """Raise ConfigError with a line for each problem that was not there before the file."""
        found = await self._judge(self._connection)
        new = [line for line in found if line not in known]
        if new:
            how = "rolled back" if file.in_transaction else f"not recorded; what `{NO_TRANSACTION}` has run stays"
            raise ConfigError(one_per_line(f"migrate: {file.name}: not safe to serve from, {how}", new))
        self._before = found

    async def _forget(self) -> None:
        """Leave nothing of a file in the session for the next one."""
        if not self._connection.is_closed():
            await self._connection.execute(_FORGET)


def one_per_line(what: str, problems: Sequence[str]) -> str:
    """Returns a message that has a line of its own for each problem."""
    return "\ngatepost: ".join(f"{what}: {line}" for line in problems)


def failed(where: str, error: Exception, after: str = "; rolled back", *, is_ours: bool = False) -> Exception:
    """The exception for an error of Postgres: the place, its message, what became of the file, and what to do, in one line.

    is_ours  the file is the server's own schema
    An error that is not Postgres's is translated as everywhere.
    """
    state = getattr(error, "sqlstate", None)
    if state is None:
        return translate_error(error)
    # The operator's own SQL and rights: here, and only here, Postgres's own message is shown.
    todo = _TODO.get(state) if not is_ours or state in _RIGHTS_AND_LOCKS else None
    if state == "42883" and "gatepost_tenant(" in str(error):
        todo = _ARGUMENTS
    elif state == "42601" and '"=>"' in str(error):
        todo = _RESERVED
    return StartFailed(f"migrate: {where}: {one_line(error)}{after}{f': {todo}' if todo else ''}")


def line_of(text: str, error: Exception, first: int = 1) -> int | None:
    """The line that Postgres's error points at, in a text that begins on the line `first`; None if it points at none."""
    position = getattr(error, "position", None)  # in characters, from 1
    return first + text.count("\n", 0, int(position) - 1) if position else None
