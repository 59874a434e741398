"""`python -m server check` on damaged schemas: status 2 and the named problem; the server refuses to start with them, too.

Our own schema has no problems. What is unwise but not a hole is a warning, with status 0.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from server.app import build
from server.commands import run
from server.settings.setting import ConfigError
from server.settings.sources import Settings
from tests.conftest import KEYS, TestDatabase

OWN = "NULLIF(current_setting('gatepost.user_id', true), '')"
LOCKED = "ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
NOTES = (f"CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id text NOT NULL, name text, part date);"
         f"ALTER TABLE notes {LOCKED}; CREATE POLICY own ON notes TO @APP USING (user_id = {OWN});"
         f"GRANT SELECT, INSERT, DELETE ON notes TO @APP;")  # fmt: skip

# What is done by a superuser (@APP is the serving role), and what `check` must say. Each stops the start, too.
PROBLEMS = {
    "a table of ours is not locked": ("ALTER TABLE data DISABLE ROW LEVEL SECURITY", "the table public.data has no row-level security"),
    "a table that only a policy names is not locked": (
        "ALTER TABLE users DISABLE ROW LEVEL SECURITY", "the table public.users has no row-level security"),
    "nor forced": ("ALTER TABLE organizations NO FORCE ROW LEVEL SECURITY", "the table public.organizations has row-level security that does not bind its owner: run"),
    "a stranger's table is not locked": (
        "CREATE TABLE notes (organization_id text); GRANT SELECT ON notes TO @APP", "the table public.notes has no row-level security"),
    "policies without row-level security": (
        f"CREATE TABLE notes (owner text); CREATE POLICY own ON notes USING (owner = {OWN}); GRANT SELECT ON notes TO @APP",
        "the table public.notes has no row-level security"),
    "locked, and no policy": (f"CREATE TABLE notes (x text); ALTER TABLE notes {LOCKED}; GRANT SELECT ON notes TO @APP", "public.notes has no policy"),
    "an open policy": (NOTES + "CREATE POLICY more ON notes FOR SELECT USING (true)", "the policy more on public.notes does not depend on"),
    "an open policy in other words": (
        NOTES + f"CREATE POLICY more ON notes FOR SELECT USING (user_id = {OWN} OR true)", "the policy more on public.notes does not depend on"),
    "anybody who is signed in": (
        NOTES + f"CREATE POLICY more ON notes FOR SELECT USING ({OWN} IS NOT NULL)", "the policy more on public.notes looks at no column"),
    "without NULLIF": (
        NOTES + "ALTER POLICY own ON notes USING (user_id = current_setting('gatepost.user_id', true))",
        "the policy own on public.notes takes an empty setting for a caller"),
    "without missing_ok": (
        NOTES + "ALTER POLICY own ON notes USING (user_id = NULLIF(current_setting('gatepost.user_id'), ''))",
        "the policy own on public.notes takes an empty setting for a caller"),
    "one NULLIF of two": (
        NOTES + f"ALTER POLICY own ON notes USING (user_id = {OWN} OR name = current_setting('gatepost.org_id', true))",
        "the policy own on public.notes takes an empty setting for a caller"),
    "an open check": (NOTES + "CREATE POLICY more ON notes FOR INSERT WITH CHECK (true)", "the policy more on public.notes does not depend on"),
    "a view with its owner's rights": ("CREATE VIEW all_data AS TABLE data; GRANT SELECT ON all_data TO @APP", "the view public.all_data"),
    "a materialised view": ("CREATE MATERIALIZED VIEW old AS TABLE data; GRANT SELECT ON old TO @APP", "the materialised view public.old"),
    "a rule": (NOTES + "CREATE RULE also AS ON INSERT TO notes DO ALSO DELETE FROM org_data", "public.notes has the rule also"),
    "a partition with a door of its own": (
        f"CREATE TABLE parts (owner text, d date) PARTITION BY RANGE (d); CREATE TABLE part PARTITION OF parts DEFAULT; ALTER TABLE parts {LOCKED};"
        f"CREATE POLICY own ON parts USING (owner = {OWN}); GRANT SELECT ON parts, part TO @APP", "the table public.part has no row-level security"),
    "an heir with a door of its own": (NOTES + "CREATE TABLE heirs () INHERITS (notes); GRANT SELECT ON heirs TO @APP", "the table public.heirs has no"),
    "partitioned by the policy's column": (
        f"CREATE TABLE parts (owner text) PARTITION BY HASH (owner); ALTER TABLE parts {LOCKED};"
        f"CREATE POLICY own ON parts USING (owner = {OWN}); GRANT SELECT ON parts TO @APP", "the table public.parts is partitioned by owner"),
    "rows can be given away": (NOTES + "GRANT UPDATE (user_id) ON notes TO @APP", "can move rows to another tenant: UPDATE on public.notes.user_id"),
    "rows can be given away, by a policy's column": (
        f"CREATE TABLE notes (owner text); ALTER TABLE notes {LOCKED}; CREATE POLICY own ON notes USING (owner = {OWN});"
        "GRANT SELECT, UPDATE ON notes TO @APP", "can move rows to another tenant: UPDATE on public.notes.owner"),
    "truncate": ("GRANT TRUNCATE ON data TO @APP", "has TRUNCATE on the table public.data"),
    "references": ("GRANT REFERENCES ON data TO @APP", "has REFERENCES on the table public.data"),
    "trigger": ("GRANT TRIGGER ON data TO @APP", "has TRIGGER on the table public.data"),
    "a definer function": (
        "CREATE FUNCTION everything() RETURNS SETOF data LANGUAGE sql SECURITY DEFINER AS 'TABLE data'", "public.everything() runs with the rights"),
    "a listed function, unpinned": ("ALTER FUNCTION prune_sync() RESET search_path", "prune_sync() has no pinned search_path"),
    "the serving role owns a table": ("ALTER TABLE data OWNER TO @APP", "owns table data"),
    "the serving role bypasses": ("ALTER ROLE @APP BYPASSRLS", "has the attribute BYPASSRLS"),
    "the serving role is a member of a member": (
        "GRANT @GUEST TO @APP; GRANT pg_read_all_data TO @GUEST", "is a member of pg_read_all_data"),
    "somebody has a helper's rights": ("GRANT gatepost_auth TO @GUEST", "has the rights of gatepost_auth"),
    "a helper can log in": ("ALTER ROLE gatepost_sync LOGIN", "the role gatepost_sync has the attribute LOGIN"),
}  # fmt: skip
REPAIR = ("ALTER ROLE @APP NOBYPASSRLS; REVOKE @GUEST FROM @APP; REVOKE gatepost_auth FROM @GUEST; REVOKE pg_read_all_data FROM @GUEST;"
          "ALTER ROLE gatepost_sync NOLOGIN")  # fmt: skip

# No hole, and yet one tenant learns of another.
WARNINGS = {
    "a unique value": (NOTES + "CREATE UNIQUE INDEX by_name ON notes (name)", "the unique index by_name on public.notes has no column of the tenant"),
    "a unique expression": (NOTES + "CREATE UNIQUE INDEX lower_name ON notes (lower(name))", "the unique index lower_name on public.notes"),
    "an exclusion": (
        NOTES + "ALTER TABLE notes ADD CONSTRAINT apart EXCLUDE USING btree (name WITH =)", "the unique index apart on public.notes has no column"),
    "a foreign key": (
        NOTES + "CREATE TABLE lines (user_id text, note uuid REFERENCES notes (id));"
        f"ALTER TABLE lines {LOCKED}; CREATE POLICY own ON lines USING (user_id = {OWN}); GRANT SELECT ON lines TO @APP",
        "the foreign key lines_note_fkey on public.lines has no column of the tenant"),
    "a running number": (NOTES + "ALTER TABLE notes ADD COLUMN n bigint GENERATED ALWAYS AS IDENTITY", "public.notes.n counts all tenants' rows"),
    "a serial": (NOTES + "ALTER TABLE notes ADD COLUMN s serial", "public.notes.s counts all tenants' rows"),
    "rights that come by themselves": ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO @APP", "new tables of postgres are granted to"),
    "a board for everybody": ("CREATE TABLE board (word text); GRANT INSERT ON board TO @APP", "can write to public.board, which no policy guards"),
    "a tenant by another name": (
        "CREATE TABLE notes (tenant_id text); GRANT SELECT ON notes TO @APP", "the table public.notes has a column tenant_id and no policy"),
    "a trigger with another's rights": (
        NOTES + "CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS 'BEGIN RETURN NEW; END';"
        "REVOKE ALL ON FUNCTION told() FROM PUBLIC; CREATE TRIGGER told BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION told()",
        "the trigger told on public.notes runs told with the rights of"),
    "an unpinned function that nobody may call": (
        "CREATE FUNCTION quiet() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; REVOKE ALL ON FUNCTION quiet() FROM PUBLIC",
        "the function public.quiet runs with the rights of"),
    "rows for whoever is signed in": (
        NOTES + f"CREATE POLICY more ON notes FOR SELECT USING ({OWN} <> name); INSERT INTO notes (user_id, name) VALUES ('a', 'b')",
        "a user with an unknown id sees rows of public.notes"),
}  # fmt: skip

HARMLESS = NOTES + f"""
    CREATE UNIQUE INDEX one_name ON notes (user_id, name);
    CREATE UNIQUE INDEX own_id ON notes (user_id, id);
    CREATE TABLE lines (user_id text, note uuid, FOREIGN KEY (user_id, note) REFERENCES notes (user_id, id));
    ALTER TABLE lines {LOCKED}; CREATE POLICY own ON lines USING (user_id = {OWN});
    GRANT SELECT ON lines TO @APP; CREATE TABLE countries (code text); GRANT SELECT ON countries TO @APP;
    CREATE TABLE parts (user_id text, d date) PARTITION BY RANGE (d); CREATE TABLE part PARTITION OF parts DEFAULT;
    ALTER TABLE parts {LOCKED}; CREATE POLICY own ON parts USING (user_id = {OWN}); GRANT SELECT ON parts TO @APP"""


@pytest.fixture
async def spoilt(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestDatabase]:
    """A database for one test, and its operator's environment."""
    found = TestDatabase(postgres, await postgres.fresh())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEPOST_PROVIDERS", "stub")
    monkeypatch.setenv("DATABASE_URL", found.url)
    yield found
    await execute(found, REPAIR)
    await postgres.drop_database(found.name)


