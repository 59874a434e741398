"""`migrate` never adopts what another program made: it refuses by name, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.commands import run
from server.schema.adoption import names_of
from server.schema.migrate import schema_text
from tests.conftest import url_of


@pytest.fixture
async def database(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """An empty database, and the environment of its operator."""
    await postgres.template()  # which creates the owner
    name = await postgres.create_database("gp_adoption", owner=postgres.owner_role)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url_of(postgres, postgres.serving_role, name))
    monkeypatch.setenv("DATABASE_OWNER_URL", url_of(postgres, postgres.owner_role, name))
    yield name
    await postgres.drop_database(name)


CATALOG = """
SELECT (SELECT array_agg(relname || relkind::text || relrowsecurity || coalesce(relacl::text, '') ORDER BY 1) FROM pg_class
         WHERE relnamespace = 'public'::regnamespace)::text
       || coalesce((SELECT datacl::text FROM pg_database WHERE datname = current_database()), '')
       || coalesce((SELECT string_agg(proname || proowner || prosrc, ',' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'public'::regnamespace), '')
"""


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("CREATE TABLE users (id int, user_id text)", "the table public.users already exists"),
        ("CREATE TABLE data (id int); CREATE TABLE invoices (id int)", "the table public.data, the table public.invoices already exist"),
        ("CREATE VIEW organizations AS SELECT 1", "the view public.organizations"),
        ("CREATE MATERIALIZED VIEW audit_log AS SELECT 1", "the materialized view public.audit_log"),
        ("CREATE SEQUENCE revocations", "the sequence public.revocations"),
        ("CREATE TABLE orders (id int); CREATE INDEX data_by_user ON orders (id)", "the index public.data_by_user"),
        ("CREATE TABLE memberships (id int) PARTITION BY LIST (id)", "the table public.memberships"),
        ("CREATE FUNCTION prune_sync() RETURNS int LANGUAGE sql AS 'SELECT 1'", "the function public.prune_sync()"),
        # As our table, but for a column: nothing that could be taken for it.
        ("CREATE TABLE api_keys (id text, hash bytea, user_id text)", "the table public.api_keys"),
    ],
)
@pytest.mark.parametrize("by", ["owner", "admin"])
async def test_what_another_program_made_is_refused_by_name(
    made: str, named: str, by: str, database: str, postgres: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    who = postgres.owner_role if by == "owner" else postgres.admin
    async with postgres.connected(who, database) as other, postgres.as_admin(database) as admin:
        await other.execute(made)
        before = await admin.fetchval(CATALOG)
        assert await asyncio.to_thread(run, ["migrate"]) == 2
        err = capsys.readouterr().err.splitlines()
        assert len(err) == 1
        assert err[0].startswith(f"gatepost: migrate: {named}")
        assert err[0].endswith("nothing was changed")
        assert await admin.fetchval(CATALOG) == before


async def test_the_names_are_all_that_the_schema_creates(db: Any) -> None:
    """But for what hangs on a table and takes its name from it (keys, sequences of identity columns)."""
    async with db.server.as_admin(db.name) as admin:
        relations = {row[0] for row in await admin.fetch(
            "SELECT relname::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relname !~ '^gp_test'"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype IN ('i', 'a') AND (relkind = 'S' OR relkind = 'i' AND EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid)))"
            " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid)")}  # fmt: skip
        functions = {f"{row[0]}()" for row in await admin.fetch("SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace")}
    assert relations | functions <= names_of(schema_text())


async def test_who_loses_the_right_to_connect_is_said(database: str, postgres: Any, capsys: pytest.CaptureFixture[str]) -> None:
    team = await postgres.create_role("team_of_adoption")
    async with postgres.as_admin(database) as admin:
        await admin.execute("CREATE TABLE orders (id int); ALTER TABLE orders OWNER TO team_of_adoption")
    assert await asyncio.to_thread(run, ["migrate"]) == 0
    out = capsys.readouterr().out
    assert f"Only granted roles can connect to this database now. For each of these that still needs it ({team})" in out
    assert f"GRANT CONNECT ON DATABASE {database} TO" in out
    assert await asyncio.to_thread(run, ["migrate"]) == 0
    assert team not in capsys.readouterr().out
    await postgres.drop_database(database)
