"""The SQL that sets a caller's scope for a handler's SQL."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from ..http.pagination import LARGEST_LIMIT, page_bytes_of
from .error_details import READ_BEGINS, ROWS_BEGIN
from .violations import StatementError

SCOPE_SETTINGS: Final = ("gatepost.user_id", "gatepost.org_id", "gatepost.admin_org_id")
"""The settings that the policies read, in the order of a `Scope`."""
WRITER_SETTINGS: Final = ("gatepost.actor", "gatepost.request_id")
"""The settings that the audit log reads, in the order of a `Writer`."""
SETTINGS: Final = SCOPE_SETTINGS + WRITER_SETTINGS


def _set_local(names: tuple[str, ...], first: int = 1) -> list[str]:
    """Returns for each setting the expression that sets it for this transaction alone; the arguments start at `$first`."""
    return [f"set_config('{name}', ${number}, true)" for number, name in enumerate(names, first)]


def are_set(names: tuple[str, ...], first: int) -> list[str]:
    """Returns for each setting the condition that sets it, and is true then; otherwise as `_set_local`."""
    return [f"{one} IS NOT NULL" for one in _set_local(names, first)]


def without_texts(sql: str) -> str:
    """The SQL with a blank in place of each text, quoted name and comment."""
    return _TEXTS.sub(" ", sql)


def check_places(sql: str, arguments: int) -> None:
    """Raise StatementError if the SQL, without its texts, names an argument beyond its own: it would be a scope's value."""
    if (named := max(map(int, _PLACES.findall(sql)), default=0)) > arguments:
        raise StatementError(f"the statement names ${named}, and is given {arguments} arguments")


