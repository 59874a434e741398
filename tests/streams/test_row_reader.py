"""Rows for several scopes in one round trip: each scope sees its own, whatever the policies look like."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from kits.pgbouncer import pgbouncer
from kits.postgres import Server, cluster, database  # noqa: F401

from server.database.connections import Database
from server.database.many_scopes import read_for_each
from server.database.violations import StatementError
from server.http.answers import Rows
from server.http.errors import Unprocessable
from server.http.pagination import RowLimit
from server.schema.migrate import apply
from server.streams.change_tables import ChangeTables
from server.streams.row_reader import IDS, RowReader
from server.streams.rows_read import Read

TABLES = """
CREATE TABLE notes (id bigint PRIMARY KEY DEFAULT 0, user_id text NOT NULL, org_id text, body text);
SELECT gatepost_tenant('notes', "user" => 'user_id', organization => 'org_id');
SELECT gatepost_changes('notes', "user" => 'user_id');
CREATE POLICY raises ON notes AS RESTRICTIVE FOR SELECT
    USING (1 / (CASE (SELECT NULLIF(current_setting('gatepost.user_id', true), '')) WHEN 'poison' THEN 0 ELSE 1 END) = 1);
"""
USERS = [f"user_{n}" for n in range(60)]
SCOPES = [(user, "", "") for user in USERS] + [("", "red", "red"), ("", "red", ""), ("", "", ""), ("user_1", "red", "red")]
MOST = RowLimit(IDS)
MOST.page_bytes = 262_144


async def read_each(db: Database, scopes: list[tuple[str, str, str]], sql: str, ids: list[str]) -> list[Any]:
    """The rows of each scope."""
    return [Rows(one) for one in await read_for_each(db, sql, [(scope, (ids, MOST)) for scope in scopes], "streams")]


async def asked(reader: RowReader, table: Any, scope: tuple[str, str, str], ids: list[str]) -> Read:
    """What the reader passes to one stream."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    reader.ask(table, scope, ids, future.set_result)
    if isinstance(found := await future, BaseException):
        raise found
    return found


@pytest.fixture
async def filled(cluster: Server, database: str) -> AsyncIterator[Any]:  # noqa: F811
    """A Database with a note of each user; three of them in the organisation red."""
    async with cluster.connected(cluster.owner_role, database) as owner:
        await owner.execute("SET client_min_messages = error")
        await apply(owner, TABLES, serving_role=cluster.serving_role)
    async with cluster.as_admin(database) as admin:
        await admin.executemany("INSERT INTO notes VALUES ($1, $2, $3, 'x')", [(n, user, "red" if n < 3 else None) for n, user in enumerate(USERS)])
        tables = ChangeTables()
        await tables.load(admin)
    db = Database(size=2, acquire_seconds=5, statement_seconds=5, pooled=False)
    await db.open(cluster.connect_args(cluster.serving_role, database))
    yield db, tables.find("notes")
    await db.close()


def seen(rows: Any) -> list[int]:
    return [row["row"]["id"] for row in json.loads(rows)]


ALL = [str(n) for n in range(len(USERS))]


async def test_each_scope_sees_its_own(filled: Any) -> None:
    """As when each is read alone, in every order, and again on the same connection."""
    db, table = filled
    alone = {scope: seen(await db.read(scope, table.sql, (ALL, MOST))) for scope in SCOPES}
    assert alone[("user_5", "", "")] == [5]
    assert alone[("", "red", "red")] == [0, 1, 2]
    assert (alone[("", "red", "")], alone[("", "", "")]) == ([], [])
    for scopes in (SCOPES, SCOPES[::-1], SCOPES[::2] + SCOPES[1::2]):
        together = await read_each(db, scopes, table.sql, ALL)
        assert [seen(rows) for rows in together] == [alone[scope] for scope in scopes]
    async with db.connection() as connection:  # and leaves none behind
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0
        assert {await connection.fetchval(f"SELECT current_setting('gatepost.{name}', true)") for name in ("user_id", "org_id", "admin_org_id")} <= {"", None}


