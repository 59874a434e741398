"""Migrates a database to this version's schema, and reads which schema it has. Imports no database library.

schema.sql has two numbers, which `migrate` records in the database:

    revision     increases with every release that changes the file
    generation   increases only when older servers cannot work with the new schema

So a server accepts its own schema and any newer one of its generation: migrate first, then replace the servers one by one.
It refuses an older schema, another generation, and a different text with its own numbers.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from ..settings.setting import ConfigError
from .adoption import lose_connect, refuse_foreign
from .session_sql import session_faults

# One migration at a time in one database; the number identifies Gatepost's migrations and means nothing else.
LOCK = 4716_2026
SERVING_ROLE: Final = "gatepost_app"
"""The serving role's name if no URL names another."""
_DEADLOCK: Final = "40P01"
_ATTEMPTS: Final = 10
_FOREIGN_TABLE: Final = "42P07"  # duplicate_table: what schema.sql raises where a table of its name is not ours
OUTDATED = "the schema is missing or not this version's: run `migrate`"


class Mark(NamedTuple):
    """Identifies a schema.sql: its two numbers, and the SHA-256 of its text in hexadecimal."""

    generation: int
    revision: int
    checksum: str


class Connection(Protocol):
    """The part of an open database connection that is used here; asyncpg's connection has it."""

    async def execute(self, query: str, *args: Any) -> Any: ...

    async def fetch(self, query: str, *args: Any) -> Sequence[Any]: ...

    async def fetchval(self, query: str, *args: Any) -> Any: ...

    def transaction(self) -> AbstractAsyncContextManager[Any]: ...