async def execute(db: TestDatabase, sql: str) -> None:
    guest = f"guest_{db.server.run}"
    if guest not in db.server.roles:
        await db.server.create_role(guest)
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("SET client_min_messages = error")
        await admin.execute(sql.replace("@APP", f'"{db.server.serving_role}"').replace("@GUEST", f'"{guest}"'))


async def check(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], list[str]]:
    """(status, problems, warnings)."""
    status = await asyncio.to_thread(run, ["check", "--json"])
    said = json.loads(capsys.readouterr().out)
    return status, said["problems"], said["warnings"]


async def start(db: TestDatabase, folder: Path) -> None:
    given = {"env": "test", "ops.port": 0, "providers": ["stub", "api_key"], "api_key.keys": KEYS, "database.url": db.url,
             "data_folder": str(folder)}  # fmt: skip
    runner = web.AppRunner(build(Settings(environ={}, given=given)))
    try:
        await runner.setup()
    finally:
        await runner.cleanup()


async def test_ours_gives_no_problem_and_no_warning(spoilt: TestDatabase, tmp_path: Path, capsys: Any) -> None:
    assert await check(capsys) == (0, [], [])
    await execute(spoilt, "INSERT INTO data (user_id, name) VALUES ('alice', 'x'); INSERT INTO users (id) VALUES ('alice')")
    assert await check(capsys) == (0, [], [])
    await start(spoilt, tmp_path)


