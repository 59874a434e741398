"""Reads from an error of Postgres what a handler's author needs: names of the schema, and where in the handler's SQL it is."""

from __future__ import annotations

from typing import Any, Final

READ_BEGINS: Final = "SELECT CASE WHEN "
"""How the statement begins that `read` makes of a handler's SELECT."""
ROWS_BEGIN: Final = "(\n"
"""What is before the handler's SELECT in it."""
_FOREIGN: Final = "%:?"


def details_of(error: Any) -> dict[str, str | None]:
    """Returns the constraint, column and function that asyncpg's exception names, and the position in the handler's SQL."""
    return {
        "constraint": error.constraint_name,
        "column": error.column_name,
        "function": error.server_source_function,
        "position": place_in(getattr(error, "query", None), error.position),
    }


def place_in(query: str | None, position: str | None) -> str | None:
    """Returns the number of the character, from 1, in the handler's own SQL; None if Postgres has named none.

    For `%s`, `:name` or `?` at that place, which other drivers take, it also says how arguments are written.

    query     the statement that was sent
    position  the character in it, from 1, as Postgres reports it
    """
    if query is None or not (position or "").isdecimal():
        return position
    at = int(position or 0)
    begins = query.find(ROWS_BEGIN) + len(ROWS_BEGIN) if query.startswith(READ_BEGINS) and ROWS_BEGIN in query else 0
    if at <= begins:
        return position
    hint = ": arguments are written $1, $2" if query[at - 1 : at] and query[at - 1] in _FOREIGN else ""
    return f"{at - begins}{hint}"
