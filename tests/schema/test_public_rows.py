"""Public rows: declared, `check` and the start accept them and say so; undeclared, both refuse, whatever the tables hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from server import answer, public, read, scoped
from server.app import build
from server.commands import run
from server.schema import safety
from server.schema.migrate import apply, migrate, schema_text
from server.schema.policy_proof import needs_caller
from server.settings.setting import ConfigError
from server.settings.sources import Settings
from server.telemetry.log import LOG
from tests.conftest import ALICE, BOB, Serve, TestDatabase, plugin

OWN = "NULLIF(current_setting('gatepost.user_id', true), '')"
ARTICLES = """
CREATE TABLE IF NOT EXISTS articles (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), author_id text NOT NULL, title text,
    published boolean NOT NULL DEFAULT false, created_at timestamptz NOT NULL DEFAULT now());
SELECT gatepost_tenant('articles', "user" => 'author_id');
"""
DECLARED = "SELECT gatepost_public_rows('articles', 'published articles are for every reader');"
# Policies that show rows to no caller in particular: for SELECT, and so a matter of the declaration.
SHOWING = {
    "all": "true", "published": "published", "published or mine": f"published OR author_id = {OWN}", "mine or old": f"author_id = {OWN} OR created_at < now()",
    "not mine": f"author_id IS DISTINCT FROM {OWN}", "without a caller": f"{OWN} IS NULL", "signed in or published": f"{OWN} IS NOT NULL OR published",
    "a default caller": f"author_id = coalesce({OWN}, author_id)", "anybody signed in": f"{OWN} IS NOT NULL",
}  # fmt: skip
# Policies that let no caller in particular write: never accepted.
WRITING = {
    "an insert": "FOR INSERT TO @APP WITH CHECK (true)",
    "an insert of the unpublished": f"FOR INSERT TO @APP WITH CHECK (NOT published OR author_id = {OWN})",
    "an update": "FOR UPDATE TO @APP USING (published)",
    "an update, half": f"FOR UPDATE TO @APP USING (published OR author_id = {OWN}) WITH CHECK (author_id = {OWN})",
    "a delete": f"FOR DELETE TO @APP USING (created_at < now() OR author_id = {OWN})",
    "all commands": "FOR ALL TO @APP USING (published)",
    "all commands, half": f"USING (published OR author_id = {OWN}) WITH CHECK (author_id = {OWN})",
    "all commands, the other half": f"USING (author_id = {OWN}) WITH CHECK (published)",
}  # fmt: skip
ROWS = ("SELECT 1", "INSERT INTO articles (author_id) VALUES ('ada')", "INSERT INTO articles (author_id, published) VALUES ('ada', true)")


@pytest.fixture
async def own(postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestDatabase]:
    """A database of one test, and the environment of its operator."""
    found = TestDatabase(postgres, await postgres.fresh())
    monkeypatch.chdir(tmp_path)
    for name, value in {"GATEPOST_PROVIDERS": "stub", "DATABASE_URL": found.url, "GATEPOST_ENV": "test"}.items():
        monkeypatch.setenv(name, value)
    await schema(found, ARTICLES)
    yield found
    await postgres.drop_database(found.name)


async def schema(db: TestDatabase, sql: str) -> None:
    """Runs SQL as the owner, who is no superuser, as `migrate --schema` does."""
    async with db.server.connected(db.server.owner_role, db.name) as owner:
        await owner.execute("SET client_min_messages = error")
        await apply(owner, sql.replace("@APP", f'"{db.server.serving_role}"'), serving_role=db.server.serving_role)


async def check(capsys: Any) -> tuple[int, list[str], list[str], list[str]]:
    """(status, problems, warnings, public rows)."""
    capsys.readouterr()
    status = await asyncio.to_thread(run, ["check", "--json"])
    said = json.loads(capsys.readouterr().out)
    return status, said["problems"], said["warnings"], said["public_rows"]


async def start(db: TestDatabase, folder: Path) -> str | None:
    """Starts the application; what it refuses the database for, or None."""
    given = {"env": "test", "ops.port": 0, "providers": ["stub"], "database.url": db.url, "data_folder": str(folder)}
    runner = web.AppRunner(build(Settings(environ={}, given=given)))
    try:
        await runner.setup()
    except ConfigError as error:
        return str(error)
    finally:
        await runner.cleanup()
    return None


@pytest.mark.parametrize("using", SHOWING.values(), ids=SHOWING)
async def test_the_declaration_decides_and_not_the_rows(own: TestDatabase, tmp_path: Path, capsys: Any, caplog: Any, using: str) -> None:
    await schema(own, f"CREATE POLICY shown ON articles FOR SELECT TO @APP USING ({using})")
    for row in ROWS[:1] + ROWS[2:]:
        await own.rows(row)
        status, problems, _, public = await check(capsys)
        assert (status, public) == (2, [])
        assert [line for line in problems if "the policy shown on public.articles" in line]
        assert "the policy shown on public.articles" in (await start(own, tmp_path) or "")
    await schema(own, DECLARED)
    told = "rows of public.articles may be seen without a caller: published articles are for every reader"
    for row in ("DELETE FROM articles", ROWS[1], ROWS[2]):
        await own.rows(row)
        assert await check(capsys) == (0, [], [], [told])
    LOG.addHandler(caplog.handler)  # the command has replaced the root's handlers
    try:
        assert await start(own, tmp_path) is None
    finally:
        LOG.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if told in record.message] == [told]
    assert await asyncio.to_thread(run, ["check"]) == 0
    assert f"public rows: {told}" in capsys.readouterr().out.splitlines()
    await schema(own, "SELECT gatepost_public_rows('articles', NULL)")
    assert (await check(capsys))[0] == 2
    assert await start(own, tmp_path) is not None


@pytest.mark.parametrize("policy", WRITING.values(), ids=WRITING)
async def test_writes_need_a_caller_on_declared_tables_too(own: TestDatabase, tmp_path: Path, capsys: Any, policy: str) -> None:
    await schema(own, DECLARED + f"CREATE POLICY loose ON articles {policy}")
    for row in ROWS:
        await own.rows(row)
        status, problems, _, _ = await check(capsys)
        assert status == 2
        assert [line for line in problems if "the policy loose on public.articles" in line], problems
    assert "the policy loose" in (await start(own, tmp_path) or "")


async def test_what_a_reader_without_a_name_may_do(own: TestDatabase) -> None:
    """They read what is published; they write nothing; an author does not touch another's."""
    await schema(own, DECLARED + "CREATE POLICY published ON articles FOR SELECT TO @APP USING (published)", )
    await own.rows("INSERT INTO articles (author_id, title, published) VALUES ('ada', 'a', true), ('ada', 'draft', false), ('bob', 'b', true)")
    async with own.server.connected(own.server.serving_role, own.name) as connection:
        for who, seen, changed in (("", "a b", ""), ("bob", "a b", "b"), ("ada", "a b draft", "a draft"), ("zed", "a b", "")):
            async with connection.transaction():
                await connection.execute("SELECT set_config('gatepost.user_id', $1, true)", who)
                for sql, expected in (("SELECT title FROM articles", seen), ("UPDATE articles SET title = title RETURNING title", changed),
                                      ("DELETE FROM articles RETURNING title", changed)):
                    save = connection.transaction()
                    await save.start()
                    assert " ".join(sorted(row[0] for row in await connection.fetch(sql))) == expected, (who, sql)
                    await save.rollback()
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute("INSERT INTO articles (author_id, published) VALUES ('eve', true)")


