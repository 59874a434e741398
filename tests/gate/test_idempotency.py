"""Idempotency-Key: whatever happens between a client and its response, the request takes effect once or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import Identity, answer, answers_secret, body, identity_of, public, raw_body, read, requires, scoped, signed_in
from server.auth import cleanup
from server.database import request_transaction as joined
from server.gate.idempotency import MOST_BYTES, _name
from tests.conftest import (
    ADMIN_A,
    ALICE,
    ALICE_ALONE,
    BAD_CREDENTIALS,
    BOB,
    CLERK_A,
    ROBOT_A,
    Client,
    Got,
    Serve,
    TestDatabase,
    plugin,
    stub,
)

DENIED = asyncpg.InsufficientPrivilegeError
BRIEF = {"database.statement_seconds": 0.4, "database.acquire_seconds": 5.0}
INSERT = "INSERT INTO data (user_id, org_id, name) VALUES ($1, $2, $3)"
COUNT = "SELECT count(*) FROM data"


def keyed(caller: dict[str, str], key: str = "key-1", **chaos: str) -> dict[str, str]:
    return {**caller, "Idempotency-Key": key, **({"X-Chaos": chaos["chaos"]} if chaos else {})}


def replayed(got: Got) -> bool:
    return got.headers.get("Idempotency-Replayed") == "true"


# Handlers of a stranger ------------------------------------------------------------------------------------------------

routes = web.RouteTableDef()
# Called by the handler below when its effects are done and nothing is committed: a test may do there what it likes.
AT_THE_END: list[Callable[[web.Request], Awaitable[None]]] = []


@pytest.fixture(autouse=True)
def nothing_at_the_end() -> None:
    AT_THE_END.clear()


async def insert(request: web.Request, name: str, **more: Any) -> None:
    caller = identity_of(request)
    async with scoped(request, **more) as db:
        await db.execute(INSERT, caller.user_id, caller.org_id, name)


@routes.post("/twice")
@signed_in
async def twice(request: web.Request) -> web.StreamResponse:
    """Two transactions, as far as the handler knows; the header `X-Chaos` says what fails between them."""
    given, chaos = await body(request, dict[str, str]), request.headers.get("X-Chaos", "")
    await insert(request, given["name"] + " 1")
    if chaos == "raise":
        raise RuntimeError("chaos")
    if chaos == "422":
        raise web.HTTPUnprocessableEntity
    if chaos == "409":
        return answer({"error": "Conflict"}, 409)
    if chaos in ("kill", "sleep", "state"):
        sql = {"kill": "SELECT pg_terminate_backend(pg_backend_pid())", "sleep": "SELECT pg_sleep(9)", "state": "SELECT 1 / 0"}[chaos]
        async with scoped(request) as db:
            await db.execute(sql)
    if chaos == "slow":
        await asyncio.sleep(0.03)
    await insert(request, given["name"] + " 2")
    for what in AT_THE_END:
        await what(request)
    rows = await read(request, "SELECT id, name FROM data WHERE user_id = $1 AND name LIKE $2 ORDER BY name",
                      identity_of(request).user_id, given["name"] + " _")  # fmt: skip
    return answer(rows, 201, {"Location": "/twice/1", "ETag": '"t"', "Link": '</x>; rel="next"', "X-Other": "1"})


@routes.post("/caught")
@signed_in
async def caught(request: web.Request) -> web.Response:
    """One block that fails, as the handler expects, and one that does not."""
    with contextlib.suppress(Exception):
        async with scoped(request) as db:
            await db.execute(INSERT, "alice", None, "lost")
            await db.execute("SELECT 1 / 0")
    with contextlib.suppress(Exception):
        await read(request, "SELECT 1 / 0")
    await insert(request, "kept")
    return answer({"rows": json.loads(await read(request, "SELECT name FROM data"))})


@routes.post("/admin")
@signed_in
async def admin(request: web.Request) -> web.Response:
    """The administrator's scope inside the usual one, around it and after it."""
    seen = []
    async with scoped(request) as db:
        seen.append(await db.fetchval(COUNT))
        async with scoped(request, admin=True) as wide:
            seen.append(await wide.fetchval(COUNT))
            seen.append(await db.fetchval(COUNT))
            seen += json.loads(await read(request, COUNT))[0].values()
            seen.append(await wide.fetchval(COUNT))
        seen.append(await db.fetchval(COUNT))
        async with scoped(request, admin=True) as wide:
            with contextlib.suppress(Exception):
                async with scoped(request, admin=True) as wider:
                    await wider.execute("SELECT 1 / 0")
            seen.append(await wide.fetchval(COUNT))
            await wide.fetchval("SELECT set_config('gatepost.admin_org_id', 'org_b', true)")
        seen += json.loads(await read(request, COUNT, admin=True))[0].values()
        seen.append(await db.fetchval(COUNT))
    seen += json.loads(await read(request, COUNT, admin=True))[0].values()
    async with scoped(request, admin=True) as wide:
        await wide.fetchval("SELECT set_config('gatepost.admin_org_id', 'org_b', true)")
    async with scoped(request, admin=True) as wide:
        seen.append(await wide.fetchval(COUNT))
    seen += json.loads(await read(request, COUNT))[0].values()
    return answer(seen)


@routes.post("/at-once")
@signed_in
async def at_once(request: web.Request) -> web.Response:
    """Several concurrent tasks, outside of a block and inside an open one; one of them fails alone."""
    async def fails() -> None:
        async with scoped(request) as db:
            await db.execute(INSERT, "alice", None, "lost")
            await asyncio.sleep(0.01)
            await db.execute("SELECT 1 / 0")

    await asyncio.gather(*(insert(request, f"a{n}") for n in range(5)), *(read(request, COUNT) for _ in range(5)))
    async with scoped(request) as db:
        done = await asyncio.gather(*(insert(request, f"b{n}") for n in range(5)), fails(), read(request, "SELECT 1 / 0"),
                                    *(db.execute(INSERT, "alice", None, f"c{n}") for n in range(5)), return_exceptions=True)  # fmt: skip

    async def later() -> None:
        await asyncio.sleep(0.02)
        await insert(request, "e")

    async with scoped(request):  # left while a block is open inside it, and while a task that was begun in it does nothing yet
        tasks = [asyncio.ensure_future(insert(request, "d")), asyncio.ensure_future(later())]
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    return answer({"failed": sum(isinstance(one, Exception) for one in done)})


