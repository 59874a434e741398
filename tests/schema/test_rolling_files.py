"""The guide to migrations: its files are run, under two servers of different versions, and by Alembic."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from kits import ROOT, doc_page

from tests.conftest import stub
from tests.schema.test_numbered_files import empty  # noqa: F401 - a fixture

PAGE = doc_page("migrations.md").read_text("utf-8")
NOTES = "/api/orgs/org_a/notes"

# A product in two versions: the older one knows `title`, the newer one `name`.
PLUGIN = """
from server import answer, body, describe, hookimpl, identity_of, page, read, requires, scoped
from aiohttp import web
from pydantic import BaseModel

routes = web.RouteTableDef()

class New(BaseModel):
    @COLUMN@: str

@routes.get("/api/orgs/{org_id}/notes")
@requires(organization="org_id")
async def list_notes(request):
    at = page(request)
    return at.answer(await read(request, "SELECT id, @COLUMN@, created_at FROM notes WHERE organization_id = $1"
        " AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4", identity_of(request).org_id, *at.args))

@routes.post("/api/orgs/{org_id}/notes")
@requires(organization="org_id", user=True)
@describe(body=New)
async def add_note(request):
    new, caller = await body(request, New), identity_of(request)
    async with scoped(request) as db:
        row = await db.row("INSERT INTO notes (organization_id, created_by, @COLUMN@) VALUES ($1, $2, $3) RETURNING id, @COLUMN@",
                           caller.org_id, caller.user_id, new.@COLUMN@)
    return answer(row, 201)

@hookimpl
def register_handlers():
    return routes
"""


def block(file: str) -> str:
    """The block of code that the page shows for this file."""
    [found] = re.findall(rf"`{re.escape(file)}`[^\n`]*:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def write(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(block(file))


def environment(empty: Any, **more: str) -> dict[str, str]:  # noqa: F811
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "GATEPOST_ENV": "test",
            "GATEPOST_PROVIDERS": "stub", "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0", "DATABASE_URL": empty.url,
            "DATABASE_OWNER_URL": empty.owner, **more}  # fmt: skip


async def program(empty: Any, *words: str) -> str:  # noqa: F811
    """Run `python -m …` in the operator's folder; its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words, cwd=empty.folder.parent, env=environment(empty), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, out.decode()
    return out.decode()


@asynccontextmanager
async def version(empty: Any, column: str) -> AsyncIterator[str]:  # noqa: F811
    """A running server of the version that knows this column; its URL. It is drained at the end."""
    folder = empty.folder.parent / column
    folder.mkdir(exist_ok=True)
    (folder / "product.py").write_text(PLUGIN.replace("@COLUMN@", column))
    given = environment(empty, GATEPOST_PLUGINS="module:product")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "server", cwd=folder, env=given, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("Gatepost serves on "), line
        yield line.split()[-1]
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Callers:
    """Writes and reads through a server, and counts the statuses."""

    def __init__(self, url: str, column: str) -> None:
        self.url, self.column, self.statuses, self._stop = url, column, Counter[int](), asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aiohttp.ClientSession(self.url, headers=stub("alice", org_id="org_a")) as client:
            while not self._stop.is_set():
                async with client.post(NOTES, json={self.column: "a note"}) as got:
                    self.statuses[got.status] += 1
                async with client.get(NOTES, params={"limit": "5"}) as got:
                    self.statuses[got.status] += 1
                    if got.status == 200:
                        assert all(row[self.column] == "a note" for row in await got.json())

    async def stop(self) -> None:
        self._stop.set()
        await self._task
        # A transaction whose plan has become outdated, or that waited long for the migration's lock, is a 503: once, and rarely.
        assert set(self.statuses) <= {200, 201, 503}, self.statuses
        assert self.statuses[503] <= 3, self.statuses
        assert self.statuses[201] > 0


