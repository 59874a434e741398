"""Behind a real PgBouncer in transaction mode with a single connection to Postgres, which the transactions of all tenants
share: no transaction may see anything that an earlier one left.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from kits.live import until
from kits.pgbouncer import PgBouncer, pgbouncer
from kits.product import labels

from server.app import build
from server.commands import run
from server.schema.startup import StartFailed
from server.settings.setting import ConfigError
from server.settings.sources import Settings
from tests.conftest import ALICE, BOB, KEYS, Client, MakeApp, Serve, TestDatabase, plugin, stub, url_of
from tests.database import test_json_values, test_violations
from tests.database.test_database_faults import routes, unavailable
from tests.handlers import test_resources
from tests.promises import test_routes_matrix, test_tenants
from tests.promises.test_routes_matrix import rows  # noqa: F401 - a fixture
from tests.promises.test_tenants import forgetful  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def bouncer(postgres: Any, migrated: TestDatabase) -> Iterator[PgBouncer]:
    with pgbouncer(postgres, 1) as one:
        yield one


@pytest.fixture
async def db(migrated: TestDatabase, bouncer: PgBouncer) -> AsyncIterator[TestDatabase]:
    yield migrated
    await migrated.empty()


@pytest.fixture
async def with_labels(db: TestDatabase) -> AsyncIterator[None]:
    async with labels(db):
        yield


@pytest.fixture
def behind(db: TestDatabase, bouncer: PgBouncer) -> dict[str, Any]:
    """The settings of a server behind the pooler."""
    role = db.server.serving_role
    return {"database.url": bouncer.url(role, db.name), "database.direct_url": url_of(db.server, role, db.name),
            "database.pooler": "transaction"}  # fmt: skip


@pytest.fixture
def make_app(tmp_path: Path, behind: dict[str, Any]) -> MakeApp:
    """Replaces the usual fixture: every test here, including those from other files, goes through PgBouncer."""

    def make(settings: Any = None, extra: Any = None) -> web.Application:
        usual = {"env": "test", "ops.port": 0, "providers": ["stub", "api_key"], "database.pool_size": 4,
                 "data_folder": str(tmp_path), "api_key.keys": KEYS}  # fmt: skip
        return build(Settings(environ={}, given={**usual, **behind, **(settings or {})}), extra)

    return make


# The contract, whole: the tests of the other files, here behind the pooler ---------------------------------------------------


def _taken_over(module: Any, prefix: str, *marks: pytest.MarkDecorator) -> None:
    """Run every test of another module here too, with the fixtures of this file."""
    for name, what in vars(module).items():
        if name.startswith("test_"):
            copy = FunctionType(what.__code__, what.__globals__, name, what.__defaults__, what.__closure__)
            copy.__dict__.update(what.__dict__, pytestmark=[*getattr(what, "pytestmark", []), *(mark.mark for mark in marks)])
            globals()[f"test_{prefix}_{name.removeprefix('test_')}"] = copy


_taken_over(test_tenants, "tenants")
_taken_over(test_routes_matrix, "matrix", pytest.mark.long)
_taken_over(test_resources, "resources", pytest.mark.long)
_taken_over(test_json_values, "jsonb", pytest.mark.usefixtures("with_labels"))
_taken_over(test_violations, "violations", pytest.mark.usefixtures("with_labels"), pytest.mark.long)


async def test_it_really_is_one_connection(client: Client, db: TestDatabase) -> None:
    await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(8)))
    seen = await db.rows("SELECT count(*) AS n FROM pg_stat_activity WHERE usename = $1 AND client_addr IS NULL"
                         " AND datname = $2 AND application_name = ''", db.server.serving_role, db.name)  # fmt: skip
    assert seen[0]["n"] <= 3  # the pooler's one, and the direct ones of the revocations and of the changes


# Interleaved, with everything that can go wrong between ----------------------------------------------------------------------


async def insert(client: Client, who: str, name: str) -> int:
    return (await client.post("/api/data", stub(who, org_id=f"org_{who}"), {"name": name})).status


@pytest.mark.parametrize("sent", [120, pytest.param(1200, marks=pytest.mark.long)])
async def test_two_tenants_interleaved_never_mix(
    serve: Serve, db: TestDatabase, capsys: pytest.CaptureFixture[str], sent: int
) -> None:
    """Reads, transactions, errors, time-outs and disconnecting clients of two tenants, in random order, eight at a time."""
    client = await serve({"database.statement_seconds": 0.3, "database.acquire_seconds": 5.0}, extra={"sql": plugin(*routes)})
    people = {"alice": ALICE, "bob": BOB}
    for who in people:
        for n in range(3):
            assert await insert(client, who, f"{who} {n}") == 201
    counts: dict[int, int] = {}
    rng = random.Random(7)

    async def one(turn: int) -> None:
        who = rng.choice(list(people))
        caller = people[who]
        match rng.randrange(8):
            case 0:  # a transaction that fails in the middle
                got = await client.post("/sql", caller, [f"INSERT INTO data (user_id, name) VALUES ('{who}', 'half')", "SELECT 1/0"])
                assert got.status == 422
            case 1:  # one that takes too long, by Postgres's own bound
                got = await client.post("/sql", caller, ["SELECT pg_sleep(0.5)"])
                assert got.status == 503
            case 2:  # somebody else's row
                got = await client.post("/sql", caller, [f"INSERT INTO data (user_id, name) VALUES ('not {who}', 'x')"])
                assert got.status == 403
            case 3:  # a client that goes away
                async with client.wire() as wire:
                    await wire.send("GET /api/data", caller)
                return
            case 4:  # all rows of all tables, it thinks
                got = await client.post("/rows", caller, "SELECT user_id FROM data")
                assert got.status == 200
                assert {row["user_id"] for row in got.json()} == {who}
            case 5:  # a setting for the session, by a handler that should not: nobody is to inherit it
                got = await client.post("/sql", caller, ["SELECT set_config('gatepost.user_id', 'bob', true)"])
                assert got.status == 200
            case _:
                got = await client.get("/api/data", caller)
                assert got.status == 200, got
                assert {row["user_id"] for row in got.json()} == {who}
                assert len(got.json()) == 3
        counts[got.status] = counts.get(got.status, 0) + 1

    for turn in range(0, sent, 8):
        await asyncio.gather(*(one(turn + n) for n in range(8)))
    assert counts[200] > sent / 4
    with capsys.disabled():
        print(f"\ndrill: pgbouncer, two tenants interleaved: sent {sent}, answered {dict(sorted(counts.items()))}, mixed 0")
    assert {row["name"] for row in await db.rows("SELECT name FROM data")} == {f"{w} {n}" for w in people for n in range(3)}


async def test_a_read_that_takes_too_long_ends_in_postgres_too(serve: Serve, db: TestDatabase) -> None:
    """A time-out set inside a statement does not apply to it, so the server cancels the statement through the pooler."""
    client = await serve({"database.statement_seconds": 0.3}, extra={"sql": plugin(*routes)})
    started = time.perf_counter()
    unavailable(await client.get("/slow/read", ALICE))
    assert time.perf_counter() - started > 1.2, "a second beyond database.statement_seconds"
    for _ in range(100):
        if not await db.rows("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()"):
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("it runs on")
    assert (await client.get("/api/data", BOB)).status == 200


async def test_a_time_out_of_the_role_binds_reads(serve: Serve, db: TestDatabase, bouncer: PgBouncer) -> None:
    role = db.server.serving_role
    client = await serve({"database.statement_seconds": 20.0}, extra={"sql": plugin(*routes)})
    try:
        await db.rows(f"ALTER ROLE \"{role}\" SET statement_timeout = '300ms'")
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)  # opened anew
        await asyncio.sleep(0.3)
        unavailable(await client.get("/slow/read", ALICE))  # the server itself would let it end, after 10 s
        assert (await client.post("/sql", ALICE, ["SELECT pg_sleep(0.6)"])).status == 200  # a transaction brings its own
    finally:
        await db.rows(f'ALTER ROLE "{role}" RESET statement_timeout')
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns"])
async def test_times_are_utc_whatever_the_role_has(serve: Serve, db: TestDatabase, zone: str) -> None:
    role = db.server.serving_role
    try:
        await db.rows(f"ALTER ROLE \"{role}\" SET timezone = '{zone}'")
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
        await asyncio.sleep(0.3)
        client = await serve()
        made = await client.post("/api/data", ALICE, {"name": "now"})
        assert made.json()["created_at"].endswith("+00:00")
        for row in (await client.get("/api/data", ALICE)).json():
            assert row["created_at"].endswith("+00:00")
    finally:
        await db.rows(f'ALTER ROLE "{role}" RESET timezone')
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)


async def test_no_prepared_statement_is_ever_missed(serve: Serve, bouncer: PgBouncer) -> None:
    """With named statements 379 of 400 requests failed here, so none are used."""
    client = await serve()
    statuses: list[int] = []
    for _ in range(10):
        got = await asyncio.gather(
            *(client.get("/api/data", stub(f"reader_{n}")) for n in range(20)),
            *(client.post("/api/data", stub(f"writer_{n}"), {"name": "x"}) for n in range(20)),
        )
        statuses += [one.status for one in got]
    assert sorted(set(statuses)) == [200, 201]
    assert len(statuses) == 400
    assert "prepared statement" not in bouncer.log()


async def test_a_migration_between_two_tenants_requests(serve: Serve, db: TestDatabase) -> None:
    client = await serve(extra={"sql": plugin(*routes)})
    statuses: dict[int, int] = {}

    async def traffic(who: str, caller: dict[str, str]) -> None:
        for n in range(60):
            for got in (await client.post("/api/data", caller, {"name": f"{who} {n}"}), await client.get("/api/data", caller),
                        await client.post("/rows", caller, "SELECT name, data.* FROM data LIMIT 1")):  # fmt: skip
                statuses[got.status] = statuses.get(got.status, 0) + 1
                if got.status == 200:
                    assert {row["user_id"] for row in json.loads(got.raw)} <= {who}

    async def migrations() -> None:
        for _ in range(6):
            for change in ("ADD COLUMN more text", "ALTER COLUMN more TYPE varchar(9)", "DROP COLUMN more"):
                await db.rows(f"ALTER TABLE data {change}")
                await asyncio.sleep(0.02)

    await asyncio.gather(traffic("alice", ALICE), traffic("bob", BOB), migrations())
    assert set(statuses) <= {200, 201, 422, 500, 503}
    assert statuses.get(503, 0) + statuses.get(500, 0) + statuses.get(422, 0) <= 20, statuses
    assert await db.count("data") == statuses[201]


# Gone, and back --------------------------------------------------------------------------------------------------------------


async def test_a_pooler_that_stands_still_or_loses_its_connections(serve: Serve, db: TestDatabase, bouncer: PgBouncer) -> None:
    client = await serve({"database.statement_seconds": 0.3, "database.acquire_seconds": 0.5})
    assert (await client.get("/api/data", ALICE)).status == 200
    bouncer.send(signal.SIGSTOP)
    for got in await asyncio.gather(*(client.get("/api/data", ALICE) for _ in range(20))):
        unavailable(got)
    bouncer.send(signal.SIGCONT)
    await _well(client)
    await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", db.server.serving_role)
    await _well(client)


async def _well(client: Client, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while (got := await client.get("/api/data", ALICE)).status != 200:
        unavailable(got)
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_revocations_come_past_the_pooler(make_app: MakeApp, serve: Serve, db: TestDatabase) -> None:
    client = await serve()
    from server.app import SERVER_DATABASE

    known = client.app[SERVER_DATABASE].revocations
    await db.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', 'sess_9', now() + interval '1 hour')")
    await db.rows("SELECT pg_notify('gatepost_revocations', '')")
    await until(lambda: known.revoked("session", "sess_9", None), 60)
    async with db.server.as_admin(db.name) as admin:
        listening = await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' OR query LIKE '%revocations_page%'")
    assert listening >= 1


# Settings that do not fit ----------------------------------------------------------------------------------------------------


async def _start(app: web.Application) -> None:
    runner = web.AppRunner(app)
    try:
        await runner.setup()
    finally:
        await runner.cleanup()


async def test_an_undeclared_pooler_prevents_startup(make_app: MakeApp, db: TestDatabase) -> None:
    with pytest.raises(StartFailed, match="is a pooler in between"):
        await _start(make_app({"database.pooler": "none"}))
    with pgbouncer(db.server, 1, "ignore_startup_parameters = statement_timeout,idle_in_transaction_session_timeout") as quiet:
        url = quiet.url(db.server.serving_role, db.name)
        with pytest.raises(ConfigError, match="ignores start-up parameters"):
            await _start(make_app({"database.pooler": "none", "database.url": url}))


async def test_a_direct_url_to_another_database_prevents_startup(make_app: MakeApp, db: TestDatabase) -> None:
    other = await db.server.fresh()
    with pytest.raises(ConfigError, match="a different database"):
        await _start(make_app({"database.direct_url": url_of(db.server, db.server.serving_role, other)}))


def test_a_pooler_needs_both_urls() -> None:
    given = {"env": "test", "database.pooler": "transaction"}
    with pytest.raises(ConfigError, match=r"^database\.pooler: the embedded Postgres has no pooler"):
        Settings(environ={}, given=given)
    with pytest.raises(ConfigError, match=r"^database\.direct_url: required with a pooler"):
        Settings(environ={}, given={**given, "database.url": "postgresql://a@b/c"})


async def test_check_and_migrate_behind_it(
    behind: dict[str, Any], db: TestDatabase, bouncer: PgBouncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEPOST_PROVIDERS", "stub")
    monkeypatch.setenv("DATABASE_URL", behind["database.url"])
    monkeypatch.setenv("GATEPOST_DATABASE_DIRECT_URL", behind["database.direct_url"])
    monkeypatch.setenv("GATEPOST_DATABASE_POOLER", "transaction")
    monkeypatch.setenv("DATABASE_OWNER_URL", url_of(db.server, db.server.owner_role, db.name))
    assert await asyncio.to_thread(run, ["check"]) == 0
    said = capsys.readouterr().out
    assert "warning: behind the pooler" in said
    assert "has no statement_timeout" in said
    assert await asyncio.to_thread(run, ["migrate"]) == 0
    assert "SET statement_timeout = '5000ms'" in capsys.readouterr().out
    role = db.server.serving_role
    try:
        await db.rows(f"ALTER ROLE \"{role}\" SET statement_timeout = '5s'")
        await db.rows(f"ALTER ROLE \"{role}\" SET timezone = 'UTC'")
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
        await asyncio.sleep(0.3)
        assert await asyncio.to_thread(run, ["check"]) == 0
        assert "behind the pooler" not in capsys.readouterr().out
        monkeypatch.setenv("GATEPOST_DATABASE_DIRECT_URL", behind["database.url"])  # not direct at all
        assert await asyncio.to_thread(run, ["check"]) == 0
        assert "no notification arrives there" in capsys.readouterr().out
    finally:
        await db.rows(f'ALTER ROLE "{role}" RESET ALL')
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)


async def test_what_asyncpg_does_by_default(db: TestDatabase) -> None:
    """Shows that the tests above would notice: with more than one connection, named statements do get lost."""
    with pgbouncer(db.server, 4) as wide:
        url = wide.url(db.server.serving_role, db.name)
        several = [await asyncpg.connect(url, statement_cache_size=100) for _ in range(8)]
        lost = 0
        for _ in range(20):
            sql = "SELECT count(*), pg_sleep(0.001) FROM data WHERE name = $1"
            got = await asyncio.gather(*(one.fetchval(sql, "x") for one in several), return_exceptions=True)
            lost += sum(isinstance(one, asyncpg.PostgresError) for one in got)
        for connection in several:
            connection.terminate()
    assert lost