routes = web.RouteTableDef()


@routes.get("/articles")
@public(optional=True)
async def articles(request: web.Request) -> web.Response:
    return answer(await read(request, "SELECT title FROM articles ORDER BY title"))


@routes.delete("/articles")
@public(optional=True)
async def forgotten(request: web.Request) -> web.Response:
    async with scoped(request) as db:
        return answer([row["title"] for row in await db.fetch("DELETE FROM articles RETURNING title")])


async def test_over_http_without_a_where(own: TestDatabase, serve: Serve) -> None:
    """Readers, known or not, see what is published; their own drafts too; they delete their own articles only."""
    await schema(own, DECLARED + "CREATE POLICY published ON articles FOR SELECT TO @APP USING (published)")
    await own.rows("INSERT INTO articles (author_id, title, published) VALUES ('alice', 'a', true), ('alice', 'draft', false), ('bob', 'b', true)")
    client = await serve({"database.url": own.url, "public_routes": ["/articles"]}, {"articles": plugin(*routes)})
    for headers, seen in ((None, "ab"), (BOB, "ab"), (ALICE, "abdraft")):
        got = await client.send("GET", "/articles", headers)
        assert (got.status, "".join(row["title"] for row in got.json())) == (200, seen)
    for headers, gone in ((None, []), (BOB, ["b"]), (BOB, [])):
        got = await client.send("DELETE", "/articles", headers)
        assert (got.status, got.json()) == (200, gone)


