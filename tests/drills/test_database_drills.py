"""Drills: two tenants read and write without pause while the database has an accident. Each prints a line for docs/explanation/drills.md.

    pytest tests/drills/test_database_drills.py -s | grep drill:

What must hold in all of them: nothing but 200, 201 and 503 is answered, and everything is; each row that was answered with
201 is there once, and one whose answer was a 503 once or not at all; no tenant reads another's row; and when the database is
back, so is the server, without being started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kits.faults import Fragile, Standby, Traffic, link, with_standby

from server.app import SERVER_DATABASE
from tests.conftest import ALICE, BOB, Client, MakeApp, Serve, TestDatabase, plugin
from tests.database.test_database_faults import (
    db,  # noqa: F401 - in place of the usual one
    fragile,  # noqa: F401
    fragile_database,  # noqa: F401
)
from tests.database.test_database_settling import routes

pytestmark = pytest.mark.long


@pytest.fixture
def serve_usual(serve: Serve) -> Any:
    """A server with the default limits."""
    usual = {"database.acquire_seconds": 2.0, "database.statement_seconds": 5.0, "database.pool_size": 8,
             "limits.concurrency": 200}  # the many callers are two users
    return lambda **settings: serve({**usual, **settings}, extra={"these": plugin(*routes)})


async def finish(drill: str, traffic: Traffic, db: TestDatabase, since: float, capsys: Any, *also: int) -> None:  # noqa: F811
    """After the end of a fault: wait until every request succeeds, stop, count, and print the line."""
    await traffic.well(since)
    traffic._stop = True
    await asyncio.gather(*traffic._tasks)
    traffic.told(*also)
    assert traffic.answers["POST lost"] + traffic.answers["GET lost"] == 0
    await traffic.kept(db)
    with capsys.disabled():
        print("\n" + traffic.report(drill, max(0.0, traffic.last_failure - since)))


async def test_a_backend_is_killed(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    """Postgres ends every other backend too, and recovers."""
    async with Traffic(await serve_usual()) as traffic:
        pid = (await db.rows("SELECT pid FROM pg_stat_activity WHERE application_name = 'gatepost' LIMIT 1"))[0]["pid"]
        os.kill(pid, signal.SIGKILL)
        await finish("a backend is killed (SIGKILL)", traffic, db, time.monotonic(), capsys)


@pytest.mark.parametrize(("how", "word"), [(signal.SIGKILL, "killed (SIGKILL)"), (signal.SIGINT, "restarted (SIGINT)")])
async def test_postgres_goes_and_comes_back(
    serve_usual: Any, fragile: Fragile, db: TestDatabase, capsys: Any, how: signal.Signals, word: str  # noqa: F811
) -> None:
    async with Traffic(await serve_usual()) as traffic:
        await asyncio.to_thread(fragile.down, how)
        await asyncio.sleep(2)
        await asyncio.to_thread(fragile.up)
        await finish(f"Postgres is {word}, 2 s", traffic, db, time.monotonic(), capsys)


@pytest.mark.parametrize("callers", [8, 100])
async def test_postgres_stands_still(
    serve_usual: Any, fragile: Fragile, db: TestDatabase, capsys: Any, callers: int  # noqa: F811
) -> None:
    async with Traffic(await serve_usual(), callers) as traffic:
        fragile.send(signal.SIGSTOP)
        await asyncio.sleep(9)
        fragile.send(signal.SIGCONT)
        since = time.monotonic()
        await finish(f"Postgres stands still (SIGSTOP), 9 s, {callers} callers", traffic, db, since, capsys)
        assert traffic.slowest < 2 + 6 + 1 + 1
        assert traffic.client.app[SERVER_DATABASE].database._opened.open <= 8


async def test_the_network_swallows_everything(serve_usual: Any, fragile: Fragile, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    async with link(fragile) as way:
        url = f"postgresql://{db.server.serving_role}@127.0.0.1:{way.port}/{db.name}?sslmode=disable"
        async with Traffic(await serve_usual(**{"database.url": url})) as traffic:
            way.swallow()
            await asyncio.sleep(8)
            way.open()
            await finish("the network swallows packets, 8 s", traffic, db, time.monotonic(), capsys)


async def test_postgres_only_reads_for_a_while(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    async with Traffic(await serve_usual()) as traffic:
        try:
            await db.rows("ALTER SYSTEM SET default_transaction_read_only = on")
            await db.rows("SELECT pg_reload_conf()")
            await asyncio.sleep(2)
        finally:
            async with db.server.as_admin() as admin:
                await admin.execute("SET default_transaction_read_only = off")
                await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
                await admin.fetch("SELECT pg_reload_conf()")
        await finish("Postgres only reads (25006), 2 s", traffic, db, time.monotonic(), capsys)
        assert traffic.answers["GET 200"] > traffic.answers["GET 503"] * 10  # reads are served throughout


async def test_there_are_no_connections_left(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    role = db.server.serving_role
    client = await serve_usual()
    try:
        await db.rows(f'ALTER ROLE "{role}" CONNECTION LIMIT 3')
        async with Traffic(client, 32) as traffic:
            await asyncio.sleep(2)
            await db.rows(f'ALTER ROLE "{role}" CONNECTION LIMIT -1')
            await finish("out of connections (53300), 2 s, 32 callers", traffic, db, time.monotonic(), capsys)
    finally:
        await db.rows(f'ALTER ROLE "{role}" CONNECTION LIMIT -1')


async def test_a_lock_makes_all_slow(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    """Slow for 3 s, within the limit of a statement: reads are answered late; a write gives up its wait for a lock after 1 s."""
    async with Traffic(await serve_usual()) as traffic:
        async with db.server.as_admin(db.name) as admin, admin.transaction():
            await admin.execute("LOCK TABLE data")
            await asyncio.sleep(3)
        await finish("a lock on the table, 3 s", traffic, db, time.monotonic(), capsys)
        assert "GET 503" not in traffic.answers
        assert traffic.answers["POST 201"] > traffic.answers["POST 503"]


async def test_a_lock_outlasts_the_statements(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    async with Traffic(await serve_usual()) as traffic:
        async with db.server.as_admin(db.name) as admin, admin.transaction():
            await admin.execute("LOCK TABLE data")
            await asyncio.sleep(7)
        await finish("a lock on the table, 7 s: statement time-outs", traffic, db, time.monotonic(), capsys)
        assert traffic.slowest < 2 + 5 + 1.5


async def test_deadlocks(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    client: Client = await serve_usual()
    ids = [(await client.post("/api/data", ALICE, {"name": f"deadlock {n}"})).json()["id"] for n in range(3)]
    lock = "SELECT 1 FROM data WHERE id = '{}' FOR UPDATE"
    statuses: dict[int, int] = {}
    async with Traffic(client, 4) as traffic:
        traffic.made.setdefault(201, []).extend(f"deadlock {n}" for n in range(3))

        async def pair() -> None:
            for _ in range(4):
                order = random.sample(ids, 3)
                got = await client.post("/sql", ALICE, [lock.format(order[0]), "SELECT pg_sleep(0.05)", *map(lock.format, order[1:])])
                statuses[got.status] = statuses.get(got.status, 0) + 1

        await asyncio.gather(*(pair() for _ in range(3)))
        await finish(f"deadlocks (40P01): 12 transactions, {statuses.get(503, 0)} ended by Postgres", traffic, db,
                     time.monotonic(), capsys)  # fmt: skip
    assert set(statuses) <= {200, 503}
    assert statuses[503] >= 1


async def test_migrations_between_two_tenants_requests(serve_usual: Any, db: TestDatabase, capsys: Any) -> None:  # noqa: F811
    """InvalidCachedStatementError, outside and inside transactions, and the server's own migration, run repeatedly."""
    from server.schema.migrate import migrate

    client: Client = await serve_usual()
    starred: dict[int, int] = {}

    async def star() -> None:
        while not traffic._stop:
            for who, caller in (("alice", ALICE), ("bob", BOB)):
                got = await client.post("/rows", caller, "SELECT name, data.* FROM data LIMIT 2")
                starred[got.status] = starred.get(got.status, 0) + 1
                if got.status == 200:
                    assert {row["user_id"] for row in got.json()} <= {who}
            await asyncio.sleep(0.01)

    async with Traffic(client) as traffic:
        stars = asyncio.ensure_future(star())
        for _ in range(5):
            for change in ("ADD COLUMN more text", "ALTER COLUMN more TYPE varchar(9)", "DROP COLUMN more"):
                await db.rows(f"ALTER TABLE data {change}")
                await asyncio.sleep(0.1)
            async with db.server.connected(db.server.owner_role, db.name) as owner:
                await migrate(owner, serving_role=db.server.serving_role)
        since = time.monotonic()
        await finish("20 migrations between the requests", traffic, db, since, capsys)
        await stars
    assert set(starred) <= {200, 422, 503}, starred  # a handler that selects * gets a retryable error


