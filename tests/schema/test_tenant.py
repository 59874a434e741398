"""gatepost_tenant: what one line writes is what schema.sql and the guide write by hand, by catalog and by behaviour."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from kits.pages import blocks
from kits.postgres import Server, cluster, database  # noqa: F401

from server.schema import leaks, safety
from server.schema.migrate import apply

SETTINGS = ("gatepost.user_id", "gatepost.org_id", "gatepost.admin_org_id")
ADA, BOB, CLEO, KEY = ("ada", "red", ""), ("bob", "red", ""), ("cleo", "blue", ""), ("", "red", "")
BOB_ADMIN, CLEO_ADMIN, NOBODY = ("bob", "red", "red"), ("cleo", "blue", "blue"), ("", "", "")
TODOS = """
CREATE TABLE IF NOT EXISTS todos (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id text        NOT NULL,
    created_by      text        NOT NULL,
    title           text        NOT NULL,
    done            boolean     NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
"""
TENANT = "SELECT gatepost_tenant('todos', organization => 'organization_id', author => 'created_by'{});"
ADMINS = TENANT.format(", admin_deletes => true")


@pytest.fixture
async def owner(cluster: Server, database: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The owner's connection, who is no superuser."""
    async with cluster.connected(cluster.owner_role, database) as connection:
        await connection.execute("SET client_min_messages = error")
        yield connection


@pytest.fixture
async def app(cluster: Server, database: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    async with cluster.connected(cluster.serving_role, database) as connection:
        yield connection


@pytest.fixture
def run(cluster: Server, owner: asyncpg.Connection) -> Any:  # noqa: F811
    """Runs SQL as `migrate --schema` does; gatepost_app is the serving role."""

    async def execute(*sql: str) -> None:
        for one in sql:
            await apply(owner, one.replace("gatepost_app", f'"{cluster.serving_role}"'), serving_role=cluster.serving_role)

    return execute


@contextlib.asynccontextmanager
async def being(connection: asyncpg.Connection, who: tuple[str, str, str]) -> AsyncIterator[None]:
    """A transaction of this caller, rolled back at the end."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for name, value in zip(SETTINGS, who, strict=True):
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        yield
    finally:
        await transaction.rollback()


async def refused(connection: asyncpg.Connection, sql: str, *arguments: Any) -> bool:
    try:
        async with connection.transaction():
            await connection.execute(sql, *arguments)
    except asyncpg.InsufficientPrivilegeError:
        return True
    return False


async def catalog(owner: asyncpg.Connection, app: asyncpg.Connection, table: str) -> dict[str, Any]:
    """What protects a table, without its name: policies, the serving role's rights by column, triggers, indexes, the two flags."""

    def rows(found: list[Any]) -> list[tuple[Any, ...]]:
        return sorted(tuple(str(value) for value in row) for row in found)

    return {
        "policies": rows(await owner.fetch(
            "SELECT polname, polcmd, polpermissive, polroles, replace(pg_get_expr(polqual, polrelid), $2, 't'),"
            " replace(pg_get_expr(polwithcheck, polrelid), $2, 't') FROM pg_policy WHERE polrelid = $1::text::regclass", table, table)),
        "columns": rows(await app.fetch(
            "SELECT attname, word FROM pg_attribute, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS word"
            " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND has_column_privilege(attrelid, attnum, word)",
            table)),
        "rights": rows(await app.fetch(
            "SELECT word FROM unnest(ARRAY['SELECT', 'DELETE', 'INSERT', 'UPDATE', 'TRUNCATE', 'TRIGGER', 'REFERENCES']) AS word"
            " WHERE has_table_privilege($1::text, word)", table)),
        "triggers": rows(await owner.fetch(
            "SELECT tgname, tgfoid::regproc, tgtype, tgargs, tgattr, tgenabled FROM pg_trigger"
            " WHERE tgrelid = $1::text::regclass AND NOT tgisinternal", table)),
        "pages": rows(await owner.fetch(
            "SELECT substring(pg_get_indexdef(indexrelid) FROM 'USING.*') FROM pg_index WHERE indrelid = $1::text::regclass"
            " AND pg_get_indexdef(indexrelid) LIKE '%created_at%'", table)),
        "flags": rows(await owner.fetch(
            "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass", table)),
    }  # fmt: skip


# As by hand --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("ours", "arguments"), [
    ("data", """"user" => 'user_id', organization => 'org_id'"""),
    ("org_data", "organization => 'organization_id', author => 'created_by'"),
    ("invoices", "organization => 'organization_id', author => 'created_by'"),
])
async def test_it_writes_what_schema_sql_writes_for_gateposts_own_tables(
    run: Any, owner: asyncpg.Connection, app: asyncpg.Connection, ours: str, arguments: str
) -> None:
    await run(f"CREATE TABLE twin (LIKE {ours} INCLUDING DEFAULTS, PRIMARY KEY (id)); SELECT gatepost_tenant('twin', {arguments})")
    if ours != "invoices":
        await run("SELECT gatepost_changes('twin', {})".format(arguments.partition(",")[0]))
    assert await catalog(owner, app, "twin") == await catalog(owner, app, ours)
    assert await safety.problems(app) == []
    assert await leaks.warnings(app) == []


