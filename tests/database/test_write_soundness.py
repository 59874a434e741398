"""The one-statement write sets the scope before anything is written, whatever plan Postgres chooses.

Almost no write here names a user: each user has one row, and row-level security alone decides which one is written. What must
come out, and stand in the table, comes from the same write in a transaction in which an earlier statement made the settings.
Triggers of every kind record the settings that they run with.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from kits.postgres import Server, cluster  # noqa: F401

from server.database.one_write import one_write, one_write_in_transaction
from server.database.statements import SET_SCOPE_AND_WRITER, SETTINGS
from tests.database.test_read_soundness import PLANS, _apply

USERS = 8
OWN = "NULLIF(current_setting('gatepost.user_id', true), '')"
TABLES = f"""
    CREATE TABLE notes (user_id text DEFAULT current_setting('gatepost.user_id', true), name text DEFAULT 'first',
                        n int NOT NULL DEFAULT 0, gatepost_row text);
    CREATE UNIQUE INDEX notes_once ON notes (user_id, name);
    INSERT INTO notes (user_id) SELECT 'user_' || n FROM generate_series(0, {USERS - 1}) AS n;
    CREATE TABLE seen (trigger text, settings text[]);
    CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO seen VALUES (TG_NAME, ARRAY[{", ".join(f"current_setting('{name}', true)" for name in SETTINGS)}]);
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$;
    CREATE FUNCTION whole() RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$
        SELECT (SELECT string_agg(notes::text, ';' ORDER BY notes::text) FROM notes) || '|' ||
               coalesce((SELECT string_agg(seen::text, ';' ORDER BY seen::text) FROM seen), '') $$;
    CREATE TRIGGER before_statement BEFORE INSERT OR UPDATE OR DELETE ON notes EXECUTE FUNCTION see();
    CREATE TRIGGER before_row BEFORE INSERT OR UPDATE OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER after_row AFTER INSERT OR UPDATE OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER after_when AFTER INSERT OR UPDATE OR DELETE ON notes FOR EACH ROW WHEN ({OWN} IS NULL) EXECUTE FUNCTION see();
    CREATE TRIGGER after_statement AFTER INSERT OR UPDATE OR DELETE ON notes EXECUTE FUNCTION see();
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT OR UPDATE OR DELETE ON notes
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION see();
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY own_select ON notes FOR SELECT USING (user_id = (SELECT {OWN}));
    CREATE POLICY own_insert ON notes FOR INSERT WITH CHECK (user_id = (SELECT {OWN}));
    CREATE POLICY own_update ON notes FOR UPDATE USING (user_id = {OWN}) WITH CHECK (user_id = {OWN});
    CREATE POLICY own_delete ON notes FOR DELETE USING (user_id = {OWN});
    CREATE VIEW shown WITH (security_invoker) AS SELECT * FROM notes;
    ANALYZE"""
SHOWN = "RETURNING user_id AS who, name, n"
WRITES = {
    "insert": f"INSERT INTO notes (user_id, name) VALUES ($1, 'second') {SHOWN}",
    "insert the default": f"INSERT INTO notes (name) VALUES ('second') {SHOWN}",
    "insert a select": f"INSERT INTO notes (name, n) SELECT 'second', count(*) FROM notes {SHOWN}",
    "insert a condition": f"INSERT INTO notes (name) SELECT 'second' WHERE (SELECT count(*) FROM notes) < 2 {SHOWN}",
    "insert with": f"WITH mine AS MATERIALIZED (SELECT user_id FROM notes) INSERT INTO notes SELECT user_id, 'second' FROM mine {SHOWN}",
    "insert into a view": f"INSERT INTO shown (user_id, name, n) SELECT user_id, 'second', 1 FROM shown {SHOWN}",
    "upsert": f"INSERT INTO notes AS o (name) VALUES ('first') ON CONFLICT (user_id, name) DO UPDATE SET n = o.n + 1 {SHOWN}",
    "do nothing": f"INSERT INTO notes (name) VALUES ('first') ON CONFLICT (user_id, name) DO NOTHING {SHOWN}",
    "update": f"UPDATE notes SET n = n + 1 {SHOWN}",
    "update by a subquery": f"UPDATE notes SET n = n + 1 WHERE name = (SELECT max(name) FROM notes) {SHOWN}",
    "update from": "UPDATE notes AS a SET n = a.n + 1 FROM notes AS b WHERE a.name = b.name RETURNING a.user_id AS who, b.n",
    "update by the user": f"UPDATE notes SET n = n + 1 WHERE user_id = $1 {SHOWN}",
    "delete": f"DELETE FROM notes {SHOWN}",
    "delete using": "DELETE FROM notes AS a USING notes AS b WHERE a.name = b.name RETURNING a.user_id AS who, b.name",
    "a comment at the end": f"UPDATE notes SET n = n + 1 {SHOWN} -- the last word",
    "a semicolon at the end": f"UPDATE notes SET n = n + 1 {SHOWN} ; ",
    "a column of our alias's name": "UPDATE notes SET n = n + 1 RETURNING 'text' AS gatepost_row, user_id AS who",
}  # fmt: skip
MERGE = "MERGE INTO notes USING (SELECT 1) AS one ON true WHEN MATCHED THEN UPDATE SET n = n + 1 RETURNING user_id AS who, n"
WRITES_NOTHING = ("do nothing",)
Who = tuple[str, str, str, str, str]


def someone(n: int) -> Who:
    """The scope and the writer of user n."""
    return f"user_{n}", f"org_{n}", "", f"actor_{n}", f"request_{n}"


def arguments_of(sql: str, who: Who) -> tuple[str, ...]:
    return (who[0],) if "$1" in sql else ()


def statement_of(sql: str) -> str:
    return one_write(sql, "$1" in sql, 1.0)


async def truth(connection: asyncpg.Connection, sql: str, who: Who) -> tuple[str | None, str]:
    """The row, and then the whole table with what the triggers recorded: with settings made before the write is planned."""
    return await _undone(connection, SET_SCOPE_AND_WRITER, who, one_write_in_transaction(sql, "$1" in sql), arguments_of(sql, who))


async def _undone(
    connection: asyncpg.Connection, before: str, who: tuple[str, ...], sql: str, args: tuple[str, ...]
) -> tuple[str | None, str]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(before, *who)
        row = await connection.fetchval(sql, *args)
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")  # deferred triggers run as in the COMMIT
        return row, await connection.fetchval("SELECT whole()")
    finally:
        await transaction.rollback()


@pytest.fixture
async def filled(cluster: Server) -> str:  # noqa: F811
    """A database in which each user has one row; made once per server."""
    name = f"written_{cluster.run}"
    if name not in cluster.databases:
        await cluster.create_database(name, await cluster.template(), cluster.owner_role)
        async with cluster.as_admin(name) as admin:
            await admin.execute(TABLES)
            for table in ("notes", "shown"):
                await admin.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO "{cluster.serving_role}"')
            await admin.execute(f'GRANT INSERT ON seen TO "{cluster.serving_role}"; '
                                f'GRANT EXECUTE ON FUNCTION whole() TO "{cluster.serving_role}"')  # fmt: skip
    return name


@pytest.fixture
async def app(cluster: Server, filled: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The serving role's connection."""
    async with cluster.connected(cluster.serving_role, filled) as connection:
        yield connection