@routes.post("/left")
@signed_in
async def left(request: web.Request) -> web.Response:
    """Fails while a task that it started is still running."""
    async def lingers() -> None:
        async with scoped(request) as db:
            await db.execute(INSERT, "alice", None, "lingering")
            await asyncio.sleep(0.3 if request.headers.get("X-Chaos") == "long" else 0.05)
            await db.execute(INSERT, "alice", None, "lingering")

    task = asyncio.ensure_future(lingers())
    request.app[TASKS].append(task)
    await asyncio.sleep(0.02)
    if request.headers.get("X-Chaos") == "fails":
        raise web.HTTPConflict
    return answer({})


@routes.post("/waits-for-a-closing-block")
@signed_in
async def waits_for_a_closing_block(request: web.Request) -> web.Response:
    """A task asks for the block that it was started in while that block closes, which waits for a statement."""
    async with scoped(request) as db:
        slow = asyncio.ensure_future(db.execute("SELECT pg_sleep(0.3)"))

        async def waits() -> None:
            await asyncio.sleep(0.1)
            await insert(request, "late")

        waiting = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
    await asyncio.gather(slow, waiting)
    return answer({})


TASKS = web.AppKey("tasks", list)


@routes.post("/answers/{kind}")
@signed_in
async def answers(request: web.Request) -> web.StreamResponse:
    """Responses of every kind."""
    await insert(request, request.match_info["kind"])
    match request.match_info["kind"]:
        case "none":
            return web.Response(status=204)
        case "text":
            return web.Response(text="grüße", content_type="text/plain", charset="utf-8")
        case "largest":
            return answer(b'"' + b"x" * 262_142 + b'"')
        case "larger":
            return answer(b'"' + b"x" * 262_143 + b'"')
        case "elsewhere":
            raise web.HTTPSeeOther("/somewhere")
        case "stream":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"streamed")
            return response
    return None  # type: ignore[return-value]


@routes.post("/secret")
@answers_secret
@signed_in
async def secret(request: web.Request) -> web.Response:
    await insert(request, "secret")
    return answer({"secret": "hunter2"}, 201, {"Location": "/hunter2"})


@routes.post("/raw")
@signed_in
async def raw(request: web.Request) -> web.Response:
    await insert(request, "raw")
    return answer({"bytes": len(await raw_body(request)) if request.body_exists else None})


@routes.post("/admins")
@requires(role="org:admin")
async def admins(request: web.Request) -> web.Response:
    await insert(request, "admins")
    return answer({})


@routes.post("/open")
@public
async def open_to_all(request: web.Request) -> web.Response:
    return answer({"header": request.headers.get("Idempotency-Key")})


@routes.patch("/twice")
@signed_in
async def patched(request: web.Request) -> web.Response:
    await insert(request, "patched")
    return answer({})


@pytest.fixture
async def acme(serve: Serve) -> Client:
    """A server with the handlers above."""
    return await start(serve)


async def start(serve: Serve, **more: Any) -> Client:
    # Without the header `/admin` has three connections at once: no caller has more than half of them.
    return await serve({**BRIEF, "database.pool_size": 8, "public_routes": ["/open"], **more}, extra={"acme": plugin(*routes)})


async def names(db: TestDatabase) -> list[str]:
    return [row["name"] for row in await db.rows("SELECT name FROM data ORDER BY name")]


def conflict(got: Got, reason: str) -> None:
    assert (got.status, got.json()) == (409, {"error": "Conflict", "reason": reason})


# The same again --------------------------------------------------------------------------------------------------------


async def test_a_repeat_has_the_same_bytes_and_one_effect(acme: Client, db: TestDatabase) -> None:
    first = await acme.post("/twice", keyed(ALICE), {"name": "a"})
    assert (first.status, replayed(first)) == (201, False)
    for _ in range(3):
        again = await acme.post("/twice", keyed(ALICE), {"name": "a"})
        assert (again.status, again.raw, replayed(again)) == (201, first.raw, True)
        for name in ("Location", "ETag", "Link", "Content-Type", "Cache-Control", "Vary", "X-Content-Type-Options"):
            assert again.headers[name] == first.headers[name], name
        assert "X-Other" not in again.headers
        assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert await names(db) == ["a 1", "a 2"]
    assert await db.count("idempotency_keys") == 1


@pytest.mark.parametrize(("path", "caller", "sent"), [
    ("/api/data", ALICE, {"name": "x"}), ("/api/orgs/org_a/data", ALICE, {"name": "x"}), ("/api/orgs/org_a/data", ROBOT_A, {"name": "x"}),
    ("/api/invoices", CLERK_A, {"customer": "c", "amount": "1.50", "currency": "EUR"}),
    ("/api/invoices", ROBOT_A, {"customer": "c", "amount": "1.50", "currency": "EUR"}),
])  # fmt: skip
async def test_built_in_handlers(client: Client, db: TestDatabase, path: str, caller: dict[str, str], sent: Any) -> None:
    first, again, other = [await client.post(path, keyed(caller, key), sent) for key in ("k1", "k1", "k2")]
    assert (first.status, again.status, other.status) == (201, 201, 201)
    assert (first.raw, replayed(first), replayed(again)) == (again.raw, False, True)
    assert other.json()["id"] != first.json()["id"]
    assert {name: first.headers.get(name) for name in ("Location", "ETag")} == {
        name: again.headers.get(name) for name in ("Location", "ETag")
    }
    table = {"/api/data": "data", "/api/invoices": "invoices"}.get(path, "org_data")
    assert await db.count(table) == 2


