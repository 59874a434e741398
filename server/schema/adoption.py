"""Keeps `migrate` from adopting what is not ours: a table, index or function of schema.sql's name that another program made.

schema.sql says CREATE … IF NOT EXISTS and CREATE OR REPLACE, so without this another program's table `users` would become the
server's. schema.sql itself compares the columns of its tables each time; this comes before, and covers the rest.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ..settings.setting import ConfigError

_META: Final = "public.gatepost_meta"
_RELATION: Final = re.compile(
    r"^CREATE (?:UNIQUE |UNLOGGED )?(?:TABLE|INDEX|VIEW|SEQUENCE)(?: IF NOT EXISTS)? (?:public\.)?(\w+)", re.MULTILINE
)
_FUNCTION: Final = re.compile(r"^CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE) (?:public\.)?(\w+)", re.MULTILINE)
_EXISTING: Final = r"""
SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                    WHEN 'f' THEN 'foreign table' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index' WHEN 'S' THEN 'sequence'
                    ELSE 'relation' END AS kind, relname::text AS name
  FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY ($1)
UNION
SELECT 'function', proname::text || '()' FROM pg_proc
 WHERE pronamespace = 'public'::regnamespace AND proname || '()' = ANY ($1)
 ORDER BY 1, 2
"""
# Roles that may need CONNECT for themselves: they own something in this database or were granted something, can log in, and
# are neither ours nor superusers.
_OTHERS: Final = """
SELECT DISTINCT rolname::text FROM pg_shdepend JOIN pg_roles r ON r.oid = refobjid
 WHERE refclassid = 'pg_authid'::regclass AND deptype IN ('o', 'a') AND rolcanlogin AND NOT rolsuper
   AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND rolname NOT IN (current_user, $1)
   AND EXISTS (SELECT FROM pg_database d, aclexplode(coalesce(datacl, acldefault('d', datdba)))
                WHERE datname = current_database() AND grantee = 0 AND privilege_type = 'CONNECT')
   AND NOT EXISTS (SELECT FROM pg_database d, aclexplode(datacl)
                    WHERE datname = current_database() AND grantee = r.oid AND privilege_type = 'CONNECT')
 ORDER BY 1
"""


def names_of(text: str) -> set[str]:
    """Returns what this schema.sql creates in the schema `public`: relations by name, functions by name and `()`."""
    return set(_RELATION.findall(text)) | {f"{name}()" for name in _FUNCTION.findall(text)}


async def refuse_foreign(connection: Any, text: str) -> None:
    """Raise ConfigError, naming it, for anything of our names in a database that was never migrated."""
    if await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", _META):
        return
    found = [f"the {row[0]} public.{row[1]}" for row in await connection.fetch(_EXISTING, sorted(names_of(text)))]
    if found:
        verb, whose = ("exists", "is") if len(found) == 1 else ("exist", "are")
        raise ConfigError(
            f"migrate: {', '.join(found)} already {verb} in this database and {whose} not Gatepost's: give Gatepost a "
            "database of its own, or rename what is there; nothing was changed"
        )


async def lose_connect(connection: Any, serving_role: str) -> list[str]:
    """Returns the roles of other programs that can connect to this database only by a right of PUBLIC.

    schema.sql takes that right away; ask before it runs.
    """
    return [row[0] for row in await connection.fetch(_OTHERS, serving_role)]
