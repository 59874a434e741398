"""What a SQLSTATE of Postgres means to a caller. Knows no database library."""

from __future__ import annotations

from typing import Final

from .errors import ApiError, Conflict, Forbidden, Unprocessable
from .identity import Unavailable

# Classes that mean "not now": connection, resources, operator intervention, system, rollback, read-only.
NOT_NOW: Final = ("08", "53", "57", "58", "40", "25", "F0", "XX", "55")
# The server at the other end only reads, or is going away: the connection is of no more use.
NOT_AGAIN: Final = ("25006", "57P")
_KNOWN: Final[dict[str, type[ApiError]]] = {"23505": Conflict, "23503": Conflict, "23P01": Conflict}


def meaning_of(state: str, name: str) -> Exception | None:
    """The answer to an error with this state; None where it is a mistake in the SQL. `name` is the error's, for the log."""
    if state == "42501":  # a policy or a grant said no: the row would be another tenant's
        return Forbidden("organization")
    if state in _KNOWN:
        return _KNOWN[state]()
    if state.startswith(("22", "23", "54")):
        return Unprocessable([])
    if state.startswith(NOT_NOW):
        return Unavailable(f"database: {name} ({state})")
    return None