async def test_it_writes_what_the_guide_shows(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection) -> None:
    """docs/guides/tables.md has the line and, as what it writes, all of it by hand."""
    by_hand = next(block.text for block in blocks("sql", page="docs/guides/tables.md") if "CREATE POLICY org_select ON todos" in block.text)
    await run(TODOS + ADMINS)
    generated = await catalog(owner, app, "todos")
    await run("DROP TABLE todos", TODOS + by_hand)
    assert await catalog(owner, app, "todos") == generated
    assert len(generated["policies"]) == 4
    await run(ADMINS)  # by hand before, by one line from now on
    assert await catalog(owner, app, "todos") == generated


async def test_it_replaces_what_the_tutorial_wrote_by_hand_before(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection) -> None:
    """The same policies in effect: the tutorial's of before, with the same names."""
    await run(TODOS + """
        CREATE INDEX todos_by_org ON todos (organization_id, created_at DESC, id DESC);
        ALTER TABLE todos ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE POLICY org_select ON todos FOR SELECT TO gatepost_app USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));
        CREATE POLICY org_insert ON todos FOR INSERT TO gatepost_app WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), '')
            AND created_by = NULLIF(current_setting('gatepost.user_id', true), ''));
        CREATE POLICY org_update ON todos FOR UPDATE TO gatepost_app USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));
        CREATE POLICY admin_delete ON todos FOR DELETE TO gatepost_app
            USING (organization_id = NULLIF(current_setting('gatepost.admin_org_id', true), ''));
        GRANT SELECT, INSERT (organization_id, created_by, title), UPDATE (done), DELETE ON todos TO gatepost_app;
        SELECT gatepost_audit('todos', 'organization_id')""")
    before = await catalog(owner, app, "todos")
    await run(ADMINS)
    after = await catalog(owner, app, "todos")
    for same in ("rights", "pages", "flags"):
        assert after[same] == before[same]
    assert [policy[:4] for policy in after["policies"]] == [policy[:4] for policy in before["policies"]]
    assert set(after["triggers"]) > set(before["triggers"])


# Behaviour ---------------------------------------------------------------------------------------------------------------

SEED = "INSERT INTO todos (organization_id, created_by, title) VALUES ('red', 'ada', 'a'), ('red', 'bob', 'b'), ('blue', 'cleo', 'c')"


async def titles(connection: asyncpg.Connection, sql: str) -> str:
    return "".join(sorted(row[0] for row in await connection.fetch(sql)))


@pytest.fixture
async def seeded(cluster: Server, database: str, run: Any) -> Any:  # noqa: F811
    async def seed(line: str, rows: str = SEED) -> None:
        await run(TODOS + line)
        async with cluster.as_admin(database) as admin:
            await admin.execute(rows)

    return seed


