"""A live answer ends when the access that opened it ends: in every process, within a second, and the client gets the reason."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kits.live import LIVE, events, registry, until, websocket
from kits.webhooks import SETTINGS, deliver, empty, membership, organization_deleted, session, user, user_deleted

from server import Identity, hookimpl
from server.app import SERVER_DATABASE
from tests.conftest import ADMIN_A, ALICE, Client, Serve, TestDatabase, stub

STATIC = {"X-API-Key": "gp_the-static-key-of-alice"}
STATIC_KEYS = [{"id": "of_alice", "hash": "sha256:" + hashlib.sha256(STATIC["X-API-Key"].encode()).hexdigest(), "user_id": "alice"}]
SESSION = stub("alice", org_id="org_a", org_role="org:member", session_id="sess_1")


@pytest.fixture
async def two(serve: Serve, db: TestDatabase) -> tuple[Client, Client]:
    """Two servers on one database without anything synced, and without keys."""
    await empty(db)
    await db.rows("DELETE FROM api_keys")
    settings = {**SETTINGS, "api_key.keys": STATIC_KEYS}
    return await serve(settings, extra=LIVE), await serve(settings, extra=LIVE)


@contextlib.asynccontextmanager
async def held(clients: tuple[Client, ...], caller: dict[str, str]) -> AsyncIterator[Callable[[], Awaitable[set[str]]]]:
    """An event stream and a socket of this caller in each process; gives a function that returns how they end, within a second."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(events(client, "/api/ticks", caller)) for client in clients]
        sockets = [await stack.enter_async_context(websocket(client, "/api/echo", caller)) for client in clients]
        for stream in streams:
            assert stream.response.status == 200, await stream.response.read()
            assert (await stream.next())["event"] == "hello"

        async def ends() -> set[str]:
            said = set()
            async with asyncio.timeout(1.5):  # a second, on a busy machine
                for stream in streams:
                    said.add(await stream.end())
                for ws in sockets:
                    message = await ws.receive()
                    said.add(f"{ws.close_code} {message.extra}")
            return said

        yield ends
    for client in clients:
        await until(lambda client=client: registry(client).number == 0)  # type: ignore[misc]


def key_of(row: Any) -> dict[str, str]:
    return {"X-API-Key": row["secret"]}


async def make(client: Client, caller: dict[str, str], **members: Any) -> Any:
    got = await client.post("/api/keys", caller, {"name": "k", **members})
    assert got.status == 201, got
    return got.json()


@pytest.mark.parametrize("how", ["signed out", "banned", "deleted", "removed", "demoted", "organisation deleted", "role changed"])
async def test_a_session_ends_everywhere(two: tuple[Client, Client], db: TestDatabase, how: str) -> None:
    now = time.time()
    event = {
        "signed out": session("ended", 5, id="sess_1"), "banned": user("updated", 5, id="alice", banned=True),
        "deleted": user_deleted(5, id="alice"), "removed": membership("deleted", 5, who="alice"),
        "demoted": membership("updated", 5, who="alice", role="org:guest"), "organisation deleted": organization_deleted(5),
    }.get(how)  # fmt: skip
    if how == "demoted":
        assert (await deliver(two[0], membership("created", 0, who="alice", role="org:member"))).status == 204
        await asyncio.sleep(0.7)
    async with held(two, SESSION) as ends, events(two[0], "/api/ticks", stub("bob", session_id="sess_2")) as other:
        await other.next()
        if event is not None:
            assert (await deliver(two[0], event)).status == 204
        else:
            await db.rows("SELECT gatepost_revoke('role', 'org:member', now(), now() + interval '1 hour')")
        assert await ends() == {"session-revoked", "4401 session-revoked"}
        with pytest.raises(TimeoutError):
            await other.next(0.3)
    assert registry(two[1]).ended["session-revoked"] == 2, now


async def test_the_end_of_the_impersonator_ends_what_they_do_as_others(two: tuple[Client, Client]) -> None:
    async with held(two, stub("alice", impersonator="anna")) as ends:
        assert (await deliver(two[0], user("updated", 5, id="anna", banned=True))).status == 204
        assert await ends() == {"session-revoked", "4401 session-revoked"}