async def writes(connection: asyncpg.Connection) -> dict[str, str]:
    return WRITES | ({"merge": MERGE} if connection.get_server_version().major >= 17 else {})


@pytest.mark.parametrize(
    "plan",
    [pytest.param(plan, marks=[pytest.mark.long] if number > 2 else []) for number, plan in enumerate(PLANS)],
    ids=lambda plan: " ".join(plan) or "defaults",
)
async def test_the_callers_row_under_every_plan(cluster: Server, filled: str, plan: dict[str, str]) -> None:  # noqa: F811
    """On a clean connection, over another user's settings in the transaction, and over another's in the session."""
    async with cluster.connected(cluster.serving_role, filled) as app, cluster.connected(cluster.serving_role, filled) as judge:
        await _apply(app, plan)
        for name, sql in (await writes(app)).items():
            for n in range(3):  # each statement runs often enough that its plan becomes a generic one
                who = someone(n)
                expected = await truth(judge, sql, who)
                other = (*someone(n + 1)[:2], "org_admin", *someone(n + 1)[3:])
                for before, values in (("SELECT", ()), (SET_SCOPE_AND_WRITER, other)):
                    got = await _undone(app, before, values, statement_of(sql), (*arguments_of(sql, who), *who))
                    assert got == expected, (name, n, before)
                await app.execute("SELECT set_config('gatepost.user_id', $1, false)", other[0])
                assert await _undone(app, "SELECT", (), statement_of(sql), (*arguments_of(sql, who), *who)) == expected, (name, n)
                await app.execute("RESET gatepost.user_id")