@pytest.mark.parametrize("admins", [False, True])
async def test_the_rows_of_organisations(seeded: Any, app: asyncpg.Connection, admins: bool) -> None:
    """No statement has a WHERE."""
    await seeded(ADMINS if admins else TENANT.format(""))
    for who, seen, deleted in ((ADA, "ab", "ab"), (BOB_ADMIN, "ab", "ab"), (KEY, "ab", "ab"), (CLEO, "c", "c"), (CLEO_ADMIN, "c", "c"),
                               (("ada", "", ""), "", ""), (("zed", "green", "green"), "", ""), (NOBODY, "", "")):
        async with being(app, who):
            assert await titles(app, "SELECT title FROM todos") == seen
            assert await titles(app, "UPDATE todos SET done = true RETURNING title") == seen
            assert await titles(app, "DELETE FROM todos RETURNING title") == (deleted if who[2] or not admins else "")
    insert = "INSERT INTO todos (organization_id, created_by, title) VALUES ($1, $2, 'n')"
    async with being(app, ADA):
        assert not await refused(app, insert, "red", "ada")
        assert await refused(app, insert, "red", "bob")
        assert await refused(app, insert, "blue", "ada")
        for column in ("id", "organization_id", "created_by", "created_at", "updated_at"):
            assert await refused(app, f"UPDATE todos SET {column} = DEFAULT"), column
        for column, value in (("id", "gen_random_uuid()"), ("created_at", "now()"), ("updated_at", "now()")):
            assert await refused(app, f"INSERT INTO todos (organization_id, created_by, title, {column}) VALUES ('red', 'ada', 'n', {value})")
        assert await refused(app, "TRUNCATE todos")
    async with being(app, KEY):
        assert not await refused(app, insert, "red", "key:k1")
    async with being(app, NOBODY):
        assert await refused(app, insert, "red", "ada")


async def test_a_change_moves_updated_at_and_is_audited(seeded: Any, run: Any, app: asyncpg.Connection, owner: asyncpg.Connection,
                                                        cluster: Server, database: str) -> None:  # noqa: F811
    await seeded(TENANT.format(""))
    async with app.transaction():
        for name, value in zip((*SETTINGS, "gatepost.actor", "gatepost.request_id"), (*ADA, "ada", "r1"), strict=True):
            await app.execute("SELECT set_config($1, $2, true)", name, value)
        assert await app.fetchval("UPDATE todos SET done = true WHERE title = 'a' RETURNING updated_at > created_at")
        await app.execute("DELETE FROM todos WHERE title = 'b'")
    async with cluster.as_admin(database) as admin:
        entries = await admin.fetch("SELECT action, actor, org_id, changed FROM audit_log WHERE request_id = 'r1' ORDER BY created_at")
        assert [tuple(entry) for entry in entries] == [("update", "ada", "red", ["done", "updated_at"]), ("delete", "ada", "red", None)]
        await admin.execute("ALTER TABLE todos DROP COLUMN updated_at")
    await run(TENANT.format(""))
    async with being(app, ADA):
        assert await app.execute("UPDATE todos SET done = false") == "UPDATE 1"


