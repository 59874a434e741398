"""Bring a database to the schema of this version, and tell whether it is there. Knows no database library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

# One migration at a time in one database; the number means nothing but "Gatepost migrates".
LOCK = 4716_2026


class Connection(Protocol):
    """What is used here of an open database connection; asyncpg's has it."""

    async def execute(self, query: str, *args: Any) -> Any: ...

    async def fetch(self, query: str, *args: Any) -> Sequence[Any]: ...

    async def fetchval(self, query: str, *args: Any) -> Any: ...

    def transaction(self) -> AbstractAsyncContextManager[Any]: ...


def schema_text() -> str:
    """The text of schema.sql: beside this module in a wheel, else at the top level of the checkout."""
    here = Path(__file__).resolve().parent
    for path in (here / "schema.sql", here.parent / "schema.sql"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError("schema.sql is neither in the package nor beside it")


def checksum() -> str:
    """What gatepost_meta holds once this version's schema.sql has run."""
    return hashlib.sha256(schema_text().encode()).hexdigest()


async def migrate(connection: Connection, *, serving_role: str = "gatepost_app") -> list[str]:
    """Run schema.sql as the owner, whose connection this is; all or nothing, and harmless when it has run before.

    Returns what is still to be done by hand, a sentence a line.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        # With row-level security forced on the owner too, a backfill would quietly change nothing; so it raises.
        await connection.execute("SET LOCAL row_security = off")
        await connection.execute("SELECT set_config('gatepost.serving_role', $1, true)", serving_role)
        await connection.execute(schema_text())
        if not await _has(connection, checksum()):
            await connection.execute("INSERT INTO public.gatepost_meta (checksum) VALUES ($1)", checksum())
        return await _by_hand(connection, serving_role)


async def apply(connection: Connection, sql: str, *, serving_role: str = "gatepost_app") -> None:
    """Run a product's own schema as the owner, in one transaction. Its SQL finds the serving role's name in the setting
    `gatepost.serving_role`, so that it can grant to whatever role serves."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute("SET LOCAL row_security = off")
        await connection.execute("SELECT set_config('gatepost.serving_role', $1, true)", serving_role)
        await connection.execute(sql)


async def is_current(connection: Connection) -> bool:
    """Whether the database has exactly this version's schema. The serving role may ask."""
    readable = await connection.fetchval(
        "SELECT coalesce(has_table_privilege(to_regclass('public.gatepost_meta')::oid, 'SELECT'), false)"
    )
    return bool(readable) and await _has(connection, checksum())


async def _has(connection: Connection, wanted: str) -> bool:
    """Whether the newest mark in gatepost_meta is this one (an older version may have run after a newer one)."""
    newest = await connection.fetchval("SELECT checksum FROM public.gatepost_meta ORDER BY id DESC LIMIT 1")
    return bool(newest == wanted)


async def _by_hand(connection: Connection, serving_role: str) -> list[str]:
    """What a migration cannot or must not do itself."""
    database = await connection.fetchval("SELECT current_database()")
    todo = []
    if not await _has_password(connection, serving_role):
        todo.append(
            f"Give {serving_role} a password unless your server lets it in without one: psql's \\password {serving_role} "
            "keeps it out of the logs."
        )
    return [
        *todo,
        f"Let the server connect as that role, not as the owner: DATABASE_URL=postgresql://{serving_role}:…@HOST/{database}",
        "Back up with a role that has BYPASSRLS (or is a superuser): any other one, the owner too, sees no tenant's rows.",
        "After a restore, or a copy by CREATE DATABASE … TEMPLATE, migrate again: a database's own rights are not copied.",
    ]


async def _has_password(connection: Connection, role: str) -> bool:
    """Whether the role has a password; only a superuser can see that, to anybody else it has none."""
    if not await connection.fetchval("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')"):
        return False
    return bool(await connection.fetchval("SELECT rolpassword IS NOT NULL FROM pg_catalog.pg_authid WHERE rolname = $1", role))