async def test_a_revoked_key(two: tuple[Client, Client]) -> None:
    key, other = await make(two[0], ALICE), await make(two[0], ALICE)
    async with held(two, key_of(key)) as ends, events(two[1], "/api/ticks", key_of(other)) as beside:
        await beside.next()
        assert (await two[0].delete(f"/api/keys/{key['id']}", ALICE)).status == 204
        assert await ends() == {"key-revoked", "4401 key-revoked"}
        with pytest.raises(TimeoutError):
            await beside.next(0.3)


@pytest.mark.parametrize("how", ["revoked", "rotated", "banned"])
async def test_a_stream_that_a_ticket_has_opened_ends_with_the_key(two: tuple[Client, Client], how: str) -> None:
    """In another process than the one that made the ticket; beside the cookie of somebody else, which it does not read."""
    key, other = await make(two[0], ALICE), await make(two[0], ALICE)
    tickets = [await two[0].post("/api/stream-tickets", key_of(one), {"path": "/api/ticks"}) for one in (key, other)]
    paths = [f"/api/ticks?ticket={got.json()['ticket']}" for got in tickets]
    async with events(two[1], paths[0], {"Cookie": "__session=x"}) as stream, events(two[1], paths[1]) as beside:
        assert (await stream.next())["data"] == (await beside.next())["data"] == '{"user_id":"alice"}'
        if how == "banned":
            assert (await deliver(two[0], user("updated", 5, id="alice", banned=True))).status == 204
        elif how == "revoked":
            assert (await two[0].delete(f"/api/keys/{key['id']}", ALICE)).status == 204
        else:
            assert (await two[0].post(f"/api/keys/{key['id']}/rotate", ALICE)).status == 200
        assert await stream.end(1.5) == ("session-revoked" if how == "banned" else "key-revoked")
        if how != "banned":
            with pytest.raises(TimeoutError):
                await beside.next(0.5)


async def test_a_rotation_without_overlap(two: tuple[Client, Client]) -> None:
    key = await make(two[0], ALICE)
    async with held(two, key_of(key)) as ends:
        assert (await two[0].post(f"/api/keys/{key['id']}/rotate", ALICE)).status == 200
        assert await ends() == {"key-revoked", "4401 key-revoked"}


async def test_a_rotation_with_overlap_ends_it_when_the_overlap_does(two: tuple[Client, Client]) -> None:
    key = await make(two[0], ALICE)
    async with held(two, key_of(key)) as ends:
        assert (await two[0].post(f"/api/keys/{key['id']}/rotate", ALICE, {"overlap_seconds": 3})).status == 200
        await asyncio.sleep(1)
        assert registry(two[1]).number == 2
        await asyncio.sleep(1.5)
        assert await ends() == {"key-expired", "4401 key-expired"}


async def test_an_expired_key(two: tuple[Client, Client], db: TestDatabase) -> None:
    key = await make(two[0], ALICE)
    await db.rows("UPDATE api_keys SET expires_at = now() + interval '2 seconds' WHERE id = $1", key["id"])
    async with held(two, key_of(key)) as ends:
        await asyncio.sleep(1.2)
        assert await ends() == {"key-expired", "4401 key-expired"}


@pytest.mark.parametrize("how", ["banned", "removed"])
async def test_the_end_of_a_keys_owner(two: tuple[Client, Client], how: str) -> None:
    key = await make(two[0], ALICE)
    event = user("updated", 5, id="alice", banned=True) if how == "banned" else membership("deleted", 5, who="alice")
    async with held(two, key_of(key)) as ends:
        assert (await deliver(two[0], event)).status == 204
        assert await ends() == {"session-revoked", "4401 session-revoked"}


async def test_a_demotion_ends_the_streams_of_a_key(two: tuple[Client, Client]) -> None:
    assert (await deliver(two[0], membership("created", 0, who="anna", role="org:admin"))).status == 204
    key = await make(two[0], ADMIN_A, org_role="org:admin")
    async with held(two, key_of(key)) as ends:
        assert (await deliver(two[0], membership("updated", 5, who="anna", role="org:member"))).status == 204
        assert await ends() == {"session-revoked", "4401 session-revoked"}