@pytest.mark.parametrize("more", ["", ", organization => 'org_id'", ", organization => 'org_id', admin_deletes => true"])
async def test_the_rows_of_users(run: Any, app: asyncpg.Connection, cluster: Server, database: str, more: str) -> None:  # noqa: F811
    """As `data`: own rows in every organisation; an administrator's deletes only where there is an organisation's column."""
    await run(f"""CREATE TABLE todos (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id text NOT NULL, org_id text, title text);
                  SELECT gatepost_tenant('todos', "user" => 'user_id'{more})""")
    async with cluster.as_admin(database) as admin:
        await admin.execute("INSERT INTO todos (user_id, org_id, title) VALUES ('ada', 'red', 'a'), ('ada', NULL, 'n'), ('bob', 'red', 'b'), ('cleo', 'blue', 'c')")
    orgs, admins = "organization" in more, "admin_deletes" in more
    for who, own, seen, deleted in ((ADA, "an", "an", "an"), (BOB, "b", "b", "b"), (BOB_ADMIN, "b", "ab", "ab"), (NOBODY, "", "", ""),
                                    (KEY, "", "", ""), (("", "", "red"), "", "ab", "ab")):
        async with being(app, who):
            assert await titles(app, "SELECT title FROM todos") == (seen if orgs else own)
            assert await titles(app, "UPDATE todos SET title = title RETURNING title") == own
            expected = deleted if orgs and who[2] else "" if admins else own
            assert await titles(app, "DELETE FROM todos RETURNING title") == expected, who
    insert = "INSERT INTO todos (user_id, org_id, title) VALUES ($1, $2, 'n')"
    async with being(app, ADA):
        assert not await refused(app, insert, "ada", "red")
        assert not await refused(app, insert, "ada", None)
        assert await refused(app, insert, "ada", "blue") is orgs
        assert await refused(app, insert, "bob", "red")
        assert await refused(app, "UPDATE todos SET user_id = 'bob'")
        assert await refused(app, "UPDATE todos SET org_id = 'blue'")


# Again -------------------------------------------------------------------------------------------------------------------

async def test_it_can_be_run_again_with_new_columns_and_other_arguments(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection) -> None:
    await run(TODOS + TENANT.format(""))
    first = await catalog(owner, app, "todos")
    await run(TODOS + TENANT.format(""))
    assert await catalog(owner, app, "todos") == first
    await run("ALTER TABLE todos ADD COLUMN note text, ADD COLUMN words int GENERATED ALWAYS AS (length(note)) STORED,"
              " ADD COLUMN number bigint GENERATED BY DEFAULT AS IDENTITY, ADD COLUMN counted serial;" + TENANT.format(""))
    then = await catalog(owner, app, "todos")
    assert set(then["columns"]) - set(first["columns"]) == {(name, "SELECT") for name in ("note", "words", "number", "counted")} | {
        ("note", "INSERT"), ("note", "UPDATE")}
    assert then["policies"] == first["policies"]
    async with being(app, ADA):
        await app.execute("INSERT INTO todos (organization_id, created_by, title, note) VALUES ('red', 'ada', 't', 'four')")
        assert tuple(await app.fetchrow("SELECT words, number, counted FROM todos")) == (4, 1, 1)
    await run(ADMINS)
    assert {policy[0] for policy in (await catalog(owner, app, "todos"))["policies"]} == {"org_select", "org_insert", "org_update", "admin_delete"}
    await run("""ALTER TABLE todos DROP COLUMN note CASCADE; ALTER TABLE todos ADD COLUMN note text;
                 SELECT gatepost_tenant('todos', "user" => 'created_by')""")
    assert {policy[0] for policy in (await catalog(owner, app, "todos"))["policies"]} == {"own_select", "own_insert", "own_update", "own_delete"}
    assert ("organization_id", "UPDATE") not in (await catalog(owner, app, "todos"))["columns"]  # still a tenant's, by its name
    assert len((await catalog(owner, app, "todos"))["pages"]) == 2
    assert await safety.problems(app) == []


async def test_a_users_own_profile(run: Any, app: asyncpg.Connection, owner: asyncpg.Connection) -> None:
    """The id is the user's: written when the row is made, and never changed."""
    await run("""CREATE TABLE profiles (id text PRIMARY KEY, bio text, created_at timestamptz NOT NULL DEFAULT now());
                 SELECT gatepost_tenant('profiles', "user" => 'id')""")
    async with being(app, ADA):
        assert not await refused(app, "INSERT INTO profiles (id, bio) VALUES ('ada', 'x')")
        assert await refused(app, "INSERT INTO profiles (id, bio) VALUES ('bob', 'x')")
        assert await refused(app, "UPDATE profiles SET id = 'bob'")
        assert await app.execute("UPDATE profiles SET bio = 'y'") == "UPDATE 1"
    assert (await catalog(owner, app, "profiles"))["pages"] == []
    assert await safety.problems(app) == []


