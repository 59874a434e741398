"""What the cases that write need: the audit of `data` switched off and on again, and their rows removed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from postgres import Postgres

UNAUDITED = "no audit"
"""Gatepost, while the trigger that audits `data` is disabled."""


@contextlib.contextmanager
def writing(postgres: Postgres, server: str, first: str) -> Iterator[None]:
    """A measurement of writes to this server, by users from `first` on; afterwards the database is as it was."""
    _run(postgres, postgres.locked, f"ALTER TABLE data {'DISABLE' if server == UNAUDITED else 'ENABLE'} TRIGGER audited")
    try:
        yield
    finally:
        # Without triggers: these rows are neither audited nor told of when they go, and the audit log lets itself be emptied.
        undo = f"SET session_replication_role = replica; DELETE FROM data WHERE user_id >= '{first}'"
        _run(postgres, postgres.bare, undo, "VACUUM data")
        _run(postgres, postgres.locked, f"{undo}; TRUNCATE audit_log", "VACUUM data", "ALTER TABLE data ENABLE TRIGGER audited")


def audited(postgres: Postgres) -> int:
    """How many entries the audit log has."""

    async def counted() -> int:
        async with postgres.admin(postgres.locked) as admin:
            return int(await admin.fetchval("SELECT count(*) FROM audit_log"))

    return asyncio.run(counted())


def _run(postgres: Postgres, database: str, *statements: str) -> None:
    async def run() -> None:
        async with postgres.admin(database) as admin:
            for statement in statements:
                await admin.execute(statement)

    asyncio.run(run())
