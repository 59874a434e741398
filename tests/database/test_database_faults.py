"""Postgres becomes unavailable in every possible way: 503 meanwhile, and everything works again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from kits.faults import Fragile, fragile_server

from server import answer, body, read, scoped, signed_in
from server.schema.startup import StartFailed
from tests.conftest import ALICE, BOB, Client, Got, MakeApp, Serve, TestDatabase, plugin

BRIEF = {"database.acquire_seconds": 0.5, "database.statement_seconds": 0.5}


@pytest.fixture(scope="module")
def fragile() -> Iterator[Fragile]:
    """A Postgres server for this file alone."""
    with fragile_server() as server:
        yield server


@pytest.fixture(scope="module")
def fragile_database(fragile: Fragile) -> TestDatabase:
    async def make() -> TestDatabase:
        return TestDatabase(fragile, await fragile.fresh())

    return asyncio.run(make())


@pytest.fixture
async def db(fragile: Fragile, fragile_database: TestDatabase) -> AsyncIterator[TestDatabase]:
    """The fragile database in place of the usual one; it is repaired after each test."""
    yield fragile_database
    with contextlib.suppress(OSError):
        fragile.send(signal.SIGCONT)
    fragile.up()
    await fragile_database.empty()


# Handlers that take long, or do what they should not ------------------------------------------------------------------------

routes = web.RouteTableDef()


@routes.post("/sql")
@signed_in
async def run_sql(request: web.Request) -> web.Response:
    """Runs the statements in the body, in one transaction."""
    async with scoped(request) as db:
        for sql in await body(request, list[str]):
            await db.execute(sql)
    return answer({"done": True})


@routes.post("/rows")
@signed_in
async def run_fetch(request: web.Request) -> web.Response:
    async with scoped(request) as db:
        return answer([dict(row) for row in await db.fetch(await body(request, str))])


@routes.get("/slow/read")
@signed_in
async def slow_read(request: web.Request) -> web.Response:
    return answer(await read(request, "SELECT pg_sleep(10)::text AS slept"))


SLOW = ["INSERT INTO data (user_id, name) VALUES ('alice', 'half')", "SELECT pg_sleep(10)"]
# It has the connection until the advisory lock 77 is free, and waits for it without a lock's time-out.
UNTIL_UNLOCKED = "DO $$ BEGIN WHILE NOT pg_try_advisory_xact_lock(77) LOOP PERFORM pg_sleep(0.05); END LOOP; END $$"
LONG = {"database.acquire_seconds": 2.0, "database.statement_seconds": 20.0}


@pytest.fixture
def serve_sql(serve: Serve) -> Callable[..., Awaitable[Client]]:
    """A server with the handlers above and short waits."""
    return lambda **settings: serve({**BRIEF, **settings}, extra={"sql": plugin(*routes)})


def unavailable(got: Got) -> None:
    """The one response to every failure of the database."""
    assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})
    assert int(got.headers["Retry-After"]) >= 1
    assert got.headers["Cache-Control"] == "no-store"
    assert len(got.headers["X-Request-Id"]) == 24


async def without_database(client: Client) -> None:
    """Requests that need no database are still answered, and quickly."""
    started = time.perf_counter()
    assert (await client.get("/api/health")).json() == {"status": "ok"}
    assert (await client.get("/api/me", ALICE)).json()["user_id"] == "alice"
    assert (await client.get("/api/me")).status == 401
    assert (await client.get("/api/nothing", ALICE)).status == 404
    assert (await client.post("/api/data", ALICE, {"name": 5})).status == 422
    assert time.perf_counter() - started < 2


async def well_again(client: Client, seconds: float = 10) -> None:
    """Both `read` and `scoped` work again within `seconds`; until then every response is a 503."""
    end = time.monotonic() + seconds
    while True:
        got = await client.post("/api/data", ALICE, {"name": "after"})
        if got.status == 201:
            break
        unavailable(got)
        assert time.monotonic() < end, "it does not recover"
        await asyncio.sleep(0.05)
    many = await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(8)))
    while any(got.status == 503 for got in many) and time.monotonic() < end:
        many = await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(8)))
    assert {got.status for got in many} == {200}
    assert {row["name"] for row in many[0].json()} >= {"after"}


async def running(db: TestDatabase, sql: str, number: int = 1) -> list[int]:
    """Wait until `number` backends run `sql`; their process ids."""
    for _ in range(200):
        found = await db.rows("SELECT pid FROM pg_stat_activity WHERE query LIKE $1 AND state = 'active'"
                              " AND pid <> pg_backend_pid()", f"%{sql}%")  # fmt: skip
        if len(found) >= number:
            return [row["pid"] for row in found]
        await asyncio.sleep(0.01)
    raise AssertionError(f"nobody runs {sql}")


# Gone, and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGQUIT])
async def test_a_postgres_that_goes_and_comes_back(
    serve_sql: Any, fragile: Fragile, db: TestDatabase, how: signal.Signals
) -> None:
    client = await serve_sql(**LONG)
    assert (await client.post("/api/data", ALICE, {"name": "before"})).status == 201
    under_way = [asyncio.ensure_future(ask) for ask in (client.post("/sql", ALICE, SLOW), client.get("/slow/read", ALICE))]
    await running(db, "pg_sleep", 2)
    await asyncio.to_thread(fragile.down, how)
    for got in await asyncio.gather(*under_way):
        unavailable(got)
    for _ in range(3):
        unavailable(await client.get("/api/data", ALICE))
        unavailable(await client.post("/api/data", ALICE, {"name": "x"}))
    await without_database(client)
    await asyncio.to_thread(fragile.up)
    await well_again(client)
    assert {row["name"] for row in await db.rows("SELECT name FROM data")} == {"before", "after"}


async def test_a_backend_that_is_killed_takes_all_down_for_a_moment(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**LONG)
    under_way = [asyncio.ensure_future(client.post("/sql", ALICE, SLOW)) for _ in range(2)]
    pids = await running(db, "pg_sleep", 2)
    os.kill(pids[0], signal.SIGKILL)
    for got in await asyncio.gather(*under_way):
        unavailable(got)
    await without_database(client)
    await well_again(client)
    assert {row["name"] for row in await db.rows("SELECT name FROM data")} == {"after"}


async def test_a_postgres_that_stands_still_is_a_503_in_bounded_time(
    serve_sql: Any, fragile: Fragile, db: TestDatabase
) -> None:
    client = await serve_sql(**{"database.pool_size": 2})
    assert (await client.get("/api/data", ALICE)).status == 200
    fragile.send(signal.SIGSTOP)
    started = time.perf_counter()
    asked = [client.get("/api/data", ALICE), client.post("/api/data", ALICE, {"name": "x"}), client.get("/api/data", BOB),
             client.get(f"/api/data/{'0' * 8}-0000-4000-8000-{'0' * 12}", ALICE)]  # fmt: skip
    waiting = asyncio.gather(*asked)
    await without_database(client)
    for got in await waiting:
        unavailable(got)
    assert time.perf_counter() - started < 6
    unavailable(await client.get("/api/data", ALICE))
    fragile.send(signal.SIGCONT)
    await well_again(client)


async def test_a_connection_ended_by_the_administrator(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**LONG)
    under_way = asyncio.ensure_future(client.post("/sql", ALICE, SLOW))
    await running(db, "pg_sleep")
    await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost'")
    unavailable(await under_way)
    await well_again(client)
    assert {row["name"] for row in await db.rows("SELECT name FROM data")} == {"after"}


async def test_a_database_that_refuses_connections(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql()
    async with db.server.as_admin() as admin:
        await admin.execute(f'ALTER DATABASE "{db.name}" ALLOW_CONNECTIONS false')
        await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", db.name)
        await asyncio.sleep(0.05)
        unavailable(await client.get("/api/data", ALICE))
        await without_database(client)
        await admin.execute(f'ALTER DATABASE "{db.name}" ALLOW_CONNECTIONS true')
    await well_again(client)


async def test_no_connection_to_be_had(serve_sql: Any, db: TestDatabase) -> None:
    """53300: a request waits if there is an open connection to wait for; otherwise it gets a 503."""
    client, role = await serve_sql(**LONG), db.server.serving_role
    under_way = [asyncio.ensure_future(client.post("/sql", ALICE, ["SELECT pg_sleep(0.5)"])) for _ in range(2)]
    await running(db, "pg_sleep", 2)
    try:
        await db.rows(f'ALTER ROLE "{role}" CONNECTION LIMIT 1')
        assert {got.status for got in await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(8)))} == {200}
        assert {got.status for got in await asyncio.gather(*under_way)} == {200}
        await db.rows(f'ALTER ROLE "{role}" CONNECTION LIMIT 0')
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
        await asyncio.sleep(0.05)
        unavailable(await client.get("/api/data", ALICE))
    finally:
        await db.rows(f'ALTER ROLE "{role}" CONNECTION LIMIT -1')
    await well_again(client)


async def test_a_start_without_a_database_stops_in_one_line(make_app: MakeApp, fragile: Fragile) -> None:
    fragile.down(signal.SIGINT)
    runner = web.AppRunner(make_app(BRIEF))
    with pytest.raises(StartFailed, match=r"^the database cannot be reached: database: \w+ \(\S+\): is Postgres running there[^\n]*\?$"):
        await runner.setup()
    await runner.cleanup()


# Too slow, too many --------------------------------------------------------------------------------------------------------


async def test_an_exhausted_pool_is_a_503_after_the_wait_that_was_set(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**{"database.pool_size": 1, "database.acquire_seconds": 0.3, "database.statement_seconds": 300.0})
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("SELECT pg_advisory_lock(77)")
        slow = asyncio.ensure_future(client.post("/sql", ALICE, [UNTIL_UNLOCKED]))
        await running(db, "pg_sleep")
        started = time.perf_counter()
        for got in await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(5))):
            unavailable(got)
        assert time.perf_counter() - started > 0.25
        await without_database(client)
        assert not slow.done(), "the others did not wait for it"
    assert (await slow).status == 200
    assert (await client.get("/api/data", ALICE)).status == 200


async def test_a_statement_that_takes_too_long_is_a_503_and_leaves_nothing(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**{"database.pool_size": 1, "database.statement_seconds": 0.2})
    for ask in (client.post("/sql", ALICE, SLOW), client.get("/slow/read", ALICE)):
        started = time.perf_counter()
        unavailable(await ask)
        assert time.perf_counter() - started < 2
        assert (await client.get("/api/data", ALICE)).json() == []
    assert await db.rows("SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND application_name = 'gatepost'") == []


async def test_a_row_that_is_locked_is_waited_for_and_then_a_503(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**{"database.statement_seconds": 0.3})
    row = (await client.post("/api/data", ALICE, {"name": "before"})).json()
    async with db.server.as_admin(db.name) as admin, admin.transaction():
        await admin.execute("LOCK TABLE data")
        unavailable(await client.patch(f"/api/data/{row['id']}", ALICE, {"name": "x"}))
        unavailable(await client.get("/api/data", ALICE))
    assert (await client.patch(f"/api/data/{row['id']}", ALICE, {"name": "after"})).status == 200


async def test_a_client_that_goes_away_leaves_the_connection_in_order(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**{"database.pool_size": 1, "database.statement_seconds": 0.3})
    for _ in range(3):
        async with client.wire() as wire:
            await wire.send("GET /slow/read", ALICE)
            await running(db, "pg_sleep")
        for _ in range(20):
            got = await client.post("/rows", BOB, "SELECT * FROM data")
            if got.status == 200:
                break
        assert got.json() == []
    await well_again(client)


# What Postgres refuses -----------------------------------------------------------------------------------------------------


def raising(state: str) -> str:
    """A statement that fails with this SQLSTATE, with a message that must not reach a client."""
    said = "MESSAGE = 'secret-message', DETAIL = 'Key (name)=(secret-detail)', HINT = 'secret-hint', TABLE = 'secret_table'"
    return f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}', {said}; END $$"


STATES = {
    "23505": 409, "23503": 409, "23P01": 409, "42501": 403, "22001": 422, "22003": 422, "22P02": 422, "22021": 422,
    "23502": 422, "23514": 422, "08006": 503, "53100": 503, "53200": 503, "53300": 503, "54001": 422, "55P03": 503,
    "55006": 503, "57014": 503, "57P01": 503, "57P03": 503, "58030": 503, "40001": 503, "40P01": 503, "25006": 503,
    "XX000": 503, "XX001": 503, "42P01": 500, "42601": 500, "P0001": 500, "0A000": 500,
}  # fmt: skip


async def test_every_state_has_one_meaning_and_no_text_of_postgres_goes_out(
    serve_sql: Any, db: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = await serve_sql(**{"database.pool_size": 1})
    write = "INSERT INTO data (user_id, name) VALUES ('alice', 'secret-row')"
    for state, status in STATES.items():
        got = await client.post("/sql", ALICE, [write, raising(state)])
        assert got.status == status, (state, got)
        assert ("Retry-After" in got.headers) == (status == 503)
        assert set(got.json()) <= {"error", "fields", "reason"}
        assert "secret" not in got.raw.decode() + str(got.headers)
    assert await db.count("data") == 0
    assert (await client.get("/api/data", ALICE)).json() == []
    assert [record for record in caplog.records if "secret" in f"{record.__dict__}{record.getMessage()}"] == []
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) >= 10  # but not silently


async def test_real_violations(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql()
    key = "INSERT INTO api_keys (id, hash, name, user_id, created_by) VALUES ('{}', '\\x{}', 'n', 'alice', 'alice')"
    first, second = key.format("k1", "aa" * 32), key.format("k1", "bb" * 32)
    for statements, status in (
        ([first, second], 409),
        (["UPDATE data SET user_id = 'bob'"], 500),  # no grant on that column: the handler's mistake, not another tenant's row
        (["INSERT INTO data (user_id, name) VALUES ('bob', 'x')"], 403),
        (["INSERT INTO data (user_id, name) VALUES ('alice', repeat('x', 201))"], 422),
        (["INSERT INTO data (user_id, name) VALUES ('alice', NULL)"], 422),
        (["SELECT 1 / 0"], 422),
        (["SET TRANSACTION READ ONLY", "INSERT INTO data (user_id, name) VALUES ('alice', 'x')"], 503),
        (["SELECT pg_terminate_backend(pg_backend_pid())"], 503),
        (["SELECT nothing FROM nowhere"], 500),
        (["NOT SQL"], 500),
    ):
        got = await client.post("/sql", ALICE, statements)
        assert got.status == status, (statements, got)
        if status == 403:
            assert got.json()["error"] == "Forbidden"
    assert await db.count("data") + await db.count("api_keys") == 0
    await well_again(client)


async def test_a_deadlock_is_a_503_for_one_of_two(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**LONG)
    one, two = [(await client.post("/api/data", ALICE, {"name": n})).json()["id"] for n in "ab"]
    lock = "SELECT 1 FROM data WHERE id = '{}' FOR UPDATE"
    both = await asyncio.gather(*(
        client.post("/sql", ALICE, [lock.format(first), "SELECT pg_sleep(1)", lock.format(last)])
        for first, last in ((one, two), (two, one))
    ))  # fmt: skip
    assert sorted(got.status for got in both) == [200, 503]


async def test_a_schema_that_changes_under_the_server(serve_sql: Any, db: TestDatabase) -> None:
    client = await serve_sql(**{"database.pool_size": 1})
    assert (await client.post("/api/data", ALICE, {"name": "one"})).status == 201
    for change in ("ADD COLUMN more text", "ALTER COLUMN more TYPE varchar(9)", "DROP COLUMN more"):
        assert (await client.get("/api/data", ALICE)).status == 200
        assert (await client.post("/rows", ALICE, "SELECT * FROM data")).status in (200, 403, 422, 503)
        await db.rows(f"ALTER TABLE data {change}")
        assert (await client.get("/api/data", ALICE)).status == 200
        assert (await client.post("/api/data", ALICE, {"name": "two"})).status == 201
        star = [(await client.post("/rows", ALICE, "SELECT name, data.* FROM data LIMIT 0")).status for _ in range(3)]
        assert star[-1] == 200
        assert set(star) <= {200, 503}
