"""`python -m server migrate`: the server's schema as the owner, then a product's own tables, and one line for a failure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.commands import run
from tests.conftest import url_of

OWN = """
CREATE TABLE IF NOT EXISTS notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL, text text NOT NULL);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DO $do$ BEGIN
    EXECUTE format('DROP POLICY IF EXISTS own ON notes; CREATE POLICY own ON notes TO %1$I
                    USING (user_id = NULLIF(current_setting(''gatepost.user_id'', true), '''')); GRANT SELECT ON notes TO %1$I',
                   current_setting('gatepost.serving_role'));
END $do$;
"""


@pytest.fixture
async def settings(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """The environment of an operator with an empty database, and the database's name."""
    name = await postgres.create_database("gp_migrate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url_of(postgres, postgres.serving_role, name))
    monkeypatch.setenv("DATABASE_OWNER_URL", url_of(postgres, postgres.admin, name))
    yield name
    await postgres.drop_database(name)


async def command(*words: str) -> int:
    import asyncio

    return await asyncio.to_thread(run, list(words))


async def test_the_servers_schema_and_then_own_tables(
    settings: str, postgres: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.sql").write_text(OWN)
    for _ in range(2):  # a second run changes nothing
        assert await command("migrate", "--schema", "own.sql") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "migrated"
    async with postgres.as_admin(settings) as admin:
        assert await admin.fetchval("SELECT count(*) FROM pg_policy WHERE polname = 'own'") == 1
        assert await admin.fetchval("SELECT has_table_privilege($1, 'notes', 'SELECT')", postgres.serving_role)
    assert await command("check") == 0


async def test_sql_that_fails_changes_nothing_and_is_one_line(
    settings: str, postgres: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.sql").write_text("CREATE TABLE half (id int);\n\nCREATE TABEL wrong (id int);")
    assert await command("migrate", "--schema", "own.sql") == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert err[0] == 'gatepost: migrate: own.sql, line 3: syntax error at or near "TABEL"; rolled back'
    async with postgres.as_admin(settings) as admin:
        assert await admin.fetchval("SELECT to_regclass('half')") is None


@pytest.mark.parametrize(("sql", "line"), [
    ("\nCREATE TABLE plain (id int);", 'line 2: relation "plain" already exists; rolled back: a file runs at every migrate unless it is numbered: write IF NOT EXISTS'),
    ("CREATE POLICY own ON nowhere USING (true);", 'line 1: relation "nowhere" does not exist; rolled back: what a file uses must exist before it'),
    ("COMMENT ON COLUMN plain.done IS 'x';", 'rolled back: a table that exists is not changed by CREATE TABLE IF NOT EXISTS: write ALTER TABLE'),
    ("INSERT INTO plain VALUES (1), (1);\nCREATE UNIQUE INDEX ON plain (id);", "line 2: could not create unique index"),
    ("SET ROLE NONE;\nSET LOCAL lock_timeout = '1ms'; SELECT pg_advisory_xact_lock(4711);", "rolled back: another session has the lock: run migrate again"),
])  # fmt: skip
async def test_sql_that_fails_says_where_and_what_to_do(
    settings: str, postgres: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], sql: str, line: str
) -> None:
    (tmp_path / "own.sql").write_text("CREATE TABLE plain (id int);")
    assert await command("migrate", "--schema", "own.sql") == 0
    (tmp_path / "own.sql").write_text(sql)
    capsys.readouterr()
    async with postgres.as_admin(settings) as other:
        await other.execute("SELECT pg_advisory_lock(4711)")
        assert await command("migrate", "--schema", "own.sql") == 1
    [said] = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("gatepost: migrate: own.sql, ")
    assert line in said


async def test_the_message_names_the_rights_that_the_owner_needs(settings: str, postgres: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    guest = f"guest_{postgres.run}"
    if guest not in postgres.roles:
        await postgres.create_role(guest)
    monkeypatch.setenv("DATABASE_OWNER_URL", url_of(postgres, guest, settings))
    assert await command("migrate") == 1
    [said] = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("gatepost: migrate: Gatepost's own schema: permission denied ")
    assert said.endswith("; rolled back: migrate runs as the role of DATABASE_OWNER_URL, which must own what it changes and have CREATEROLE")


async def test_a_missing_file_is_a_mistake(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("migrate", "--schema", "nowhere.sql") == 2
    assert capsys.readouterr().err == "gatepost: --schema nowhere.sql: cannot be read (No such file or directory)\n"


async def test_the_owners_url_is_required(
    settings: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATABASE_OWNER_URL")
    assert await command("migrate") == 2
    assert "DATABASE_OWNER_URL" in capsys.readouterr().err


async def test_the_result_is_json_and_progress_goes_to_standard_error(settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With several files, each is named on standard error as it begins."""
    (tmp_path / "own.sql").write_text(OWN)
    (tmp_path / "more.sql").write_text("SELECT 1;")
    assert await command("migrate", "--json", "--schema", "own.sql", "--schema", "more.sql") == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["migrated"], told["schemas"]) == (True, ["own.sql", "more.sql"])
    assert any("BYPASSRLS" in line for line in told["by_hand"])
    assert said.err.splitlines() == ["migrate: Gatepost's own schema", "migrate: own.sql (1 of 2)", "migrate: more.sql (2 of 2)"]


async def test_only_what_is_still_to_do_by_hand_is_printed(settings: str, postgres: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The URL names the serving role, so only its password and the remarks on backups remain; the second run prints none."""
    role = postgres.serving_role
    async with postgres.as_admin(settings) as admin:
        await admin.execute(f'ALTER ROLE "{role}" PASSWORD NULL')
        assert await command("migrate") == 0
        first = capsys.readouterr().out.splitlines()
        assert [line.partition(" ")[0] for line in first] == ["Give", "Back", "After", "migrated"]
        assert await command("migrate") == 0
        assert [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["Give", "migrated"]
        await admin.execute(f"""ALTER ROLE "{role}" PASSWORD 'secret'""")
        try:
            assert await command("migrate") == 0
            assert capsys.readouterr().out == "migrated\n"
        finally:
            await admin.execute(f'ALTER ROLE "{role}" PASSWORD NULL')


async def test_the_message_on_a_url_without_a_role_names_the_role_to_add(
    settings: str, postgres: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", url_of(postgres, "", settings).replace("//@", "//"))
    for _ in range(2):
        assert await command("migrate") == 0
        assert f"DATABASE_URL=postgresql://gatepost_app:…@HOST/{settings}" in capsys.readouterr().out


async def test_with_a_pooler_the_limits_of_the_role_are_still_to_do_until_it_has_them(
    settings: str, postgres: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    role = postgres.serving_role
    monkeypatch.setenv("GATEPOST_DATABASE_POOLER", "transaction")
    monkeypatch.setenv("GATEPOST_DATABASE_DIRECT_URL", url_of(postgres, role, settings))
    asked = f"ALTER ROLE {role} SET statement_timeout = '5000ms'; ALTER ROLE {role} SET timezone = 'UTC'"
    async with postgres.as_admin(settings) as admin:
        for done in ("SELECT 1", f'ALTER ROLE "{role}" IN DATABASE "{settings}" SET statement_timeout = \'5000ms\''):
            await admin.execute(done)
            assert await command("migrate") == 0
            assert asked in capsys.readouterr().out
        await admin.execute(f'ALTER ROLE "{role}" IN DATABASE "{settings}" SET timezone = \'UTC\'')
        assert await command("migrate") == 0
        assert "ALTER ROLE" not in capsys.readouterr().out


async def test_without_files_there_is_no_progress(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("migrate") == 0
    assert capsys.readouterr().err == ""


# Everyday mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "status", "said"),
    [
        ("postgresql://nobody_here:s3cret@{place}", 2, 'role "nobody_here" does not exist'),
        ("postgresql://postgres:s3cret@{nowhere}", 2, 'database "nowhere" does not exist'),
        ("postgresql://postgres:s3cret@no-such-host.invalid:5433/gatepost", 2, "the host is not known (no-such-host.invalid:5433/gatepost)"),
        ("postgresql://postgres:s3cret@127.0.0.1:1/gatepost", 1, "cannot be reached as its owner: database: ConnectionRefusedError (127.0.0.1:1/gatepost)"),
        ("mysql://postgres:s3cret@127.0.0.1:1/gatepost", 2, "not a Postgres URL that can be used"),
        ("postgresql://postgres:s3cret@127.0.0.1:port/gatepost", 2, ""),
    ],
)
async def test_a_mistake_in_the_owners_url_is_one_line_without_a_secret(
    settings: str, postgres: Any, owner: str, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = url_of(postgres, "x", settings).partition("@")[2]
    monkeypatch.setenv("DATABASE_OWNER_URL", owner.format(place=place, nowhere=place.replace(settings, "nowhere")))
    assert await command("migrate") == status
    err = capsys.readouterr().err
    assert err.startswith("gatepost: ")
    assert err.count("\n") == 1
    assert said in err
    assert "s3cret" not in err


async def test_migrate_does_not_wait_behind_a_long_transaction_if_its_role_has_a_lock_timeout(
    settings: str, postgres: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every request for that table would wait behind it. And an index that was built beforehand is not built again."""
    assert await command("migrate") == 0
    async with postgres.as_admin(settings) as admin:
        await admin.execute("DROP INDEX api_keys_live_by_user")
        await admin.execute("CREATE INDEX CONCURRENTLY api_keys_live_by_user ON api_keys (user_id) WHERE revoked_at IS NULL")
        index = await admin.fetchval("SELECT 'api_keys_live_by_user'::regclass::oid")
        url = url_of(postgres, postgres.admin, settings)
        monkeypatch.setenv("DATABASE_OWNER_URL", f"{url}{'&' if '?' in url else '?'}options=-c%20lock_timeout%3D300")
        capsys.readouterr()
        async with admin.transaction():
            await admin.execute("SELECT count(*) FROM data")
            assert await command("migrate") == 1
        said = capsys.readouterr()
        assert said.err.count("\n") == 1, said.err
        assert "canceling statement due to lock timeout" in said.err, said.err
        assert await command("migrate") == 0
        assert await admin.fetchval("SELECT 'api_keys_live_by_user'::regclass::oid") == index


FORGOTTEN = {
    "an organisation's": ("organization_id text", "organization => 'organization_id'"),
    "a user's": ("user_id text", "\"user\" => 'user_id'"),
    "of both": ("user_id text, org_id text", "organization => 'org_id'"),
    "of neither": ("owner text", "organization => 'COLUMN'"),
}


@pytest.mark.parametrize("kind", FORGOTTEN)
async def test_a_table_with_neither_policies_nor_grants_is_a_warning_with_the_line_to_add(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    columns, argument = FORGOTTEN[kind]
    own = tmp_path / "own.sql"
    own.write_text(f"CREATE TABLE IF NOT EXISTS things (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), {columns});")
    warning = "no request can use the table public.things: it has no policy, and nothing is granted to"
    line = f"SELECT gatepost_tenant('public.things', {argument})"
    assert await command("migrate", "--schema", "own.sql") == 0
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert warning in err
    assert line in err
    assert await command("check") == 0
    assert warning in capsys.readouterr().out
    own.write_text(own.read_text() + line.replace("COLUMN", "owner") + ";")
    for more in ("", "\nDROP TABLE things; CREATE TABLE things (id int); REVOKE ALL ON things FROM PUBLIC;"):
        own.write_text(own.read_text() + more)
        assert await command("migrate", "--schema", "own.sql") == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "todo"),
    [
        ("gatepost_tenant('things', user => 'u')", "write \"user\" => 'user_id', in double quotes"),
        ("gatepost_tenant('things', org => 'u')", 'its arguments are organization, author, "user" and admin_deletes'),
        ("gatepost_tenant('things', organisation => 'u')", 'its arguments are organization, author, "user" and admin_deletes'),
    ],
)
async def test_a_wrong_argument_of_gatepost_tenant_says_which_there_are(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], call: str, todo: str
) -> None:
    (tmp_path / "own.sql").write_text(f"CREATE TABLE things (id int, u text);\nSELECT {call};")
    assert await command("migrate", "--schema", "own.sql") == 1
    assert todo in capsys.readouterr().err