def cases(table: dict[str, tuple[str, str]]) -> list[Any]:
    """A third of the cases in every run, the others with the long tests; tests/schema/test_schema.py has more in every run."""
    return [pytest.param(*case, id=name, marks=[pytest.mark.long] if n % 3 else []) for n, (name, case) in enumerate(table.items())]


@pytest.mark.parametrize(("done", "said"), cases(PROBLEMS))
async def test_an_unsafe_schema_is_reported_and_not_served(
    spoilt: TestDatabase, tmp_path: Path, capsys: Any, done: str, said: str
) -> None:
    await execute(spoilt, done)
    status, problems, _ = await check(capsys)
    assert status == 2
    assert [one for one in problems if said in one], problems
    with pytest.raises(ConfigError, match="not safe to serve from"):
        await start(spoilt, tmp_path)


@pytest.mark.parametrize(("done", "said"), cases(WARNINGS))
async def test_what_is_unwise_is_a_warning(spoilt: TestDatabase, tmp_path: Path, capsys: Any, done: str, said: str) -> None:
    await execute(spoilt, done)
    status, problems, warnings = await check(capsys)
    assert (status, problems) == (0, [])
    assert [one for one in warnings if said in one], warnings
    await start(spoilt, tmp_path)


async def test_rows_without_a_caller_are_a_problem(spoilt: TestDatabase, capsys: Any) -> None:
    """The catalogs do not show this, so `check` tries it."""
    more = f"CREATE POLICY more ON notes FOR SELECT USING (coalesce({OWN}, name) = name)"
    await execute(spoilt, NOTES + more + "; INSERT INTO notes (user_id, name) VALUES ('a', 'b')")
    status, problems, _ = await check(capsys)
    assert status == 2
    assert "without a caller there are rows in public.notes" in problems