async def test_a_key_ends_with_the_key_that_made_it(two: tuple[Client, Client]) -> None:
    anna = stub("anna", org_id="org_a", org_role="org:admin")
    first = await make(two[0], anna, org_role="org:admin")
    below = await make(two[0], key_of(first), owner="organization", org_role="org:admin")
    async with held(two, key_of(below)) as ends:
        assert (await two[0].delete(f"/api/keys/{first['id']}", anna)).status == 204
        assert await ends() == {"key-revoked", "4401 key-revoked"}


async def test_a_static_key_ends_with_its_owner(two: tuple[Client, Client]) -> None:
    async with held(two, STATIC) as ends:
        assert (await deliver(two[0], user("updated", 5, id="alice", banned=True))).status == 204
        assert await ends() == {"session-revoked", "4401 session-revoked"}


async def test_a_feed_that_is_too_old_ends_the_streams(serve: Serve) -> None:
    """Sessions and managed keys are 503 then; a static key goes on."""
    client = await serve({"api_key.keys": STATIC_KEYS}, extra=LIVE)
    key = await make(client, ALICE)
    async with (
        events(client, "/api/ticks", STATIC) as static,
        events(client, "/api/ticks", key_of(key)) as managed,
        events(client, "/api/ticks", SESSION) as session_stream,
        websocket(client, "/api/echo", SESSION) as ws,
    ):
        for stream in (static, managed, session_stream):
            assert (await stream.next())["event"] == "hello"
        database = client.app[SERVER_DATABASE]
        await database._feed.close()  # type: ignore[union-attr]
        database.revocations._max_staleness = 0.5
        assert await session_stream.end() == "draining"
        assert await managed.end() == "draining"
        await ws.receive()
        assert ws.close_code == 1001
        with pytest.raises(TimeoutError):
            await static.next(0.5)
        assert (await client.get("/api/me", SESSION)).status == 503


async def test_many_hints_cause_one_question_at_a_time(serve: Serve, db: TestDatabase) -> None:
    """A tenant changes keys again and again: about each stream one question is asked at a time, and one more afterwards."""
    asked = {"now": 0, "most": 0, "all": 0}

    class Slow:
        reads = ("X-Slow",)

        async def authenticate(self, request: Any) -> Any:
            return Identity(provider="slow", user_id="carol", key_id="k") if "X-Slow" in request.headers else None

        async def recheck(self, identity: Any) -> Any:
            asked["now"] += 1
            asked["most"], asked["all"] = max(asked["most"], asked["now"]), asked["all"] + 1
            await asyncio.sleep(0.4)
            asked["now"] -= 1
            return Identity(provider="slow", user_id="carol", key_id="k")

    offer = SimpleNamespace(register_providers=hookimpl(lambda: {"slow": lambda settings: Slow()}, specname="register_providers"))
    client = await serve({"providers": ["slow"]}, extra={**LIVE, "slow": offer})
    async with events(client, "/api/ticks", {"X-Slow": "x"}) as one, events(client, "/api/ticks", {"X-Slow": "x"}) as two:
        await one.next()
        await two.next()
        started = time.monotonic()
        for number in range(25):
            await db.rows("SELECT gatepost_keys_changed($1, NULL)", f"u{number}")
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert asked["most"] <= 2
        assert asked["all"] <= 2 * ((time.monotonic() - started) / 0.4 + 2)
        assert registry(client).number == 2


async def test_a_provider_that_no_longer_takes_the_credential_ends_the_stream(serve: Serve) -> None:
    """A provider may answer None for a key that was deleted: a request is a 401 then, and an open stream ends."""
    good = True

    class Opaque:
        reads = ("X-Opaque",)

        async def authenticate(self, request: Any) -> Any:
            return Identity(provider="opaque", user_id="carol") if good and "X-Opaque" in request.headers else None

    offer = SimpleNamespace(register_providers=hookimpl(lambda: {"opaque": lambda settings: Opaque()}, specname="register_providers"))
    client = await serve({"providers": ["opaque"]}, extra={**LIVE, "opaque": offer})
    clock = registry(client)._clock
    clock._slots, clock._next_slot = clock._slots[:1], iter([0])  # a look every other second instead of once a minute
    async with events(client, "/api/ticks", {"X-Opaque": "x"}) as stream:
        assert (await stream.next())["event"] == "hello"
        good = False
        assert (await client.get("/api/me", {"X-Opaque": "x"})).status == 401
        assert await stream.end(60) == "session-revoked"
