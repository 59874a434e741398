"""One SELECT under many scopes in one round trip: for streams of different callers that receive one change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from ..http.answers import Rows
from ..http.pagination import RowLimit
from .connections import Database, Scope

MOST: Final = 16
"""The most scopes in one statement. More would save little, and the rows of all of them are in memory at once."""
_SIZES: Final = (4, MOST)
_ARGUMENTS: Final = 4  # of each scope: its ids, its user, organisation and admin organisation
_PLACE: Final = re.compile(r"\"(?:[^\"]|\"\")*\"|'(?:[^']|'')*'|\$(\d+)")


async def read_for_each(
    database: Database, sql: str, limit: RowLimit, asked: Sequence[tuple[Scope, list[str]]], caller: str
) -> list[Rows]:
    """Run one SELECT for each pair of a scope and ids, at most MOST of them; returns the rows of each, as `Database.read` does.

    `sql` has the ids as $1 (text[]) and the limit as $2, and no texts or comments with `$`. Raises Unavailable, StatementError.
    """
    size = next(size for size in _SIZES if len(asked) <= size)
    arguments: list[Any] = [limit]
    for scope, ids in asked:
        arguments += (ids, *scope)
    arguments += [None] * (_ARGUMENTS * (size - len(asked)))
    statement = many_statement(database.statement(sql, ([], limit)), size)
    async with database.connection(caller) as connection:
        fetch = connection.fetchval if database.pooled else connection.read
        found = await fetch(statement, *arguments)
    return [Rows(one) for one in found[: len(asked)]]


@lru_cache(maxsize=64)
def many_statement(one: str, size: int) -> str:
    """The statement of one scope (`server.database.statements.one_statement` with two arguments) for `size` scopes.

    It is sound for the same reason: each subquery runs only once the condition of its own CASE has set its own scope, and it
    runs to its end before the next CASE begins. A policy sees the settings of the moment in which it is asked; even where it
    asks once for a statement, as `(SELECT current_setting(…))` does, that is once for each of these subqueries, which are
    planned apart. An array has the results in the order of the scopes; a place without a scope (NULL) reads nothing.
    """
    case, start = one.removeprefix("SELECT "), "CASE WHEN "
    if case == one or not case.startswith(start):
        raise ValueError("not the statement of one scope")
    return f"SELECT ARRAY[{', '.join(_shifted(case, start, number) for number in range(size))}]"


def _shifted(case: str, start: str, number: int) -> str:
    """The CASE with the numbers of its arguments changed to those of the scope `number`; the limit is $1 for all."""
    first = 2 + _ARGUMENTS * number
    places = {"1": first, "2": 1, "3": first + 1, "4": first + 2, "5": first + 3}
    text = _PLACE.sub(lambda found: f"${places[found[1]]}" if found[1] else found[0], case)
    return f"{start}${first + 1}::text IS NOT NULL AND {text.removeprefix(start)}"
