"""After a fault: connections in an unknown state, statements that are still running, a COMMIT that was a rollback."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from kits.faults import Fragile, link

from server import answer, read, scoped, signed_in
from server.app import SERVER_DATABASE
from server.database.connections import Database
from tests.conftest import ALICE, BOB, Client, Serve, TestDatabase, plugin, stub
from tests.database.test_database_faults import (
    db,  # noqa: F401 - in place of the usual one
    fragile,  # noqa: F401
    fragile_database,  # noqa: F401
    run_fetch,
    run_sql,
    running,
    slow_read,
    unavailable,
    well_again,
)

routes = web.RouteTableDef()
routes.post("/sql")(run_sql)
routes.post("/rows")(run_fetch)
routes.get("/slow/read")(slow_read)


@routes.get("/typed/{id}")
@signed_in
async def typed(request: web.Request) -> web.Response:
    return answer(await read(request, "SELECT name FROM data WHERE id = $1", request.match_info["id"]))


@routes.post("/swallowed")
@signed_in
async def swallowed(request: web.Request) -> web.Response:
    """Ignores a failed statement, and continues."""
    async with scoped(request) as one:
        await one.execute("INSERT INTO data (user_id, name) VALUES ('alice', 'swallowed')")
        try:
            await one.execute("SELECT 1 / 0")
        except Exception:
            logging.getLogger("test").debug("never mind")
    return answer({"done": True}, 201)


@routes.get("/composite")
@signed_in
async def composite(request: web.Request) -> web.Response:
    async with scoped(request) as one:
        return answer([len(row["d"]) for row in await one.fetch("SELECT d FROM data AS d")])


@pytest.fixture
def serve_these(serve: Serve) -> Any:
    brief = {"database.acquire_seconds": 0.5, "database.statement_seconds": 0.5}
    return lambda **settings: serve({**brief, **settings}, extra={"these": plugin(*routes)})


def opened(client: Client) -> Database:
    return client.app[SERVER_DATABASE].database


async def backends(db: TestDatabase) -> dict[int, str]:  # noqa: F811
    return {row["pid"]: row["state"] for row in await db.rows(
        "SELECT pid, state FROM pg_stat_activity WHERE application_name = 'gatepost'")}  # fmt: skip


async def quiet(db: TestDatabase, seconds: float = 2) -> None:  # noqa: F811
    """Wait until none of the server's connections is busy."""
    end = time.monotonic() + seconds
    while set((await backends(db)).values()) - {"idle"}:
        assert time.monotonic() < end, await backends(db)
        await asyncio.sleep(0.01)


async def test_a_value_that_cannot_be_sent_leaves_no_open_transaction(serve_these: Any, db: TestDatabase) -> None:  # noqa: F811
    """asyncpg raises after Postgres has begun: the transaction would stay open, hold a lock and fail the next borrower's statement."""
    client = await serve_these(**{"database.pool_size": 1, "database.statement_seconds": 0.3})
    for _ in range(3):
        assert (await client.get("/typed/not-a-uuid", ALICE)).status == 422
        await quiet(db, 0.25)
        async with db.server.as_admin(db.name) as admin, admin.transaction():
            await admin.execute("LOCK TABLE data IN ACCESS EXCLUSIVE MODE NOWAIT")
        await asyncio.sleep(0.4)  # longer than a statement may take
        assert (await client.get("/api/data", BOB)).status == 200
    assert len(await backends(db)) == 1


async def test_a_failure_that_a_handler_swallows_is_no_success(serve_these: Any, db: TestDatabase) -> None:  # noqa: F811
    """Postgres then answers COMMIT with ROLLBACK, without an error."""
    client = await serve_these()
    got = await client.post("/swallowed", ALICE)
    assert (got.status, got.json()) == (500, {"error": "Internal Server Error"})
    assert await db.count("data") == 0
    await well_again(client)


async def test_a_type_that_changed_is_a_503_once(serve_these: Any, db: TestDatabase) -> None:  # noqa: F811
    client = await serve_these(**{"database.pool_size": 1})
    await client.post("/api/data", ALICE, {"name": "one"})
    try:
        assert (await client.get("/composite", ALICE)).status == 200
        await db.rows("ALTER TABLE data ADD COLUMN more text")
        seen = [(await client.get("/composite", ALICE)).status for _ in range(4)]
    finally:
        await db.rows("ALTER TABLE data DROP COLUMN IF EXISTS more")
    assert set(seen) <= {200, 503}
    assert seen[-2:] == [200, 200]


async def test_a_statement_that_was_given_up_ends_in_postgres(serve_these: Any, db: TestDatabase) -> None:  # noqa: F811
    """Also if the task that uses the connection is cancelled; the connection is then used again."""
    client = await serve_these(**{"database.pool_size": 1, "database.statement_seconds": 20.0})
    before = set(await backends(db))
    task = asyncio.ensure_future(opened(client).read(("alice", "", ""), "SELECT pg_sleep(10)::text AS slept", ()))
    await running(db, "pg_sleep")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await quiet(db, 1)
    assert (await client.get("/api/data", ALICE)).status == 200
    assert set(await backends(db)) == before
    assert opened(client)._opened.open == 1

    async def write() -> None:
        async with opened(client).scoped(("alice", "", "")) as one:
            await one.execute("INSERT INTO data (user_id, name) VALUES ('alice', 'given up')")
            await one.execute("SELECT pg_sleep(10)")

    task = asyncio.ensure_future(write())
    await running(db, "pg_sleep")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await quiet(db, 1)
    assert await db.count("data") == 0
    assert set(await backends(db)) == before
    await well_again(client)


