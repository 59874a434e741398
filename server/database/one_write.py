"""The SQL that runs one write of a handler under its caller's scope, in one statement."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from .statements import SETTINGS, WRITES, are_set, check_places, lock_limit, without_texts

_WRITE: Final = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE|WITH)\b", re.IGNORECASE)
# `.*`: the whole row, also if it has a column of that name.
_ROW: Final = "(SELECT row_to_json(gatepost_row.*)::text FROM gatepost_row)"
# An error, because no setting has such a name. It is volatile: Postgres does not evaluate it while it plans.
_NOT_SET: Final = "set_config('the scope of this statement was not set', '', true)"


@lru_cache(maxsize=1024)
def one_write(sql: str, arguments: int, lock_seconds: float, first: str = "") -> str:
    """Returns the SQL that sets the caller's scope and then runs their write: one statement, which is its own transaction.

    sql            one INSERT, UPDATE, DELETE or MERGE with RETURNING, which may begin with WITH and SELECTs
    arguments      how many arguments `sql` has; the scope's three values and the writer's two follow them
    lock_seconds   the longest wait for a row's lock
    first          a condition to evaluate before the scope is set; if it is not true, the statement raises

    The result is the JSON of the row, or NULL if no row was written. Raises ValueError for SQL that is not a write.

    Why it is sound: Postgres runs a write in WITH when the main query reads its first row, or after the main query if it reads
    none (nodeCtescan.c; ExecPostprocessPlan in execMain.c). Here a subquery reads the row, and CASE evaluates that subquery
    only after its condition, which sets the scope (set_config is volatile: it is never evaluated early). The triggers run
    later, deferred ones in the COMMIT, while the settings still hold. If a condition were not true, the statement would raise,
    so nothing would be committed. A second row raises too, before a third one is written.

    Postgres's documentation does not promise that order, so tests/database/test_write_soundness.py tests it with every plan
    shape that could be forced. If a Postgres wrote earlier, it would refuse the row: a connection from the pool has no scope,
    and without a scope the policies allow no write.
    """
    conditions = [*([first] if first else []), *are_set(SETTINGS, arguments + 1), f"{lock_limit(lock_seconds)} IS NOT NULL"]
    return f"{_with(sql, arguments)} SELECT CASE WHEN {' AND '.join(conditions)} THEN {_ROW} ELSE {_NOT_SET} END"


@lru_cache(maxsize=1024)
def one_write_in_transaction(sql: str, arguments: int) -> str:
    """Like `one_write`, for a transaction whose scope is set already."""
    return f"{_with(sql, arguments)} SELECT {_ROW}"


def _with(sql: str, arguments: int) -> str:
    bare = without_texts(sql)
    if not _WRITE.match(bare) or not WRITES.search(bare):
        raise ValueError("write() runs one INSERT, UPDATE, DELETE or MERGE with RETURNING; a SELECT goes through read()")
    check_places(bare, arguments)
    return f"WITH gatepost_row AS (\n{sql.strip().rstrip(';')}\n)"  # the line break ends a comment in the SQL