# A primary that is lost, and its standby ------------------------------------------------------------------------------------


@pytest.fixture
async def pair() -> AsyncIterator[tuple[TestDatabase, Fragile, Standby]]:
    """A primary with one synchronous standby: every answered write is on both."""
    with with_standby() as (primary, standby):
        found = TestDatabase(primary, await primary.fresh())
        await asyncio.to_thread(standby.start)
        async with primary.as_admin() as admin:
            await admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await admin.fetch("SELECT pg_reload_conf()")
            for _ in range(200):
                if await admin.fetchval("SELECT sync_state FROM pg_stat_replication") == "sync":
                    break
                await asyncio.sleep(0.05)
        yield found, primary, standby


@pytest.mark.parametrize("how", ["killed", "swallowed"])
async def test_a_standby_takes_over(
    serve: Serve, pair: tuple[TestDatabase, Fragile, Standby], capsys: Any, how: str
) -> None:
    """With two hosts in the URL and target_session_attrs=read-write: a primary that dies, and one that disappears with its
    connections left open."""
    before, primary, standby = pair
    async with link(primary) as one, link(standby) as two:
        url = (f"postgresql://{primary.serving_role}@127.0.0.1:{one.port},127.0.0.1:{two.port}/{before.name}"
               "?sslmode=disable&target_session_attrs=read-write")  # fmt: skip
        client = await serve({"database.url": url, "database.pool_size": 8})
        after = TestDatabase(standby, before.name)
        async with Traffic(client) as traffic:
            if how == "killed":
                await asyncio.to_thread(primary.down, signal.SIGKILL)
            else:
                one.swallow()
            await asyncio.sleep(1)
            since = time.monotonic()
            await standby.promote()
            await finish(f"failover, the primary {how}: promoted after 1 s", traffic, after, since, capsys)
        assert client.app[SERVER_DATABASE].revocations.age < 2 or await _fresh(client)