async def test_without_the_header_nothing_is_kept(acme: Client, db: TestDatabase) -> None:
    for _ in range(2):
        assert (await acme.post("/twice", ALICE, {"name": "a"})).status == 201
        assert (await acme.patch("/twice", keyed(ALICE))).status == 200
        assert (await acme.post("/open", keyed(ALICE))).json() == {"header": "key-1"}
    assert await names(db) == ["a 1", "a 1", "a 2", "a 2", "patched", "patched"]
    assert await db.count("idempotency_keys") == 0


@pytest.mark.parametrize("kind", ["none", "text", "largest", "elsewhere"])
async def test_answers_that_are_kept(acme: Client, db: TestDatabase, kind: str) -> None:
    first, again = [await acme.post(f"/answers/{kind}", keyed(ALICE)) for _ in range(2)]
    assert (again.status, again.raw, replayed(again)) == (first.status, first.raw, True)
    kept = {name: first.headers.get(name) for name in ("Content-Type", "Location")}
    assert {name: again.headers.get(name) for name in kept} == kept
    assert await names(db) == [kind]


@pytest.mark.parametrize("kind", ["larger", "stream"])
async def test_answers_that_cannot_be_kept_are_not_given_again(acme: Client, db: TestDatabase, kind: str) -> None:
    assert (await acme.post(f"/answers/{kind}", keyed(ALICE))).status == 200
    for _ in range(2):
        conflict(await acme.post(f"/answers/{kind}", keyed(ALICE)), "idempotency-answer-not-kept")
    assert await names(db) == [kind]


async def test_what_is_no_answer_at_all_leaves_nothing(acme: Client, db: TestDatabase) -> None:
    assert (await acme.post("/answers/nothing", keyed(ALICE))).status == 500
    assert await db.count("data") + await db.count("idempotency_keys") == 0


# The key ---------------------------------------------------------------------------------------------------------------


async def test_a_quoted_key_is_the_same_key(acme: Client, db: TestDatabase) -> None:
    same = ["abc", '"abc"', ' "abc" ']
    other = ['"a\\"c"', '"a\\\\c"', "ABC", "!" + "x" * 254, "abc,def"]
    for number, key in enumerate(same):
        got = await acme.post("/raw", keyed(ALICE, key))
        assert (got.status, replayed(got)) == (200, number > 0)
    for key in other:
        assert not replayed(await acme.post("/raw", keyed(ALICE, key)))
    assert await db.count("data") == 1 + len(other)


@pytest.mark.parametrize("key", ["", " ", "a b", '"', '""', '"a', 'a"b" c', '"a"b"', '"a";p=1', '"a\\b"', "x" * 256, '"' + "x" * 256 + '"', "schlüssel",
                                 "\x7f", "a\tb", '"a b"', '"a", "b"'])  # fmt: skip
async def test_what_is_no_key(acme: Client, db: TestDatabase, key: str) -> None:
    async with acme.wire() as wire:
        await wire.send("POST /raw", keyed(ALICE, key), {"Content-Length": "0"})
        status, _, said = await wire.answer()
    assert status == 400
    assert key in ("\x7f",) or json.loads(said) == {"error": "Bad Request", "reason": "idempotency-key-malformed"}
    assert await db.count("data") + await db.count("idempotency_keys") == 0


async def test_two_keys_are_none(acme: Client) -> None:
    async with acme.wire() as wire:
        await wire.send("POST /raw", keyed(ALICE), {"idempotency-key": "key-1", "Content-Length": "0"})
        assert (await wire.answer())[0] == 400


async def test_another_request_with_the_same_key_is_a_422(acme: Client, db: TestDatabase) -> None:
    await acme.post("/raw?a=1", keyed(ALICE), data=b"one")
    before = await names(db)
    json_type = {"Content-Type": "application/json"}
    for path, sent, more in (("/raw?a=1", b"two", {}), ("/raw?a=2", b"one", {}), ("/raw", b"one", {}), ("/raw?a=1", b"", {}), ("/raw?a=1", b"one", json_type)):
        got = await acme.post(path, {**keyed(ALICE), **more}, data=sent)
        assert (got.status, got.json()) == (422, {
            "error": "Unprocessable Content", "reason": "idempotency-key-reused",
            "fields": [{"field": "Idempotency-Key", "message": "was already used for a different request"}],
        })  # fmt: skip
    assert replayed(await acme.post("/raw?a=1", keyed(ALICE), data=b"one"))
    assert await names(db) == before == ["raw"]
    for kind in ("text", "none"):  # the path's parameters belong to the request, not to the key
        assert (await acme.post(f"/answers/{kind}", keyed(ALICE, "k2"))).status == (200 if kind == "text" else 422)


async def test_every_caller_and_route_has_keys_of_its_own(acme: Client, db: TestDatabase) -> None:
    made = (await acme.post("/api/keys", stub("alice", org_id="org_a"), {"name": "k"})).json()
    robots = [(await acme.post("/api/keys", ADMIN_A, {"name": "k", "owner": "organization"})).json() for _ in range(2)]
    callers = [ALICE, BOB, ALICE_ALONE, stub("alice", org_id="org_b"), stub("bob", org_id="org_a"), ROBOT_A,
               *({"X-API-Key": key["secret"]} for key in (made, *robots))]  # fmt: skip
    sent = {"name": "same"}
    for again in (False, True):
        for caller in callers:
            got = await acme.post("/secret" if caller in (ROBOT_A, *callers[-2:]) else "/twice", keyed(caller), sent)
            if caller in (ROBOT_A, *callers[-2:]):
                assert got.status == 403  # it has no user, so its insert is refused; see the next lines
            else:
                assert (got.status, replayed(got)) == (201, again), caller
                assert len(got.json()) >= 2
    invoice = [await acme.post("/api/orgs/org_a/data", keyed(caller), sent) for caller in (ROBOT_A, *callers[-2:], ALICE) for _ in range(2)]
    assert [(got.status, replayed(got)) for got in invoice] == [(201, False), (201, True)] * 4
    assert await db.count("org_data") == 4
    assert len({got.json()["id"] for got in invoice}) == 4
    rows = await db.rows("SELECT user_id, org_id FROM data")
    assert len(rows) == 2 * 6  # six callers with a user


