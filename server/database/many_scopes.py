"""One SELECT under many scopes in one round trip: for streams of different callers that receive one change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .connections import Database, Scope


async def read_for_each(
    database: Database, sql: str, asked: Sequence[tuple[Scope, tuple[Any, ...]]], caller: str, *, single: bool = False
) -> list[str]:
    """Run one SELECT for each pair of a scope and arguments; returns the rows of each, separated by ROW_END.

    `single`: it returns at most one row for each.

    It is as sound as `Database.read`: each pair is a statement of its own, which sets its own scope before it reads. They are
    only sent together, so Postgres runs one after the other in one transaction, whose scope ends with it. If one fails, none
    has a result.

    All pairs have the same number of arguments. Raises Unavailable, StatementError.
    """
    statement = database.statement(sql, asked[0][1], single=single)
    values = [(*arguments, *scope) for scope, arguments in asked]
    async with database.connection(caller) as connection:
        # Behind a pooler a prepared statement may belong to another server connection.
        fetch = connection.fetchmany if database.pooled else connection.read_many
        return [row[0] for row in await fetch(statement, values)]