def schema_text() -> str:
    """Returns the text of schema.sql, which a wheel has in the package and a checkout at its top level."""
    here = Path(__file__).resolve().parent
    for path in (here.parent / "schema.sql", here.parent.parent / "schema.sql"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError("schema.sql is neither in the package nor beside it")


def mark_of(text: str) -> Mark:
    """Returns the mark of a schema.sql. Raises ValueError if its numbers are missing."""
    found = re.search(r"^-- generation (\d+), revision (\d+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError("schema.sql does not state its generation and revision")
    return Mark(int(found[1]), int(found[2]), hashlib.sha256(text.encode()).hexdigest())


async def migrate(connection: Connection, *, serving_role: str = SERVING_ROLE, connects: bool = False) -> list[str]:
    """Run schema.sql as the owner, whose connection this is; all or nothing, and harmless if it has run before.

    A newer version's schema is left unchanged: otherwise older functions would replace its own. Returns what the operator must
    still do by hand, a sentence a line; `connects`: the server's URL already names the serving role. Raises ConfigError if the
    schema is of a newer generation, or if something in the database has a name of ours and is not ours.
    """
    left = _ATTEMPTS
    while True:
        left -= 1
        try:
            return await _migrated(connection, serving_role, connects)
        except Exception as error:
            if getattr(error, "sqlstate", None) != _DEADLOCK or left == 0:
                raise
        await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - so that the same two do not meet again


async def _migrated(connection: Connection, serving_role: str, connects: bool) -> list[str]:
    """One attempt. A server's write and this transaction may lock the same tables in different orders."""
    text = schema_text()
    mine = mark_of(text)
    for fault in await session_faults(connection):
        if "schema public" not in fault:  # schema.sql sets its own search_path
            raise ConfigError(f"migrate: {fault}")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        found = await mark_in(connection)
        if found is not None and is_newer(found, mine):
            if trouble := trouble_with(found, mine):
                raise ConfigError(f"migrate: {trouble}")
            return [f"The schema is a newer version's (revision {found.revision}); it was left unchanged."]
        await refuse_foreign(connection, text)
        without = await lose_connect(connection, serving_role)
        # Row-level security is forced on the owner too, so a backfill would silently change nothing. With this it raises.
        await connection.execute("SET LOCAL row_security = off")
        await connection.execute("SELECT set_config('gatepost.serving_role', $1, true)", serving_role)
        try:
            await connection.execute(text)
        except Exception as error:
            if getattr(error, "sqlstate", None) == _FOREIGN_TABLE:
                raise ConfigError(f"migrate: {str(error).splitlines()[0]}; nothing was changed") from None
            raise
        if found != mine:
            await connection.execute(
                "INSERT INTO public.gatepost_meta (generation, revision, checksum) VALUES ($1, $2, $3)", *mine
            )
        return await _by_hand(connection, serving_role, connects=connects, first=found is None, without=without)


def serving_role_of(url: str) -> str:
    """Returns the role that DATABASE_URL names, or gatepost_app."""
    return user_of(url) or SERVING_ROLE


def user_of(url: str) -> str | None:
    """Returns the role that this URL names, or None."""
    parts = urlsplit(url)
    return unquote(parts.username) if parts.username else next(iter(parse_qs(parts.query).get("user", ())), None)


async def apply(connection: Connection, sql: str, *, serving_role: str = SERVING_ROLE) -> None:
    """Run a product's own schema as the owner, in one transaction. Its SQL finds the serving role's name in the setting
    `gatepost.serving_role`, so that it can grant rights to that role."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute("SET LOCAL row_security = off")
        await connection.execute("SELECT set_config('gatepost.serving_role', $1, true)", serving_role)
        await connection.execute(sql)


async def mark_in(connection: Connection) -> Mark | None:
    """Returns the newest mark in this database, or None. The serving role may read it."""
    readable = await connection.fetchval(
        "SELECT coalesce(has_table_privilege(to_regclass('public.gatepost_meta')::oid, 'SELECT'), false)"
    )
    if not readable:
        return None
    # Read as JSON, because a database from before the numbers lacks the columns: it counts as 0 and 0.
    rows = await connection.fetch(
        "SELECT coalesce((j->>'generation')::int, 0), coalesce((j->>'revision')::int, 0), j->>'checksum'"
        " FROM (SELECT id, to_jsonb(m) AS j FROM public.gatepost_meta m) AS marks ORDER BY id DESC LIMIT 1"
    )
    return Mark(*rows[0]) if rows else None


def is_newer(found: Mark | None, mine: Mark) -> bool:
    """Whether `found` is the schema of a newer version."""
    return found is not None and (found.generation, found.revision) > (mine.generation, mine.revision)


def trouble_with(found: Mark | None, mine: Mark) -> str | None:
    """Returns in one line why a server with the schema `mine` must not serve from `found`; None if it may."""
    if found == mine:
        return None
    if found is None or not is_newer(found, mine):
        return OUTDATED
    if found.generation == mine.generation:
        return None
    return (
        f"the schema is generation {found.generation}, with which this version's servers (generation {mine.generation}) "
        "cannot work: run a newer version"
    )


async def _by_hand(
    connection: Connection, serving_role: str, *, connects: bool, first: bool, without: Sequence[str]
) -> list[str]:
    """What a migration cannot or must not do itself and is not done yet. What it cannot check is listed at the `first` only.

    `without`: the roles of other programs that can no longer connect to this database.
    """
    todo = []
    if without:
        database = await connection.fetchval("SELECT quote_ident(current_database())")
        todo.append(
            "Only granted roles can connect to this database now. For each of these that still needs it "
            f"({', '.join(without)}): GRANT CONNECT ON DATABASE {database} TO …"
        )
    has_password = await _has_password(connection, serving_role)
    if has_password is False or (has_password is None and first):
        todo.append(
            f"Give {serving_role} a password unless your server lets it in without one: psql's \\password {serving_role} "
            "keeps it out of the logs."
        )
    if not connects:
        database = await connection.fetchval("SELECT current_database()")
        todo.append(
            f"Connect the server as this role, not as the owner: DATABASE_URL=postgresql://{serving_role}:…@HOST/{database}"
        )
    if first:
        todo += [
            "Back up with a role that has BYPASSRLS, or as a superuser: no other role, not even the owner, sees tenants' rows.",
            "After a restore, or a copy by CREATE DATABASE … TEMPLATE, migrate again: a database's own rights are not copied.",
        ]
    return todo


async def _has_password(connection: Connection, role: str) -> bool | None:
    """Whether the role has a password; None if this connection must not see that (only a superuser may)."""
    if not await connection.fetchval("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')"):
        return None
    return bool(await connection.fetchval("SELECT rolpassword IS NOT NULL FROM pg_catalog.pg_authid WHERE rolname = $1", role))