# At once ---------------------------------------------------------------------------------------------------------------


async def test_twenty_at_once_are_one(serve: Serve, db: TestDatabase) -> None:
    """Through two servers on one database, with fewer connections than requests."""
    servers = [await start(serve), await start(serve)]
    for key in ("k1", "k2", "k3"):
        sent = [servers[n % 2].post("/twice", keyed(ALICE, key, chaos="slow"), {"name": key}) for n in range(20)]
        all_got = await asyncio.gather(*sent)
        done = [got for got in all_got if got.status == 201]
        for got in all_got:
            if got.status != 201:
                conflict(got, "idempotency-in-progress")
                assert got.headers["Retry-After"] == "1"
        assert len({got.raw for got in done}) == 1
        assert sum(not replayed(got) for got in done) == 1
        assert len(done) < 20  # nobody has waited
        assert replayed(await servers[0].post("/twice", keyed(ALICE, key), {"name": key}))
    assert await names(db) == [f"{key} {n}" for key in ("k1", "k2", "k3") for n in (1, 2)]


async def test_a_snapshot_from_before_does_no_second_effect(acme: Client, db: TestDatabase) -> None:
    """With another default isolation level, the lookup may read a snapshot from before the other request's commit."""
    for level in ("serializable", "repeatable read"):
        await db.rows(f"ALTER DATABASE \"{db.name}\" SET default_transaction_isolation = '{level}'")
        try:
            await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost'")
            await asyncio.sleep(0.05)
            all_got = await asyncio.gather(*(acme.post("/twice", keyed(ALICE, level[:4]), {"name": level}) for _ in range(30)))
            assert {got.status for got in all_got} <= {201, 409, 503}
            assert sum(got.status == 201 and not replayed(got) for got in all_got) <= 1
            assert (await acme.post("/twice", keyed(ALICE, level[:4]), {"name": level})).status == 201
        finally:
            await db.rows(f'ALTER DATABASE "{db.name}" RESET default_transaction_isolation')
            # A kept connection would carry the isolation into the tests that follow.
            await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost'")
    assert len(await names(db)) == 4


async def test_a_row_that_only_the_constraint_sees_undoes_the_second_effect(acme: Client, db: TestDatabase) -> None:
    """The lock only avoids waiting: without it, the unique row still allows one effect only."""
    name = _name(Identity(provider="stub", user_id="alice", org_id="org_a"), "POST", "/twice", "key-1")
    async with db.server.as_admin(db.name) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("INSERT INTO idempotency_keys (hash, fingerprint, user_id, status, body, expires_at)"
                            " VALUES ($1, sha256('x'), 'alice', 200, '', now() + interval '1 day')", name)  # fmt: skip
        asked = asyncio.ensure_future(acme.post("/twice", keyed(ALICE), {"name": "a"}))
        for _ in range(100):
            if await db.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO idemp%'"):
                break
            await asyncio.sleep(0.002)
        await transaction.commit()
    conflict(await asked, "idempotency-in-progress")
    assert await db.count("data") == 0


async def test_one_connection_a_request(serve: Serve, db: TestDatabase) -> None:
    """Everything works with a single connection in the pool, so no request needs two."""
    client = await start(serve, **{"database.pool_size": 1, "database.acquire_seconds": 1.0})
    for path in ("/twice", "/caught", "/at-once"):
        got = await client.post(path, keyed(ALICE, path), {"name": "one"})
        assert got.status in (200, 201), (path, got)
        assert replayed(await client.post(path, keyed(ALICE, path), {"name": "one"}))


# What fails leaves nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chaos", "status"), [
    ("raise", 500), ("422", 422), ("409", 409), ("state", 422), ("kill", 503), ("sleep", 503),
])  # fmt: skip
async def test_what_fails_between_two_blocks_undoes_both(acme: Client, db: TestDatabase, chaos: str, status: int) -> None:
    for _ in range(2):
        got = await acme.post("/twice", keyed(ALICE, chaos=chaos), {"name": "a"})
        assert got.status == status
        assert ("Retry-After" in got.headers) == (status == 503)
        assert await db.count("data") + await db.count("idempotency_keys") == 0
    done, again = [await acme.post("/twice", keyed(ALICE), {"name": "a"}) for _ in range(2)]
    assert (done.status, replayed(done), replayed(again)) == (201, False, True)
    assert await names(db) == ["a 1", "a 2"]


async def test_another_body_may_follow_a_failure(acme: Client, db: TestDatabase) -> None:
    assert (await acme.post("/api/data", keyed(ALICE), {"name": 5})).status == 422
    assert (await acme.post("/api/data", keyed(ALICE), {"name": "five"})).status == 201
    assert await names(db) == ["five"]


async def test_a_connection_that_dies_between_effect_and_commit(acme: Client, db: TestDatabase) -> None:
    async def kill(request: web.Request) -> None:
        AT_THE_END.clear()
        await db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost'")

    AT_THE_END.append(kill)
    lost = await acme.post("/twice", keyed(ALICE), {"name": "a"})
    assert (lost.status, lost.json(), lost.headers["Retry-After"]) == (503, {"error": "Service Unavailable"}, "1")
    assert await db.count("data") + await db.count("idempotency_keys") == 0
    done, again = [await acme.post("/twice", keyed(ALICE), {"name": "a"}) for _ in range(2)]
    assert (done.status, replayed(done), replayed(again)) == (201, False, True)
    assert await names(db) == ["a 1", "a 2"]


