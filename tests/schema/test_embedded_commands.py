"""`migrate` and `check` on the embedded Postgres where no server runs: started, used, stopped again; and what was unsafe is mended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from kits import ROOT

from server.embedded.server import running_socket
from tests.schema.test_numbered_files import LOCKED, NOTES, OPEN, OWN

pytestmark = pytest.mark.long


async def program(folder: Path, *words: str, **more: str) -> asyncio.subprocess.Process:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), "GATEPOST_ENV": "test", "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0", "GATEPOST_PROVIDERS": "stub", **more}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=folder, env=given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def ended(folder: Path, *words: str, **more: str) -> tuple[int, list[str], list[str]]:
    """Status, lines of output, lines of errors."""
    running = await program(folder, *words, **more)
    out, err = await asyncio.wait_for(running.communicate(), 120)
    assert running_socket(folder / ".gatepost" / "postgres") is None  # stopped
    return running.returncode or 0, out.decode().splitlines(), err.decode().splitlines()


async def test_from_an_empty_folder_to_a_served_table(tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001_notes.sql").write_text(NOTES)
    words = ("migrate", "--schema", "migrations")
    status, out, err = await ended(tmp_path, *words, "--dry-run")
    assert (status, err) == (0, [])
    assert "does not exist yet" in out[0]
    assert not (tmp_path / ".gatepost" / "postgres").exists()
    assert await ended(tmp_path, *words) == (0, ["applied 001_notes.sql", "migrated"], ["migrate: migrations/001_notes.sql"])
    assert await ended(tmp_path, *words) == (0, ["migrated"], [])
    assert (await ended(tmp_path, *words, "--dry-run"))[1][1:] == ["migrations: all 1 files are applied", "nothing was changed"]
    status, out, err = await ended(tmp_path, "check", "--json")
    told = json.loads("\n".join(out))
    assert (status, told["database_checked"], told["problems"]) == (0, True, [])
    server = await program(tmp_path)
    try:
        assert server.stdout is not None
        assert (await asyncio.wait_for(server.stdout.readline(), 60)).startswith(b"Gatepost serves on ")
        (tmp_path / "migrations" / "002_more.sql").write_text("CREATE TABLE more (n int);")
        running = await program(tmp_path, *words)
        out, err = await asyncio.wait_for(running.communicate(), 60)
        assert (running.returncode, out.decode().splitlines()) == (0, ["applied 002_more.sql", "migrated"]), err
        server.terminate()
        assert await asyncio.wait_for(server.wait(), 60) == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def test_an_unsafe_database_can_be_repaired(tmp_path: Path) -> None:
    """A table without row-level security is rolled back; one that is there all the same is named at the start, and mended."""
    (tmp_path / "open.sql").write_text(OPEN)
    status, out, err = await ended(tmp_path, "migrate", "--schema", "open.sql")
    assert (status, out) == (2, [])
    assert err[0].startswith("gatepost: migrate: open.sql: not safe to serve from, rolled back: the table public.open has no row-level")
    assert (await ended(tmp_path, "check"))[0] == 0
    # As it could be left by an earlier version, or by hand.
    by_hand = "import asyncio, asyncpg, sys\nfrom pathlib import Path\nfrom server.embedded.server import EmbeddedPostgres\n"
    by_hand += "async def main(pg):\n    c = await asyncpg.connect(host=str(pg.socket), port=pg.port, user='postgres', database='gatepost')\n"
    by_hand += "    await c.execute('CREATE TABLE open (user_id text); GRANT SELECT ON open TO gatepost_app')\n    await c.close()\n"
    by_hand += "with EmbeddedPostgres(Path('.gatepost/postgres')) as pg:\n    asyncio.run(main(pg))\n"
    made = await asyncio.create_subprocess_exec(sys.executable, "-c", by_hand, cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)})
    assert await made.wait() == 0
    status, out, err = await ended(tmp_path)
    assert status == 2
    assert len(err) == 1
    assert "the table public.open has no row-level security" in err[0]
    assert "mend it with `python -m server migrate --schema FILE`" in err[0]
    status, out, err = await ended(tmp_path, "check")
    assert status == 2
    assert any(line.startswith("problem: the table public.open has no row-level security") for line in out)
    (tmp_path / "mend.sql").write_text(f"ALTER TABLE open {LOCKED};" + OWN.format("open").replace("SELECT, INSERT, DELETE", "SELECT"))
    assert await ended(tmp_path, "migrate", "--schema", "mend.sql") == (0, ["migrated"], [])
    assert (await ended(tmp_path, "check"))[1][-1] == "problems: none"


async def test_two_at_once_without_a_server(tmp_path: Path) -> None:
    """One starts Postgres, the other uses it; it stops after both."""
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "001_told.sql").write_text("CREATE TABLE told (n int); SELECT pg_sleep(1);")
    (tmp_path / "migrations" / "002_add.sql").write_text("INSERT INTO told VALUES (1); SELECT pg_sleep(1);")
    runs = [await program(tmp_path, "migrate", "--schema", "migrations") for _ in range(3)]
    told = [await asyncio.wait_for(one.communicate(), 120) for one in runs]
    assert [one.returncode for one in runs] == [0, 0, 0], told
    assert sum(out.decode().count("applied 00") for out, _ in told) == 2
    assert running_socket(tmp_path / ".gatepost" / "postgres") is None


async def test_the_owners_url_alone_names_the_database(tmp_path: Path) -> None:
    """DATABASE_OWNER_URL without DATABASE_URL: that database is meant, and not the embedded one."""
    status, out, err = await ended(tmp_path, "migrate", DATABASE_OWNER_URL="postgresql://owner@127.0.0.1:1/nowhere")
    assert (status, out) == (1, [])
    assert len(err) == 1
    assert not (tmp_path / ".gatepost" / "postgres").exists()
