"""Which policies may apply without a caller: none, except those for SELECT on tables that are declared to have public rows."""

from __future__ import annotations

from typing import Final, NamedTuple

from .migrate import Connection
from .policy_proof import needs_caller
from .safety_sql import COMMON

_DECLARED: Final = """
SELECT p.relation::oid, format('%I.%I', n.nspname, c.relname), p.reason
  FROM public.gatepost_public AS p JOIN pg_class AS c ON c.oid = p.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
 ORDER BY 2
"""

# What Postgres checks of a write: USING for the rows that it finds, and for a new row WITH CHECK, or else USING. An UPDATE
# whose USING finds no row writes none. Not asked: policies of idempotency_keys, whose CHECK says that every row has an owner.
_POLICIES: Final = (
    COMMON
    + """
SELECT quote_ident(polname), name, pg_get_expr(polqual, polrelid),
       CASE WHEN polcmd IN ('a', '*') THEN pg_get_expr(polwithcheck, polrelid) END, polcmd = 'r'
  FROM policies
 WHERE NOT open AND cardinality($1::text[]) >= 0
   AND (polrelid IS DISTINCT FROM to_regclass('public.idempotency_keys')
        OR polname NOT IN ('own_select', 'own_insert', 'expired_delete'))
 ORDER BY name, polname
"""
)
_SETTING: Final = "NULLIF(current_setting('gatepost.user_id', true), '')"


class PublicRows(NamedTuple):
    """A table that is declared to have public rows: its oid, its name as SQL writes it, and why."""

    oid: int
    table: str
    reason: str


async def declared(connection: Connection) -> list[PublicRows]:
    """Returns the tables that gatepost_public_rows declared; none in a database whose schema does not have it."""
    readable = await connection.fetchval(
        "SELECT coalesce(has_table_privilege(to_regclass('public.gatepost_public')::oid, 'SELECT'), false)"
    )
    return [PublicRows(*row) for row in await connection.fetch(_DECLARED)] if readable else []


async def unproven(connection: Connection, arguments: list[object]) -> list[str]:
    """Returns a sentence for each policy that may apply without a caller, as far as its text shows. It looks at no row.

    `arguments` are those of every query of `safety_sql`.
    """
    found = []
    for policy, table, using, check, select in await connection.fetch(_POLICIES, *arguments):
        if all(needs_caller(expression) for expression in (using, check) if expression is not None):
            continue
        public = f"; if its rows are public: SELECT gatepost_public_rows('{table}', 'why')" if select else ""
        found.append(
            f"the policy {policy} on {table} may apply without a caller: compare a column with the caller in every alternative "
            f"of OR, or add AND {_SETTING} IS NOT NULL{public}"
        )
    return found
