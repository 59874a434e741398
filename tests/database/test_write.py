"""`write`: what a handler gets from it is what `scoped` and `db.row` would have given it, with one statement in place of four."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.product import at_work, labels

from server import UniqueViolation, answer, read, scoped, signed_in, write
from server.app import SERVER_DATABASE
from tests.conftest import ADMIN_A, ALICE, BOB, Serve, TestDatabase, plugin
from tests.database.test_violations import WAYS, done, in_order, names

INSERT = "INSERT INTO labels (organization_id, name) VALUES ('org_a', $1) RETURNING name, size"
SAME: dict[str, tuple[str, tuple[Any, ...], int]] = {
    "a row": (INSERT, ("one",), 200),
    "a row and a comment": (INSERT + " -- the end", ("one",), 200),
    "no row": ("UPDATE labels SET name = $1 WHERE name = 'nothing' RETURNING name", ("x",), 200),
    "a change": ("UPDATE labels SET name = $1 WHERE name = 'old' RETURNING name", ("new",), 200),
    "a deletion": ("DELETE FROM labels WHERE name = $1 RETURNING name", ("old",), 200),
    "WITH before": ("WITH x AS (SELECT $1::text AS n) INSERT INTO labels (organization_id, name) SELECT 'org_a', n FROM x RETURNING name", ("w",), 200),
    "no conflict": (INSERT.replace("RETURNING", "ON CONFLICT (organization_id, name) DO NOTHING RETURNING"), ("old",), 200),
    "unique": (INSERT, ("old",), 409),
    "foreign key": ("INSERT INTO labels (organization_id, name, parent) VALUES ('org_a', $1, 0) RETURNING id", ("x",), 409),
    "check": ("INSERT INTO labels (organization_id, name, size) VALUES ('org_a', $1, 0) RETURNING id", ("x",), 422),
    "another organisation": ("INSERT INTO labels (organization_id, name) VALUES ('org_b', $1) RETURNING id", ("x",), 403),
    "a value too large": ("INSERT INTO labels (organization_id, name, size) VALUES ('org_a', 'x', $1) RETURNING id", (2**70,), 422),
    "NUL": (INSERT, ("a\0b",), 422),
    "half a character": (INSERT, ("\ud800",), 422),
    "a number for a text": (INSERT, (5,), 500),
    "a column without a grant": ("UPDATE labels SET organization_id = $1 RETURNING id", ("org_b",), 500),
    "a division by zero": ("INSERT INTO labels (organization_id, name, size) VALUES ('org_a', 'x', 1 / $1) RETURNING id", (0,), 422),
    "no such table": ("INSERT INTO nowhere (n) VALUES ($1) RETURNING n", (1,), 500),
    "no RETURNING": ("INSERT INTO labels (organization_id, name) VALUES ('org_a', $1)", ("x",), 500),
    "no SQL": ("INSERT INTO INTO", (), 500),
    "a second statement": (INSERT + "; DELETE FROM labels", ("x",), 500),
    "too few arguments": (INSERT, (), 500),
    "too many arguments": (INSERT, ("x", "y"), 500),
    "gone in the same": ("WITH gone AS (DELETE FROM labels RETURNING 1) INSERT INTO labels (organization_id, name) VALUES ('org_a', $1) RETURNING id", ("x",), 500),
}  # fmt: skip


@pytest.fixture
async def db(db: TestDatabase) -> AsyncIterator[TestDatabase]:
    async with labels(db):
        yield db


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SAME)
async def test_it_does_what_scoped_does(serve: Serve, db: TestDatabase, way: str, case: str) -> None:
    sql, args, status = SAME[case]

    async def work(request: web.Request) -> Any:
        if request.headers["X-How"] == "write":
            return json.loads(await write(request, sql, *args) or "null")
        async with scoped(request) as one:
            return json.loads(await one.row(sql, *args) or "null")

    client = await serve({"database.pool_size": 2}, extra={"acme": at_work(work)})
    method, headers = WAYS[way]
    seen = []
    for how in ("write", "scoped"):
        await db.rows("DELETE FROM labels")
        await db.rows("INSERT INTO labels (organization_id, name) VALUES ('org_a', 'old')")
        got = await client.send(method, "/work", {**headers, "X-How": how})
        logged = await db.rows("SELECT actor, user_id, org_id, action, target, changed FROM audit_log WHERE request_id = $1",
                               got.headers["X-Request-Id"])  # fmt: skip
        seen.append((got.status, got.json(), await names(db), logged))
        await db.rows("DELETE FROM idempotency_keys")
        await in_order(client)
    assert seen[0] == seen[1]
    assert seen[0][0] == status
    assert status == 200 or seen[0][2:] == (["old"], [])
    assert [one["actor"] for one in seen[0][3]] == ([] if status != 200 or case in ("no row", "no conflict") else ["alice"])


@pytest.mark.parametrize("way", WAYS)
async def test_a_violation_can_be_caught(serve: Serve, db: TestDatabase, way: str) -> None:
    """The request goes on after it, with or without a key; of a constraint that is checked in the COMMIT, too."""
    async def work(request: web.Request) -> Any:
        told = []
        for name, later in (("one", "a"), ("one", "b"), ("two", "a"), ("three", "c")):
            try:
                await write(request, INSERT.replace("name)", "name, later)").replace("$1)", "$1, $2)"), name, later)
            except UniqueViolation as taken:
                told.append(taken.constraint)
        return [told, json.loads(await read(request, "SELECT name FROM labels ORDER BY name"))]

    got = await done(serve, "alone", work)
    assert got.json()["result"] == [["labels_name", "labels_later"], [{"name": "one"}, {"name": "three"}]]
    await db.rows("DELETE FROM labels")
    if way != "alone":  # there one COMMIT ends the whole request, so it is refused then, and nothing is written
        assert (await done(serve, way, work)).status == 409
        assert await names(db) == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_second_row_is_a_500_and_writes_nothing(
    serve: Serve, db: TestDatabase, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(request: web.Request) -> Any:
        return await write(request, "INSERT INTO labels (organization_id, name) SELECT 'org_a', n FROM unnest($1::text[]) AS n RETURNING id", ["a", "b"])

    assert (await done(serve, way, work)).status == 500
    assert await names(db) == []
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "handler failed"]  # type: ignore[attr-defined]
    assert "more than one row" in line["why"]


@pytest.mark.parametrize("sql", ["SELECT 1 AS x", "  select 1", "VALUES (1)", "TABLE labels", "TRUNCATE labels", "", "WITH a AS (SELECT 'INSERT') SELECT 1",
                                 "-- INSERT\nSELECT 1", "CREATE TABLE x ()", "SET ROLE postgres", "EXPLAIN INSERT INTO labels DEFAULT VALUES"])  # fmt: skip
async def test_what_is_no_write_is_refused_before_it_is_sent(serve: Serve, db: TestDatabase, sql: str) -> None:
    async def work(request: web.Request) -> Any:
        with pytest.raises(ValueError, match=r"write\(\) runs one INSERT"):
            await write(request, sql)
        return "refused"

    for way in WAYS:
        assert (await done(serve, way, work)).json()["result"] == "refused"


async def test_no_argument_beyond_its_own(serve: Serve, db: TestDatabase) -> None:
    """`$2` would be the caller's user id: the statement is refused, not sent."""
    for way in WAYS:
        got = await done(serve, way, lambda request: write(request, INSERT.replace("$1", "$2"), "x"))
        assert got.status == 500
    assert await names(db) == []