async def _fresh(client: Client) -> bool:
    for _ in range(200):
        if client.app[SERVER_DATABASE].revocations.age < 1:
            return True
        await asyncio.sleep(0.05)
    return False


# A full disk ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 160 MB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here (it takes root, and a kernel that lets it)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


async def test_the_disk_of_the_embedded_postgres_is_full(
    small_disk: Path, make_app: MakeApp, serve: Serve, capsys: Any
) -> None:
    """Another program fills it to the last block while rows of 100 kB are written; then space is free again."""
    from server.embedded.server import running_socket

    client = await serve({"database.url": None, "data_folder": str(small_disk / "gatepost"), "database.pool_size": 4})
    socket = running_socket(small_disk / "gatepost" / "postgres")
    assert socket
    counted: dict[int, int] = {}
    made: dict[int, list[str]] = {}

    async def write(number: int) -> None:
        got = await client.post("/api/data", ALICE, {"name": f"row {number}", "payload": {"x": os.urandom(50_000).hex()}})
        counted[got.status] = counted.get(got.status, 0) + 1
        made.setdefault(got.status, []).append(f"row {number}")

    for n in range(20):
        await write(n)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    number = 20
    end = time.monotonic() + 20
    while counted.get(503, 0) < 40 and time.monotonic() < end:
        await write(number)
        number += 1
        assert (await client.get("/api/health")).status == 200
    full = dict(counted)
    assert full.get(503, 0) >= 40, full
    ballast.unlink()
    since = time.monotonic()
    while 201 not in counted or counted[201] == full.get(201):
        await write(number)
        number += 1
        assert time.monotonic() - since < 40, counted
        await asyncio.sleep(0.1)
    recovered = time.monotonic() - since
    assert set(counted) <= {201, 503}
    there: list[str] = []
    at, path = "", "/api/data?limit=100"
    while path:
        got = await client.get(path, ALICE)
        assert got.status == 200
        there += [row["name"] for row in got.json()]
        at = got.headers.get("Link", "")
        path = at[1 : at.index(">")] if at else ""
    assert sorted(set(there)) == sorted(there)
    assert set(made[201]) <= set(there) <= set(made[201]) | set(made[503])
    by = ", ".join(f"{status} {n}" for status, n in sorted(counted.items()))
    with capsys.disabled():
        print(f"\ndrill: the embedded Postgres' disk is full | {sum(counted.values())} | {by} | 0 | - | {recovered:.1f} s")


