"""Rolling upgrades: which server may serve from which schema, tried with the program itself and with newer copies of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from kits import ROOT

from server.schema import safety
from server.schema.capacity import Capacity
from server.schema.migrate import Mark, is_newer, mark_of, migrate, schema_text, trouble_with
from server.settings.setting import ConfigError
from tests.conftest import url_of as database_url
from tests.serving.test_workers import running, url_of

ME = {"Authorization": 'Stub user_id="u"'}
# The schema of each release by its revision: add a line at a release (CONTRIBUTING.md). So far there was none.
RELEASED: dict[int, str] = {}


# The rule ----------------------------------------------------------------------------------------------------------------

MINE = Mark(2, 7, "mine")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (MINE, None),
        (Mark(2, 8, "newer, of my generation"), None),
        (Mark(2, 7, "another text under my number"), "run `migrate`"),
        (Mark(2, 6, "older"), "run `migrate`"),
        (Mark(1, 9, "an older generation"), "run `migrate`"),
        (Mark(0, 0, "from before the numbers"), "run `migrate`"),
        (Mark(3, 8, "the next generation"), "generation 3"),
        (None, "run `migrate`"),
    ],
)
def test_who_may_serve_from_what(found: Mark | None, said: str | None) -> None:
    trouble = trouble_with(found, MINE)
    assert trouble is None if said is None else said in (trouble or "")


def test_newer_is_by_generation_and_then_by_revision() -> None:
    assert [is_newer(mark, MINE) for mark in (None, MINE, Mark(2, 6, ""), Mark(2, 8, ""), Mark(1, 8, ""), Mark(3, 1, ""))] == [
        False, False, False, True, False, True]  # fmt: skip


def test_a_schema_without_its_numbers_is_noticed() -> None:
    with pytest.raises(ValueError, match="generation and revision"):
        mark_of("SELECT 1;")


def forgotten(mark: Mark, released: dict[int, str]) -> bool:
    """Whether the text has changed since a release without a new revision."""
    return mark.revision < max(released, default=0) or released.get(mark.revision, mark.checksum) != mark.checksum


def test_the_revision_goes_up_with_the_text() -> None:
    assert not forgotten(mark_of(schema_text()), RELEASED)
    changed = Mark(1, 4, "changed")
    assert forgotten(changed, {3: "three", 4: "four"})
    assert forgotten(changed, {5: "five"})
    assert not forgotten(changed, {3: "three"})
    assert not forgotten(changed, {4: "changed"})


# In the database ---------------------------------------------------------------------------------------------------------

MORE = """
CREATE TABLE IF NOT EXISTS later (id int, user_id text);
ALTER TABLE later ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $do$ BEGIN
    EXECUTE format('DROP POLICY IF EXISTS own ON later; GRANT SELECT ON later TO %1$I; CREATE POLICY own ON later TO %1$I
                    USING (user_id = NULLIF(current_setting(''gatepost.user_id'', true), ''''))', current_setting('gatepost.serving_role'));
END $do$;
ALTER TABLE data ADD COLUMN IF NOT EXISTS later text;
"""
FUNCTION = """
CREATE OR REPLACE FUNCTION public.later() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'SELECT count(*) FROM public.api_keys';
"""


def later_text(revision: int, generation: int | None = None) -> str:
    """The schema of a later version: a new table, a new column, and a function with the rights of the key lookup."""
    mine = mark_of(schema_text())
    numbers = f"-- generation {generation or mine.generation}, revision {revision}"
    text = re.sub(r"^-- generation .*$", numbers, schema_text(), flags=re.MULTILINE)
    owned = FUNCTION + "ALTER FUNCTION public.later() OWNER TO gatepost_auth; GRANT EXECUTE ON FUNCTION public.later() TO PUBLIC;"
    return text + MORE + owned


@pytest.fixture
async def empty(postgres: Any) -> AsyncIterator[Any]:
    """An empty database that belongs to the superuser; `url` and `owner` lead to it."""
    name = await postgres.create_database("gp_upgrade")
    urls = {who: database_url(postgres, role, name) for who, role in (("url", postgres.serving_role), ("owner", postgres.admin))}
    yield SimpleNamespace(name=name, **urls)
    await postgres.drop_database(name)


async def test_a_newer_functions_owner_must_be_a_role_without_login_and_members(empty: Any, postgres: Any) -> None:
    """With a newer mark an unknown function of gatepost_auth is accepted; one of another role, or without a pinned search_path, is not."""
    mine = mark_of(schema_text())
    async with postgres.as_admin(empty.name) as admin:
        await migrate(admin, serving_role=postgres.serving_role)
        await admin.execute(FUNCTION)
        await admin.execute("ALTER FUNCTION public.later() OWNER TO gatepost_auth")

        async def problems() -> list[str]:
            async with postgres.connected(postgres.serving_role, empty.name) as connection:
                assert len(await safety.warnings(connection)) == (1 if newer else 0)
                return await safety.problems(connection)

        newer = False
        assert any("public.later() runs with the rights of gatepost_auth" in line for line in await problems())
        newer = True
        await admin.execute("INSERT INTO gatepost_meta (generation, revision, checksum) VALUES ($1, $2, 'newer')",
                            mine.generation, mine.revision + 1)  # fmt: skip
        assert await problems() == []
        await admin.execute("ALTER FUNCTION public.later() RESET ALL")
        assert any("public.later()" in line for line in await problems())
        await admin.execute("ALTER FUNCTION public.later() SET search_path = pg_catalog, pg_temp")
        await admin.execute(f'ALTER FUNCTION public.later() OWNER TO "{postgres.admin}"')
        assert any("public.later()" in line for line in await problems())


async def test_migrate_leaves_a_newer_schema_alone(empty: Any, postgres: Any) -> None:
    mine = mark_of(schema_text())
    async with postgres.as_admin(empty.name) as admin:
        await migrate(admin, serving_role=postgres.serving_role)
        await admin.execute("DROP POLICY own_select ON data")
        put = "INSERT INTO gatepost_meta (generation, revision, checksum) VALUES ($1, $2, 'newer')"
        await admin.execute(put, mine.generation, mine.revision + 1)
        assert "left unchanged" in (await migrate(admin, serving_role=postgres.serving_role))[0]
        assert await admin.fetchval("SELECT count(*) FROM pg_policy WHERE polname = 'own_select' AND polrelid = 'data'::regclass") == 0
        await admin.execute(put, mine.generation + 1, mine.revision + 2)
        with pytest.raises(ConfigError, match="run a newer version"):
            await migrate(admin, serving_role=postgres.serving_role)


async def test_a_database_from_before_the_numbers_is_migrated(empty: Any, postgres: Any) -> None:
    mine = mark_of(schema_text())
    async with postgres.as_admin(empty.name) as admin:
        await admin.execute("CREATE TABLE gatepost_meta (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, checksum text NOT NULL,"
                            " migrated_at timestamptz NOT NULL DEFAULT clock_timestamp())")  # fmt: skip
        await admin.execute("INSERT INTO gatepost_meta (checksum) VALUES ('old')")
        await migrate(admin, serving_role=postgres.serving_role)
        rows = await admin.fetch("SELECT generation, revision, checksum FROM gatepost_meta ORDER BY id")
        assert [tuple(row) for row in rows] == [(0, 0, "old"), tuple(mine)]


# The drill ---------------------------------------------------------------------------------------------------------------


def version(folder: Path, text: str) -> Path:
    """A copy of our checkout with another schema, whose new function it knows."""
    for name in ("server", "providers", "handlers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "schema.sql").write_text(text)
    inventory, known = folder / "server" / "schema" / "inventory.py", '    "public.prune_sync()": "gatepost_sync",\n'
    assert known in inventory.read_text()
    inventory.write_text(inventory.read_text().replace(known, known + '    "public.later()": "gatepost_auth",\n'))
    return folder


async def program(db: Any, where: Path, *words: str) -> tuple[int, str, str]:
    """Runs `python -m server` of the version in that folder; returns its status, output and errors."""
    given = {"GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "DATABASE_URL": db.url, "DATABASE_OWNER_URL": db.owner,
             "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0", "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=where, env=given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode or 0, out.decode(), err.decode()


async def ask(client: aiohttp.ClientSession, url: str, stop: asyncio.Event) -> list[int]:
    """Write and read until `stop` is set; returns the statuses."""
    seen = []
    while not stop.is_set():
        async with client.post(f"{url}/api/data", headers=ME, json={"name": "n"}) as made:
            seen.append(made.status)
        async with client.get(f"{url}/api/data", headers=ME) as got:
            seen.append(got.status)
    return seen


@pytest.mark.long
async def test_migrate_first_then_roll(empty: Any, tmp_path: Path) -> None:
    mine = mark_of(schema_text())
    newer = version(tmp_path / "newer", later_text(mine.revision + 1))
    last = version(tmp_path / "last", later_text(mine.revision + 2, mine.generation + 1))
    assert (await program(empty, ROOT, "migrate"))[0] == 0
    # The order matters: a newer server does not start on a schema that lacks what it needs.
    status, _, err = await program(empty, newer)
    assert (status, "run `migrate`" in err) == (2, True)
    async with running(empty, tmp_path / "one") as old, aiohttp.ClientSession() as client:
        stop = asyncio.Event()
        busy = asyncio.create_task(ask(client, await url_of(old), stop))
        await asyncio.sleep(0.3)
        assert (await program(empty, newer, "migrate"))[0] == 0
        await asyncio.sleep(0.3)
        # An older server that is started again, beside a newer one; both serve.
        async with running(empty, tmp_path / "two") as again:
            url = await url_of(again)
            async with client.get(f"{url}/api/data", headers=ME) as got:
                assert got.status == 200
            again.terminate()
            _, err_again = await asyncio.wait_for(again.communicate(), 20)
            assert again.returncode == 0
            assert f"revision {mine.revision + 1}, where this server knows {mine.revision}" in err_again.decode()
        status, out, _ = await program(empty, newer, "check", "--json")
        assert (status, json.loads(out)["warnings"]) == (0, [])
        status, out, _ = await program(empty, ROOT, "check", "--json")
        assert (status, json.loads(out)["problems"], len(json.loads(out)["warnings"])) == (0, [], 1)
        status, out, _ = await program(empty, ROOT, "migrate")
        assert (status, "left unchanged" in out) == (0, True)
        stop.set()
        seen = await busy
    assert set(seen) == {200, 201}
    assert len(seen) > 20
    # The next generation: the older version does not start, and does not migrate either.
    assert (await program(empty, last, "migrate"))[0] == 0
    for words in ([], ["migrate"]):
        status, _, err = await program(empty, ROOT, *words)
        assert (status, "run a newer version" in err) == (2, True)


# Connections -------------------------------------------------------------------------------------------------------------


def test_the_sum_of_connections() -> None:
    sum_ = Capacity(each=34, workers=2, given=97, pooled=False)
    assert (sum_.server, sum_.shortage()) == (68, None)
    assert sum_.line() == "connections: 2 worker(s) x (32 pooled + 2 to listen) = 68 per server; Postgres allows 97: enough for 1 server(s)"
    assert "lower database.pool_size" in (Capacity(each=34, workers=3, given=97, pooled=False).shortage() or "")
    assert Capacity(each=34, workers=3, given=97, pooled=True).shortage() is None


async def test_check_tells_the_sum_and_what_postgres_gives(
    db: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from server.commands import run

    for name, value in {"GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "DATABASE_URL": db.url, "GATEPOST_WORKERS": "3",
                        "GATEPOST_DATABASE_POOL_SIZE": "9"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    async with postgres.as_admin() as admin:
        given = (await admin.fetchval("SELECT current_setting('max_connections')::int")
                 - await admin.fetchval("SELECT current_setting('superuser_reserved_connections')::int"))  # fmt: skip
    assert await asyncio.to_thread(run, ["check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["connections"] == {"each": 11, "workers": 3, "given": given, "pooled": False}
    assert told["warnings"] == []
    monkeypatch.setenv("GATEPOST_DATABASE_POOL_SIZE", "900")
    assert await asyncio.to_thread(run, ["check"]) == 0
    out = capsys.readouterr().out
    assert f"= 2706 per server; Postgres allows {given}: enough for 0 server(s)" in out
    assert "warning: one server may open 2706 connections" in out