async def test_rows_in_the_same_file(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection, cluster: Server, database: str) -> None:  # noqa: F811
    """Rows written before the line, and by the guide's recipe after it; a forgotten recipe is an error, not a silent nothing."""
    await run(TODOS + SEED + ";" + TENANT.format(""))
    with pytest.raises(asyncpg.PostgresError, match="row-level security"):
        await run("UPDATE todos SET done = true")
    await run("""ALTER TABLE todos ADD COLUMN IF NOT EXISTS priority int;
                 ALTER TABLE todos NO FORCE ROW LEVEL SECURITY; UPDATE todos SET priority = 3 WHERE priority IS NULL;
                 ALTER TABLE todos ALTER COLUMN priority SET NOT NULL;""" + TENANT.format(""))
    async with being(app, ADA):
        assert await app.fetchval("SELECT sum(priority) FROM todos") == 6
    assert await safety.problems(app) == []


async def test_an_index_that_serves_is_not_made_again(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection) -> None:
    await run(TODOS + "CREATE INDEX mine ON todos (organization_id, created_at, id) INCLUDE (title);"
              "CREATE INDEX half ON todos (organization_id, created_at DESC, id DESC) WHERE done;" + TENANT.format(""))
    assert len((await catalog(owner, app, "todos"))["pages"]) == 2
    await run("DROP INDEX mine;" + TENANT.format(""))
    assert len((await catalog(owner, app, "todos"))["pages"]) == 2


# Wherever it is ----------------------------------------------------------------------------------------------------------

ODD = 'Ünï "quoted" Täble with a name of just 63 bytes, and no more:'
COLUMN = 'The "Org"; DROP TABLE x'


async def test_odd_names_in_another_schema(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection) -> None:
    table = f'"Other ""s"""."{ODD.replace(chr(34), chr(34) * 2)}"'
    org = '"' + COLUMN.replace('"', '""') + '"'
    schema = table.partition(".")[0]
    await run(f"""CREATE SCHEMA {schema}; CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY, {org} text, "Who" text,
                      "user" text, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now())""")
    call = "SELECT gatepost_tenant({}, organization => {}, author => 'Who')".format(
        *(await owner.fetchrow("SELECT quote_literal($1::text), quote_literal($2::text)", table, COLUMN)))
    await run(call, call)
    async with being(app, ADA):
        assert not await refused(app, f"""INSERT INTO {table} ({org}, "Who", "user") VALUES ('red', 'ada', 'x')""")
        assert await refused(app, f"""INSERT INTO {table} ({org}, "Who", "user") VALUES ('red', 'bob', 'x')""")
        assert await app.fetchval(f"""UPDATE {table} SET "user" = 'y' RETURNING "user" """) == "y"
        assert await refused(app, f"UPDATE {table} SET {org} = 'blue'")
    async with being(app, CLEO):
        assert await app.fetch(f"SELECT * FROM {table}") == []
    assert await safety.problems(app) == []
    assert [line for line in await leaks.warnings(app) if "counts all" not in line] == []
    found = await owner.fetch("SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass", table)
    assert [row[0] for row in found] == [True]


PARTS = """
CREATE SCHEMA IF NOT EXISTS kept;
CREATE TABLE IF NOT EXISTS kept.events (id uuid DEFAULT gen_random_uuid(), organization_id text NOT NULL, what text,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz) PARTITION BY RANGE (created_at);
CREATE TABLE IF NOT EXISTS kept.old PARTITION OF kept.events FOR VALUES FROM (MINVALUE) TO ('2020-01-01') PARTITION BY HASH (id);
CREATE TABLE IF NOT EXISTS kept.older PARTITION OF kept.old FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE TABLE IF NOT EXISTS kept.new PARTITION OF kept.events DEFAULT;
"""
LINE = "SELECT gatepost_tenant('kept.events', organization => 'organization_id');"


