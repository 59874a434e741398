"""`python -m server tables`: whose rows each table has, and what protects them, as the catalogs say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kits import pages as page_kit

from server.commands import run
from server.schema.migrate import apply
from tests.conftest import TestDatabase

OWN = """
CREATE TABLE todos (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id text NOT NULL, created_by text NOT NULL, title text);
SELECT gatepost_tenant('todos', organization => 'organization_id', author => 'created_by', admin_deletes => true);
CREATE TABLE articles (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), author_id text NOT NULL, published boolean);
SELECT gatepost_tenant('articles', "user" => 'author_id');
SELECT gatepost_public_rows('articles', 'published ones are for every reader');
SELECT gatepost_changes('articles', "user" => 'author_id');
CREATE TABLE countries (code text);
CREATE SCHEMA "My shop";
CREATE TABLE "My shop".todos (user_id text) PARTITION BY LIST (user_id);
CREATE TABLE "My shop".part PARTITION OF "My shop".todos DEFAULT;
CREATE TABLE "My shop"."Odd ""one"" table" (x int);
CREATE TABLE "My shop".lone (x int, user_id text);
CREATE POLICY narrow ON "My shop".lone AS RESTRICTIVE USING (x > 1);
ALTER TABLE "My shop".lone ENABLE ROW LEVEL SECURITY;
"""


@pytest.fixture
async def own(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestDatabase]:
    found = TestDatabase(postgres, await postgres.fresh())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", found.url)
    async with postgres.connected(postgres.owner_role, found.name) as owner:
        await apply(owner, OWN, serving_role=postgres.serving_role)
    yield found
    await postgres.drop_database(found.name)


async def tables(capsys: Any, *words: str) -> tuple[int, str, str]:
    """(status, output, errors)."""
    capsys.readouterr()
    status = await asyncio.to_thread(run, ["tables", *words])
    return status, *capsys.readouterr()


async def test_every_table_is_a_line(own: TestDatabase, capsys: Any) -> None:
    status, out, _ = await tables(capsys)
    assert status == 0
    head, *lines = out.splitlines()
    assert head.split() == ["TABLE", "ROWS", "OF", "SECURITY", "POLICIES", "GRANTS", "AUDIT", "CHANGES", "PUBLIC", "ROWS"]
    assert len({head.index(word) for word in ("SECURITY", "AUDIT")} & {line.index(word) for line in lines for word in ("forced",) if word in line}) == 1
    found = {line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell.strip()][1:] for line in lines}
    role = "SELECT INSERT({}) UPDATE({}) DELETE"
    assert found["public.todos"] == ["organization (organization_id)", "forced", "admin_delete org_insert org_select org_update", role.format(3, 1), "yes", "-", "-"]
    assert found["public.articles"] == ["user (author_id)", "forced", "own_delete own_insert own_select own_update", role.format(2, 1), "yes", "yes",
                                        "published ones are for every reader"]
    assert found["public.data"][:2] == ["organization (org_id), user (user_id)", "forced"]
    assert found["public.countries"] == ["-", "off", "-", "-", "no", "-", "-"]
    assert found['"My shop".todos'] == ["user (user_id)", "off", "-", "-", "no", "-", "-"]
    assert found['"My shop".lone'] == ["what its policies say", "not forced", "narrow", "-", "no", "-", "-"]
    assert '"My shop".part' not in found
    assert {"public.audit_log", "public.gatepost_public", "public.users"} <= set(found)
    status, out, _ = await tables(capsys, "--json")
    assert [table["name"] for table in json.loads(out)] == list(found)


async def test_one_table_in_full(own: TestDatabase, capsys: Any) -> None:
    role = own.server.serving_role
    status, out, _ = await tables(capsys, "todos", "--json")
    assert status == 0
    told = json.loads(out)
    assert (told["name"], told["rows_of"], told["security"]) == ("public.todos", {"organization": "organization_id"}, "forced")
    assert told["grants"] == {"SELECT": None, "INSERT": ["organization_id", "created_by", "title"], "UPDATE": ["title"], "DELETE": None}
    assert told["audit"] == {"organization": "organization_id", "id": "id"}
    assert (told["changes"], told["public_rows"], told["partitions"], told["owner"]) == (False, None, 0, own.server.owner_role)
    (policy,) = [one for one in told["policies"] if one["name"] == "admin_delete"]
    assert (policy["command"], policy["permissive"], policy["roles"], policy["check"]) == ("DELETE", True, [role], None)
    assert "gatepost.admin_org_id" in policy["using"]
    status, out, _ = await tables(capsys, "todos")
    lines = out.splitlines()
    assert lines[0] == f"table:               public.todos, owned by {own.server.owner_role}"
    assert lines[2] == "row-level security:  forced"
    assert f"  org_insert: INSERT to {role}" in lines
    assert "  INSERT (organization_id, created_by, title)" in lines
    assert lines[-3:] == ["audit:               yes (organization: organization_id, id: id)", "changes:             -", "public rows:         -"]


@pytest.mark.parametrize(("name", "found"), [
    ("public.todos", "public.todos"), ("My shop.todos", '"My shop".todos'), ('"My shop".todos', '"My shop".todos'),
    ('Odd "one" table', '"My shop"."Odd ""one"" table"'), ("lone", '"My shop".lone'), ("users", "public.users"),
])
async def test_names(own: TestDatabase, capsys: Any, name: str, found: str) -> None:
    status, out, _ = await tables(capsys, name, "--json")
    assert (status, json.loads(out)["name"]) == (0, found)


@pytest.mark.parametrize(("name", "said"), [
    ("todo", "there is no table 'todo'; did you mean 'todos'?"), ("", "there is no table ''"), ("pg_class", "there is no table 'pg_class'"),
    ("'; DROP TABLE todos; --", "there is no table"), ("part", "there is no table 'part'"),
])
async def test_unknown_names(own: TestDatabase, capsys: Any, name: str, said: str) -> None:
    status, out, err = await tables(capsys, name)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


async def test_partitions_and_a_trigger_that_is_off(own: TestDatabase, capsys: Any) -> None:
    assert json.loads((await tables(capsys, "My shop.todos", "--json"))[1])["partitions"] == 1
    async with own.server.as_admin(own.name) as admin:
        await admin.execute("ALTER TABLE todos DISABLE TRIGGER audited")
    assert json.loads((await tables(capsys, "todos", "--json"))[1])["audit"] is None


async def test_a_database_from_before(own: TestDatabase, capsys: Any) -> None:
    async with own.server.as_admin(own.name) as admin:
        await admin.execute("DROP TABLE gatepost_public")
    assert (await tables(capsys))[0] == 0


async def test_without_a_server_it_says_so(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    status, out, err = await tables(capsys)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert "no server is running on the embedded Postgres here" in err


@pytest.mark.long
async def test_beside_a_running_server(tmp_path: Path) -> None:
    async with page_kit.shell_beside_a_server(tmp_path) as shell:
        status, out, _ = await shell.run("python -m server tables data --json")
        assert (status, json.loads(out)["rows_of"]) == (0, {"organization": "org_id", "user": "user_id"})
        status, _, err = await shell.run("python -m server tables nothing")
        assert (status, "there is no table 'nothing'" in err) == (2, True)


async def test_changes_are_reported_by_all_triggers_or_not_at_all(own: TestDatabase, capsys: Any) -> None:
    assert json.loads((await tables(capsys, "articles", "--json"))[1])["changes"] is True
    async with own.server.as_admin(own.name) as admin:
        await admin.execute("ALTER TABLE articles DISABLE TRIGGER changed_delete")
    assert json.loads((await tables(capsys, "articles", "--json"))[1])["changes"] is False
