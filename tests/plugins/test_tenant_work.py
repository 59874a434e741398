"""`house.scoped`: work outside a request for one named tenant, under the same policies, audited under a named actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kits.app import routes_plugin
from kits.product import labels

from server import House, Unavailable, UniqueViolation, answer, hookimpl, public, scoped, service, signed_in
from server.plugins.tenant_work import work_of
from tests.conftest import ADMIN_A, ALICE, BOB, Serve, TestDatabase

INSERT = "INSERT INTO labels (organization_id, name) VALUES ($1, $2) RETURNING id"


@pytest.fixture
async def db(db: TestDatabase) -> AsyncIterator[TestDatabase]:
    async with labels(db):
        yield db


def with_house(*routes: web.RouteDef) -> Any:
    """A plugin whose service `house` is its house."""
    plugin: Any = routes_plugin(*routes)

    @asynccontextmanager
    async def given(house: House) -> AsyncIterator[House]:
        yield house

    plugin.register_services = hookimpl(lambda settings, house: {"house": lambda: given(house)}, specname="register_services")
    return plugin


@pytest.fixture
async def house(serve: Serve, db: TestDatabase) -> AsyncIterator[House]:
    """The house of a running server with four connections."""
    holder: list[House] = []

    @signed_in
    async def hand_over(request: web.Request) -> web.Response:
        holder.append(service(request, "house"))
        return answer({})

    client = await serve(extra={"acme": with_house(web.get("/house", hand_over))})
    assert (await client.get("/house", ALICE)).status == 200
    yield holder[0]
    assert (await client.get("/api/data", ALICE)).status == 200  # whatever was done, the server is well


async def audited(db: TestDatabase) -> list[dict[str, Any]]:
    return await db.rows(
        "SELECT org_id, user_id, actor, impersonator, action, target, request_id FROM audit_log WHERE action <> 'denied' ORDER BY created_at"
    )


# One tenant, the same policies, a named actor ----------------------------------------------------------------------------


async def test_an_organisations_rows_and_no_others(house: House, db: TestDatabase) -> None:
    for org in ("org_a", "org_b"):
        async with house.scoped(org_id=org, actor="job:nightly") as sql:
            await sql.execute(INSERT, org, f"of {org}")
    async with house.scoped(org_id="org_a", actor="job:nightly") as sql:
        assert [row["name"] for row in await sql.fetch("SELECT name FROM labels")] == ["of org_a"]
        assert await sql.execute("DELETE FROM labels WHERE organization_id = 'org_b'") == "DELETE 0"
        assert await sql.fetchval("SELECT current_user") == db.server.serving_role
    with pytest.raises(Exception, match="Forbidden|organization"):
        async with house.scoped(org_id="org_a", actor="job:nightly") as sql:
            await sql.execute(INSERT, "org_b", "smuggled")
    assert await db.count("labels") == 2


async def test_a_users_rows_and_both(house: House, db: TestDatabase) -> None:
    insert = "INSERT INTO data (user_id, org_id, name) VALUES ($1, $2, 'x')"
    async with house.scoped(user_id="alice", actor="job:a") as sql:
        await sql.execute(insert, "alice", None)
    async with house.scoped(user_id="alice", org_id="org_a", actor="job:a") as sql:
        await sql.execute(insert, "alice", "org_a")
        assert await sql.fetchval("SELECT count(*) FROM data") == 2
    async with house.scoped(org_id="org_a", actor="job:a") as sql:
        assert await sql.fetchval("SELECT count(*) FROM data") == 0  # rows of users, and this is no administrator
    async with house.scoped(user_id="bob", org_id="org_a", actor="job:a") as sql:
        assert await sql.fetchval("SELECT count(*) FROM data") == 0
        assert await sql.execute("DELETE FROM data") == "DELETE 0"


async def test_it_is_audited_under_its_actor(house: House, db: TestDatabase) -> None:
    async with house.scoped(user_id="alice", org_id="org_a", actor="job:nightly") as sql:
        await sql.execute(INSERT, "org_a", "x")
        await sql.execute("UPDATE labels SET name = 'y'")
    assert await audited(db) == [
        {"org_id": "org_a", "user_id": None, "actor": "job:nightly", "impersonator": None, "action": action, "target": "labels",
         "request_id": None} for action in ("insert", "update")
    ]  # fmt: skip


async def test_an_administrator_sees_it_in_the_audit_log(serve: Serve, db: TestDatabase) -> None:
    @signed_in
    async def work(request: web.Request) -> web.Response:
        async with service(request, "house").scoped(org_id="org_a", actor="webhook:stripe") as sql:
            await sql.execute(INSERT, "org_a", "x")
        return answer({})

    client = await serve(extra={"acme": with_house(web.get("/work", work))})
    assert (await client.get("/work", BOB)).status == 200
    (entry,) = (await client.get("/api/orgs/org_a/audit", ADMIN_A)).json()
    assert (entry["actor"], entry["user_id"], entry["request_id"]) == ("webhook:stripe", None, None)


async def test_nothing_of_it_is_left_on_the_connection(serve: Serve, db: TestDatabase) -> None:
    """The next request of that connection writes under its own name, and the next job under its own."""

    @signed_in
    async def work(request: web.Request) -> web.Response:
        house = service(request, "house")
        async with house.scoped(org_id="org_b", actor="job:other") as sql:
            await sql.execute(INSERT, "org_b", "x")
        async with scoped(request) as sql:
            assert await sql.fetchval("SELECT count(*) FROM labels") == 0
            await sql.execute(INSERT, "org_a", "x")
        async with house.scoped(org_id="org_b", actor="job:third") as sql:
            await sql.execute("UPDATE labels SET name = 'y'")
        return answer({})

    client = await serve({"database.pool_size": 1}, extra={"acme": with_house(web.get("/work", work))})
    got = await client.get("/work", ALICE)
    assert got.status == 200
    entries = [(entry["actor"], entry["org_id"], entry["user_id"], entry["request_id"]) for entry in await audited(db)]
    assert entries == [
        ("job:other", "org_b", None, None), ("alice", "org_a", "alice", got.headers["X-Request-Id"]), ("job:third", "org_b", None, None)
    ]  # fmt: skip


# Who, and for whom -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tenant",
    [{}, {"org_id": ""}, {"user_id": ""}, {"org_id": "a", "user_id": ""}, {"org_id": "a\nb"}, {"org_id": 5}, {"org_id": "x" * 256},
     {"org_id": " "}, {"org_id": "*\x00"}, {"user_id": ["alice"]}, {"org_id": True}],
)  # fmt: skip
def test_no_tenant_or_no_id(tenant: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="user_id|org_id"):
        work_of(tenant.get("user_id"), tenant.get("org_id"), "job:x")


@pytest.mark.parametrize(
    "actor",
    ["", "job", "job:", ":x", "alice", "key:k1", "operator", "operator:x", "system", "system:x", "anonymous:x", "user:alice", "org:admin",
     "Job:x", "job:x y", "job: x", "job:x\n", "job:x\nalice", "job:\nalice", "job:\u2028", "job:\u202ex", "job:x\x00", "job:" + "x" * 201,
     "j" * 33 + ":x", "1:x", "-a:b", "stub:session_token", "keycloak:alice", None, 5, b"job:x", ["job:x"], "j\u043eb:x", " job:x"],
)  # fmt: skip
def test_no_actor_can_look_like_a_caller_or_like_the_server(actor: Any) -> None:
    with pytest.raises(ValueError, match="actor"):
        work_of(None, "org_a", actor, {"stub"}, {"keycloak:", ""})


@pytest.mark.parametrize("actor", ["job:nightly", "webhook:stripe", "job:a:b", "j:x", "my_job-2:2026-11-28T00:00", "job:" + "x" * 200, "keys:x"])
def test_actors(actor: str) -> None:
    assert work_of("u", "o", actor, {"stub"}, {"", "keycloak:"})[:2] == (("u", "o", ""), (actor, ""))


async def test_the_providers_of_this_server_are_no_actors(serve: Serve) -> None:
    @signed_in
    async def work(request: web.Request) -> web.Response:
        refused = []
        for actor in ("stub:session_token", "api_key:x", "job:x"):
            try:
                service(request, "house").scoped(org_id="org_a", actor=actor)
            except ValueError:
                refused.append(actor)
        return answer(refused)

    client = await serve(extra={"acme": with_house(web.get("/work", work))})
    assert (await client.get("/work", ALICE)).json() == ["stub:session_token", "api_key:x"]


async def test_the_actor_must_be_named(house: House) -> None:
    with pytest.raises(TypeError):
        house.scoped(org_id="org_a")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        house.scoped("org_a", actor="job:x")  # type: ignore[misc]
    with pytest.raises(TypeError):
        house.scoped(org_id="org_a", actor="job:x", admin=True)  # type: ignore[call-arg]


# Faults ------------------------------------------------------------------------------------------------------------------


async def test_what_is_refused_and_what_is_undone(house: House, db: TestDatabase) -> None:
    async with house.scoped(org_id="org_a", actor="job:x") as sql:
        await sql.execute(INSERT, "org_a", "one")
        with pytest.raises(UniqueViolation):
            async with sql.savepoint():
                await sql.execute(INSERT, "org_a", "one")
        await sql.execute(INSERT, "org_a", "two")
    with pytest.raises(UniqueViolation):  # noqa: PT012
        async with house.scoped(org_id="org_a", actor="job:x") as sql:
            await sql.execute(INSERT, "org_a", "three")
            await sql.execute(INSERT, "org_a", "one")
    with pytest.raises(LookupError):  # noqa: PT012
        async with house.scoped(org_id="org_a", actor="job:x") as sql:
            await sql.execute(INSERT, "org_a", "four")
            raise LookupError
    assert await db.count("labels") == 2
    assert len(await audited(db)) == 2
    with pytest.raises(RuntimeError, match="after its block"):
        await sql.execute(INSERT, "org_a", "five")


async def test_a_job_that_is_cancelled_leaves_nothing(house: House, db: TestDatabase) -> None:
    async def job() -> None:
        async with house.scoped(org_id="org_a", actor="job:x") as sql:
            await sql.execute(INSERT, "org_a", "half")
            await sql.execute("SELECT pg_sleep(30)")

    for _ in range(6):  # more than there are connections
        task = asyncio.create_task(job())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await db.count("labels") == 0
    async with house.scoped(org_id="org_a", actor="job:x") as sql:
        assert await sql.fetchval("SELECT 1") == 1


async def test_jobs_leave_connections_to_requests(serve: Serve, db: TestDatabase) -> None:
    """All work of one kind has at most half of them, whatever its tenants and names; what waits too long is Unavailable."""
    held = asyncio.Event()
    houses: list[House] = []

    @signed_in
    async def hand_over(request: web.Request) -> web.Response:
        houses.append(service(request, "house"))
        return answer({})

    client = await serve({"database.acquire_seconds": 0.4}, extra={"acme": with_house(web.get("/house", hand_over))})
    await client.get("/house", ALICE)

    async def job(number: int) -> str:
        try:
            async with houses[0].scoped(org_id=f"org_{number}", actor=f"job:{number}") as sql:
                await sql.execute("SELECT 1")
                await held.wait()
            return "done"
        except Unavailable:
            return "unavailable"

    jobs = [asyncio.create_task(job(number)) for number in range(10)]
    await asyncio.sleep(0.1)
    for _ in range(4):
        assert (await client.get("/api/data", ALICE)).status == 200
    async with houses[0].scoped(org_id="org_a", actor="webhook:x") as sql:  # another kind has a share of its own
        assert await sql.fetchval("SELECT 1") == 1
    await asyncio.sleep(0.5)
    held.set()
    assert sorted(await asyncio.gather(*jobs)) == ["done"] * 2 + ["unavailable"] * 8


async def test_one_inside_another_is_two_transactions(house: House, db: TestDatabase) -> None:
    with pytest.raises(LookupError):  # noqa: PT012
        async with house.scoped(org_id="org_a", actor="job:x") as outer:
            await outer.execute(INSERT, "org_a", "outer")
            async with house.scoped(org_id="org_b", actor="job:x") as inner:
                await inner.execute(INSERT, "org_b", "inner")
                assert await inner.fetchval("SELECT count(*) FROM labels") == 1
            assert await outer.fetchval("SELECT string_agg(name, ' ') FROM labels") == "outer"
            raise LookupError
    assert [row["name"] for row in await db.rows("SELECT name FROM labels")] == ["inner"]


async def test_too_many_inside_each_other_are_unavailable_and_not_a_deadlock(serve: Serve, db: TestDatabase) -> None:
    @signed_in
    async def work(request: web.Request) -> web.Response:
        house = service(request, "house")
        one, two, three = (house.scoped(org_id="org_a", actor="job:x") for _ in range(3))
        async with one, two, three:
            return answer({})

    client = await serve({"database.acquire_seconds": 0.3}, extra={"acme": with_house(web.get("/work", work))})
    assert (await client.get("/work", ALICE)).status == 503
    assert (await client.get("/api/data", ALICE)).status == 200


async def test_it_is_no_part_of_a_repeatable_request(serve: Serve, db: TestDatabase) -> None:
    """A transaction of its own: committed although the request's is undone."""

    @signed_in
    async def work(request: web.Request) -> web.Response:
        async with service(request, "house").scoped(org_id="org_a", actor="job:x") as sql:
            await sql.execute(INSERT, "org_a", "kept")
        async with scoped(request) as sql:
            await sql.execute(INSERT, "org_a", "undone")
        raise web.HTTPConflict

    client = await serve(extra={"acme": with_house(web.post("/work", work))})
    assert (await client.post("/work", {**ALICE, "Idempotency-Key": "k"})).status == 409
    assert [row["name"] for row in await db.rows("SELECT name FROM labels")] == ["kept"]