@pytest.mark.long
async def test_two_versions_of_a_product_serve_through_its_migration(empty: Any) -> None:  # noqa: F811
    top = empty.folder.parent
    migrate = ("server", "migrate", "--schema", "migrations")
    write(top, "migrations/001_notes.sql", "migrations/002_pinned.sql")
    await program(empty, *migrate)
    async with version(empty, "title") as old_url:
        old = Callers(old_url, "title")
        await asyncio.sleep(1)
        write(top, "migrations/003_expand.sql")
        assert "applied 003_expand.sql" in await program(empty, *migrate)
        async with version(empty, "name") as new_url:
            new = Callers(new_url, "name")
            await asyncio.sleep(2)
            await old.stop()
            # Each sees what the other has written, under its own name.
            async with empty.server.as_admin(empty.name) as admin:
                assert await admin.fetchval("SELECT count(*) FROM notes WHERE name IS DISTINCT FROM title") == 0
                before = await admin.fetchval("SELECT count(*) FROM notes")
            write(top, "migrations/004_contract.sql")
            assert "applied 004_contract.sql" in await program(empty, *migrate)
            await asyncio.sleep(1)
            await new.stop()
    async with empty.server.as_admin(empty.name) as admin:
        rows = await admin.fetchval("SELECT count(*) FROM notes")
        assert rows == old.statuses[201] + new.statuses[201] > before - 1
        written = await admin.fetchval("SELECT count(*) FROM audit_log WHERE target = 'notes' AND action = 'insert' AND actor = 'alice'")
        assert written == rows
        assert await admin.fetchval("SELECT count(*) FROM audit_log WHERE target = 'notes' AND action = 'update' AND actor = 'operator'") > 0
    assert "problems: none" in await program(empty, "server", "check")


def test_every_file_of_the_page_is_run() -> None:
    shown = re.findall(r"`((?:migrations|alembic)/[\w/]+\.(?:sql|py))`", PAGE)
    assert sorted(set(shown)) == ["alembic/env.py", "alembic/versions/001_notes.py", "alembic/versions/002_pinned.py", "migrations/001_notes.sql",
                                  "migrations/002_pinned.sql", "migrations/003_expand.sql", "migrations/004_contract.sql"]  # fmt: skip


async def test_rows_are_filled_in_portions(empty: Any) -> None:  # noqa: F811
    """The page's three files, with what they are for between them."""
    top = empty.folder.parent
    write(top, "migrations/001_notes.sql")
    (empty.folder / "002_add.sql").write_text("ALTER TABLE notes ADD COLUMN name text;")
    await program(empty, "server", "migrate", "--schema", "migrations")
    async with empty.server.as_admin(empty.name) as admin:
        await admin.execute("INSERT INTO notes (organization_id, created_by, title) SELECT 'o' || n % 7, 'u', 't' || n FROM generate_series(1, 500) AS n")
    policy, portions = re.findall(r"(CREATE POLICY fill [^`]+|-- gatepost: no transaction\nSET row_security[^`]+)```", PAGE)
    (empty.folder / "003_may.sql").write_text(policy)
    (empty.folder / "004_fill.sql").write_text(portions)
    (empty.folder / "005_may_not.sql").write_text("DROP POLICY fill ON notes;")
    await program(empty, "server", "migrate", "--schema", "migrations")
    async with empty.server.as_admin(empty.name) as admin:
        assert await admin.fetchval("SELECT count(*) FROM notes WHERE name = title") == 500
    (empty.folder / "006_fill.sql").write_text("UPDATE notes SET name = 'x';")
    with pytest.raises(AssertionError, match="query would be affected by row-level security policy"):
        await program(empty, "server", "migrate", "--schema", "migrations")


@pytest.mark.skipif(importlib.util.find_spec("alembic") is None, reason="alembic is not installed")
async def test_alembic(empty: Any) -> None:  # noqa: F811
    top = empty.folder.parent
    shutil.rmtree(empty.folder)
    write(top, "alembic.ini", "alembic/env.py", "alembic/versions/001_notes.py")
    (top / "alembic" / "script.py.mako").write_text("")
    await program(empty, "server", "migrate")
    await program(empty, "alembic", "upgrade", "head")
    assert "problems: none" in await program(empty, "server", "check")
    async with empty.server.as_admin(empty.name) as admin:
        await admin.execute("INSERT INTO jottings (organization_id, created_by, title) VALUES ('o', 'u', 't')")
    write(top, "alembic/versions/002_pinned.py")
    await asyncio.gather(*(program(empty, "alembic", "upgrade", "head") for _ in range(2)))
    assert "problems: none" in await program(empty, "server", "check")
    async with empty.server.as_admin(empty.name) as admin:
        assert await admin.fetchval("SELECT pinned FROM jottings") is False
        for right in ("INSERT", "UPDATE"):
            assert await admin.fetchval("SELECT has_column_privilege($1, 'jottings', 'pinned', $2)", empty.server.serving_role, right)
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            assert not await admin.fetchval("SELECT has_table_privilege($1, 'alembic_version', $2)", empty.server.serving_role, right)
    await program(empty, "alembic", "downgrade", "base")
    await program(empty, "server", "migrate")
    assert "problems: none" in await program(empty, "server", "check")