async def test_a_key_undoes_it_with_everything_else(serve: Serve, db: TestDatabase) -> None:
    """In a request with an Idempotency-Key it is a part of the one transaction, and is seen by what follows."""

    async def work(request: web.Request) -> Any:
        await write(request, INSERT, "one")
        async with scoped(request) as one:
            await one.execute("INSERT INTO labels (organization_id, name) VALUES ('org_a', 'two')")
            await write(request, INSERT, "three")
        assert len(json.loads(await read(request, "SELECT name FROM labels"))) == 3
        raise web.HTTPConflict

    assert (await done(serve, "in one transaction with its record", work)).status == 409
    assert await names(db) == []


async def test_it_commits_by_itself(serve: Serve, db: TestDatabase) -> None:
    """Without a key what fails afterwards does not undo it, and it is no part of a `scoped` around it."""

    async def work(request: web.Request) -> Any:
        async with scoped(request) as one:
            await one.execute("INSERT INTO labels (organization_id, name) VALUES ('org_a', 'undone')")
            await write(request, INSERT, "kept")
            raise web.HTTPConflict

    assert (await done(serve, "alone", work, **{"database.pool_size": 4})).status == 409
    assert await names(db) == ["kept"]


async def test_the_administrators_scope(serve: Serve, db: TestDatabase) -> None:
    """`admin=True` is a 403 for a member, and for an administrator a row of another user."""
    client = await serve(extra={"acme": at_work(lambda request: write(request, "DELETE FROM data RETURNING user_id", admin=True))})
    for who, rows in ((ALICE, 1), (ADMIN_A, 0)):
        assert (await client.post("/api/data", BOB if not rows else who, {"name": "x"})).status == 201
    await db.rows("DELETE FROM data WHERE user_id = 'bob'")
    got = await client.get("/work", ALICE)
    assert (got.status, got.json()["reason"]) == (403, "role")
    assert json.loads((await client.get("/work", ADMIN_A)).json()["result"]) == {"user_id": "alice"}


routes = web.RouteTableDef()


@routes.post("/slow")
@signed_in
async def slow(request: web.Request) -> web.Response:
    return answer(await write(request, INSERT.replace("'org_a', $1", "'org_a', $1 || pg_sleep(0.3)"), request.headers["X-Name"]))


async def test_a_caller_has_half_of_the_connections(serve: Serve, db: TestDatabase) -> None:
    client = await serve({"database.pool_size": 8, "database.acquire_seconds": 30.0}, extra={"these": plugin(*routes)})
    pool = client.app[SERVER_DATABASE].database.pool
    assert pool is not None
    tasks = [asyncio.ensure_future(client.post("/slow", {**ALICE, "X-Name": f"n{n}"})) for n in range(12)]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, pool._shares._counts.get("user/alice", 0))
        await asyncio.sleep(0.01)
    assert most == 4
    assert {task.result().status for task in tasks} == {200}
    assert len(await names(db)) == 12


async def test_one_statement_and_no_more(serve: Serve, db: TestDatabase) -> None:
    """The last statement of the session is the write itself, with no COMMIT after it; and its row is there."""
    client = await serve({"database.pool_size": 1}, extra={"acme": at_work(lambda request: write(request, INSERT, request.headers["X-Name"]))})
    assert (await client.get("/work", {**ALICE, "X-Name": "first"})).status == 200
    database = client.app[SERVER_DATABASE].database
    async with database.connection() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
    assert (await client.get("/work", {**ALICE, "X-Name": "second"})).status == 200
    after = (await db.rows("SELECT state, query FROM pg_stat_activity WHERE pid = $1", pid))[0]
    assert after["state"] == "idle"
    assert after["query"].startswith("WITH gatepost_row AS (")
    assert await names(db) == ["first", "second"]