async def test_a_partitioned_table(run: Any, app: asyncpg.Connection, cluster: Server, database: str) -> None:  # noqa: F811
    """Its policies and triggers are its own; the partitions cannot be reached beside it. The log names the table."""
    await run(PARTS + "GRANT SELECT ON kept.new TO gatepost_app;" + LINE, PARTS + LINE)
    insert = "INSERT INTO kept.events (organization_id, what) VALUES ('red', 'x') RETURNING id"
    async with app.transaction():
        for name, value in zip(SETTINGS, ADA, strict=True):
            await app.execute("SELECT set_config($1, $2, true)", name, value)
        made = await app.fetchval(insert)
        assert await app.fetchval("UPDATE kept.events SET what = 'y' RETURNING updated_at IS NOT NULL")
    async with being(app, CLEO):
        assert await app.fetch("SELECT * FROM kept.events") == []
        for part in ("new", "old", "older"):
            assert await refused(app, f"SELECT * FROM kept.{part}")
    assert await safety.problems(app) == []
    async with cluster.as_admin(database) as admin:
        entries = await admin.fetch("SELECT target, row_id, action, changed FROM audit_log ORDER BY created_at")
        assert [tuple(entry) for entry in entries] == [
            ("kept.events", str(made), "insert", None), ("kept.events", str(made), "update", ["updated_at", "what"])]
    # A partition of later has no grants; if it is given some, that is told, and the line closes it.
    later = "CREATE TABLE kept.later PARTITION OF kept.events FOR VALUES FROM ('2090-01-01') TO ('2091-01-01'); GRANT SELECT ON kept.later TO gatepost_app"
    await run(later)
    assert [line for line in await safety.problems(app) if "kept.later has no row-level security" in line]
    await run(LINE)
    assert await safety.problems(app) == []


async def test_references_between_tenants_tables(run: Any, app: asyncpg.Connection, cluster: Server, database: str) -> None:  # noqa: F811
    """With the tenant's column in it a foreign key reveals nothing; without it `check` warns."""
    await run(TODOS + "ALTER TABLE todos ADD UNIQUE (organization_id, id);" + TENANT.format("") + """
        CREATE TABLE notes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id text NOT NULL, todo_id uuid NOT NULL,
                            FOREIGN KEY (organization_id, todo_id) REFERENCES todos (organization_id, id) ON DELETE CASCADE);
        SELECT gatepost_tenant('notes', organization => 'organization_id')""")
    async with being(app, CLEO):
        foreign = await app.fetchval("INSERT INTO todos (organization_id, created_by, title) VALUES ('blue', 'cleo', 't') RETURNING id")
        await app.execute("INSERT INTO notes (organization_id, todo_id) VALUES ('blue', $1)", foreign)
        await app.execute("SELECT set_config('gatepost.org_id', 'red', true), set_config('gatepost.user_id', 'ada', true)")
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await app.execute("INSERT INTO notes (organization_id, todo_id) VALUES ('red', $1)", foreign)
    async with being(app, CLEO):
        mine = await app.fetchval("INSERT INTO todos (organization_id, created_by, title) VALUES ('blue', 'cleo', 't') RETURNING id")
        await app.execute("INSERT INTO notes (organization_id, todo_id) VALUES ('blue', $1)", mine)
        await app.execute("DELETE FROM todos")
        assert await app.fetchval("SELECT count(*) FROM notes") == 0
    assert await safety.problems(app) == []
    assert await leaks.warnings(app) == []
    async with cluster.as_admin(database) as admin:
        await admin.execute("ALTER TABLE notes ADD CONSTRAINT loose FOREIGN KEY (todo_id) REFERENCES todos (id)")
    assert [line for line in await leaks.warnings(app) if "the foreign key loose on public.notes" in line]