async def test_a_public_route_may_use_it(serve: Serve, db: TestDatabase) -> None:
    @public
    async def hook(request: web.Request) -> web.Response:
        async with service(request, "house").scoped(org_id="org_a", actor="webhook:x") as sql:
            await sql.execute(INSERT, "org_a", "x")
        return answer({})

    client = await serve({"public_routes": ["/hook"]}, extra={"acme": with_house(web.post("/hook", hook))})
    assert (await client.post("/hook")).status == 200
    assert [entry["actor"] for entry in await audited(db)] == ["webhook:x"]


async def test_before_the_database_is_open_and_after_it_is_closed(make_app: Any, db: TestDatabase) -> None:
    houses: list[House] = []

    @asynccontextmanager
    async def early(house: House) -> AsyncIterator[None]:
        async with house.scoped(org_id="org_a", actor="job:start") as sql:  # services open after the database
            await sql.execute(INSERT, "org_a", "at the start")
        yield
        async with house.scoped(org_id="org_a", actor="job:end") as sql:  # and close before it
            await sql.execute(INSERT, "org_a", "at the end")

    def offer(settings: Any, house: House) -> Any:
        houses.append(house)
        return {"early": lambda: early(house)}

    plugin: Any = routes_plugin()
    plugin.register_services = hookimpl(offer, specname="register_services")
    app = make_app(extra={"acme": plugin})

    async def unavailable() -> None:
        with pytest.raises(Unavailable):
            async with houses[0].scoped(org_id="org_a", actor="job:x"):
                pass

    await unavailable()
    runner = web.AppRunner(app)
    await runner.setup()
    await runner.cleanup()
    await unavailable()
    assert [row["name"] for row in await db.rows("SELECT name FROM labels ORDER BY id")] == ["at the start", "at the end"]