async def test_a_hundred_who_wait_on_a_postgres_that_stands_still(
    serve_these: Any, fragile: Fragile, db: TestDatabase  # noqa: F811
) -> None:
    """Every request is answered within the sum of the time limits; afterwards the pool has its full size, with new connections."""
    client = await serve_these(**{"database.pool_size": 4, "database.acquire_seconds": 1.0})
    started = time.perf_counter()
    await asyncio.gather(*(client.get("/api/data", stub(f"caller_{number}")) for number in range(100)))
    work = 2 * (time.perf_counter() - started)  # what a hundred requests take on this machine, with room
    before = await backends(db)
    fragile.send(signal.SIGSTOP)
    try:
        started = time.perf_counter()
        times: list[float] = []

        async def one(caller: int) -> None:
            unavailable(await client.get("/api/data", stub(f"caller_{caller}")))  # one caller alone has a bound of its own
            times.append(time.perf_counter() - started)

        await asyncio.gather(*(one(number) for number in range(100)))
        assert max(times) < 1.0 + 0.5 + 1 + 1 + work, max(times)
        assert len([t for t in times if t < 2.0 + work]) >= 90  # who got no connection does not wait as long as who got one
        await asyncio.sleep(1.2)
        again = time.perf_counter()
        for got in await asyncio.gather(*(client.get("/api/data", stub(f"caller_{number}")) for number in range(20))):
            unavailable(got)
        assert time.perf_counter() - again < 1.5 + work
    finally:
        fragile.send(signal.SIGCONT)
    await well_again(client)
    busy = [asyncio.ensure_future(client.post("/sql", stub(f"sleeper_{number}"), ["SELECT pg_sleep(0.3)"])) for number in range(4)]
    await running(db, "pg_sleep", 4)
    assert {got.status for got in await asyncio.gather(*busy)} == {200}
    assert not set(before) & set(await backends(db))


async def test_a_server_that_only_reads_is_left(serve_these: Any, db: TestDatabase) -> None:  # noqa: F811
    """25006: neither that connection nor the idle ones are used again; a new connection to a read-only server is kept."""
    client = await serve_these(**{"database.pool_size": 3})
    await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(12)))
    before = set(await backends(db))
    await asyncio.sleep(1.1)
    try:
        await db.rows("ALTER SYSTEM SET default_transaction_read_only = on")
        await db.rows("SELECT pg_reload_conf()")
        await asyncio.sleep(0.2)
        for _ in range(20):
            unavailable(await client.post("/api/data", ALICE, {"name": "x"}))
        assert (await client.get("/api/data", ALICE)).json() == []  # who reads is served
        during = set(await backends(db))
        assert not before & during
        assert len(during) == 1  # twenty writes have not opened twenty connections
    finally:
        async with db.server.as_admin() as admin:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await admin.fetch("SELECT pg_reload_conf()")
    await well_again(client)


async def test_a_lost_database_is_not_run_over(serve_these: Any, fragile: Fragile, db: TestDatabase) -> None:  # noqa: F811
    async with link(fragile) as way:
        role, name = db.server.serving_role, db.name
        client = await serve_these(**{"database.url": f"postgresql://{role}@127.0.0.1:{way.port}/{name}?sslmode=disable"})
        assert (await client.get("/api/data", ALICE)).status == 200
        way.hang_up()
        started, asked = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < 2 or asked <= 300:
            for got in await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(32))):
                unavailable(got)
                asked += 1
        assert way.refused <= 10 * max(passed, 2), (asked, way.refused)
        way.open()
        back = time.perf_counter()
        await well_again(client)
        assert time.perf_counter() - back < 2


async def test_a_first_host_that_swallows_packets_does_not_use_up_the_time(
    serve_these: Any, fragile: Fragile, db: TestDatabase  # noqa: F811
) -> None:
    role, name = db.server.serving_role, db.name
    async with link(fragile) as dead, link(fragile) as alive:
        url = f"postgresql://{role}@127.0.0.1:{dead.port},127.0.0.1:{alive.port}/{name}?sslmode=disable&target_session_attrs=read-write"
        client = await serve_these(**{"database.url": url, "database.acquire_seconds": 1.0})
        assert (await client.get("/api/data", ALICE)).status == 200
        dead.swallow()
        await asyncio.sleep(0)
        started = time.perf_counter()
        unavailable(await client.get("/api/data", ALICE))  # the connections that there were are dead, and nobody said so
        assert time.perf_counter() - started < 3
        await well_again(client, 5)


async def test_the_feed_of_revocations_comes_back_after_packets_were_swallowed(
    serve_these: Any, fragile: Fragile, db: TestDatabase  # noqa: F811
) -> None:
    """The old connection never receives anything again, so the feed must not wait for it."""
    role, name = db.server.serving_role, db.name
    async with link(fragile) as way:
        client = await serve_these(**{"database.url": f"postgresql://{role}@127.0.0.1:{way.port}/{name}?sslmode=disable"})
        known = client.app[SERVER_DATABASE].revocations
        way.swallow()
        await asyncio.sleep(1.5)
        way.open()
        assert known.age > 1
        started = time.monotonic()
        while known.age > 1:
            assert time.monotonic() - started < 8, "session tokens would be a 503 for good"
            await asyncio.sleep(0.05)


def test_a_host_of_a_socket_folder_is_one_host() -> None:
    from server.database.hosts import split

    assert split("postgresql:///db?host=%2Ftmp%2Fx") == ["postgresql:///db?host=%2Ftmp%2Fx"]
    password = quote("p,a@ss", safe="")
    assert split(f"postgresql://me:{password}@a:1,b/db?target_session_attrs=read-write") == [
        f"postgresql://me:{password}@a:1/db?target_session_attrs=read-write",
        f"postgresql://me:{password}@b/db?target_session_attrs=read-write",
    ]
    assert len(split("postgresql://a,b/db?target_session_attrs=prefer-standby")) == 1