# Always all three, so that no value of an earlier transaction is ever in effect.
SET_SCOPE: Final = f"SELECT {', '.join(_set_local(SCOPE_SETTINGS))}"
# The same with the writer for the audit log, for transactions that may write.
SET_SCOPE_AND_WRITER: Final = f"SELECT {', '.join(_set_local(SETTINGS))}"
# Behind a transaction pooler a connection has no settings of its own, so each transaction sets what is otherwise set when a
# connection is opened.
IN_UTC: Final = "set_config('timezone', 'UTC', true)"
_READ_ONLY: Final = re.compile(r"\s*(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)
WRITES: Final = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE)\b(?!\s*OF\b)", re.IGNORECASE)
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")
# Texts of all kinds and comments: what is in them is no argument.
_TEXTS: Final = re.compile(
    r"\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"[^\"]*\"|(\$(?:[A-Za-z_]\w*)?\$).*?\1|--[^\n]*|/\*.*?\*/", re.DOTALL
)
_PLACES: Final = re.compile(r"(?<![\w$])\$(\d{1,5})\b(?!\$)")

_FUNCTION: Final = re.compile(r"[a-z_]+\Z")
_UNIT: Final = 1024
_ROW_END: Final = "E'\\x1e'"


def set_scope_and_lock_limit(lock_seconds: float) -> str:
    """As SET_SCOPE_AND_WRITER, and with the longest wait for a lock (most often of a row) in this transaction."""
    return f"{SET_SCOPE_AND_WRITER}, {lock_limit(lock_seconds)}"


def lock_limit(seconds: float) -> str:
    """The expression that limits waits for locks in this transaction."""
    return f"set_config('lock_timeout', '{max(1, round(seconds * 1000))}', true)"


def set_scope_and_limits(statement_seconds: float, idle_seconds: float, lock_seconds: float) -> str:
    """As `set_scope_and_lock_limit`, and with time zone and time-outs: for a connection through a transaction pooler."""
    return (
        f"{set_scope_and_lock_limit(lock_seconds)}, {IN_UTC},"
        f" set_config('statement_timeout', '{round(statement_seconds * 1000)}', true),"
        f" set_config('idle_in_transaction_session_timeout', '{round(idle_seconds * 1000)}', true)"
    )


def call_of(function: str, arguments: int) -> str:
    """The SQL that calls one of our functions. Raises ValueError for what is not the name of one."""
    if not _FUNCTION.match(function):
        raise ValueError("not the name of a function")
    numbers = ", ".join(f"${number}" for number in range(1, arguments + 1))
    return f"SELECT * FROM public.{function}({numbers})"  # noqa: S608 - checked above


def statement_of(sql: str, args: tuple[Any, ...], first: str = "", *, single: bool = False) -> str:
    """As `one_statement`, for these arguments; if they are those of a page, the rows end at its limit in bytes."""
    return one_statement(sql, len(args), first, page_bytes_of(args), single)


@lru_cache(maxsize=1024)
def one_statement(sql: str, arguments: int, first: str = "", page_bytes: int = 0, single: bool = False) -> str:
    """The caller's SELECT, run after its scope is set, in one statement.

    arguments    how many arguments `sql` has; the scope's three values follow them
    first        an expression to evaluate with the scope, such as IN_UTC; it must not be NULL
    page_bytes   how many bytes of rows to return, as in `_up_to`; 0: all rows
    single       there is at most one row, such as that with an id: a quarter less work for Postgres. It refuses a second row

    Raises ValueError for SQL that is not a SELECT.

    Why it is sound: the rows come from a subquery that CASE evaluates only when its condition is true, and the condition sets
    the scope (set_config is volatile: it is never evaluated early). If the condition were ever NULL there would be no rows at
    all. tests/database/test_read_soundness.py tests it with every plan shape that could be forced.
    """
    if not _READ_ONLY.match(sql) or WRITES.search(_QUOTED.sub("", sql)):
        raise ValueError("read() runs one SELECT; writes go through write() or scoped()")
    check_places(without_texts(sql), arguments)
    scope = " AND ".join(are_set(SCOPE_SETTINGS, arguments + 1))
    if single and page_bytes:
        raise ValueError("a page may have several rows")
    # No column has the name of the alias (row_to_json would use the column); the line break ends a comment in the SQL.
    rows = f"{ROWS_BEGIN}{sql.strip().rstrip(';')}\n) AS gatepost_row"
    return (
        f"{READ_BEGINS}{first and f'{first} IS NOT NULL AND '}{scope}"
        f" THEN {_single(rows) if single else f'({_up_to(page_bytes, rows) if page_bytes else _all(rows)})'} END"
    )


def _all(rows: str) -> str:
    return f"SELECT coalesce(string_agg(row_to_json(gatepost_row)::text, {_ROW_END}), '') FROM {rows}"  # noqa: S608


def _single(rows: str) -> str:
    return f"coalesce((SELECT row_to_json(gatepost_row)::text FROM {rows}), '')"  # noqa: S608


def _up_to(page_bytes: int, rows: str) -> str:
    """The first rows, until they are more than `page_bytes` bytes of JSON: Postgres makes no JSON of the rows after that.

    A LIMIT can count rows but not bytes, so each row is repeated once for each kibibyte of its JSON and once more, and the
    LIMIT counts repetitions. It has one to spare for each row of the largest page, so rows that fit into `page_bytes` never
    reach it. A single row never uses it up: the row after a very large one is still returned, which tells `Page.answer` that
    there is a next page. `Page.answer` then cuts at the exact limit.
    """
    units = page_bytes // _UNIT + LARGEST_LIMIT + 1
    return (
        f"SELECT coalesce(string_agg(gatepost_json, {_ROW_END}) FILTER (WHERE gatepost_unit = 0), '') FROM ("  # noqa: S608
        f"SELECT gatepost_json, generate_series(0, least(octet_length(gatepost_json) / {_UNIT}, {units - 1})) AS gatepost_unit"
        # Without OFFSET 0 Postgres would make the JSON twice: as a column and for its length.
        f" FROM (SELECT row_to_json(gatepost_row)::text AS gatepost_json FROM {rows} OFFSET 0) AS gatepost_rows"
        f" LIMIT {units + 1}) AS gatepost_units"
    )
