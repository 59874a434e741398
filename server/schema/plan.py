"""What `migrate` would change, in words, for `--dry-run`."""

from __future__ import annotations

import re
from typing import Any, Final

from .inventory import HELPER_ROLES
from .migrate import is_newer, mark_in, mark_of, schema_text

_TABLE: Final = re.compile(r"^CREATE (?:UNLOGGED )?TABLE(?: IF NOT EXISTS)? (?:public\.)?(\w+)", re.MULTILINE)
_MISSING_TABLES: Final = """
SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS names (name, nth)
 WHERE to_regclass('public.' || quote_ident(name)) IS NULL ORDER BY nth
"""
_MISSING_ROLES: Final = """
SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS names (name, nth)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) ORDER BY nth
"""


async def schema_plan(connection: Any, role: str) -> str:
    """Returns a sentence on what would become of the server's own schema. `role`: the serving role. Changes nothing."""
    found, mine = await mark_in(connection), mark_of(schema_text())
    if found == mine:
        return f"Gatepost's schema: revision {mine.revision}, as in the database"
    if found is None:
        text = f"Gatepost's schema: revision {mine.revision} would be applied for the first time"
    elif is_newer(found, mine):
        return f"Gatepost's schema: the database has a newer version's (revision {found.revision}); it would be left unchanged"
    else:
        text = f"Gatepost's schema: revision {found.revision} would become revision {mine.revision}"
    return text + await _created(connection, role)


async def _created(connection: Any, role: str) -> str:
    """The end of that sentence: which tables and roles would be created, and what else is replaced."""
    tables = [row[0] for row in await connection.fetch(_MISSING_TABLES, _TABLE.findall(schema_text()))]
    roles = [row[0] for row in await connection.fetch(_MISSING_ROLES, [role, *HELPER_ROLES])]
    new = [f"the {what} {', '.join(names)}" for what, names in (("tables", tables), ("roles", roles)) if names]
    created = f": it would create {' and '.join(new)}, and replace" if new else ": it would replace"
    return f"{created} the server's own functions, policies and grants"
