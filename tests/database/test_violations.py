"""A statement that Postgres refuses: what the handler catches, what is undone, and what the client sees otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from kits.product import Work, at_work, labels

from server import CheckViolation, ForeignKeyViolation, UniqueViolation, scoped
from tests.conftest import ALICE, Client, Serve, TestDatabase

INSERT = "INSERT INTO labels (organization_id, name) VALUES ('org_a', $1) RETURNING id"
KEYED = {**ALICE, "Idempotency-Key": "one"}
WAYS = {"alone": ("GET", ALICE), "in one transaction with its record": ("POST", KEYED)}


@pytest.fixture
async def db(db: TestDatabase) -> AsyncIterator[TestDatabase]:
    async with labels(db):
        yield db


async def names(db: TestDatabase) -> list[str]:
    return [row["name"] for row in await db.rows("SELECT name FROM labels ORDER BY id")]


async def done(serve: Serve, way: str, work: Work, **settings: Any) -> Any:
    """The answer of a handler that does this work, for a plain request or one with an Idempotency-Key."""
    client = await serve({"database.pool_size": 2, **settings}, extra={"acme": at_work(work)})
    method, headers = WAYS[way]
    got = await client.send(method, "/work", headers)
    await in_order(client)
    return got


async def in_order(client: Client) -> None:
    """Every connection is fit to be used again."""
    assert [(await client.get("/api/data", ALICE)).status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_raised_around_scoped(serve: Serve, db: TestDatabase, way: str) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            await sql.fetchval(INSERT, "first")
        try:
            async with scoped(request) as sql:
                await sql.execute("INSERT INTO labels (organization_id, name) VALUES ('org_a', 'with it')")
                await sql.fetchval(INSERT, "first")
        except UniqueViolation as taken:
            return {"taken": taken.constraint}

    assert (await done(serve, way, work)).json()["result"] == {"taken": "labels_name"}
    assert await names(db) == ["first"]


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_raised_inside_scoped_and_goes_on_after_a_savepoint(serve: Serve, db: TestDatabase, way: str) -> None:
    async def work(request: web.Request) -> Any:
        taken = []
        async with scoped(request) as sql:
            for name in ("one", "one", "two", "two", "three"):
                try:
                    async with sql.savepoint():
                        await sql.fetchval(INSERT, name)
                except UniqueViolation:
                    taken.append(name)
            return [taken, await sql.fetchval("SELECT current_setting('gatepost.org_id')")]

    assert (await done(serve, way, work)).json()["result"] == [["one", "two"], "org_a"]
    assert await names(db) == ["one", "two", "three"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["fetch", "fetchrow", "fetchval", "execute", "row"])
async def test_every_method_raises_it(serve: Serve, db: TestDatabase, way: str, method: str) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            await sql.fetchval(INSERT, "one")
            try:
                async with sql.savepoint():
                    await getattr(sql, method)(INSERT, "one")
            except UniqueViolation as taken:
                return str(taken)

    assert (await done(serve, way, work)).json()["result"] == "Conflict"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sql", "kind", "constraint", "status"),
    [
        ("INSERT INTO labels (organization_id, name, parent) VALUES ('org_a', 'x', 0)", ForeignKeyViolation, "labels_parent_fkey", 409),
        ("INSERT INTO labels (organization_id, name, size) VALUES ('org_a', 'x', 0)", CheckViolation, "labels_size", 422),
        ("INSERT INTO labels (organization_id, name) VALUES ('org_a', 'x'), ('org_a', 'x')", UniqueViolation, "labels_name", 409),
    ],
)
async def test_the_other_constraints(serve: Serve, db: TestDatabase, way: str, sql: str, kind: Any, constraint: str, status: int) -> None:
    async def caught(request: web.Request) -> Any:
        try:
            async with scoped(request) as db:
                await db.execute(sql)
        except kind as broken:
            return broken.constraint

    async def left(request: web.Request) -> Any:
        async with scoped(request) as db:
            await db.execute(sql)

    assert (await done(serve, way, caught)).json()["result"] == constraint
    got = await done(serve, "alone", left)
    assert (got.status, set(got.json())) == (status, {"error"} | ({"fields"} if status == 422 else set()))
    assert await names(db) == []


@pytest.mark.parametrize("way", WAYS)
async def test_unhandled_it_is_a_409(serve: Serve, db: TestDatabase, way: str) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            await sql.fetchval(INSERT, "one")
            async with sql.savepoint():
                await sql.fetchval(INSERT, "one")

    got = await done(serve, way, work)
    assert (got.status, got.json()) == (409, {"error": "Conflict"})
    assert await names(db) == []


async def test_a_deferred_constraint_is_raised_at_the_end_of_the_block(serve: Serve, db: TestDatabase) -> None:
    async def work(request: web.Request) -> Any:
        inside = False
        try:
            async with scoped(request) as sql:
                for name in "ab":
                    await sql.execute("INSERT INTO labels (organization_id, name, later) VALUES ('org_a', $1, 'same')", name)
                inside = True
        except UniqueViolation as taken:
            return [inside, taken.constraint]

    assert (await done(serve, "alone", work)).json()["result"] == [True, "labels_later"]
    assert await names(db) == []


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_that_is_caught_without_a_savepoint_commits_nothing(
    serve: Serve, db: TestDatabase, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500, and a line that says what to do."""

    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            await sql.fetchval(INSERT, "one")
            with suppress(UniqueViolation):
                await sql.fetchval(INSERT, "one")
            await sql.fetchval(INSERT, "two")

    assert (await done(serve, way, work)).status == 500
    assert await names(db) == []
    assert "db.savepoint()" in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize("way", WAYS)
