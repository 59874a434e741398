"""Describes each table as the catalogs have it: whose rows, row-level security, policies, the serving role's grants, audit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from .migrate import Connection
from .public_rows import declared
from .safety import TENANT_COLUMNS

_TABLES: Final = """
SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, n.nspname || '.' || c.relname AS plain, c.relname, n.nspname,
       pg_get_userbyid(c.relowner) AS owner,
       CASE WHEN NOT c.relrowsecurity THEN 'off' WHEN c.relforcerowsecurity THEN 'forced' ELSE 'not forced' END AS security,
       (SELECT count(*) FROM pg_partition_tree(c.oid) AS t WHERE t.isleaf AND t.relid <> c.oid) AS partitions,
       ARRAY(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              ORDER BY a.attnum) AS columns
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
   AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY n.nspname <> 'public', 2
"""
_POLICIES: Final = """
SELECT polrelid, polname,
       CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
       polpermissive,
       ARRAY(SELECT CASE role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(role)::text END FROM unnest(polroles) AS role),
       pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
  FROM pg_policy ORDER BY polrelid, polname
"""
_GRANTS: Final = """
SELECT c.oid, word, has_table_privilege(c.oid, word) AS whole,
       CASE WHEN place <= 4 THEN ARRAY(
           SELECT a.attname::text FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND has_column_privilege(c.oid, a.attnum, CASE WHEN place <= 4 THEN word ELSE 'SELECT' END) ORDER BY a.attnum) END
  FROM pg_class AS c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES', 'DELETE', 'TRUNCATE', 'TRIGGER'])
                      WITH ORDINALITY AS words (word, place)
 WHERE c.oid = ANY ($1) ORDER BY c.oid, array_position(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE'], word)
"""
_TRIGGERS: Final = """
SELECT tgrelid, p.proname, tgargs, tgtype::int, tgenabled IN ('O', 'A') FROM pg_trigger JOIN pg_proc AS p ON p.oid = tgfoid
 WHERE p.oid IN (to_regproc('public.gatepost_audited'), to_regproc('public.gatepost_changed'))
"""
_ROW, _EVERY_WRITE = 1, 28  # bits of pg_trigger.tgtype: for each row; INSERT, UPDATE and DELETE
_COMPARED: Final = re.compile(
    r"\((\"(?:[^\"]|\"\")+\"|[\w$]+)\)?(?:::\w+)? = (?:\( SELECT )?"
    r"NULLIF\(current_setting\('gatepost\.(user_id|org_id|admin_org_id)'"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy; `using` and `check` are SQL expressions, or None."""

    name: str
    command: str
    permissive: bool
    roles: list[str]
    using: str | None
    check: str | None


@dataclass(slots=True)
class Table:
    """A table. `name` is as SQL writes it, with the schema.

    rows_of    column by tenant: `{"user": "user_id", "organization": "org_id"}`; empty where no policy compares one directly
    security   row-level security: `forced`, `not forced` or `off`
    grants     rights of the serving role: columns by command, None for the whole table
    audit      None, or the columns of the trigger: `{"organization": …, "id": …}`, each possibly None
    changes    whether every insert, update and delete is reported to streams (gatepost_changes)
    """

    name: str
    owner: str
    rows_of: dict[str, str]
    security: str
    policies: list[Policy] = field(default_factory=list)
    grants: dict[str, list[str] | None] = field(default_factory=dict)
    audit: dict[str, str | None] | None = None
    changes: bool = False
    public_rows: str | None = None
    partitions: int = 0


async def tables(connection: Connection, name: str | None = None) -> list[Table]:
    """Returns every table outside Postgres's own schemas, or those with this name, with or without its schema and quotes.

    `connection` must be the serving role's: the grants are its own. Partitions are counted with their table.
    """
    rows = [row for row in await connection.fetch(_TABLES) if name is None or name in _names(row)]
    if name is not None and len(rows) > 1:  # a schema was not named: as in SQL, that is public
        rows = [row for row in rows if row["nspname"] == "public"] or rows
    found = {row["oid"]: Table(row["name"], row["owner"], {}, row["security"], partitions=row["partitions"]) for row in rows}
    for oid, *policy in await connection.fetch(_POLICIES):
        if oid in found:
            found[oid].policies.append(Policy(*policy))
    for oid, command, whole, columns in await connection.fetch(_GRANTS, list(found)):
        if whole or columns:
            found[oid].grants[command] = None if whole else columns
    told: dict[int, int] = {}
    for oid, function, arguments, kind, on in await connection.fetch(_TRIGGERS):
        if oid in found and on and function == "gatepost_changed":
            told[oid] = told.get(oid, 0) | kind
            found[oid].changes = told[oid] & _EVERY_WRITE == _EVERY_WRITE
        elif oid in found and on and kind & _ROW:
            _add_trigger(found[oid], arguments, kind)
    for public in await declared(connection):
        if public.oid in found:
            found[public.oid].public_rows = public.reason
    for row in rows:
        table = found[row["oid"]]
        table.rows_of = _tenants(table.policies, row["columns"])
    return list(found.values())


def _names(row: Any) -> set[str]:
    """The names by which this table may be asked for."""
    names = {str(row["name"]), str(row["plain"]), str(row["relname"])}
    return names | {row["name"].partition(".")[2]} if row["nspname"] == "public" else names


def _add_trigger(table: Table, arguments: bytes, kind: int) -> None:
    if kind & _EVERY_WRITE == _EVERY_WRITE:
        organization, id, *_ = [*(part.decode() or None for part in arguments.split(b"\0")), None, None]
        table.audit = {"organization": organization, "id": id}


def _tenants(policies: list[Policy], columns: list[str]) -> dict[str, str]:
    """The columns that the policies for reading compare with the caller; in their absence those with a tenant's usual name."""
    found: dict[str, str] = {}
    for policy in policies:
        if policy.permissive and policy.command in ("SELECT", "ALL"):
            for column, setting in _COMPARED.findall(policy.using or ""):
                plain = column[1:-1].replace('""', '"') if column.startswith('"') else column
                found.setdefault("user" if setting == "user_id" else "organization", plain)
    if not policies:
        for column in TENANT_COLUMNS:
            if column in columns:
                found.setdefault("user" if column == "user_id" else "organization", column)
    return found
