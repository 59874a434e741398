"""What Postgres refuses of a handler's statement, as exceptions: broken constraints, mistakes in the SQL or its arguments."""

from __future__ import annotations

from typing import Final

from ..http.errors import Conflict, Forbidden, Unavailable, Unprocessable

# Classes that mean "not now": connection, resources, operator intervention, system, rollback, read-only.
NOT_NOW: Final = ("08", "53", "57", "58", "40", "25", "F0", "XX", "55")
# Classes whose messages name objects of the schema and types, never a value of a row.
_NAMES_ONLY: Final = ("42", "3F", "0A", "21")
_RAISED: Final = "exec_stmt_raise"
"""The function of Postgres that a RAISE in PL/pgSQL comes from: its message is a product's own, and can hold anything."""
_SCANNER: Final = "scanner_yyerror"
"""The function that a syntax error comes from: its message quotes the SQL, which can have a value written into it."""
_MOST_TEXT: Final = 300
_GRANT: Final = "; a GRANT to the serving role is missing: `python -m server tables NAME` shows what it has"


class UniqueViolation(Conflict):
    """A row with such a value exists already: a unique constraint, or an exclusion constraint, is broken.

    Raised by the statement in `scoped` (for a deferred constraint at the end of the block); if it is not handled the
    response is a 409. To go on in the same transaction, put the statement into `db.savepoint()`. `constraint` is the
    constraint's name in the schema, or None.
    """

    def __init__(self, constraint: str | None = None) -> None:
        super().__init__()
        self.constraint = constraint
        self.log_text = f"unique constraint {constraint}"


class ForeignKeyViolation(Conflict):
    """A row that this one refers to does not exist, or a row is still referred to: a 409 if it is not handled.

    `constraint` is the constraint's name in the schema, or None.
    """

    def __init__(self, constraint: str | None = None) -> None:
        super().__init__()
        self.constraint = constraint
        self.log_text = f"foreign key {constraint}"


class CheckViolation(Unprocessable):
    """A value breaks a CHECK constraint: a 422 if it is not handled. `constraint` is the constraint's name, or None."""

    def __init__(self, constraint: str | None = None) -> None:
        super().__init__([])
        self.constraint = constraint
        self.log_text = f"CHECK constraint {constraint}"


class _ValueRefused(Unprocessable):
    """A value that does not fit its column or type: a 422. `log_text` names the error, and a column if one is known."""

    def __init__(self, log_text: str) -> None:
        super().__init__([])
        self.log_text = log_text


class StatementError(Exception):
    """A mistake in a handler's SQL or in its arguments: a 500. Its text holds no value, so it is logged."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.log_text = text


def error_for_state(
    state: str,
    name: str,
    message: str = "",
    *,
    constraint: str | None = None,
    function: str | None = None,
    position: str | None = None,
    column: str | None = None,
) -> Exception:
    """The exception for an error that Postgres reports.

    state        its SQLSTATE
    name         the error's class, for the log
    message      Postgres's words, of which only names of the schema are kept
    constraint   the constraint that it names
    function     the function of Postgres that reported it; unlike the words it is the same in every language
    position     the character of the statement that it points at
    column       the column that it names, as for a NULL that it must not have
    """
    if state in ("23505", "23P01"):
        return UniqueViolation(constraint)
    if state == "23503":
        return ForeignKeyViolation(constraint)
    if state == "23514":
        return CheckViolation(constraint)
    if state == "42501" and _refuses_a_row(message, function):
        return Forbidden("organization")
    if state == "25P02":
        return StatementError("a statement failed and the block went on: put one that may fail into db.savepoint()")
    if state.startswith(("22", "23", "54")):
        return _ValueRefused(f"{name} ({state})" + (f": column {column}" if column else ""))
    if state.startswith(NOT_NOW):
        return Unavailable(f"database: {name} ({state})")
    words = _words(state, message, function, position)
    return StatementError(f"{name} ({state}){words and ': '}{words}")


def _refuses_a_row(message: str, function: str | None) -> bool:
    """Whether a policy refuses a row, or a trigger does by raising insufficient_privilege; False for a missing grant."""
    if function is None:  # something that speaks Postgres's protocol and is not Postgres
        return "row-level security" in message
    return function in ("ExecWithCheckOptions", _RAISED)


def _words(state: str, message: str, function: str | None, position: str | None) -> str:
    if function == _SCANNER:
        return f"syntax error at character {position}"
    if state.startswith(_NAMES_ONLY) and function not in (None, _RAISED):
        return message[:_MOST_TEXT] + (_GRANT if state == "42501" else "")
    return ""


def error_for_argument(message: str, cause: BaseException | None) -> Exception:
    """The exception for an argument that cannot be sent: a 422 for its value, a StatementError for one of another type.

    message   the driver's words; only the argument's number is kept, because they quote the value
    cause     what the type's encoder raised
    """
    if not isinstance(cause, TypeError | AttributeError):  # such as a number that is too large, or half a character
        return Unprocessable([])
    number = message.partition("argument ")[2].partition(":")[0]
    return StatementError(f"argument {number[:20]} of the statement: {str(cause)[:_MOST_TEXT]}")