async def test_what_is_compared_is_something(app: asyncpg.Connection) -> None:
    """Every write returns the caller's row, writes it, and runs every trigger with the caller's settings; but for one."""
    nothing = (await truth(app, "UPDATE notes SET n = 1 WHERE false RETURNING n", someone(3)))[1].partition("|")[0]
    for name, sql in (await writes(app)).items():
        row, whole = await truth(app, sql, someone(3))
        if name in WRITES_NOTHING:
            assert (row, whole.partition("|")[0]) == (None, nothing)
            continue
        assert json.loads(row or "")["who"] == "user_3", name
        table, _, seen = whole.partition("|")
        assert table != nothing, name
        for trigger in ("before_statement", "before_row", "after_row", "after_statement", "at_commit"):
            assert trigger in seen, (name, trigger)
        assert "after_when" not in seen
        assert seen.count("{user_3,org_3,") == seen.count("{"), (name, seen)
        assert seen.count("actor_3,request_3") == seen.count("{")
    assert json.loads((await truth(app, WRITES["a column of our alias's name"], someone(3)))[0] or "")["gatepost_row"] == "text"


def unsound(sql: str, arguments: int) -> str:
    """A form that looks equivalent and is not: it shows that these tests would notice."""
    told = ", ".join(f"set_config('{name}', ${number}, true)" for number, name in enumerate(SETTINGS, arguments + 1))
    return (f"WITH gatepost_row AS (\n{sql.strip().rstrip(';')}\n), told AS MATERIALIZED (SELECT {told}) "
            "SELECT row_to_json(gatepost_row.*)::text FROM gatepost_row LEFT JOIN told ON true")  # fmt: skip


async def test_a_write_before_the_scope_is_refused(app: asyncpg.Connection) -> None:
    """If the order were ever wrong: on a connection without a scope, as each from the pool is, nothing can be written.

    Over another caller's settings it would be that caller's row, which is what the tests above would notice.
    """
    before = await app.fetchval("SELECT whole()")
    for name, sql in (await writes(app)).items():
        args = (*arguments_of(sql, someone(3)), *someone(3))
        if sql.startswith(("INSERT", "WITH")) and "SELECT user_id" not in sql:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await _undone(app, "SELECT", (), unsound(sql, "$1" in sql), args)
        else:
            row, whole = await _undone(app, "SELECT", (), unsound(sql, "$1" in sql), args)
            assert (row, whole.partition("|")[0]) == (None, before.partition("|")[0]), name
    row, _ = await _undone(app, SET_SCOPE_AND_WRITER, someone(4), unsound(WRITES["update"], 0), someone(3))
    assert json.loads(row or "")["who"] == "user_4"


async def test_another_callers_row(app: asyncpg.Connection) -> None:
    """A write that names another user is refused, or finds no row, whichever caller's settings are in effect before it."""
    for before, values in (("SELECT", ()), (SET_SCOPE_AND_WRITER, someone(5))):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await _undone(app, before, values, statement_of(WRITES["insert"]), ("user_5", *someone(3)))
        got = await _undone(app, before, values, statement_of(WRITES["update by the user"]), ("user_5", *someone(3)))
        assert got[0] is None
    for nobody in ("", None):
        got = await _undone(app, SET_SCOPE_AND_WRITER, someone(5), statement_of(WRITES["update"]), (nobody,) * 5)  # type: ignore[arg-type]
        assert got[0] is None


async def _committed(app: asyncpg.Connection, sql: str, who: Who) -> Any:
    return await app.fetchval(statement_of(sql), *arguments_of(sql, who), *who)


