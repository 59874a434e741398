"""The tutorial's table, for tests that use its handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kits import ROOT

EXAMPLE = ROOT / "examples" / "todo"


@asynccontextmanager
async def todo_table(db: Any) -> AsyncIterator[None]:
    """The table `todos` in this database, made by its owner; it is gone afterwards."""
    server = db.server
    text = (EXAMPLE / "schema.sql").read_text("utf-8").replace("gatepost_app", server.serving_role)
    async with server.connected(server.owner_role, db.name) as owner, owner.transaction():
        await owner.execute(text)
    try:
        yield
    finally:
        async with server.connected(server.owner_role, db.name) as owner:
            await owner.execute("DROP TABLE todos")
