"""gatepost_changes: what a write tells, after its commit and to which tenants; and which tables it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from kits.postgres import Server, cluster, database  # noqa: F401

from server.schema import leaks, safety
from server.schema.migrate import apply, migrate

TODOS = """
CREATE TABLE IF NOT EXISTS todos (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id text, created_by text, title text);
SELECT gatepost_tenant('todos', organization => 'organization_id', author => 'created_by');
SELECT gatepost_changes('todos', organization => 'organization_id');
"""
ONE, TWO, THREE = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3))
INSERT = f"INSERT INTO todos (id, organization_id, title) VALUES ('{ONE}', 'red', 'a')"


@pytest.fixture
async def owner(cluster: Server, database: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The owner's connection, who is no superuser."""
    async with cluster.connected(cluster.owner_role, database) as connection:
        await connection.execute("SET client_min_messages = error")
        yield connection


@pytest.fixture
def run(cluster: Server, owner: asyncpg.Connection) -> Any:  # noqa: F811
    """Runs SQL as `migrate --schema` does."""

    async def execute(*sql: str) -> None:
        for one in sql:
            await apply(owner, one, serving_role=cluster.serving_role)

    return execute


@pytest.fixture
async def admin(cluster: Server, database: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The superuser, whom row-level security does not bind."""
    async with cluster.as_admin(database) as connection:
        yield connection


@pytest.fixture
async def told(cluster: Server, database: str) -> AsyncIterator[Callable[..., Any]]:  # noqa: F811
    """The notifications that the serving role has received since the last call, in order."""
    payloads: list[str] = []
    async with cluster.connected(cluster.serving_role, database) as app:
        await app.add_listener("gatepost_changes", lambda *args: payloads.append(args[3]))

        async def messages() -> list[Any]:
            await app.execute("SELECT 1")
            await asyncio.sleep(0)
            found = [json.loads(one)[:5] for one in payloads]  # without the number that keeps messages from being equal
            assert all(len(one.encode()) < 8000 for one in payloads)
            payloads.clear()
            return found

        yield messages


ORG = ("public.todos", "organization")


async def test_what_a_write_tells(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    await run(TODOS)
    await admin.execute(INSERT)
    assert await told() == [[*ORG, "red", "i", [ONE]]]
    await admin.execute("UPDATE todos SET title = 'b'")
    assert await told() == [[*ORG, "red", "u", [ONE]]]
    await admin.execute("UPDATE todos SET organization_id = 'blue'")  # both tenants hear
    assert await told() == [[*ORG, "red", "d", [ONE]], [*ORG, "blue", "i", [ONE]]]
    await admin.execute("UPDATE todos SET id = $1", TWO)
    assert await told() == [[*ORG, "blue", "d", [ONE]], [*ORG, "blue", "i", [TWO]]]
    await admin.execute("UPDATE todos SET organization_id = NULL")
    assert await told() == [[*ORG, "blue", "d", [TWO]]]
    await admin.execute("UPDATE todos SET organization_id = ''")  # no tenant either
    assert await told() == []
    await admin.execute("UPDATE todos SET title = 'c' WHERE false; UPDATE todos SET organization_id = 'red'")
    assert await told() == [[*ORG, "red", "i", [TWO]]]
    await admin.execute("DELETE FROM todos")
    assert await told() == [[*ORG, "red", "d", [TWO]]]
    await admin.execute("TRUNCATE todos")
    assert await told() == [["public.todos"]]


async def test_statements_of_several_rows(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    await run(TODOS)
    await admin.execute(f"INSERT INTO todos (id, organization_id) VALUES ('{ONE}', 'red'), ('{TWO}', 'red'), ('{THREE}', 'blue')")
    assert sorted(await told()) == [[*ORG, "blue", "i", [THREE]], [*ORG, "red", "i", [ONE, TWO]]]
    await admin.execute(f"UPDATE todos SET organization_id = CASE id WHEN '{ONE}' THEN 'blue' ELSE organization_id END")
    assert sorted(await told()) == [[*ORG, "blue", "i", [ONE]], [*ORG, "blue", "u", [THREE]], [*ORG, "red", "d", [ONE]], [*ORG, "red", "u", [TWO]]]
    await admin.execute(f"INSERT INTO todos (id, organization_id) VALUES ('{ONE}', 'red') ON CONFLICT (id) DO UPDATE SET title = 'x'")
    assert await told() == [[*ORG, "blue", "u", [ONE]]]
    await admin.execute("MERGE INTO todos USING (VALUES (1)) AS v (n) ON organization_id = 'red'"
                        " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING")  # fmt: skip
    assert await told() == [[*ORG, "red", "d", [TWO]]]
    await admin.execute("WITH gone AS (DELETE FROM todos WHERE id = $1 RETURNING id) UPDATE todos SET title = 'y' WHERE id = $2", ONE, THREE)
    assert sorted(await told()) == [[*ORG, "blue", "d", [ONE]], [*ORG, "blue", "u", [THREE]]]
    await admin.copy_records_to_table("todos", records=[(ONE, "red")], columns=["id", "organization_id"])
    assert await told() == [[*ORG, "red", "i", [ONE]]]


async def test_only_after_the_commit(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    await run(TODOS)
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute(INSERT)
    assert await told() == []
    await transaction.rollback()
    assert await told() == []
    async with admin.transaction():
        await admin.execute(INSERT)
        savepoint = admin.transaction()
        await savepoint.start()
        await admin.execute("UPDATE todos SET title = 'x'")
        with pytest.raises(asyncpg.UniqueViolationError):
            await admin.execute(INSERT)
        await savepoint.rollback()
        assert await told() == []
    assert await told() == [[*ORG, "red", "i", [ONE]]]


async def test_the_last_change_of_a_row_in_a_transaction_counts(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    """Postgres sends equal messages of a transaction once: what is undone and done again must not seem to be undone."""
    await run(TODOS)
    async with admin.transaction():
        for _ in range(2):
            await admin.execute(INSERT)
            await admin.execute("DELETE FROM todos")
        await admin.execute(INSERT)
    assert [one[3] for one in await told()] == ["i", "d", "i", "d", "i"]
    async with admin.transaction():
        for organization in ("blue", "red", "blue"):
            await admin.execute("UPDATE todos SET organization_id = $1", organization)
    assert [(one[2], one[3]) for one in await told()] == [("red", "d"), ("blue", "i"), ("blue", "d"), ("red", "i"), ("red", "d"), ("blue", "i")]
    async with admin.transaction():  # statements of several rows
        await admin.execute("DELETE FROM todos")
        for _ in range(2):
            await admin.execute(f"INSERT INTO todos (id, organization_id) VALUES ('{ONE}', 'red'), ('{TWO}', 'red')")
            await admin.execute("DELETE FROM todos")
    assert [one[2:] for one in await told()][1:] == [["red", what, [ONE, TWO]] for what in "idid"]
    await admin.execute(INSERT)
    await told()
    async with admin.transaction():  # updates need it only once
        for _ in range(3):
            await admin.execute("UPDATE todos SET title = 'a'")
    assert await told() == [[*ORG, "red", "u", [ONE]]]


async def test_a_user_and_an_organization(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    """And another call takes another's place; a caller's own id of a whole number."""
    await run("""CREATE TABLE notes (number bigint PRIMARY KEY, "to %s; whom" text, org text);
                 SELECT gatepost_changes('notes', organization => 'org', "user" => 'to %s; whom')""")
    await admin.execute("INSERT INTO notes VALUES (7, 'ada', 'red'), (8, 'bob', NULL)")
    notes = "public.notes"
    assert sorted(await told()) == [[notes, "organization", "red", "i", ["7"]], [notes, "user", "ada", "i", ["7"]], [notes, "user", "bob", "i", ["8"]]]
    await admin.execute("UPDATE notes SET org = 'blue' WHERE number = 7")
    assert sorted(await told()) == [[notes, "organization", "blue", "i", ["7"]], [notes, "organization", "red", "d", ["7"]], [notes, "user", "ada", "u", ["7"]]]
    await run("""SELECT gatepost_changes('notes', "user" => 'to %s; whom')""")
    await admin.execute("DELETE FROM notes")
    assert sorted(await told()) == [[notes, "user", "ada", "d", ["7"]], [notes, "user", "bob", "d", ["8"]]]


async def test_odd_names_and_values(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    table = '"Other ""s"""."Ünï ""quoted"" Täble, 100 %s"'
    await run(f'CREATE SCHEMA "Other ""s"""; CREATE TABLE {table} ("the ""id%s" text PRIMARY KEY, "an org" text)',
              f"SELECT gatepost_changes('{table}', organization => 'an org')")
    values = ['a"b', "ü\\n\n", "\x01" * 3, "x" * 900, "%s{}"]
    await admin.executemany(f"INSERT INTO {table} VALUES ($1, $1)", [[value] for value in values])
    assert await told() == [[table, "organization", value, "i", [value]] for value in values]
    await admin.execute(f"DELETE FROM {table}")
    assert sorted(await told()) == sorted([table, "organization", value, "d", [value]] for value in values)


async def test_no_value_makes_its_own_write_fail(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    """NOTIFY takes fewer than 8000 bytes: a longer change is reported for the whole tenant, or for the whole table."""
    await run("CREATE TABLE notes (id text PRIMARY KEY, org text); SELECT gatepost_changes('notes', organization => 'org')")
    long, longer = "\x01" * 1400, "ü" * 2000
    for org, id, heard in (("red", longer, [["public.notes", "organization", "red"]]), (longer, "1", [["public.notes"]]), (long, "2", [["public.notes"]]),
                           ("y" * 7970, "3", [["public.notes"]])):
        await admin.execute("INSERT INTO notes VALUES ($1, $2)", id, org)
        assert await told() == heard
    await admin.execute("UPDATE notes SET org = org || 'x'")
    assert ["public.notes"] in await told()
    await admin.execute("DELETE FROM notes")
    assert ["public.notes"] in await told()


async def test_bulk(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    """A few hundred rows are reported one by one; of very many only that there are many."""
    await run(TODOS)
    some = "INSERT INTO todos (organization_id) SELECT 'org_' || i % {1} FROM generate_series(1, {0}) AS i"
    await admin.execute(some.format(1000, 2))
    heard = await told()
    assert len(heard) < 12
    assert {(one[2], one[3]) for one in heard} == {("org_0", "i"), ("org_1", "i")}
    assert len({id for one in heard for id in one[4]}) == 1000
    await admin.execute(some.format(1001, 2))
    assert sorted(await told()) == [[*ORG, "org_0"], [*ORG, "org_1"]]
    await admin.execute("UPDATE todos SET organization_id = 'red' WHERE organization_id = 'org_1'")  # it loses rows, and red gains them
    assert sorted(await told()) == [[*ORG, "org_1"], [*ORG, "red"]]
    await admin.execute(some.format(5000, 100))
    assert await told() == [["public.todos"]]
    await admin.execute("DELETE FROM todos")
    assert await told() == [["public.todos"]]


async def test_many_statements_in_one_transaction(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    await run(TODOS)
    async with admin.transaction():
        await admin.executemany("INSERT INTO todos (organization_id) VALUES ($1)", [["red"]] * 3000)
    heard = await told()
    assert len(heard) == 1001
    assert heard[-1] == [*ORG, "red"]
    await admin.execute(INSERT)  # the next transaction begins anew
    assert await told() == [[*ORG, "red", "i", [ONE]]]


async def test_a_partitioned_table(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    """Changes are reported under the partitioned table's name, also if an update moves a row to another partition."""
    await run("""CREATE TABLE events (id text PRIMARY KEY, org text) PARTITION BY LIST (id);
                 CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('a'); CREATE TABLE events_rest PARTITION OF events DEFAULT;
                 SELECT gatepost_changes('events', organization => 'org')""")
    await admin.execute("INSERT INTO events VALUES ('a', 'red'), ('b', 'red')")
    assert await told() == [["public.events", "organization", "red", "i", ["a", "b"]]]
    await admin.execute("UPDATE events SET id = 'c' WHERE id = 'a'")
    assert sorted(await told()) == [["public.events", "organization", "red", "d", ["a"]], ["public.events", "organization", "red", "i", ["c"]]]


async def test_cascades_are_reported(run: Any, admin: asyncpg.Connection, told: Any) -> None:
    await run("CREATE TABLE lists (id text PRIMARY KEY); CREATE TABLE items (id text PRIMARY KEY, org text, list text REFERENCES lists ON DELETE CASCADE);"
              "SELECT gatepost_changes('items', organization => 'org')")
    await admin.execute("INSERT INTO lists VALUES ('l'); INSERT INTO items VALUES ('1', 'red', 'l'), ('2', 'red', 'l')")
    await told()
    await admin.execute("DELETE FROM lists")
    assert await told() == [["public.items", "organization", "red", "d", ["1", "2"]]]


async def test_it_can_be_run_again_and_check_accepts_it(run: Any, cluster: Server, database: str, owner: asyncpg.Connection) -> None:  # noqa: F811
    await run(TODOS, TODOS)
    names = await owner.fetch("SELECT tgname FROM pg_trigger WHERE tgrelid = 'todos'::regclass AND NOT tgisinternal ORDER BY tgname")
    assert [row[0] for row in names] == ["audited", "changed_delete", "changed_insert", "changed_truncate", "changed_update"]
    async with cluster.connected(cluster.serving_role, database) as app:
        assert await safety.problems(app) == []
        assert await leaks.warnings(app) == []
        for call in ("SELECT gatepost_changes('todos', organization => 'organization_id')", "SELECT gatepost_tell_changes('todos', 'id', NULL, NULL)",
                     "CREATE TRIGGER mine AFTER INSERT ON todos EXECUTE FUNCTION gatepost_changed('', '', '')"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await app.execute(call)


async def test_the_serving_role_needs_no_more_rights_to_write(run: Any, cluster: Server, database: str, told: Any) -> None:  # noqa: F811
    await run(TODOS)
    async with cluster.connected(cluster.serving_role, database) as app, app.transaction():
        await app.execute("SELECT set_config('gatepost.org_id', 'red', true)")
        await app.execute("INSERT INTO todos (organization_id, created_by) VALUES ('red', 'key:1'), ('red', 'key:1')")
        await app.execute("UPDATE todos SET title = 'x'")
    assert [one[2:4] for one in await told()] == [["red", "i"], ["red", "u"]]


EVENTS = ("insert", "update", "delete", "truncate")


@pytest.mark.parametrize("table", ["data", "todos"])
async def test_triggers_that_are_disabled_stay_disabled(run: Any, owner: asyncpg.Connection, cluster: Server, told: Any, table: str) -> None:  # noqa: F811
    """By `migrate`, and by another call for the table; the audit trigger, which must stay enabled, is enabled again."""
    await run(TODOS)
    await owner.execute("".join(f"ALTER TABLE {table} DISABLE TRIGGER changed_{event};" for event in EVENTS))
    await owner.execute(f"ALTER TABLE {table} DISABLE TRIGGER audited")
    await migrate(owner, serving_role=cluster.serving_role)
    await run(TODOS)
    states = dict(await owner.fetch("SELECT tgname::text, tgenabled FROM pg_trigger WHERE tgrelid = $1::text::regclass", table))
    assert {states[f"changed_{event}"] for event in EVENTS} == {b"D"}
    assert states["audited"] == b"O"
    await owner.execute(f"ALTER TABLE {table} ENABLE TRIGGER changed_truncate")
    await owner.execute(f"TRUNCATE {table}")
    assert await told() == [[f"public.{table}"]]


NOTES = "CREATE TABLE notes (id uuid PRIMARY KEY, org text, whom text)"
ORGS = "'notes', organization => 'org'"
REFUSED = {
    "a view": ("CREATE VIEW v AS TABLE data", "'v', organization => 'org_id'", "is not a table"),
    "Gatepost's own": ("SELECT 1", "'data', organization => 'org_id'", "is Gatepost's own"),
    "a partition": ("CREATE TABLE p (id text PRIMARY KEY, org text) PARTITION BY LIST (id); CREATE TABLE notes PARTITION OF p DEFAULT", ORGS, "is a partition: name p"),
    "no tenant": (NOTES, "'notes'", "name the column of its tenant"),
    "no such column": (NOTES, "'notes', organization => 'nope'", "it has no column nope"),
    "no such column either": (NOTES, "'notes', \"user\" => ''", 'it has no column ""'),
    "one column twice": (NOTES, "'notes', organization => 'org', \"user\" => 'org'", "org cannot be both"),
    "a tenant that is no text": (NOTES, "'notes', organization => 'id'", "is uuid: ids of users and organisations are text"),
    "a computed tenant": ("CREATE TABLE notes (id uuid PRIMARY KEY, a text, org text GENERATED ALWAYS AS (lower(a)) STORED)", ORGS, "its column org is generated"),
    "no primary key": ("CREATE TABLE notes (id uuid UNIQUE, org text)", ORGS, "it has no primary key"),
    "a primary key of two": ("CREATE TABLE notes (id uuid, org text, PRIMARY KEY (org, id))", ORGS, "has several columns"),
    "a primary key of another kind": ("CREATE TABLE notes (id timestamptz PRIMARY KEY, org text)", ORGS, "its primary key id is timestamp"),
    "a trigger of another's": (NOTES + "; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
                               "CREATE TRIGGER changed_update AFTER UPDATE ON notes EXECUTE FUNCTION f()", ORGS, "a trigger changed_update of another origin"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "call", "said"), REFUSED.values(), ids=REFUSED)
async def test_it_refuses_what_it_does_not_understand(admin: asyncpg.Connection, before: str, call: str, said: str) -> None:
    await admin.execute(before)
    with pytest.raises(asyncpg.PostgresError, match=said):
        await admin.execute(f"SELECT gatepost_changes({call})")
    assert await admin.fetch("SELECT FROM pg_trigger WHERE tgrelid = to_regclass('notes') AND tgfoid = 'gatepost_changed()'::regprocedure") == []