@pytest.mark.parametrize("fault", ["PERFORM pg_terminate_backend(pg_backend_pid())", "RAISE EXCEPTION USING ERRCODE = '53100'"])
async def test_a_commit_that_fails_leaves_nothing(acme: Client, db: TestDatabase, fault: str) -> None:
    """A deferred trigger fails during the COMMIT itself."""
    await db.rows(f"CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN {fault}; RETURN NULL; END $$")
    await db.rows("CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON idempotency_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
                  " EXECUTE FUNCTION fault()")  # fmt: skip
    try:
        assert (await acme.post("/twice", keyed(ALICE), {"name": "a"})).status == 503
        assert await db.count("data") + await db.count("idempotency_keys") == 0
    finally:
        await db.rows("DROP FUNCTION fault() CASCADE")
    assert (await acme.post("/twice", keyed(ALICE), {"name": "a"})).status == 201
    assert await names(db) == ["a 1", "a 2"]


@pytest.mark.parametrize("cancels", [False, True])
async def test_a_client_that_hangs_up_repeats_and_has_one_effect(acme: Client, db: TestDatabase, cancels: bool) -> None:
    """Our server lets the handler finish, so the repeat gets its response; a server that cancels it undoes everything."""
    acme.server.handler.handler_cancellation = cancels
    reached, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> None:
        reached.set()
        await may_go_on.wait()

    AT_THE_END.append(wait)
    sent = b'{"name": "a"}'
    headers = {**keyed(ALICE), "Content-Type": "application/json"}
    async with acme.wire() as wire:
        await wire.send("POST /twice", headers, {"Content-Length": str(len(sent))}, body=sent)
        async with asyncio.timeout(5):
            await reached.wait()
    AT_THE_END.clear()
    await asyncio.sleep(0.05)
    if not cancels:
        conflict(await acme.post("/twice", headers, data=sent), "idempotency-in-progress")
    may_go_on.set()
    for _ in range(50):
        got = await acme.post("/twice", headers, data=sent)
        if got.status != 409:
            break
        await asyncio.sleep(0.01)
    assert (got.status, replayed(got)) == (201, not cancels)
    assert await names(db) == ["a 1", "a 2"]


async def test_half_a_body_does_nothing(acme: Client, db: TestDatabase) -> None:
    async with acme.wire() as wire:
        await wire.send("POST /twice", keyed(ALICE), {"Content-Type": "application/json", "Content-Length": "100"}, body=b'{"name"')
        await asyncio.sleep(0.05)
        assert await db.rows("SELECT 1 FROM pg_stat_activity WHERE state LIKE 'idle in%' AND application_name = 'gatepost'") == []
    assert await db.count("data") + await db.count("idempotency_keys") == 0


async def test_a_request_that_is_cancelled_is_undone(acme: Client, db: TestDatabase) -> None:
    """As when the server stops: between two statements, and during one."""
    tasks: list[asyncio.Task[Any]] = []

    async def sleep(request: web.Request) -> None:
        task = asyncio.current_task()
        assert task
        tasks.append(task)
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        if request.headers.get("X-Chaos") == "slow":
            await asyncio.sleep(5)
        async with scoped(request) as other:
            await other.fetchval("SELECT pg_sleep(0.3)")

    AT_THE_END.append(sleep)
    for chaos in ("slow", "in a statement"):
        with contextlib.suppress(Exception):
            assert (await acme.post("/twice", keyed(ALICE, chaos=chaos), {"name": "a"})).status >= 500
        assert await db.count("data") + await db.count("idempotency_keys") == 0
    AT_THE_END.clear()
    assert len(tasks) == 2
    for _ in range(50):
        got = await acme.post("/twice", keyed(ALICE), {"name": "a"})
        if got.status != 409:  # Postgres may still be at what was cancelled
            break
        await asyncio.sleep(0.02)
    assert (got.status, await names(db)) == (201, ["a 1", "a 2"])


# A handler like any other ----------------------------------------------------------------------------------------------


async def test_a_block_that_fails_and_is_caught_undoes_itself_alone(acme: Client, db: TestDatabase) -> None:
    first, again = [await acme.post("/caught", keyed(ALICE)) for _ in range(2)]
    assert (first.status, first.raw, replayed(again)) == (200, again.raw, True)
    assert first.json() == {"rows": [{"name": "kept"}]}
    assert await names(db) == ["kept"]


async def test_scopes_in_scopes(acme: Client, db: TestDatabase) -> None:
    """A handler sees the same rows with the header as without it; it has the administrator's scope only where it asked for it."""
    for who, org in (("alice", "org_a"), ("alice", "org_a"), ("anna", "org_a"), ("bob", "org_b")):
        await db.rows(f"INSERT INTO data (user_id, org_id, name) VALUES ('{who}', '{org}', 'x')")
    plain = await acme.post("/admin", ADMIN_A)
    assert plain.json() == [1, 3, 1, 1, 3, 1, 3, 3, 1, 3, 3, 1]
    first, again = [await acme.post("/admin", keyed(ADMIN_A)) for _ in range(2)]
    assert first.raw == again.raw == plain.raw
    refused = await acme.post("/admin", keyed(ALICE))
    assert (refused.status, refused.json()["reason"]) == (403, "role")
    assert await db.count("idempotency_keys") == 1
    assert (await acme.post("/admins", keyed(ADMIN_A, "k2"))).status == 200


async def test_tasks_at_once(acme: Client, db: TestDatabase) -> None:
    first, again = [await acme.post("/at-once", keyed(ALICE)) for _ in range(2)]
    assert (first.status, first.json(), replayed(again)) == (200, {"failed": 2}, True)
    assert await names(db) == [f"{kind}{n}" for kind in "abc" for n in range(5)] + ["d", "e"]


