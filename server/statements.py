"""The SQL that puts a caller's scope around a handler's SQL."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# Three settings, always all three, always for this transaction alone: what an earlier borrower left does not matter.
SET_SCOPE: Final = (
    "SELECT set_config('gatepost.user_id', $1, true), set_config('gatepost.org_id', $2, true),"
    " set_config('gatepost.admin_org_id', $3, true)"
)
# And what the audit log notes of whoever writes, where something may be written.
SET_SCOPE_AND_WRITER: Final = (
    f"{SET_SCOPE}, set_config('gatepost.actor', $4, true), set_config('gatepost.request_id', $5, true)"
)
_READ_ONLY: Final = re.compile(r"\s*(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)
_WRITES: Final = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE)\b(?!\s*OF\b)", re.IGNORECASE)


@lru_cache(maxsize=1024)
def one_statement(sql: str, arguments: int) -> str:
    """The caller's SELECT, run after its scope is set, in one statement.

    Why it is sound: the rows come from a subquery that CASE evaluates only when its condition is true, and the
    condition sets the scope (set_config is volatile: it is never evaluated early). Were the condition ever NULL there
    would be no rows at all. tests/test_read_soundness.py holds it against every plan shape we could force.
    """
    if not _READ_ONLY.match(sql) or _WRITES.search(re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "", sql)):
        raise ValueError("read() runs one SELECT; writes go through scoped()")
    user, org, admin = (f"${arguments + n}" for n in (1, 2, 3))
    # The alias is one that no column has (else row_to_json would take the column); the line's end closes a comment.
    return (
        f"SELECT CASE WHEN set_config('gatepost.user_id', {user}, true) IS NOT NULL"  # noqa: S608 - the handler's own SQL
        f" AND set_config('gatepost.org_id', {org}, true) IS NOT NULL"
        f" AND set_config('gatepost.admin_org_id', {admin}, true) IS NOT NULL"
        f" THEN (SELECT coalesce(string_agg(row_to_json(gatepost_row)::text, E'\\x1e'), '')"
        f" FROM (\n{sql.strip().rstrip(';')}\n) AS gatepost_row) END"
    )