@pytest.mark.parametrize(("call", "said"), [
    ("'articles', ''", "say why"), ("'articles', ' \t '", "say why"), ("'articles', E'a\\nb'", "say why"), ("'articles', repeat('x', 301)", "say why"),
    ("'data', 'why'", "is Gatepost's own"), ("'gatepost_public', 'why'", "is Gatepost's own"), ("'nowhere', 'why'", "does not exist"),
    ("'pg_class', 'why'", "belongs to Postgres"),
])
async def test_declarations_that_are_refused(own: TestDatabase, call: str, said: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match=said):
        await schema(own, f"SELECT gatepost_public_rows({call})")


async def test_a_declaration_ends_with_its_table(own: TestDatabase, capsys: Any) -> None:
    """A table of the same name that is created later is not declared."""
    shown = "CREATE POLICY shown ON articles FOR SELECT TO @APP USING (published)"
    await schema(own, DECLARED + shown)
    assert (await check(capsys))[0] == 0
    await schema(own, "DROP TABLE articles;" + ARTICLES + shown)
    status, _, _, public = await check(capsys)
    assert (status, public) == (2, [])
    async with own.server.connected(own.server.owner_role, own.name) as owner:
        await migrate(owner, serving_role=own.server.serving_role)
        assert await owner.fetchval("SELECT count(*) FROM gatepost_public") == 0


async def test_who_can_write_the_declarations_is_checked(own: TestDatabase, capsys: Any) -> None:
    async with own.server.as_admin(own.name) as admin:
        await admin.execute(f'GRANT INSERT (relation, reason) ON gatepost_public TO "{own.server.serving_role}"')
    status, problems, _, _ = await check(capsys)
    assert status == 2
    assert [line for line in problems if "has INSERT on public.gatepost_public" in line]


# Before COMMIT -----------------------------------------------------------------------------------------------------------

UNSAFE = {
    "no row-level security": ("CREATE TABLE notes (user_id text); GRANT SELECT ON notes TO @APP", "public.notes has no row-level security"),
    "not forced": ("ALTER TABLE articles NO FORCE ROW LEVEL SECURITY", "does not bind its owner"),
    "an open policy": ("CREATE POLICY p ON articles FOR SELECT USING (true)", "the policy p on public.articles"),
    "one that shows no row yet": (f"CREATE POLICY p ON articles FOR SELECT TO @APP USING (published OR author_id = {OWN})", "the policy p on public.articles"),
    "a view": ("CREATE VIEW v AS TABLE articles; GRANT SELECT ON v TO @APP", "the view public.v"),
    "a function": ("CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'", "public.f() runs with the rights"),
    "a column": ("GRANT UPDATE (author_id) ON articles TO @APP", "can move rows to another tenant"),
    "truncate": ("GRANT TRUNCATE ON articles TO @APP", "has TRUNCATE on the table public.articles"),
    "a schema": ("CREATE SCHEMA s; GRANT CREATE ON SCHEMA s TO @APP", "has CREATE on the schema s"),
}  # fmt: skip


