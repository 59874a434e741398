"""`migrate --schema FOLDER`: numbered files are applied once each, in order, in a transaction, recorded, and never changed later."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from kits import ROOT
from kits.pgbouncer import pgbouncer
from kits.postgres import Cluster

from server.commands import run
from server.schema.migrate import LOCK, schema_text
from tests.conftest import url_of

LOCKED = "ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
OWN = """
DO $do$ BEGIN
    EXECUTE format('CREATE POLICY own ON {0} TO %1$I USING (user_id = NULLIF(current_setting(''gatepost.user_id'', true), ''''));
                    GRANT SELECT, INSERT, DELETE ON {0} TO %1$I', current_setting('gatepost.serving_role'));
END $do$;
"""
NOTES = f"CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id text NOT NULL);\nALTER TABLE notes {LOCKED};"
NOTES += OWN.format("notes")
OPEN = "CREATE TABLE open (user_id text);\nDO $$ BEGIN EXECUTE format('GRANT SELECT ON open TO %I', current_setting('gatepost.serving_role')); END $$;"


@pytest.fixture
async def empty(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """An operator's folder and an empty database with an owner that is no superuser."""
    await postgres.template()  # which creates the owner
    name = await postgres.create_database("gp_numbered", owner=postgres.owner_role)
    monkeypatch.chdir(tmp_path)
    urls = {"url": url_of(postgres, postgres.serving_role, name), "owner": url_of(postgres, postgres.owner_role, name)}
    monkeypatch.setenv("DATABASE_URL", urls["url"])
    monkeypatch.setenv("DATABASE_OWNER_URL", urls["owner"])
    folder = tmp_path / "migrations"
    folder.mkdir()
    yield SimpleNamespace(name=name, folder=folder, server=postgres, **urls)
    await postgres.drop_database(name)


def write(empty: Any, **files: str) -> None:
    for name, text in files.items():
        (empty.folder / f"{name.removeprefix('_')}.sql").write_text(text)


async def command(*words: str) -> int:
    return await asyncio.to_thread(run, list(words))


async def migrate(*more: str) -> int:
    return await command("migrate", "--schema", "migrations", *more)


async def value(empty: Any, sql: str, *args: Any) -> Any:
    async with empty.server.as_admin(empty.name) as admin:
        return await admin.fetchval(sql, *args)


async def recorded(empty: Any) -> list[str]:
    return list(await value(empty, "SELECT array_agg(name ORDER BY number) FROM gatepost_files") or [])


# Applied once each -------------------------------------------------------------------------------------------------------


async def test_each_file_is_applied_once_in_the_order_of_the_numbers(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _1000_last="UPDATE told SET n = n * 10;", _001_notes=NOTES, _002_told="CREATE TABLE told (n int); INSERT INTO told VALUES (1);")
    (empty.folder / "README.md").write_text("not SQL")
    (empty.folder / ".003_editor.sql").write_text("nor is this")
    assert await migrate() == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-4:] == ["applied 001_notes.sql", "applied 002_told.sql", "applied 1000_last.sql", "migrated"]
    assert await value(empty, "SELECT n FROM told") == 10
    assert await recorded(empty) == ["001_notes.sql", "002_told.sql", "1000_last.sql"]
    write(empty, _1001_more="UPDATE told SET n = n + 1;")
    for _ in range(2):
        assert await migrate("--json") == 0
        told = [json.loads(capsys.readouterr().out)["applied"] for _ in range(1)]
    assert told == [[]]
    assert await value(empty, "SELECT n FROM told") == 11
    assert await command("check") == 0


async def test_the_serving_role_has_no_right_on_the_record(empty: Any) -> None:
    """Not even where default privileges give it every new table."""
    role = empty.server.serving_role
    async with empty.server.connected(empty.server.owner_role, empty.name) as owner:
        await owner.execute(f'ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO "{role}", PUBLIC')
    write(empty, _001_notes=NOTES)
    assert await migrate() == 2  # the server's own tables got those rights too, and that is said
    async with empty.server.connected(empty.server.owner_role, empty.name) as owner:
        await owner.execute(f'ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC; ALTER DEFAULT PRIVILEGES REVOKE TRUNCATE, REFERENCES, TRIGGER, MAINTAIN ON TABLES FROM "{role}"'
                            if owner.get_server_version().major >= 17 else
                            f'ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC; ALTER DEFAULT PRIVILEGES REVOKE TRUNCATE, REFERENCES, TRIGGER ON TABLES FROM "{role}"')
    await migrate()
    for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        assert await value(empty, "SELECT has_table_privilege($1, 'gatepost_files', $2)", role, right) in (False, None)


async def test_a_file_beside_the_folder_runs_each_time(empty: Any) -> None:
    write(empty, _001_told="CREATE TABLE told (n int); INSERT INTO told VALUES (1);")
    Path("each.sql").write_text("UPDATE told SET n = n + 1;")
    for _ in range(2):
        assert await migrate("--schema", "each.sql") == 0
    assert await value(empty, "SELECT n FROM told") == 3


async def test_a_dry_run_says_what_would_be_applied_and_changes_nothing(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_notes=NOTES, _002_more="CREATE TABLE more (a int);")
    Path("each.sql").write_text("CREATE TABLE each (a int);")
    assert await migrate("--dry-run", "--schema", "each.sql") == 0
    out = capsys.readouterr().out.splitlines()
    assert "Gatepost's schema: revision " in out[0]
    assert " would be applied for the first time: it would create the tables gatepost_meta, data, org_data, " in out[0]
    assert out[1:] == ["migrations/001_notes.sql: would be applied", "migrations/002_more.sql: would be applied",
                       "each.sql: would be run, as each time", "nothing was changed"]  # fmt: skip
    assert await value(empty, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    assert await migrate() == 0
    capsys.readouterr()
    assert await migrate("--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["migrated"] is False
    assert "as in the database" in told["plan"][0]
    assert told["plan"][1:] == ["migrations: all 2 files are applied"]
    write(empty, _001_notes=NOTES + "-- edited")
    assert await migrate("--dry-run") == 2


# Refused -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["edited", "renamed", "removed", "older"])
async def test_what_was_applied_stays_as_it_is(empty: Any, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_notes=NOTES, _005_told="CREATE TABLE told (n int);", _007_new="CREATE TABLE new (n int);")
    (empty.folder / "007_new.sql").rename("007_new.sql")
    assert await migrate() == 0
    Path("007_new.sql").rename(empty.folder / "007_new.sql")
    told = empty.folder / "005_told.sql"
    if how == "edited":
        told.write_text("CREATE TABLE told (n bigint);")
        message = "005_told.sql was edited after it was applied on "
    elif how == "renamed":
        told.rename(empty.folder / "005_tell.sql")
        message = "is now 005_tell.sql"
    elif how == "removed":
        told.unlink()
        message = "005_told.sql was applied on "
    else:
        write(empty, _003_older="CREATE TABLE older (n int);")
        message = "003_older.sql is new, but 005_told.sql was applied before it"
    capsys.readouterr()
    assert await migrate() == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("gatepost: migrate: migrations: ")
    assert message in err[0]
    assert await recorded(empty) == ["001_notes.sql", "005_told.sql"]
    assert await value(empty, "SELECT to_regclass('new') IS NULL AND to_regclass('older') IS NULL")


async def test_other_line_ends_are_no_edit(empty: Any) -> None:
    write(empty, _001_notes=NOTES)
    assert await migrate() == 0
    (empty.folder / "001_notes.sql").write_bytes(("\ufeff" + NOTES.replace("\n", "\r\n")).encode())
    assert await migrate() == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no SQL file is in this folder"),
        (["README.md"], "no SQL file is in this folder"),
        (["001_a.sql", "0001_b.sql"], "0001_b.sql and 001_a.sql have the same number"),
        (["1_a.sql"], "'1_a.sql' is not named like 001_name.sql"),
        (["001-a.sql"], "'001-a.sql' is not named like"),
        (["001_a.SQL"], "'001_a.SQL' is not named like"),
        (["001_a.up.sql", "001_a.down.sql"], "'001_a.down.sql' is not named like"),
        (["001_with blanks.sql"], "'001_with blanks.sql' is not named like"),
        (["001_größe.sql"], "'001_größe.sql' is not named like"),
        (["001_a.sql", "schema.sql"], "'schema.sql' is not named like"),
        (["\u0660\u0660\u0661_a.sql"], "is not named like"),
        (["001_a.sql/"], "001_a.sql is not a file that can be read"),
        (["001_a.sql@nowhere"], "001_a.sql is not a file that can be read"),
    ],
)
async def test_a_folder_that_is_not_as_it_must_be(empty: Any, names: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """@: a symbolic link to; /: a folder."""
    for name in names:
        file, _, target = name.partition("@")
        if target:
            (empty.folder / file).symlink_to(target)
        elif file.endswith("/"):
            (empty.folder / file).mkdir()
        else:
            (empty.folder / file).write_text("SELECT 1;")
    assert await migrate() == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("gatepost: --schema migrations: ")
    assert message in err[0]
    assert await value(empty, "SELECT to_regclass('gatepost_meta') IS NULL")  # nothing was begun


async def test_a_symbolic_link_to_a_file_is_a_file(empty: Any) -> None:
    """Kubernetes mounts a ConfigMap like this."""
    (empty.folder / "..data").mkdir()
    (empty.folder / "..data" / "001_a.sql").write_text("CREATE TABLE linked (n int);")
    (empty.folder / "001_a.sql").symlink_to("..data/001_a.sql")
    assert await migrate() == 0
    assert await value(empty, "SELECT to_regclass('linked') IS NOT NULL")


async def test_two_folders_are_refused(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_a="SELECT 1;")
    assert await migrate("--schema", str(empty.folder)) == 2
    assert "only one folder" in capsys.readouterr().err


async def test_every_file_is_looked_through_before_the_first_one_runs(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_a="CREATE TABLE first (n int);", _002_b="SELECT 1;\n\\i other.sql")
    assert await migrate() == 2
    assert "002_b.sql, line 2: \\i is a command of psql" in capsys.readouterr().err
    assert await value(empty, "SELECT to_regclass('first') IS NULL")


# Failures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("CREATE TABLE half (n int);\n\nCREATE TABEL wrong (n int);", 'line 3: syntax error at or near "TABEL"'),
        ("CREATE TABLE half (n int);\n\n-- why\nINSERT INTO half VALUES\n  (1),\n  ('x');", 'line 6: invalid input syntax for type integer: "x"'),
        ("CREATE TABLE half (n int PRIMARY KEY);\nINSERT INTO half VALUES (1);\nINSERT INTO half VALUES (1);", "line 3: duplicate key"),
        ("CREATE TABLE half (n int);\nDROP TABLE gatepost_files;", "gatepost_files"),
        ("CREATE TABLE half (n int);\nDO $$ BEGIN COMMIT; END $$;", "line 2: invalid transaction termination"),
        ("CREATE TABLE half (n int);\nSELECT pg_terminate_backend(pg_backend_pid());", ""),
        ("CREATE TABLE half (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);\nINSERT INTO half VALUES (1), (1);", "duplicate key"),
        ("CREATE TABLE half (n int);\nSET lock_timeout = '50ms'; LOCK TABLE told;", "line 2: canceling statement due to lock timeout"),
    ],
)
async def test_a_file_that_fails_leaves_the_earlier_ones_applied(empty: Any, sql: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_told="CREATE TABLE told (n int);")
    assert await migrate() == 0
    write(empty, _002_good="CREATE TABLE good (n int);", _003_bad=sql, _004_never="CREATE TABLE never (n int);")
    capsys.readouterr()
    async with empty.server.as_admin(empty.name) as admin, admin.transaction():
        await admin.execute("SELECT FROM told")
        assert await migrate() == 1
    err = capsys.readouterr().err.splitlines()
    assert err[:-1] == ["migrate: migrations/002_good.sql", "migrate: migrations/003_bad.sql"]
    assert err[-1].startswith("gatepost: migrate: 003_bad.sql" if said else "gatepost: ")
    assert said in err[-1]
    assert await recorded(empty) == ["001_told.sql", "002_good.sql"]
    assert await value(empty, "SELECT to_regclass('half') IS NULL AND to_regclass('never') IS NULL")
    write(empty, _003_bad="SELECT 1;")
    assert await migrate() == 0
    assert len(await recorded(empty)) == 4


async def test_a_file_whose_result_is_unsafe_is_rolled_back_with_a_line_for_each_problem(
    empty: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(empty, _001_notes=NOTES, _002_open=OPEN)
    assert await migrate() == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gatepost: ")]
    start = "gatepost: migrate: 002_open.sql: not safe to serve from, rolled back: the table public.open has "
    assert len(err) >= 2
    assert all(line.startswith(start) for line in err), err
    assert any("no row-level security: run ALTER TABLE public.open ENABLE ROW LEVEL SECURITY" in line for line in err)
    assert await recorded(empty) == ["001_notes.sql"]
    assert await value(empty, "SELECT to_regclass('open') IS NULL")
    assert await command("check") == 0


async def test_a_default_value_for_the_serving_role_is_unsafe(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Which the owner's own session does not have."""
    role = empty.server.serving_role
    write(empty, _001_default=f'ALTER ROLE "{role}" IN DATABASE {empty.name} SET gatepost.user_id = \'eve\';')
    async with empty.server.as_admin() as admin:
        await admin.execute(f'GRANT SET ON PARAMETER "gatepost.user_id" TO "{empty.server.owner_role}"')
    try:
        assert await migrate() == 2
    finally:
        async with empty.server.as_admin() as admin:
            await admin.execute(f'REVOKE ALL ON PARAMETER "gatepost.user_id" FROM "{empty.server.owner_role}"')
    assert "001_default.sql: not safe to serve from, rolled back: gatepost.user_id has a default value ('eve')" in capsys.readouterr().err
    assert await recorded(empty) == []


async def test_a_file_that_runs_each_time_is_judged_as_well(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("open.sql").write_text(OPEN)
    assert await command("migrate", "--schema", "open.sql") == 2
    assert "open.sql: not safe to serve from, rolled back: the table public.open" in capsys.readouterr().err
    assert await value(empty, "SELECT to_regclass('open') IS NULL")
    assert await command("check") == 0


async def test_a_database_that_is_unsafe_already_is_mended_step_by_step(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that fixes one of two problems is applied; the rest is reported, with status 2, until no problem is left."""
    role = empty.server.serving_role
    assert await command("migrate") == 0
    async with empty.server.connected(empty.server.owner_role, empty.name) as owner:
        await owner.execute(f'CREATE TABLE one (user_id text); CREATE TABLE two (user_id text); GRANT SELECT ON one, two TO "{role}"')
    capsys.readouterr()
    assert await command("migrate") == 2
    assert "the database is not safe to serve from: the table public.one" in capsys.readouterr().err
    for number, name in enumerate(("one", "two"), 1):
        policy = OWN.format(name).replace("SELECT, INSERT, DELETE", "SELECT")
        (empty.folder / f"00{number}_mend.sql").write_text(f"ALTER TABLE {name} {LOCKED}; {policy}")
        assert await migrate() == (2 if name == "one" else 0)
        assert ("public.two" in capsys.readouterr().err) is (name == "one")
    assert await command("check") == 0


async def test_an_unsafe_database_is_not_taken_over(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The first migration of a database whose own tables the serving role can read: nothing is changed."""
    role = empty.server.serving_role
    async with empty.server.connected(empty.server.owner_role, empty.name) as owner:
        await owner.execute(f'CREATE TABLE orders (user_id text); GRANT SELECT ON orders TO "{role}"')
    assert await command("migrate") == 2
    assert "not safe to serve from, rolled back: the table public.orders has no row-level security" in capsys.readouterr().err
    assert await value(empty, "SELECT to_regclass('gatepost_meta') IS NULL")


# What one file does stays out of the next ---------------------------------------------------------------------------------


async def test_no_setting_or_role_of_a_file_reaches_the_next(empty: Any) -> None:
    settings = "SET search_path = other; SET work_mem = '77MB'; SET statement_timeout = '9s'; SET row_security = on; SET gatepost.user_id = 'eve'; "
    settings += "CREATE TEMP TABLE left_over (n int) ON COMMIT PRESERVE ROWS; LISTEN left_over; DEALLOCATE ALL; SELECT pg_advisory_lock(1);"
    write(
        empty,
        _001_settings=f"CREATE SCHEMA other; {settings}",
        _002_here="CREATE TABLE here (n int);\nDO $$ BEGIN ASSERT current_setting('work_mem') <> '77MB' AND current_setting('row_security') = 'off'"
        " AND coalesce(current_setting('gatepost.user_id', true), '') = '' AND current_setting('statement_timeout') = '0'"
        " AND to_regclass('pg_temp.left_over') IS NULL AND current_user = session_user AND NOT EXISTS (SELECT pg_listening_channels()); END $$;",
    )
    assert await migrate() == 0
    assert await value(empty, "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'here'") == "public"
    assert await value(empty, "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'gatepost_files'") == "public"


async def test_a_file_finds_the_serving_role_of_another_name(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    role = await empty.server.create_role(f'Acme "serves"% {os.urandom(2).hex()}'.replace('"', ""))
    monkeypatch.setenv("DATABASE_URL", url_of(empty.server, role, empty.name))
    write(empty, _001_notes=NOTES)
    assert await migrate() == 0
    assert await value(empty, "SELECT has_table_privilege($1, 'notes', 'SELECT')", role)
    assert await command("check") == 0
    await empty.server.drop_database(empty.name)


# Outside a transaction ----------------------------------------------------------------------------------------------------

INDEX = "-- gatepost: no transaction\nSET lock_timeout = '5s';\nCREATE INDEX CONCURRENTLY IF NOT EXISTS told_by_n ON told (n);\nDROP INDEX CONCURRENTLY IF EXISTS other;\n"


async def test_an_index_is_made_without_a_transaction(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_told="CREATE TABLE told (n int);", _002_index=INDEX, _003_more="DO $$ BEGIN ASSERT current_setting('lock_timeout') = '0'; END $$;")
    assert await migrate() == 0
    assert await recorded(empty) == ["001_told.sql", "002_index.sql", "003_more.sql"]
    assert await value(empty, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'told_by_n'::regclass")
    write(empty, _004_wrong="-- gatepost: no transaction\nCREATE INDEX a ON told (n);\nCREATE INDEX CONCURRENTLY b ON told (nowhere);")
    capsys.readouterr()
    assert await migrate() == 1
    assert '004_wrong.sql, line 3: column "nowhere" does not exist; the 1 statement(s) before it stay' in capsys.readouterr().err
    assert len(await recorded(empty)) == 3


async def test_what_is_unsafe_is_not_recorded_outside_a_transaction_either(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make = "CREATE PROCEDURE make() LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE made (user_id text); EXECUTE format('GRANT SELECT ON made TO %I', current_setting('gatepost.serving_role')); COMMIT; END $$;"
    write(empty, _001_make=make, _002_call="-- gatepost: no transaction\nCALL make();")
    assert await migrate() == 2
    assert "002_call.sql: not safe to serve from, not recorded" in capsys.readouterr().err
    assert await recorded(empty) == ["001_make.sql"]


# Several at once, and the end of one ------------------------------------------------------------------------------------------


async def program(empty: Any, *words: str, **more: str) -> asyncio.subprocess.Process:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": empty.url, "DATABASE_OWNER_URL": empty.owner, **more}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=empty.folder.parent, env=given, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_two_runs_at_once_take_turns(empty: Any) -> None:
    """Also while one builds an index concurrently, which waits for every transaction that has a snapshot."""
    write(empty, _001_told="CREATE TABLE told (n int); INSERT INTO told VALUES (1); SELECT pg_sleep(0.5);",
          _002_index=INDEX, _003_add="UPDATE told SET n = n + 1; SELECT pg_sleep(0.3);")  # fmt: skip
    runs = [await program(empty, "migrate", "--schema", "migrations") for _ in range(3)]
    ended = [await asyncio.wait_for(one.communicate(), 60) for one in runs]
    assert [one.returncode for one in runs] == [0, 0, 0], ended
    assert await value(empty, "SELECT n FROM told") == 2
    assert sum(out.decode().count("applied 00") for out, _ in ended) == 3
    assert sum(b"another migrate is running" in err for _, err in ended) == 2


async def test_killed_between_and_within_files_it_goes_on_where_it_was(empty: Any) -> None:
    write(empty, _001_told="CREATE TABLE told (n int);", _002_half="INSERT INTO told VALUES (2);\nSELECT pg_sleep(30);", _003_end="INSERT INTO told VALUES (3);")
    running = await program(empty, "migrate", "--schema", "migrations")
    async with asyncio.timeout(30):
        while not await value(empty, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30);' AND state = 'active'"):
            await asyncio.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    await running.wait()
    assert await recorded(empty) == ["001_told.sql"]
    await value(empty, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30);'")
    write(empty, _002_half="INSERT INTO told VALUES (2);")
    assert await migrate() == 0
    assert await value(empty, "SELECT array_agg(n ORDER BY n) FROM told") == [2, 3]


@pytest.mark.long
async def test_hundreds_of_files(empty: Any) -> None:
    for number in range(1, 301):
        (empty.folder / f"{number:03}_a.sql").write_text("SELECT 1;" if number > 1 else "CREATE TABLE told (n int);")
    async with asyncio.timeout(240):
        assert await migrate() == 0
        assert await migrate() == 0
    assert len(await recorded(empty)) == 300


# The record ------------------------------------------------------------------------------------------------------------------


async def test_a_table_of_the_records_name_is_not_taken_for_it(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("migrate") == 0
    async with empty.server.connected(empty.server.owner_role, empty.name) as owner:
        await owner.execute("CREATE TABLE gatepost_files (path text)")
    write(empty, _001_notes=NOTES)
    capsys.readouterr()
    assert await migrate() == 2
    assert "public.gatepost_files is not the table that migrate creates" in capsys.readouterr().err
    assert await value(empty, "SELECT to_regclass('notes') IS NULL")


async def test_without_its_record_nothing_is_applied_twice_in_silence(empty: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(empty, _001_notes=NOTES)
    assert await migrate() == 0
    async with empty.server.connected(empty.server.owner_role, empty.name) as owner:
        await owner.execute("DROP TABLE gatepost_files")
    assert await migrate() == 1
    assert '001_notes.sql, line 1: relation "notes" already exists; rolled back' in capsys.readouterr().err


def test_the_lock_of_a_run_is_not_that_of_a_transaction() -> None:
    from server.schema.migration import _RUN_LOCK

    assert _RUN_LOCK != LOCK
    assert "gatepost_files" not in schema_text()


# A pooler, and a wrong password ----------------------------------------------------------------------------------------------


async def test_through_a_pooler_nothing_reaches_another_client(empty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's URL should go past a pooler; if it does not, files are applied all the same, and leave no setting behind."""
    settings = "SET work_mem = '77MB'; SET search_path = pg_catalog; SET statement_timeout = '9s'; SET gatepost.user_id = 'eve';"
    write(empty, _001_settings=settings + "CREATE TABLE public.told (n int);", _002_more="INSERT INTO told VALUES (1);")
    with pgbouncer(empty.server, 2) as bouncer:
        monkeypatch.setenv("DATABASE_OWNER_URL", bouncer.url(empty.server.owner_role, empty.name))
        for _ in range(2):
            assert await migrate() == 0
        for _ in range(3):
            connection = await asyncpg.connect(bouncer.url(empty.server.owner_role, empty.name), statement_cache_size=0)
            said = await connection.fetchrow("SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('statement_timeout'),"
                                             " coalesce(current_setting('gatepost.user_id', true), ''), current_setting('row_security')")  # fmt: skip
            assert tuple(said) == ("4MB", '"$user", public', "0", "", "on")
            await connection.close()
    assert await recorded(empty) == ["001_settings.sql", "002_more.sql"]


async def test_a_wrong_password_is_one_line(empty: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not isinstance(empty.server, Cluster) or empty.server.folder is None:
        pytest.skip("the rules of this server are not ours to change")
    rules = empty.server.folder / "data" / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all {empty.server.owner_role} scram-sha-256\n{before}")
    try:
        assert await value(empty, "SELECT pg_reload_conf()")
        await asyncio.sleep(0.3)
        assert await command("migrate") == 0
        monkeypatch.setenv("DATABASE_OWNER_URL", empty.owner.replace(empty.server.passwords[empty.server.owner_role], "wr0ng"))
        capsys.readouterr()
        assert await command("migrate") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f'password authentication failed for user "{empty.server.owner_role}"' in err
        assert "DATABASE_OWNER_URL" in err
        assert "wr0ng" not in err
    finally:
        rules.write_text(before)
        await value(empty, "SELECT pg_reload_conf()")
        await asyncio.sleep(0.3)
