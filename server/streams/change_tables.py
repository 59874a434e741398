"""The tables whose changes are reported (`gatepost_changes` in schema.sql), read from the catalogs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

# `gatepost_changes` makes a trigger for each kind of write; 28: INSERT, UPDATE and DELETE in pg_trigger.tgtype. A numeric
# column becomes text, as amounts are everywhere: JSON has no decimal numbers. Columns that the role may not read are left out.
_TABLES: Final = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, n.nspname || '.' || c.relname AS plain, c.relname, n.nspname,
       t.arguments, format_type(k.atttypid, NULL) AS type,
       ARRAY(SELECT format(CASE WHEN a.atttypid = 'numeric'::regtype THEN 't.%1$s::text AS %1$s' ELSE 't.%1$s' END,
                           '"' || replace(a.attname, '"', '""') || '"')
               FROM pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                AND has_column_privilege(c.oid, a.attnum, 'SELECT')
              ORDER BY a.attnum) AS columns
  FROM (SELECT tgrelid, min(encode(tgargs, 'hex')) AS arguments FROM pg_trigger
         WHERE tgfoid = to_regproc('public.gatepost_changed') AND tgenabled IN ('O', 'A')
         GROUP BY tgrelid HAVING bit_or(tgtype::integer) & 28 = 28) AS t
  JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
  JOIN pg_attribute AS k ON k.attrelid = c.oid AND k.attnum = i.indkey[0]
"""


class ChangesNotTold(LookupError):
    """The table reports no changes: it does not exist, or `gatepost_changes` was not called for it."""

    def __init__(self, table: str) -> None:
        self.log_text = f"the table {table!r} reports no changes: call gatepost_changes for it in a schema file"
        super().__init__(self.log_text)


@dataclass(frozen=True, slots=True, eq=False)
class ChangeTable:
    """A table whose changes are reported.

    name    as in the messages: with the schema, quoted where SQL needs it
    kinds   who owns its rows: `organization`, `user` or both
    sql     the SELECT of the rows with the ids $1 (text[]), at most $2, in this order: (id, row)
    one     the SELECT of the row with the id $1 (text)
    """

    name: str
    kinds: tuple[str, ...]
    sql: str
    one: str


class ChangeTables:
    """The tables by name, read when the feed connects and about once a minute afterwards."""

    def __init__(self) -> None:
        self._by_name: dict[str, ChangeTable] = {}

    def find(self, name: str) -> ChangeTable | None:
        """Returns the table with this name, with or without its schema (default `public`); None if it is unknown."""
        return self._by_name.get(name)

    async def load(self, connection: Any) -> set[str]:
        """Read the catalogs again, on a connection of the serving role.

        Returns the names, as in the messages, of tables whose streams cannot go on as before: a table has been renamed or
        dropped, it reports no changes any more, or reports them to others than before.
        """
        before, self._by_name = self._by_name, dict(_named(await connection.fetch(_TABLES, timeout=5)))
        after = self._by_name
        return {one.name for one in before.values() if one.name not in after or after[one.name].kinds != one.kinds}


def _named(rows: Iterable[Any]) -> Iterable[tuple[str, ChangeTable]]:
    for row in rows:
        id, organization, user, *_ = [*bytes.fromhex(row["arguments"]).decode().split("\0"), "", "", ""]
        kinds = tuple(kind for kind, column in (("organization", organization), ("user", user)) if column)
        key, relation = _quoted(id), f"{_quoted(row['nspname'])}.{_quoted(row['relname'])}"
        columns, type_ = ", ".join(row["columns"]), row["type"]  # every name is quoted
        # Postgres keeps the plan of a statement only if it is not much better for known values. It would be for a known
        # array, and planning takes longer than reading: so the array is in a subquery, whose length is not known in advance.
        inner = f"SELECT {columns}"
        sql = (
            f"SELECT t.{key}::text AS id, (SELECT gatepost_it FROM ({inner}) AS gatepost_it) AS row FROM {relation} AS t"  # noqa: S608
            f" WHERE t.{key} = ANY ((SELECT $1::text[]::{type_}[])::{type_}[])"
            f" ORDER BY array_position($1::text[], t.{key}::text) LIMIT $2"
        )
        one = f"{inner} FROM {relation} AS t WHERE t.{key} = $1::text::{type_}"
        table = ChangeTable(row["name"], kinds, sql, one)
        for name in (row["name"], row["plain"], *((row["relname"],) if row["nspname"] == "public" else ())):
            yield name, table


def _quoted(name: str) -> str:
    """Returns the name in quotes for SQL: it may be a keyword such as `update`."""
    return '"' + name.replace('"', '""') + '"'
