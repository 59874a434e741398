"""Finds tables that a product has made and that no request can use: a forgotten GRANT, or no policies and no GRANT at all."""

from __future__ import annotations

from typing import Any, Final

from .migrate import Connection

# Tables outside the system's schemas with a policy that compares a row with the caller, for the role ($1) or for PUBLIC, and
# on which the role has no privilege at all. `columns`: those that an UPDATE may change, as far as their names and kinds tell.
_UNUSABLE: Final = r"""
SELECT format('%I.%I', nspname, relname) AS name, quote_ident(nspname) AS schema, quote_ident($1) AS role,
       has_schema_privilege($1, n.oid, 'USAGE') AS usage, array_agg(DISTINCT polcmd::text) AS commands,
       ARRAY(SELECT quote_ident(attname) FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attidentity = ''
                AND attname <> ALL ($2) AND attname NOT IN ('created_at', 'updated_at', 'created_by')
                AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary AND attnum = ANY (indkey))
              ORDER BY attnum) AS columns
  FROM pg_policy p JOIN pg_class c ON c.oid = polrelid JOIN pg_namespace n ON n.oid = relnamespace
 WHERE relkind IN ('r', 'p') AND NOT relispartition AND polpermissive
   AND polroles && ARRAY[0::oid, (SELECT oid FROM pg_roles WHERE rolname = $1)]
   AND concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) ~ 'current_setting\(''gatepost\.'
   AND NOT has_table_privilege($1, c.oid, 'SELECT, INSERT, UPDATE, DELETE')
   AND NOT has_any_column_privilege($1, c.oid, 'SELECT, INSERT, UPDATE')
   AND EXISTS (SELECT FROM pg_roles WHERE rolname = $1)
 GROUP BY c.oid, nspname, relname, n.oid
 ORDER BY 1
"""
# Tables without a policy on which no GRANT and no REVOKE was ever run, in schemas that the role ($1) may use, without ours
# and those of extensions and Alembic. `kinds`: the columns that name a tenant (of $2).
_FORGOTTEN: Final = r"""
SELECT format('%I.%I', nspname, relname) AS name, quote_ident($1) AS role,
       ARRAY(SELECT attname::text FROM pg_attribute
              WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attname = ANY ($2) ORDER BY attnum) AS kinds
  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
 WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't' AND relacl IS NULL
   AND nspname <> 'information_schema' AND nspname !~ '^pg_' AND relname <> 'alembic_version' AND relname !~ '^gatepost_'
   AND EXISTS (SELECT FROM pg_roles WHERE rolname = $1) AND has_schema_privilege($1, n.oid, 'USAGE')
   AND NOT has_any_column_privilege($1, c.oid, 'SELECT, INSERT, UPDATE')
   AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid)
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
 ORDER BY 1
"""
_PRIVILEGES: Final = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}


async def missing_grants(connection: Connection, role: str, tenant_columns: tuple[str, ...]) -> list[str]:
    """Returns a sentence for each such table: its name, what is missing, and the SQL to run.

    role            the serving role; the connection may be another's
    tenant_columns  names of columns that an UPDATE must not change
    """
    lines = []
    for row in await connection.fetch(_UNUSABLE, role, list(tenant_columns)):
        granted = _granted(row["commands"], row["columns"])
        words = ", ".join(one.partition(" (")[0] for one in granted)
        usage = "" if row["usage"] else f"GRANT USAGE ON SCHEMA {row['schema']} TO {row['role']}; "
        lines.append(
            f"the role {row['role']} has no privilege on the table {row['name']}, whose policies are for {words}: "
            f"every request that uses it is a 500; run {usage}GRANT {', '.join(granted)} ON {row['name']} TO {row['role']}"
        )
    return lines + [_forgotten(row) for row in await connection.fetch(_FORGOTTEN, role, list(tenant_columns))]


def _forgotten(row: Any) -> str:
    """A sentence on a table without policies and grants, with the line that makes it a tenant's table."""
    kind = next((word for word in row["kinds"] if word != "user_id"), None)
    column = f"organization => '{kind}'" if kind else "\"user\" => 'user_id'" if row["kinds"] else "organization => 'COLUMN'"
    line = f"SELECT gatepost_tenant('{row['name']}', {column})"
    return (
        f"no request can use the table {row['name']}: it has no policy, and nothing is granted to {row['role']}. Add {line} to "
        f"its schema file; if requests must not use it, REVOKE ALL ON {row['name']} FROM PUBLIC ends this warning"
    )


def _granted(commands: list[str], columns: list[str]) -> list[str]:
    """The privileges of a GRANT for policies of these commands (`pg_policy.polcmd`). A policy of UPDATE reads the row, too."""
    wanted = set(_PRIVILEGES) if "*" in commands else {*commands, "r"}
    granted = [word for command, word in _PRIVILEGES.items() if command in wanted]
    of_columns = f"UPDATE ({', '.join(columns)})" if columns else ""
    return [of_columns if word == "UPDATE" else word for word in granted if word != "UPDATE" or columns]