async def test_one_that_is_caught_inside_the_savepoint_undoes_that_alone(serve: Serve, db: TestDatabase, way: str) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            await sql.fetchval(INSERT, "one")
            try:
                async with sql.savepoint():
                    await sql.fetchval(INSERT, "two")
                    with suppress(UniqueViolation):
                        await sql.fetchval(INSERT, "two")
            except Exception as error:
                await sql.fetchval(INSERT, "three")
                return type(error).__name__

    assert (await done(serve, way, work)).json()["result"] == "StatementError"
    assert await names(db) == ["one", "three"]


@pytest.mark.parametrize("way", WAYS)
async def test_savepoints_in_savepoints(serve: Serve, db: TestDatabase, way: str) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            async with sql.savepoint():
                await sql.fetchval(INSERT, "outer")
                try:
                    async with sql.savepoint():
                        await sql.fetchval(INSERT, "inner")
                        raise LookupError
                except LookupError:
                    pass
            try:
                async with sql.savepoint():
                    await sql.fetchval(INSERT, "undone")
                    async with sql.savepoint():
                        await sql.fetchval(INSERT, "kept, but its outer is not")
                    raise LookupError
            except LookupError:
                pass
        return 1

    assert (await done(serve, way, work)).status == 200
    assert await names(db) == ["outer"]


@pytest.mark.parametrize("way", WAYS)
async def test_a_savepoint_that_runs_out_of_time_is_undone(serve: Serve, db: TestDatabase, way: str) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            try:
                async with asyncio.timeout(0.2):
                    async with sql.savepoint():
                        await sql.fetchval(INSERT, "undone")
                        await sql.execute("SELECT pg_sleep(20)")
            except TimeoutError:
                await sql.fetchval(INSERT, "after")
        return 1

    got = await done(serve, way, work)
    assert got.status in (200, 503)  # either all that is not undone, or nothing
    assert await names(db) == (["after"] if got.status == 200 else [])


@pytest.mark.parametrize("way", WAYS)
async def test_it_cannot_be_used_after_its_block(serve: Serve, db: TestDatabase, way: str) -> None:
    """Neither the block's connection, which is another request's by now, nor a savepoint of it."""

    async def work(request: web.Request) -> Any:
        kept, said = [], []
        async with scoped(request) as sql:
            kept.append(sql)
        try:
            async with scoped(request) as sql:
                kept.append(sql)
                raise LookupError
        except LookupError:
            pass
        for sql in kept:
            for use in (sql.fetch("SELECT 1"), sql.row("SELECT 1 AS one"), sql.execute(INSERT, "x")):
                try:
                    await use
                except RuntimeError as error:
                    said.append(str(error))
            try:
                async with sql.savepoint():
                    pass
            except RuntimeError as error:
                said.append(str(error))
        return said

    assert (await done(serve, way, work)).json()["result"] == ["used after its block was left"] * 8


async def test_a_task_that_is_left_behind_runs_nothing_in_another_callers_transaction(serve: Serve, db: TestDatabase) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def work(request: web.Request) -> Any:
        async def later(sql: Any) -> None:
            await asyncio.sleep(0.1)
            await sql.fetchval(INSERT, "too late")

        async with scoped(request) as sql:
            tasks.append(asyncio.create_task(later(sql)))
        return 1

    assert (await done(serve, "alone", work)).status == 200
    (failed,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(failed, RuntimeError)
    assert await names(db) == []


async def test_a_savepoint_of_a_task_that_is_left_behind_touches_no_other_request(serve: Serve, db: TestDatabase) -> None:
    """Its transaction is not committed by half, and what it does later does not reach the connection's next transaction."""
    tasks: list[asyncio.Task[Any]] = []
    leave_it, inside = asyncio.Event(), asyncio.Event()

    async def work(request: web.Request) -> Any:
        async def later(sql: Any) -> None:
            async with sql.savepoint():
                await sql.fetchval(INSERT, "half")
                inside.set()
                await leave_it.wait()
                if len(tasks) == 2:
                    raise LookupError

        if request.query:
            async with scoped(request) as sql:
                await sql.fetchval(INSERT, "before")
                leave_it.set()
                await asyncio.gather(*tasks, return_exceptions=True)
                await sql.fetchval(INSERT, "after")
            return 1
        inside.clear()
        async with scoped(request) as sql:
            tasks.append(asyncio.create_task(later(sql)))
            await inside.wait()
        return None

    client = await serve({"database.pool_size": 1}, extra={"acme": at_work(work)})
    assert [(await client.get("/work", ALICE)).status for _ in range(2)] == [500, 500]
    assert await names(db) == []
    assert (await client.get("/work?other", ALICE)).status == 200
    assert [type(task.exception()) for task in tasks] == [RuntimeError, LookupError] or {type(task.exception()) for task in tasks} <= {
        RuntimeError, LookupError,
    }  # fmt: skip
    assert await names(db) == ["before", "after"]
    await in_order(client)