@pytest.mark.parametrize(("sql", "said"), UNSAFE.values(), ids=UNSAFE)
async def test_the_owner_learns_it_before_it_is_committed(own: TestDatabase, tmp_path: Path, sql: str, said: str) -> None:
    """An owner who is no superuser and no member of the serving role learns what the next start would say."""
    role = own.server.serving_role
    async with own.server.connected(own.server.owner_role, own.name) as owner:
        assert await safety.problems(owner, role) == []
        undone = owner.transaction()
        await undone.start()
        await owner.execute(sql.replace("@APP", f'"{role}"'))
        found = await safety.problems(owner, role)
        await undone.rollback()
        assert said in found[0]
        assert await safety.problems(owner, role) == []
        await owner.execute(sql.replace("@APP", f'"{role}"'))
    async with own.server.connected(role, own.name) as connection:
        assert await safety.problems(connection) == found
    assert await start(own, tmp_path) == safety.refusal(found)


# Tables that are not Gatepost's ---------------------------------------------------------------------------------------------

FOREIGN = {
    "a team's users": ("CREATE TABLE users (id serial PRIMARY KEY, email text); INSERT INTO users (email) VALUES ('a@b.c')", "public.users"),
    "two of them": ("CREATE TABLE organizations (id text); CREATE TABLE data (id text)", "public.data, public.organizations"),
    "a view": ("CREATE VIEW invoices AS SELECT 1 AS id", "public.invoices"),
    "one like ours": ("CREATE TABLE data (id uuid, user_id text, org_id text, name text, payload jsonb, created_at timestamptz, updated_at timestamptz)",
                      "public.data"),
}  # fmt: skip


@pytest.mark.parametrize(("sql", "said"), FOREIGN.values(), ids=FOREIGN)
async def test_a_table_that_is_not_gateposts_is_not_adopted(postgres: Any, sql: str, said: str) -> None:
    name = await postgres.create_database("gp_foreign")
    seen = "SELECT relname, relrowsecurity, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    try:
        async with postgres.as_admin(name) as admin:
            await admin.execute(sql)
            before = await admin.fetch(seen), await admin.fetchval("SELECT datacl::text FROM pg_database WHERE datname = current_database()")
            with pytest.raises(asyncpg.PostgresError, match=f"tables that Gatepost did not create and whose names it needs: {said}\\."):
                async with admin.transaction():  # as psql runs the file
                    await admin.execute(schema_text())
            with pytest.raises(ConfigError) as refused:
                await migrate(admin, serving_role=postgres.serving_role)
            assert all(f"{table} " in f"{refused.value} ".replace(",", " ") for table in said.split(", "))
            assert (await admin.fetch(seen), await admin.fetchval("SELECT datacl::text FROM pg_database WHERE datname = current_database()")) == before
            for table in said.split(", "):
                await admin.execute(f"ALTER TABLE {table} RENAME TO mine_{table.partition('.')[2]}")
            await migrate(admin, serving_role=postgres.serving_role)
            await admin.execute("ALTER TABLE endings RENAME TO endings_of_before; CREATE TABLE endings (id int)")
            with pytest.raises(ConfigError, match="whose names it needs: public.endings.*; nothing was changed"):
                await migrate(admin, serving_role=postgres.serving_role)
    finally:
        await postgres.drop_database(name)


# The proof ---------------------------------------------------------------------------------------------------------------