async def test_a_policy_that_fails_for_one_caller_fails_for_no_other(filled: Any) -> None:
    db, table = filled
    with pytest.raises(Unprocessable):
        await read_each(db, [("user_1", "", ""), ("poison", "", "")], table.sql, ALL)
    reader = RowReader(db.read, partial(read_for_each, db))
    scopes = [("user_1", "", ""), ("poison", "", ""), ("user_2", "", "")]
    for ids in (["1", "2"], ["1"]):
        found = await asyncio.gather(*(asked(reader, table, scope, ids) for scope in scopes), return_exceptions=True)
        assert isinstance(found[1], Exception)
        assert [list(one.rows) for one in found if not isinstance(one, Exception)] == [["1"], ["2"] if len(ids) == 2 else []]
    await reader.close()


async def test_many_scopes_and_ids(filled: Any) -> None:
    db, table = filled
    reader = RowReader(db.read, partial(read_for_each, db))
    pairs = [(scope, ids) for scope in SCOPES for ids in (["1"], ["0", "5"], ALL)]
    found = await asyncio.gather(*(asked(reader, table, scope, ids) for scope, ids in pairs))
    for (scope, ids), read in zip(pairs, found, strict=True):
        own = {str(USERS.index(scope[0]))} if scope[0] else set()
        if scope[2] == "red":
            own |= {"0", "1", "2"}
        assert own & set(ids) <= set(read.rows) <= own, (scope, ids)
    assert (dict(reader._waiting), len(reader._workers)) in [({}, 0), ({}, 1), ({}, 2)]
    await reader.close()


async def test_one_id_under_many_scopes(filled: Any) -> None:
    """The statement for one id returns for each scope what the one for several ids does."""
    db, table = filled
    for id in ("0", "2", "5", "1000"):
        alone = [await db.read(scope, table.sql, ([id], MOST)) for scope in SCOPES]
        together = await read_for_each(db, table.one, [(scope, (id,)) for scope in SCOPES], "streams", single=True)
        assert [[json.loads(one)] if one else [] for one in together] == [[row["row"] for row in json.loads(rows)] for rows in alone]
    assert sum(map(bool, together)) == 0
    async with db.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM notes") == 0


async def test_what_is_asked_for_when_the_last_read_ends_is_read(filled: Any) -> None:
    """A stream may ask between the end of the last read and the end of its task."""
    db, table = filled
    reader = RowReader(db.read, partial(read_for_each, db), at_once=1)
    loop = asyncio.get_running_loop()
    second: asyncio.Future[Any] = loop.create_future()
    reader.ask(table, SCOPES[1], ["1"], lambda _: loop.call_soon(reader.ask, table, SCOPES[2], ["2"], second.set_result) and None)
    async with asyncio.timeout(30):
        assert list((await second).rows) == ["2"]
    await reader.close()


async def test_a_column_that_has_gone(filled: Any, cluster: Server, database: str) -> None:  # noqa: F811
    db, table = filled
    await read_each(db, SCOPES[:2], table.sql, ["1"])
    async with cluster.as_admin(database) as admin:
        await admin.execute("ALTER TABLE notes DROP COLUMN body")
    with pytest.raises(StatementError):
        await read_each(db, SCOPES[:2], table.sql, ["1"])


async def test_behind_a_pooler(filled: Any, cluster: Server, database: str) -> None:  # noqa: F811
    """One connection to Postgres, shared by two servers."""
    _, table = filled
    with pgbouncer(cluster, 1) as bouncer:
        pooled = [Database(size=2, acquire_seconds=5, statement_seconds=5, pooled=True) for _ in range(2)]
        for db in pooled:
            await db.open({"dsn": bouncer.url(cluster.serving_role, database)})
        for _ in range(5):
            found = await asyncio.gather(*(read_each(db, SCOPES, table.sql, ALL) for db in pooled))
            assert [seen(rows) for rows in found[0]] == [seen(rows) for rows in found[1]]
            assert seen(found[0][7]) == [7]
        for db in pooled:
            await db.close()
