"""Finds out which policies of a table show a row to a caller: each is evaluated for the row as the serving role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ..database.statements import SET_SCOPE
from ..settings.setting import ConfigError
from .tables import Table, tables

_KEY: Final = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS kind FROM pg_index AS i
  JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
 WHERE i.indrelid = $1::text::regclass AND i.indisprimary
"""
_MINE: Final = "SELECT pg_has_role(current_user, relowner, 'USAGE') FROM pg_class WHERE oid = $1::text::regclass"
_BYPASSES: Final = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
_APPLIES: Final = {"PATCH": "UPDATE", "PUT": "UPDATE", "DELETE": "DELETE"}
_LOCK_SECONDS: Final = 1
_NO_OWNER: Final = "hidden, or there is no such row: only the owner can tell, so set DATABASE_OWNER_URL"


@dataclass(slots=True)
class RowVerdict:
    """What a caller sees of one row.

    visible    whether a SELECT of this caller finds it
    exists     whether there is such a row at all; None where only the owner could tell
    policies   by name: whether the policy's expression holds for the row; empty where the row cannot be read
    why        a sentence
    """

    visible: bool
    exists: bool | None
    policies: dict[str, bool]
    why: str


async def row_verdict(
    serving: Any, owner: Any | None, name: str, row_id: str, scope: tuple[str, str, str], method: str
) -> RowVerdict:
    """What the caller with this scope sees of the row of the table `name` whose primary key is `row_id`.

    serving   a connection in the serving role
    owner     a connection as the owner or a superuser, or None: without it nothing is known of a row that is hidden
    scope     (user, organisation, admin organisation), as the server sets it
    method    the policies for UPDATE and DELETE are looked at for PUT, PATCH and DELETE

    Nothing is written: every transaction is rolled back. The owner's takes a lock on the table for a moment, if row-level
    security is forced on the owner. Raises ConfigError for an unknown table, and an id that cannot be one.
    """
    table = await _table(serving, name)
    column, kind = await _key(serving, table)
    where = f"{column} = $1::text::{kind}"
    try:
        # First, because the serving role's transaction would keep the owner from its lock.
        text = None if owner is None else await _text(owner, table, where, row_id)
        transaction = serving.transaction()
        await transaction.start()
    except Exception as error:
        raise _named(error, table, row_id, kind) from None
    try:
        await serving.execute(SET_SCOPE, *scope)
        try:
            visible = await serving.fetchval(f"SELECT EXISTS (SELECT FROM {table.name} AS t WHERE {where})", row_id)  # noqa: S608
        except Exception as error:
            raise _named(error, table, row_id, kind) from None
        if visible and text is None:
            text = await _text(serving, table, where, row_id)
        if text is None:
            why = _NO_OWNER if owner is None else "there is no such row"
            return RowVerdict(visible, None if owner is None else False, {}, why)
        holds = {policy.name: await _holds(serving, table, policy.using, text) for policy in _relevant(table, method)}
    finally:
        await transaction.rollback()
    return RowVerdict(visible, True, holds, _why(table, holds, visible))


async def _table(connection: Any, name: str) -> Table:
    found = await tables(connection, name)
    if len(found) != 1:
        raise ConfigError(f"explain: {'several tables are' if found else 'no table is'} named {name!r}")
    return found[0]


async def _key(connection: Any, table: Table) -> tuple[str, str]:
    """Returns (column, type) of the primary key, quoted for SQL."""
    rows = await connection.fetch(_KEY, table.name)
    if len(rows) != 1:
        raise ConfigError(f"explain: {table.name} has no primary key of one column")
    return '"' + rows[0]["attname"].replace('"', '""') + '"', rows[0]["kind"]


async def _text(connection: Any, table: Table, where: str, row_id: str) -> str | None:
    """Returns the row as text, or None; an owner and a superuser read it whatever the policies say."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        if not await connection.fetchval(_BYPASSES) and await connection.fetchval(_MINE, table.name):
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
            await connection.execute(f"ALTER TABLE {table.name} NO FORCE ROW LEVEL SECURITY")
        text: str | None = await connection.fetchval(f"SELECT t::text FROM {table.name} AS t WHERE {where}", row_id)  # noqa: S608
        return text
    finally:
        await transaction.rollback()


def _named(error: Exception, table: Table, row_id: str, kind: str) -> Exception:
    """Returns the operator's mistake as a ConfigError of one line; any other error unchanged."""
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("22"):
        return ConfigError(f"explain: {row_id!r} is not the id of a row of {table.name} ({kind})")
    if state == "55P03":
        return ConfigError(f"explain: {table.name} is locked by another transaction; try again")
    if state == "42501":
        return ConfigError(f"explain: the serving role has no right to read {table.name}")
    return error


def _relevant(table: Table, method: str) -> list[Any]:
    """The policies that decide whether the row is seen, and for a write whether it may be changed."""
    commands = {"ALL", "SELECT", _APPLIES.get(method, "SELECT")}
    return [policy for policy in table.policies if policy.command in commands]


async def _holds(serving: Any, table: Table, expression: str | None, row: str) -> bool:
    """Whether the expression is true for the row, which is made of its text: no right to read the table is needed."""
    if expression is None:
        return True
    alias = table.name.partition(".")[2]
    sql = f"SELECT ({expression}) FROM (SELECT ($1::text::{table.name}).*) AS {alias}"  # noqa: S608 - from the catalog
    return bool(await serving.fetchval(sql, row))


def _why(table: Table, holds: dict[str, bool], visible: bool) -> str:
    if table.security == "off":
        return "row-level security is off: every caller sees it"
    kinds = {policy.name: policy.permissive for policy in table.policies}
    granting = [name for name, held in holds.items() if held and kinds[name]]
    hiding = [name for name, held in holds.items() if not held and not kinds[name]]
    if visible:
        return f"shown by {', '.join(granting) or 'no policy'}"
    if hiding:
        return f"hidden by the restrictive policy {', '.join(hiding)}"
    return "hidden: no policy shows it to this caller" if not granting else "hidden: the serving role has no right to read it"