# What it refuses ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "a view": ("CREATE VIEW v AS TABLE data", "'v', organization => 'org_id'", "public.v is not a table|v is not a table"),
    "a materialised view": ("CREATE MATERIALIZED VIEW m AS TABLE data", "'m', organization => 'org_id'", "m is not a table"),
    "a foreign table": ("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE f (org_id text) SERVER s",
                        "'f', organization => 'org_id'", "is a foreign table"),
    "a temporary table": ("CREATE TEMP TABLE t (org_id text)", "'t', organization => 'org_id'", "is temporary"),
    "Postgres's own": ("SELECT 1", "'pg_class', organization => 'relname'", "belongs to Postgres"),
    "Gatepost's own": ("SELECT 1", "'org_data', organization => 'organization_id'", "is Gatepost's own"),
    "and its records": ("SELECT 1", "'gatepost_public', organization => 'reason'", "is Gatepost's own"),
    "a name of Gatepost's": ("CREATE TABLE gatepost_later (org text)", "'gatepost_later', organization => 'org'", "is Gatepost's own"),
    "a partition": (PARTS, "'kept.new', organization => 'organization_id'", "is a partition: name kept.events instead"),
    "a parent of others": ("CREATE TABLE p (org_id text); CREATE TABLE h () INHERITS (p)", "'p', organization => 'org_id'", "inherited from"),
    "an heir": ("CREATE TABLE p (org_id text); CREATE TABLE h () INHERITS (p)", "'h', organization => 'org_id'", "p inherits|h inherits"),
    "another owner's": ("CREATE TABLE o (org_id text); ALTER TABLE o OWNER TO gatepost_audit", "'o', organization => 'org_id'", "OWNED|belongs to"),
    "the serving role's": ("CREATE TABLE o (org_id text); ALTER TABLE o OWNER TO @APP", "'o', organization => 'org_id'", "belongs to the serving role"),
    "no column named": (TODOS, "'todos'", "name the column of its tenant"),
    "an author alone": (TODOS, "'todos', author => 'created_by'", "name the column of its tenant"),
    "a user's author": (TODOS, "'todos', \"user\" => 'created_by', author => 'title'", "no other author"),
    "administrators of nothing": (TODOS, "'todos', \"user\" => 'created_by', admin_deletes => true", "admin_deletes needs the column"),
    "twice the same": (TODOS, "'todos', organization => 'created_by', author => 'created_by'", "cannot be two of"),
    "a missing column": (TODOS, "'todos', organization => 'organisation_id'", "it has no column organisation_id"),
    "a system column": (TODOS, "'todos', organization => 'ctid'", "it has no column ctid"),
    "a dropped column": ("CREATE TABLE d (a text, org text); ALTER TABLE d DROP COLUMN org", "'d', organization => 'org'", "it has no column org"),
    "another type": ("CREATE TABLE d (org uuid)", "'d', organization => 'org'", "its column org is uuid: ids of users and organisations are text"),
    "another text": ("CREATE TABLE d (org varchar(20))", "'d', organization => 'org'", "its column org is character varying"),
    "an author's type": ("CREATE TABLE d (org text, by int)", "'d', organization => 'org', author => 'by'", "its column by is integer"),
    "a generated one": ("CREATE TABLE d (a text, org text GENERATED ALWAYS AS (a) STORED)", "'d', organization => 'org'", "its column org is generated"),
    "a loose collation": ("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false);"
                          "CREATE TABLE d (org text COLLATE loose)", "'d', organization => 'org'", "takes different ids for the same"),
    "an id without a default": ("CREATE TABLE d (id uuid PRIMARY KEY, org text)", "'d', organization => 'org'", "its column id is set by the database"),
    "a time of another type": ("CREATE TABLE d (org text, updated_at date)", "'d', organization => 'org'", "updated_at is not a timestamptz"),
    "a policy of another's": (TODOS + "CREATE POLICY everybody ON todos USING (true)", "'todos', organization => 'organization_id'",
                              "it has the policy everybody, which this function did not write: drop it, or drop it before"),
    "one for the serving role": (TODOS + "CREATE POLICY shared ON todos FOR SELECT TO @APP USING (done)", "'todos', organization => 'organization_id'",
                                 "the policy shared.*gatepost_public_rows"),
    "a restrictive one by the name of ours": (TODOS + "CREATE POLICY org_select ON todos AS RESTRICTIVE USING (done)",
                                              "'todos', organization => 'organization_id'", "a restrictive policy with the name of one of its own, org_select"),
    "a trigger of another's": (TODOS + "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
                               "CREATE TRIGGER touch BEFORE UPDATE ON todos FOR EACH ROW EXECUTE FUNCTION f()", "'todos', organization => 'organization_id'",
                               "a trigger touch of another origin"),
    "partitioned by its tenant": ('CREATE TABLE p ("an org" text) PARTITION BY HASH (lower("an org"))', "'p', organization => 'an org'", 'is partitioned by "an org"'),
}  # fmt: skip