async def test_a_task_that_waits_while_its_block_closes_belongs_to_the_block_around_it(acme: Client, db: TestDatabase) -> None:
    got = await acme.post("/waits-for-a-closing-block", keyed(ALICE))
    assert (got.status, await names(db)) == (200, ["late"])


@pytest.mark.parametrize("chaos", ["", "fails"])
async def test_a_task_that_is_left_behind_harms_no_other_request(acme: Client, db: TestDatabase, chaos: str) -> None:
    tasks: list[asyncio.Task[None]] = []
    acme.app._state[TASKS] = tasks
    for round in range(3):
        got = await acme.post("/left", keyed(ALICE, f"k{round}", chaos=chaos))
        assert got.status == (409 if chaos else 200)
        assert (await acme.post("/api/data", BOB, {"name": "bob's"})).status == 201
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [RuntimeError if chaos else type(None)] * 3
    assert await names(db) == ["bob's"] * 3 + ([] if chaos else ["lingering"] * 6)
    assert (await acme.get("/api/data", BOB)).status == 200


async def test_a_task_that_does_not_end_is_not_waited_for_and_harms_no_other_request(
    serve: Serve, db: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still holds a savepoint, so its connection must never be used by another caller."""
    monkeypatch.setattr(joined, "_PATIENCE_SECONDS", 0.05)
    client = await start(serve, **{"database.pool_size": 1})
    tasks: list[asyncio.Task[None]] = []
    client.app._state[TASKS] = tasks
    assert (await client.post("/left", keyed(ALICE, chaos="long"))).status == 503
    AT_THE_END.append(lambda request: asyncio.gather(*tasks, return_exceptions=True))
    assert (await client.post("/twice", keyed(BOB), {"name": "b"})).status == 201
    assert isinstance(tasks[0].exception(), Exception)
    assert await names(db) == ["b 1", "b 2"]


async def test_the_handlers_body_is_what_was_sent(acme: Client) -> None:
    got = await acme.post("/raw", keyed(ALICE), data=b"12345")
    assert got.json() == {"bytes": 5}
    assert (await acme.post("/raw", keyed(ALICE, "k2"))).json() == {"bytes": None}
    async with acme.wire() as wire:  # one leave to go on, not two
        await wire.send("POST /raw", keyed(ALICE, "k3"), {"Content-Length": "3", "Expect": "100-continue"})
        assert (await wire.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        wire.writer.write(b"abc")
        status, _, said = await wire.answer()
    assert (status, json.loads(said)) == (200, {"bytes": 3})


# In which order --------------------------------------------------------------------------------------------------------


async def test_the_gate_comes_first(acme: Client, db: TestDatabase) -> None:
    """A repeat passes the gate again; for an unknown caller neither the body nor the table is read."""
    assert (await acme.post("/admins", keyed(ADMIN_A))).status == 200
    now_member = stub("anna", org_id="org_a", org_role="org:member")
    assert (await acme.post("/admins", keyed(now_member))).json() == {"error": "Forbidden", "reason": "role"}
    assert replayed(await acme.post("/admins", keyed(ADMIN_A)))
    await db.rows("ALTER TABLE idempotency_keys RENAME TO gone")
    try:
        for caller in BAD_CREDENTIALS.values():
            assert (await acme.post("/twice", {**caller, "Idempotency-Key": "a b"})).status == 401
        assert (await acme.post("/admins", keyed(now_member, "a b"))).status == 403
        assert (await acme.post("/nowhere", keyed(ALICE, "a b"))).status == 404
        assert (await acme.post("/twice", keyed(ALICE, "a b"))).status == 400
        assert (await acme.post("/twice", {**keyed(ALICE), "Content-Encoding": "gzip"}, data=b"x")).status == 415
        large = await acme.post("/twice", keyed(ALICE), data=io.BytesIO(b"x" * 2_000_000))
        assert large.status == 413
        assert (await acme.post("/twice", keyed(ALICE), {"name": "a"})).status == 500  # only now
    finally:
        await db.rows("ALTER TABLE gone RENAME TO idempotency_keys")


async def test_the_second_lock_is_asked_for_a_repeat_too(acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await acme.post("/admins", keyed(ADMIN_A))).status == 200
    monkeypatch.setattr("server.gate.admission.check", lambda *_: None)
    got = await acme.post("/admins", keyed(stub("anna", org_id="org_a", org_role="org:member")))
    assert got.json() == {"error": "Forbidden", "reason": "role"}


async def test_the_key_comes_before_the_handlers_own_refusals(acme: Client) -> None:
    assert (await acme.post("/api/data", keyed(ALICE), {"name": "a"})).status == 201
    got = await acme.post("/api/data", keyed(ALICE), {"name": 5})
    assert got.json()["reason"] == "idempotency-key-reused"


async def test_a_caller_without_a_tenant_has_no_keys(serve: Serve, db: TestDatabase) -> None:
    from types import SimpleNamespace

    from server import hookimpl

    class Nobody:
        def __init__(self, settings: Any) -> None: ...

        async def authenticate(self, request: web.Request) -> Identity:
            return Identity(provider="nobody", token_type="access_token")

    offered = SimpleNamespace(register_providers=hookimpl(lambda: {"nobody": Nobody}, specname="register_providers"))
    client = await serve({"providers": ["nobody"]}, extra={"nobody": offered, "acme": plugin(*routes)})
    got = await client.post("/raw", {"Idempotency-Key": "k"})
    assert (got.status, got.json()["reason"]) == (400, "idempotency-key-unowned")


async def test_a_browser_may_read_that_it_is_a_repeat(serve: Serve) -> None:
    client = await start(serve, cors_origins=["https://app.example.com"])
    for _ in range(2):
        got = await client.post("/raw", {**keyed(ALICE), "Origin": "https://app.example.com"})
        assert "Idempotency-Replayed" in got.headers["Access-Control-Expose-Headers"]
    assert replayed(got)


# Secrets ---------------------------------------------------------------------------------------------------------------


async def test_an_answer_with_a_secret_is_not_kept(acme: Client, db: TestDatabase) -> None:
    assert (await acme.post("/secret", keyed(ALICE))).json() == {"secret": "hunter2"}
    conflict(await acme.post("/secret", keyed(ALICE)), "idempotency-secret-not-kept")
    assert await names(db) == ["secret"]
    assert "hunter2" not in str(await db.rows("SELECT * FROM idempotency_keys"))


async def test_key_routes_are_done_once_and_keep_no_secret(client: Client, db: TestDatabase) -> None:
    new = await client.post("/api/keys", keyed(ALICE), {"name": "mine"})
    assert new.status == 201
    conflict(await client.post("/api/keys", keyed(ALICE), {"name": "mine"}), "idempotency-secret-not-kept")
    assert (await client.post("/api/keys", keyed(ALICE), {"name": "other"})).status == 422
    assert await db.count("api_keys") == 1
    path = f"/api/keys/{new.json()['id']}/rotate"
    hashes = [await db.rows("SELECT hash FROM api_keys")]
    rotated = await client.post(path, keyed(ALICE), {"overlap_seconds": 60})
    assert (rotated.status, rotated.json()["previous_expires_at"] is not None) == (200, True)  # the body was read twice
    hashes.append(await db.rows("SELECT hash FROM api_keys"))
    conflict(await client.post(path, keyed(ALICE), {"overlap_seconds": 60}), "idempotency-secret-not-kept")
    assert hashes[0] != hashes[1] == await db.rows("SELECT hash FROM api_keys")
    assert (await client.get("/api/me", {"X-API-Key": rotated.json()["secret"]})).status == 200
    assert (await client.post(path, keyed(ALICE, "k2"))).status == 200
    assert (await client.post("/api/keys", keyed(ALICE, "k3"), {"name": "x", "owner": "organization"})).status == 403
    kept = str(await db.rows("SELECT * FROM idempotency_keys"))
    assert await db.count("idempotency_keys") == 3
    for secret in (new.json()["secret"], rotated.json()["secret"], "key-1", new.json()["id"], "gp_"):
        assert secret not in kept


# The table -------------------------------------------------------------------------------------------------------------


async def test_an_answer_that_has_expired_counts_as_absent(acme: Client, db: TestDatabase) -> None:
    for expected in (["a 1", "a 2"], ["a 1", "a 1", "a 2", "a 2"]):
        first, again = [await acme.post("/twice", keyed(ALICE), {"name": "a"}) for _ in range(2)]
        assert (first.status, replayed(first), replayed(again)) == (201, False, True)
        assert await names(db) == expected
        await db.rows("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'")
    failed = await acme.post("/twice", keyed(ALICE, chaos="raise"), {"name": "a"})
    assert (failed.status, await db.count("idempotency_keys")) == (500, 1)
    assert (await acme.post("/twice", keyed(ALICE), {"name": "b"})).status == 201  # another request, after the end


async def test_kept_for_as_long_as_is_set(serve: Serve, db: TestDatabase) -> None:
    client = await start(serve, **{"idempotency.keep_seconds": 1.0})
    assert [replayed(await client.post("/raw", keyed(ALICE))) for _ in range(2)] == [False, True]
    await asyncio.sleep(1.1)
    assert [replayed(await client.post("/raw", keyed(ALICE))) for _ in range(2)] == [False, True]
    assert await db.count("data") == 2


@pytest.fixture
async def kept(acme: Client, db: TestDatabase) -> list[tuple[str, str]]:
    """One stored response of each of four owners."""
    owners = [("alice", "org_a"), ("alice", ""), ("bob", "org_b"), ("", "org_a")]
    for caller in (ALICE, ALICE_ALONE, BOB):
        assert (await acme.post("/twice", keyed(caller), {"name": "a"})).status == 201
    assert (await acme.post("/api/orgs/org_a/data", keyed(ROBOT_A), {"name": "a"})).status == 201
    assert await db.count("idempotency_keys") == 4
    return owners


async def test_row_level_security_alone(kept: list[tuple[str, str]], db: TestDatabase) -> None:
    """As the serving role, without a WHERE: only the caller's rows; none can be changed, or written in another caller's name."""
    row = "INSERT INTO idempotency_keys (hash, user_id, org_id, fingerprint, status, body, expires_at) VALUES (sha256('x'), $1, $2, sha256('x'), 200, '', now())"
    scopes = [*kept, ("", ""), ("carol", "org_a"), ("carol", ""), ("bob", "org_a"), ("alice", "org_b"), ("", "org_b")]
    async with db.server.connected(db.server.serving_role, db.name) as app:
        assert await app.fetchval("SELECT count(*) FROM idempotency_keys") == 0
        for user, org in scopes:
            async with app.transaction():
                await app.execute("SELECT set_config('gatepost.user_id', $1, true), set_config('gatepost.org_id', $2, true),"
                                  " set_config('gatepost.admin_org_id', $2, true)", user, org)  # fmt: skip
                seen = await app.fetch("SELECT user_id, org_id FROM idempotency_keys")
                assert [(one["user_id"] or "", one["org_id"] or "") for one in seen] == [(user, org)] * ((user, org) in kept)
                assert await app.execute("DELETE FROM idempotency_keys") == "DELETE 0"  # nothing of it has expired
                for other in scopes:
                    own = other == (user, org)
                    with pytest.raises(DENIED if not own else Undo if any(other) else asyncpg.CheckViolationError):
                        await undone(app, row, other[0] or None, other[1] or None)
                for sql in ("UPDATE idempotency_keys SET status = 201", "TRUNCATE idempotency_keys", "SELECT * FROM idempotency_keys FOR UPDATE"):
                    with pytest.raises(DENIED):
                        async with app.transaction():
                            await app.execute(sql)
        await db.rows("UPDATE idempotency_keys SET expires_at = now()")
        async with app.transaction():
            await app.execute("SELECT set_config('gatepost.user_id', 'alice', true), set_config('gatepost.org_id', 'org_a', true)")
            assert await app.execute("DELETE FROM idempotency_keys") == "DELETE 1"
        assert await app.execute("DELETE FROM idempotency_keys") == "DELETE 0"


class Undo(Exception):
    """Rolls back a test's transaction."""


async def undone(connection: asyncpg.Connection, sql: str, *args: Any) -> None:
    """Run a statement and undo it; raises Undo if the statement succeeded."""
    async with connection.transaction():
        await connection.execute(sql, *args)
        raise Undo


async def test_a_row_without_an_owner_cannot_be(db: TestDatabase) -> None:
    for columns in ("NULL, NULL, 200, '', NULL", "'', NULL, 200, '', NULL", "'a', NULL, 500, '', NULL", "'a', NULL, 200, NULL, NULL",
                    "'a', NULL, 200, '', 'secret'", "'a', NULL, 200, NULL, 'other'"):  # fmt: skip
        with pytest.raises(asyncpg.CheckViolationError):
            await db.rows("INSERT INTO idempotency_keys (hash, fingerprint, user_id, org_id, status, body, withheld, expires_at)"
                          f" VALUES (sha256('x'), sha256('x'), {columns}, now())")  # fmt: skip


async def test_pruning(kept: list[tuple[str, str]], db: TestDatabase) -> None:
    """Expired rows are deleted in small steps, and no others; locked rows are skipped."""
    await db.rows("UPDATE idempotency_keys SET expires_at = now() - interval '1 hour' WHERE user_id IS NOT NULL")
    async with db.server.connected(db.server.serving_role, db.name) as app, db.server.as_admin(db.name) as admin:
        async with admin.transaction():
            await admin.execute("SELECT 1 FROM idempotency_keys WHERE user_id = 'bob' FOR UPDATE")
            assert [await app.fetchval("SELECT prune_idempotency($1)", 1) for _ in range(3)] == [1, 1, 0]
        assert await app.fetchval("SELECT prune_idempotency($1)", 100) == 1
        assert await app.fetchval("SELECT prune_idempotency($1)", 100) == 0
    assert [row["org_id"] for row in await db.rows("SELECT org_id FROM idempotency_keys")] == ["org_a"]


async def test_the_clean_up_prunes_step_by_step(serve: Serve, db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PRUNE_SECONDS", 0.05), ("BATCH_ROWS", 2), ("SWEEP_SECONDS", 0.02), ("PAUSE_SECONDS", 0.01)):
        monkeypatch.setattr(cleanup, name, value)
    await db.rows("INSERT INTO idempotency_keys (hash, fingerprint, user_id, status, body, expires_at)"
                  " SELECT sha256(n::text::bytea), sha256('x'), 'u', 200, '', now() FROM generate_series(1, 9) AS n")  # fmt: skip
    await start(serve)
    for _ in range(1000):
        if await db.count("idempotency_keys") == 0:
            break
        await asyncio.sleep(0.02)
    assert await db.count("idempotency_keys") == 0


async def test_nothing_of_a_request_is_kept_in_clear(acme: Client, db: TestDatabase) -> None:
    await acme.post("/raw", keyed(ALICE, "canary-key"), data=b"canary-body")
    assert "canary" not in str(await db.rows("SELECT *, encode(hash, 'escape'), encode(fingerprint, 'escape') FROM idempotency_keys"))


# Whatever happens ------------------------------------------------------------------------------------------------------

FATES = st.sampled_from(["", "slow", "raise", "422", "409", "state", "kill", "hang up"])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rounds=st.lists(st.lists(FATES, min_size=1, max_size=5), min_size=1, max_size=4), keys=st.integers(1, 2))
async def test_whatever_happens_a_key_has_one_effect_at_most(acme: Client, db: TestDatabase, rounds: list[list[str]], keys: int) -> None:
    """Rounds of concurrent requests that fail in different ways; then a client that repeats until it succeeds."""
    await db.empty()
    bodies: dict[str, set[bytes]] = {f"k{n}": set() for n in range(keys)}

    async def send(key: str, fate: str) -> None:
        sent = json.dumps({"name": key}).encode()
        headers = {**keyed(ALICE, key, chaos="slow" if fate == "hang up" else fate), "Content-Type": "application/json"}
        if fate == "hang up":
            async with acme.wire() as wire:
                await wire.send("POST /twice", headers, {"Content-Length": str(len(sent))}, body=sent)
                await asyncio.sleep(0.005)
            return
        got = await acme.post("/twice", headers, data=sent)
        assert got.status in (201, 409, 422, 500, 503)
        if got.status == 201:
            bodies[key].add(got.raw)

    for fates in rounds:
        await asyncio.gather(*(send(key, fate) for fate in fates for key in bodies))
        for key in bodies:
            effects = [name for name in await names(db) if name.startswith(key)]
            assert effects in ([], [f"{key} 1", f"{key} 2"])
    for key in bodies:
        for _ in range(100):
            before = len(bodies[key])
            await send(key, "")
            if bodies[key] and len(bodies[key]) == before:
                break
            await asyncio.sleep(0.01)
        assert len(bodies[key]) == 1
    assert await names(db) == [f"{key} {n}" for key in bodies for n in (1, 2)]


def test_the_number_of_the_schema_is_the_servers() -> None:
    from server.schema.migrate import schema_text

    assert re.search(rf"octet_length\(body\) <= {MOST_BYTES}\)", schema_text())
