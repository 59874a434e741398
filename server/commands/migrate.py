"""Bring the database's schema up to date, as its owner (DATABASE_OWNER_URL)."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from ..database.connections import direct_connection
from ..embedded.server import EmbeddedPostgres
from ..schema import pooler
from ..schema.migrate import apply, migrate, serving_role_of
from ..schema.startup import StartFailed, beside_running_server
from ..settings.setting import ConfigError
from ..settings.sources import Settings

Own: TypeAlias = list[tuple[Path, str]]
"""A product's own SQL files: (path, text) of each."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schema", type=Path, action="append", default=[], metavar="FILE",
        help="SQL file of your own tables, run as the owner after the server's schema, in one transaction; may be repeated (on "
        "the embedded Postgres: while the server runs)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Apply schema.sql in one transaction, then each file named, and print what must still be done by hand.

    Returns 0. Raises ConfigError, and StartFailed where SQL fails: that file's transaction is rolled back.
    """
    own = [(path, _text(path)) for path in args.schema]
    url, owner = settings.get("database.url"), settings.get("database.owner_url")
    if url is not None and owner is None:
        raise ConfigError("database.owner_url (DATABASE_OWNER_URL): migrate needs the owner's URL")
    connect = {"dsn": owner} if url is not None else _embedded(settings, own)
    todo = asyncio.run(_apply(connect, own) if url is None else _migrate(connect, settings, own))
    if args.json:
        print(json.dumps({"migrated": True, "schemas": [str(path) for path in args.schema], "by_hand": todo}))
        return 0
    print(*todo, sep="\n", end="\n" if todo else "")
    print("migrated")
    return 0


async def _behind_a_pooler(connection: Any, settings: Settings, role: str) -> list[str]:
    """What a connection sets itself without a pooler, and the operator must set with one; nothing if the role has it."""
    if settings.get("database.pooler") != "transaction" or await pooler.role_has_limits(connection, role):
        return []
    seconds = settings.get("database.statement_seconds")
    return [
        f"With a pooler, set the limits on the role: ALTER ROLE {role} SET statement_timeout = "
        f"'{round(seconds * 1000)}ms'; ALTER ROLE {role} SET timezone = 'UTC'; then make the pooler reconnect "
        "(PgBouncer: RECONNECT)."
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--schema {path}: cannot be read") from error


def _embedded(settings: Settings, own: Own) -> dict[str, Any]:
    beside = beside_running_server(settings)
    if not own:
        raise ConfigError("migrate: the embedded Postgres migrates itself at start; set DATABASE_URL and DATABASE_OWNER_URL")
    if beside is None:
        raise StartFailed("no server is running on the embedded Postgres here; start it first, or set DATABASE_URL")
    return {**beside, "user": EmbeddedPostgres.superuser}


async def _migrate(connect: dict[str, Any], settings: Settings, own: Own) -> list[str]:
    url = settings.get("database.url")
    role = serving_role_of(url)
    async with direct_connection(connect) as connection:
        if len(own) > 1:
            _progress("schema.sql")
        with _rolled_back("schema.sql"):
            todo = await migrate(connection, serving_role=role, connects=urlsplit(url).username is not None)
            todo += await _behind_a_pooler(connection, settings, role)
        await _apply_own(connection, own, serving_role=role)
    return todo


async def _apply(connect: dict[str, Any], own: Own) -> list[str]:
    async with direct_connection(connect) as connection:
        await _apply_own(connection, own)
    return []


async def _apply_own(connection: Any, own: Own, **role: str) -> None:
    for number, (path, sql) in enumerate(own, 1):
        if len(own) > 1:
            _progress(f"{path} ({number} of {len(own)})")
        with _rolled_back(str(path), sql):
            await apply(connection, sql, **role)


@contextmanager
def _rolled_back(file: str, sql: str = "") -> Iterator[None]:
    """Turn Postgres's error into StartFailed with the file and, where Postgres names the place, the line."""
    try:
        yield
    except Exception as error:
        if getattr(error, "sqlstate", None) is None:
            raise
        position = getattr(error, "position", None)  # in characters, from 1
        line = f", line {sql.count(chr(10), 0, int(position) - 1) + 1}" if sql and position else ""
        # The operator's own SQL and rights: here, and only here, Postgres's own message is shown.
        raise StartFailed(f"migrate: {file}{line}: {error}; rolled back") from None


def _progress(what: str) -> None:
    """Tell the operator how far it is, on standard error: standard output is for the result."""
    print(f"migrate: {what}", file=sys.stderr, flush=True)