@pytest.mark.parametrize(("before", "call", "said"), REFUSED.values(), ids=REFUSED)
async def test_it_refuses_what_it_does_not_understand(cluster: Server, database: str, before: str, call: str, said: str) -> None:  # noqa: F811
    """Nothing is changed then."""
    superuser = "OWNED" not in said
    async with cluster.as_admin(database) as admin:
        await admin.execute("SET client_min_messages = error")
        try:
            await admin.execute(before.replace("@APP", f'"{cluster.serving_role}"'))
        except asyncpg.FeatureNotSupportedError:
            pytest.skip("this Postgres has no ICU")
        if not superuser:
            await admin.execute("GRANT SELECT ON o TO PUBLIC")
        async with cluster.connected(cluster.owner_role, database) as plain:
            one = admin if superuser else plain
            with pytest.raises(asyncpg.PostgresError, match=said):
                async with one.transaction():
                    await one.execute(f"SELECT gatepost_tenant({call})")


async def test_policies_that_stay(run: Any, owner: asyncpg.Connection, app: asyncpg.Connection, cluster: Server) -> None:  # noqa: F811
    """Those that only narrow, those of other roles, and those for public rows."""
    await run(TODOS + """
        CREATE POLICY narrow ON todos AS RESTRICTIVE FOR SELECT USING (title <> 'hidden');
        CREATE POLICY reports ON todos FOR SELECT TO gatepost_audit USING (true);
        SELECT gatepost_public_rows('todos', 'titles that are done are on the front page');
        CREATE POLICY published ON todos FOR SELECT TO gatepost_app USING (done);""" + TENANT.format(""))
    names = {policy[0] for policy in (await catalog(owner, app, "todos"))["policies"]}
    assert names == {"narrow", "reports", "published", "org_select", "org_insert", "org_update", "org_delete"}
    assert await safety.problems(app) == []


async def test_only_the_owner_runs_it(app: asyncpg.Connection, run: Any) -> None:
    await run(TODOS)
    for call in (TENANT.format(""), "SELECT gatepost_public_rows('data', 'x')", "SELECT gatepost_public_rows('data', NULL)",
                 "SELECT gatepost_serving_role()", "SELECT gatepost_own_tables()", "INSERT INTO gatepost_public VALUES ('data', 'x')",
                 "UPDATE gatepost_public SET reason = 'x'", "DELETE FROM gatepost_public"):
        assert await refused(app, call), call
    assert await app.fetch("SELECT * FROM gatepost_public") == []


async def test_gateposts_own_tables_are_all_listed(owner: asyncpg.Connection) -> None:
    made = {row[0] for row in await owner.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")}
    assert {row["name"] for row in await owner.fetch("SELECT * FROM gatepost_own_tables()")} == made
    for row in await owner.fetch("SELECT * FROM gatepost_own_tables()"):
        columns = {one[0] for one in await owner.fetch("SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass", row["name"])}
        assert set(row["columns"]) <= columns, row["name"]
