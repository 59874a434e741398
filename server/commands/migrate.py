"""Bring the database's schema up to date, as its owner (DATABASE_OWNER_URL)."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..schema import pooler
from ..schema.embedded_database import embedded_owner, exists
from ..schema.migrate import SERVING_ROLE, migrate, serving_role_of, user_of
from ..schema.migration import Migration, Outcome, Own, read_own
from ..schema.waiting import wait_seconds
from ..settings.setting import ConfigError
from ..settings.sources import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schema", type=Path, action="append", default=[], metavar="PATH",
        help="SQL of your own tables, run as the owner after the server's schema. A file is run each time, in one transaction. "
        "In a folder, the files named 001_name.sql are applied once each, in order, each in its own transaction, and "
        "recorded. May be repeated, but with one folder at most",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print what would be applied, and change nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Apply schema.sql in one transaction, then each file or folder named, and print what must still be done by hand.

    Returns 0, or 2 if the database is still as unsafe as before. Raises ConfigError for a mistake and for what would make the
    database unsafe, StartFailed where SQL fails: that file's transaction is rolled back.
    """
    own = read_own(args.schema)
    url, owner = settings.get("database.url"), settings.get("database.owner_url")
    if url is not None and owner is None:
        raise ConfigError("database.owner_url (DATABASE_OWNER_URL): migrate needs the owner's URL")
    if args.dry_run:
        return _print_plan(args, asyncio.run(_plan(settings, own)))
    outcome = asyncio.run(_migrate(settings, own) if owner is not None else _migrate_embedded(settings, own))
    if args.json:
        print(json.dumps(_as_json(args, outcome)))
    else:
        print(*outcome.by_hand, *(f"applied {name}" for name in outcome.applied), "migrated", sep="\n")
    for line in outcome.ungranted:
        print(f"gatepost: warning: {line}", file=sys.stderr)
    for line in outcome.unsafe:
        print(f"gatepost: the database is not safe to serve from: {line}", file=sys.stderr)
    return 2 if outcome.unsafe else 0


def _as_json(args: argparse.Namespace, outcome: Outcome) -> dict[str, Any]:
    return {
        "migrated": True,
        "schemas": [str(path) for path in args.schema],
        "applied": outcome.applied,
        "by_hand": outcome.by_hand,
        "unsafe": outcome.unsafe,
        "warnings": outcome.ungranted,
    }


def _print_plan(args: argparse.Namespace, plan: Sequence[str]) -> int:
    if args.json:
        print(json.dumps({"migrated": False, "plan": plan}))
    else:
        print(*plan, "nothing was changed", sep="\n")
    return 0


async def _plan(settings: Settings, own: Sequence[Own]) -> list[str]:
    owner = settings.get("database.owner_url")
    if owner is not None:
        return await Migration({"dsn": owner}, _role(settings), _progress).plan(own)
    if not exists(settings):
        return [
            "the embedded database does not exist yet; it would be created",
            *(f"{one.path}: would be applied" for one in own),
        ]
    async with embedded_owner(settings, migrate=False) as connect:
        return await Migration(connect, SERVING_ROLE, _progress).plan(own)


async def _migrate(settings: Settings, own: Sequence[Own]) -> Outcome:
    if len(own) > 1:
        _progress("Gatepost's own schema")
    migration = Migration({"dsn": settings.get("database.owner_url")}, _role(settings), _progress, wait_seconds(settings))
    return await migration.run(own, schema=partial(_schema, settings))


async def _schema(settings: Settings, connection: Any) -> list[str]:
    """Migrate the server's schema; returns what must still be done by hand."""
    role, url = _role(settings), settings.get("database.url")
    todo = await migrate(connection, serving_role=role, connects=url is not None and user_of(url) is not None)
    return todo + await _behind_a_pooler(connection, settings, role)


async def _migrate_embedded(settings: Settings, own: Sequence[Own]) -> Outcome:
    async with embedded_owner(settings) as connect:
        return await Migration(connect, SERVING_ROLE, _progress).run(own, schema=None)


def _role(settings: Settings) -> str:
    url = settings.get("database.url")
    return SERVING_ROLE if url is None else serving_role_of(url)


async def _behind_a_pooler(connection: Any, settings: Settings, role: str) -> list[str]:
    """The limits that a connection sets itself without a pooler, and the operator with one; empty if the role has them."""
    if settings.get("database.pooler") != "transaction" or await pooler.role_has_limits(connection, role):
        return []
    seconds = settings.get("database.statement_seconds")
    return [
        f"With a pooler, set the limits on the role: ALTER ROLE {role} SET statement_timeout = "
        f"'{round(seconds * 1000)}ms'; ALTER ROLE {role} SET timezone = 'UTC'; then make the pooler reconnect "
        "(PgBouncer: RECONNECT)."
    ]


def _progress(what: str) -> None:
    """Report the progress on standard error: standard output is for the result."""
    print(f"migrate: {what}", file=sys.stderr, flush=True)