NO_GRANT = {
    "of one policy": (
        NOTES.replace("GRANT SELECT, INSERT, DELETE ON notes TO @APP;", ""),
        "GRANT SELECT, INSERT, UPDATE (name, part), DELETE ON public.notes TO {role}"),
    "of a policy for each command": (
        f"""CREATE TABLE "my Notes" (id uuid PRIMARY KEY, n int GENERATED ALWAYS AS (1) STORED, user_id text, "a b" text, updated_at timestamptz);
            ALTER TABLE "my Notes" {LOCKED}; CREATE POLICY s ON "my Notes" FOR SELECT USING (user_id = {OWN});
            CREATE POLICY u ON "my Notes" FOR UPDATE USING (user_id = {OWN})""",
        'GRANT SELECT, UPDATE ("a b") ON public."my Notes" TO {role}'),
    "in a schema of its own": (
        f"""CREATE SCHEMA shop; CREATE TABLE shop.notes (user_id text); ALTER TABLE shop.notes {LOCKED};
            CREATE POLICY s ON shop.notes FOR SELECT TO @APP USING (user_id = {OWN})""",
        "GRANT USAGE ON SCHEMA shop TO {role}; GRANT SELECT ON shop.notes TO {role}"),
}  # fmt: skip


@pytest.mark.parametrize(("done", "statement"), NO_GRANT.values(), ids=NO_GRANT)
async def test_a_table_without_its_grant_is_a_warning_with_the_statement_to_run(
    spoilt: TestDatabase, tmp_path: Path, capsys: Any, done: str, statement: str
) -> None:
    await execute(spoilt, done)
    status, problems, [line] = await check(capsys)
    run_this = statement.replace("{role}", spoilt.server.serving_role)
    assert (status, problems) == (0, [])
    assert line.endswith(f"every request that uses it is a 500; run {run_this}"), line
    await start(spoilt, tmp_path)
    assert line in capsys.readouterr().err
    await execute(spoilt, run_this)
    assert (await check(capsys))[1:] == ([], [])


async def test_a_table_that_is_not_meant_for_the_server_needs_no_grant(spoilt: TestDatabase, capsys: Any) -> None:
    await execute(spoilt, f"""
        CREATE TABLE plain (user_id text); REVOKE ALL ON plain FROM PUBLIC; CREATE TABLE theirs (user_id text);
        ALTER TABLE theirs {LOCKED}; CREATE POLICY s ON theirs TO @GUEST USING (user_id = {OWN});
        CREATE TABLE open (x text); ALTER TABLE open {LOCKED}; CREATE POLICY s ON open USING (true)""")  # fmt: skip
    assert await check(capsys) == (0, [], [])


async def test_a_database_without_a_schema_is_one_line(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    name = await postgres.create_database(f"empty_{secrets.token_hex(6)}", owner=postgres.owner_role)
    empty = TestDatabase(postgres, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEPOST_PROVIDERS", "stub")
    monkeypatch.setenv("DATABASE_URL", empty.url)
    try:
        line = "the database has no Gatepost schema: run `python -m server migrate`"
        assert await check(capsys) == (2, [line], [])
        with pytest.raises(ConfigError) as caught:
            await start(empty, tmp_path)
        assert str(caught.value) == line
    finally:
        await postgres.drop_database(name)


async def test_what_is_in_order_is_neither(spoilt: TestDatabase, capsys: Any) -> None:
    await execute(spoilt, HARMLESS)
    assert await check(capsys) == (0, [], [])


async def test_without_a_database_it_says_that_none_was_looked_at(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, `problems: none` alone would read as if the database were safe."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "GATEPOST_CONFIG", "GATEPOST_DATA_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    assert await asyncio.to_thread(run, ["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("database: not checked, because database.url is not set")]) == 1
    assert lines[-1] == "problems: none"
    assert await asyncio.to_thread(run, ["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["database_checked"] is False


async def test_in_words(spoilt: TestDatabase, capsys: Any) -> None:
    await execute(spoilt, PROBLEMS["an open policy"][0] + ";" + WARNINGS["a unique value"][0].removeprefix(NOTES))
    assert await asyncio.to_thread(run, ["check"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("database:")]
    assert [line for line in lines if line.startswith("problem: the policy more on public.notes")]
    assert [line for line in lines if line.startswith("warning: the unique index by_name on public.notes")]
    assert lines[-1] == "problems: 1"