async def test_it_is_one_transaction_and_leaves_no_settings(app: asyncpg.Connection, cluster: Server, filled: str) -> None:  # noqa: F811
    """Committed at its end, deferred triggers under the caller's settings; whether it succeeds or fails, nothing is left."""
    async with cluster.as_admin(filled) as admin:
        try:
            for n in (1, 2):
                row = json.loads(await _committed(app, WRITES["insert the default"], someone(n)))
                assert row == {"who": f"user_{n}", "name": "second", "n": 0}
                assert not app.is_in_transaction()
                assert [await app.fetchval("SELECT NULLIF(current_setting($1, true), '')", name) for name in SETTINGS] == [None] * 5
                assert await app.fetchval("SHOW lock_timeout") == "0"
                with pytest.raises(asyncpg.UniqueViolationError):
                    await _committed(app, WRITES["insert the default"], someone(n))
                assert [await app.fetchval("SELECT NULLIF(current_setting($1, true), '')", name) for name in SETTINGS] == [None] * 5
                seen = await admin.fetch("SELECT trigger, settings FROM seen ORDER BY trigger")
                assert [one["trigger"] for one in seen] == ["after_row", "after_statement", "at_commit", "before_row", "before_statement"]
                assert {tuple(one["settings"]) for one in seen} == {someone(n)}
                await admin.execute("TRUNCATE seen")
        finally:
            await admin.execute("DELETE FROM notes WHERE name = 'second'; TRUNCATE seen")


async def test_a_second_row_undoes_the_first(app: asyncpg.Connection) -> None:
    """More rows than one are an error, and none of them is written; with any number, and with each kind of write."""
    whole = await app.fetchval("SELECT whole()")
    for rows in (2, 3, 100):
        many = f"INSERT INTO notes (name) SELECT 'many ' || n FROM generate_series(1, {rows}) AS n {SHOWN}"
        for form in (one_write(many, 0, 1.0), one_write_in_transaction(many, 0)):
            with pytest.raises(asyncpg.CardinalityViolationError):
                await _undone(app, SET_SCOPE_AND_WRITER, someone(1), form, someone(1) if "$1" in form else ())
        with pytest.raises(asyncpg.CardinalityViolationError):
            await app.fetchval(one_write(many, 0, 1.0), *someone(1))
    assert await app.fetchval("SELECT whole()") == whole


async def test_without_its_scope_it_raises(app: asyncpg.Connection) -> None:
    """If a condition were false or NULL, the statement would fail, and nothing would be committed: also over a whole scope."""
    whole = await app.fetchval("SELECT whole()")
    for first in ("false", "NULL::boolean", "(SELECT false)"):
        for before in (("SELECT", ()), (SET_SCOPE_AND_WRITER, someone(1))):
            with pytest.raises(asyncpg.UndefinedObjectError, match="scope of this statement was not set"):
                await _undone(app, *before, one_write(WRITES["update"], 0, 1.0, first), someone(1))
        with pytest.raises(asyncpg.UndefinedObjectError):
            await app.fetchval(one_write(WRITES["update"], 0, 1.0, first), *someone(1))
    assert await app.fetchval("SELECT whole()") == whole


async def test_no_other_statement_gets_in(app: asyncpg.Connection) -> None:
    """Postgres refuses what is not one write with RETURNING; a SELECT, and arguments beyond those given, are refused before."""
    whole = await app.fetchval("SELECT whole()")
    for sql in (
        "UPDATE notes SET n = 1",
        "UPDATE notes SET n = 1 RETURNING n; DELETE FROM notes RETURNING n",
        "WITH gone AS (DELETE FROM notes RETURNING n) INSERT INTO notes (n) SELECT n FROM gone RETURNING n",
        "WITH gone AS (DELETE FROM notes RETURNING n) SELECT n FROM gone",
        "DELETE FROM notes RETURNING n) SELECT 1 --",
        "UPDATE notes SET n = (SELECT n FROM gatepost_row) RETURNING n",
    ):
        with pytest.raises((asyncpg.PostgresSyntaxError, asyncpg.FeatureNotSupportedError, asyncpg.UndefinedTableError,
                            asyncpg.IndeterminateDatatypeError)):  # fmt: skip
            await app.fetchval(one_write(sql, 0, 1.0), *someone(1))
    assert await app.fetchval("SELECT whole()") == whole


async def test_no_parallel_worker_ever_takes_part(app: asyncpg.Connection) -> None:
    await _apply(app, PLANS[-2])
    for sql in (await writes(app)).values():
        statement = statement_of(sql)
        for number in range(6, 0, -1):
            statement = statement.replace(f"${number}", "'user_1'")
        plan = "\n".join(row[0] for row in await app.fetch("EXPLAIN (COSTS OFF) " + statement))
        assert "Gather" not in plan