U, ORG, A = (f"NULLIF(current_setting('gatepost.{name}'::text, true), ''::text)" for name in ("user_id", "org_id", "admin_org_id"))
S = f'( SELECT {U} AS "nullif")'
PROVEN = [
    f"(user_id = {U})", f"(user_id = {S})", f"({U} = user_id)", f"(\"a b\" = {ORG})", f"((user_id = {U}) AND published)", f"((user_id = {U}) OR (org = {ORG}))",
    f"(COALESCE((org_id = {A}), false) AND (deleted_at IS NULL))", f"((published OR true) AND ({U} IS NOT NULL))", f"({U} = ANY (shared))",
    f"(shared @> ARRAY[{U}])", f"(ARRAY[{U}] <@ shared)", f"(id = (({U})::uuid))", f"(name <> {U})", f"((user_id)::text = {U})", "false",
    f"(EXISTS ( SELECT 1\n   FROM members m\n  WHERE ((m.user_id = {S}) AND (m.org = t.org))\n OFFSET 0))",
    f"(team IN ( SELECT m.team\n   FROM (members m\n     JOIN teams USING (team))\n  WHERE (m.user_id = {U})\n ORDER BY m.team))",
    f"(owner = ANY (ARRAY[{U}, {ORG}]))", f"((title = 'a OR (b'::text) AND (user_id = {U}))", f"(user_id = (({U})::character varying)::text)",
    f"(({U} IS NOT NULL) AND CASE WHEN published THEN true ELSE false END)", f'("OR" = {U})', f"(tags ? {U})",
]  # fmt: skip
UNPROVEN = [
    "true", "published", f"(published OR (user_id = {U}))", f"(user_id IS NOT DISTINCT FROM {U})", f"(user_id IS DISTINCT FROM {U})", f"({U} IS NULL)",
    f"(NOT (user_id = {U}))", f"(user_id = COALESCE({U}, user_id))", f"COALESCE((user_id = {U}), true)", f"COALESCE((user_id = {U}), published)",
    f"({U} <> ALL (blocked))", f"(NOT (team IN ( SELECT m.team\n   FROM m\n  WHERE (m.user_id = {U}))))", f"((user_id = {U}) IS NOT TRUE)",
    f"(EXISTS ( SELECT count(*) AS count\n   FROM m\n  WHERE (m.user_id = {U})))", f"(EXISTS ( SELECT 1\n   FROM m\n  WHERE (m.user_id = {U})\nUNION\n SELECT 1))",
    f"(EXISTS ( SELECT 1\n   FROM m\n  WHERE (m.x OR (m.user_id = {U}))))", "(EXISTS ( SELECT 1\n   FROM m))", f"is_mine({U})", f"(NOT is_mine({U}))",
    f"CASE WHEN (user_id = {U}) THEN true ELSE published END", f"(title = 'x = {U.replace(chr(39), chr(39) * 2)}'::text)", f"(owner = ANY (ARRAY[{U}, owner]))",
    f"(shared && ARRAY[{U}, owner])", f"((user_id = {U}) = published)", "(user_id = NULLIF(current_setting('other.user_id'::text, true), ''::text))",
    "(user_id = current_setting('gatepost.user_id'::text, true))", f"((COALESCE({U}, 'x'::text) = 'x'::text))", f"(published = (user_id = {U}) IS NULL)",
    "(published OR (NULL = ANY (shared)))", "", "(", ")",
]  # fmt: skip


@pytest.mark.parametrize("expression", PROVEN)
def test_what_needs_a_caller(expression: str) -> None:
    assert needs_caller(expression)


@pytest.mark.parametrize("expression", UNPROVEN)
def test_what_is_not_proven(expression: str) -> None:
    assert not needs_caller(expression)


def test_a_very_deep_expression_is_not_proven() -> None:
    deep = f"(user_id = {U})"
    for _ in range(3000):
        deep = f"({deep} AND (NOT x))"
    assert not needs_caller(deep)


async def test_what_is_proven_is_true_of_postgres(own: TestDatabase) -> None:
    """Each proven form that stands alone, asked of Postgres without a caller, over rows with and without values."""
    rows = "(VALUES ('a', 'b', true, '{a,b}'::text[]), (NULL, NULL, NULL, NULL), ('', '', false, '{}')) AS t (user_id, org, published, shared)"
    known = [one for one in PROVEN if not any(word in one for word in ("members", "a b", '"OR"', "org_id", "deleted_at", "id = ((", "name", "tags", "title"))]
    assert len(known) > 10
    async with own.server.as_admin(own.name) as admin:
        for expression in known:
            text = expression.replace("owner =", "user_id =")
            assert await admin.fetchval(f"SELECT count(*) FROM {rows} WHERE {text}") == 0, expression
