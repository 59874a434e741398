"""Requests of one caller that are in progress at once: bounded, in order, and each place given back exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

from server import Unavailable, public, raw_body, requires, signed_in
from server.app import LIMITS, METRICS, SERVER_DATABASE
from server.http.errors import TooManyRequests
from server.rate_limits import concurrency as module
from server.rate_limits.concurrency import Concurrency
from server.serving.process_metrics import families_of
from tests.conftest import ADMIN_A, ALICE, ALICE_ALONE, BOB, ROBOT_A, Client, Serve, plugin, stub

routes = web.RouteTableDef()


class Door:
    """Handlers wait before it until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = self.most = 0

    async def through(self) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1


DOORS: list[Door] = []


@routes.get("/door")
@routes.post("/door")
@signed_in
async def door(request: web.Request) -> web.Response:
    await DOORS[-1].through()
    return web.Response(text="in")


@routes.get("/open")
@public
async def open_to_all(request: web.Request) -> web.Response:
    await DOORS[-1].through()
    return web.Response(text="in")


@routes.get("/stream")
@signed_in
async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await DOORS[-1].through()
    await response.write(b"x" * 1000)
    await response.write_eof()
    return response


@routes.get("/fails/{how}")
@signed_in
async def fails(request: web.Request) -> Any:
    how = request.match_info["how"]
    if how == "error":
        raise RuntimeError("a fault")
    if how == "http":
        raise web.HTTPConflict
    if how == "unavailable":
        raise Unavailable("a fault")
    return web.Response(status=403) if how == "forbidden" else None


@routes.post("/body")
@signed_in
async def reads(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await raw_body(request))))


@routes.get("/admins")
@requires(role="org:admin")
async def admins(request: web.Request) -> web.Response:
    return web.Response(text="in")


@pytest.fixture
async def acme(serve: Serve) -> Client:
    """A server with the handlers above; three requests of one caller at once."""
    DOORS.append(Door())
    few = {"limits.concurrency": 3, "public_routes": ["/open"], "limits.body_seconds": 0.3}
    return await serve(few, extra={"acme": plugin(*routes)})


def work(client: Client) -> Concurrency:
    return client.app[LIMITS].concurrency


def is_empty(concurrency: Concurrency) -> bool:
    return not concurrency._in_work and not concurrency._waiting


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def send(client: Client, number: int, caller: dict[str, str] = ALICE, path: str = "/door") -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(client.get(path, caller)) for _ in range(number)]


# The bound -------------------------------------------------------------------------------------------------------------


async def test_the_others_wait_and_other_callers_do_not(acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 60.0)
    tasks = send(acme, 12)
    await until(lambda: work(acme).waiting == 9)
    assert (work(acme).in_work, DOORS[-1].waiting) == (3, 3)
    for caller in (BOB, ROBOT_A, ADMIN_A):
        assert (await acme.get("/api/me", caller)).status == 200
    DOORS[-1].opened.set()
    assert Counter(got.status for got in await asyncio.gather(*tasks)) == {200: 12}
    assert DOORS[-1].most == 3
    assert is_empty(work(acme))


async def test_who_waits_too_long_is_a_429(acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    tasks = send(acme, 3)
    await until(lambda: DOORS[-1].waiting == 3)
    for path, caller in (("/door", ALICE), ("/api/data", ALICE_ALONE)):
        got = await acme.get(path, caller)
        assert (got.status, got.json()) == (429, {"error": "Too Many Requests", "reason": "concurrency"})
        assert got.headers["Retry-After"] == "1"
        assert got.headers["Cache-Control"] == "no-store"
    assert acme.app[METRICS].limited == {"concurrency": 2}
    assert (await acme.get("/api/nowhere", ALICE)).status == 404, "a refusal is no work"
    assert (await acme.get("/admins", ALICE)).status == 403
    DOORS[-1].opened.set()
    assert [got.status for got in await asyncio.gather(*tasks)] == [200] * 3
    assert (await acme.get("/door", ALICE)).status == 200
    assert is_empty(work(acme))


async def test_the_default_is_sixteen_and_two_seconds(serve: Serve) -> None:
    DOORS.append(Door())
    client = await serve(extra={"acme": plugin(*routes)})
    tasks = send(client, 17)
    await until(lambda: work(client).waiting == 1)
    first, = [task.result() for task in (await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED))[0]]
    assert (first.status, DOORS[-1].waiting, module.WAIT_SECONDS) == (429, 16, 2.0)
    DOORS[-1].opened.set()
    await asyncio.gather(*tasks)


async def test_the_metric_tells_who_waits(acme: Client) -> None:
    def waiting(families: Any) -> Any:
        return next(family.samples for family in families if family.name == "gatepost_concurrency_waiting")

    assert waiting(await families_of(acme.app)) == {(): [0.0]}
    tasks = send(acme, 5)
    await until(lambda: work(acme).waiting == 2)
    assert waiting(await families_of(acme.app)) == {(): [2.0]}
    DOORS[-1].opened.set()
    await asyncio.gather(*tasks)


async def test_all_credentials_of_a_user_and_all_keys_of_an_organisation_are_one_caller(acme: Client) -> None:
    mine = {"X-API-Key": (await acme.post("/api/keys", ALICE, {"name": "k"})).json()["secret"]}
    ours = {"X-API-Key": (await acme.post("/api/keys", ADMIN_A, {"name": "k", "owner": "organization"})).json()["secret"]}
    tasks = [*send(acme, 2), *send(acme, 2, mine), *send(acme, 2, stub("alice", org_id="org_z")), *send(acme, 3, ours), *send(acme, 3, ROBOT_A)]
    await until(lambda: work(acme).waiting == 6)
    assert work(acme)._in_work == {"user/alice": 3, "org/org_a": 3}
    DOORS[-1].opened.set()
    await asyncio.gather(*tasks)


async def test_a_chain_of_organisation_keys_is_one_caller(serve: Serve) -> None:
    client = await serve({"limits.caller": "12/day"})
    member = {"owner": "organization", "org_role": "org:admin"}
    got = await client.post("/api/keys", ADMIN_A, {"name": "0", **member})
    assert got.status == 201, got
    statuses: Counter[int] = Counter()
    for _ in range(3):  # each makes the next, as deep as keys can
        key = {"X-API-Key": got.json()["secret"]}
        for _ in range(5):
            statuses[(await client.get("/api/me", key)).status] += 1
        got = await client.post("/api/keys", key, {"name": "next", **member})
        if got.status != 201:
            break
    statuses[got.status] += 1
    assert statuses[200] <= 12
    assert statuses[429] >= 1
    assert (await client.get("/api/me", ROBOT_A)).status == 429, "nor has another key of the organisation more"
    assert (await client.get("/api/me", ADMIN_A)).status == 200, "a user of it is another caller"


async def test_public_requests_are_not_counted(acme: Client) -> None:
    tasks = send(acme, 10, ALICE, "/open")
    await until(lambda: DOORS[-1].waiting == 10)
    assert is_empty(work(acme))
    DOORS[-1].opened.set()
    assert {got.status for got in await asyncio.gather(*tasks)} == {200}


async def test_access_that_ends_while_a_request_waits(acme: Client) -> None:
    tasks = send(acme, 3)
    await until(lambda: DOORS[-1].waiting == 3)
    late = asyncio.create_task(acme.get("/api/me", ALICE))
    await until(lambda: work(acme).waiting == 1)
    revocations = acme.app[SERVER_DATABASE].revocations
    revocations._entries["user", "alice"], revocations._ends["user", "alice"] = math.inf, math.inf
    DOORS[-1].opened.set()
    got = await late
    assert (got.status, got.json()["reason"]) == (401, "session-revoked")
    await asyncio.gather(*tasks)
    assert is_empty(work(acme))


# Each place is given back once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [("/fails/error", 500), ("/fails/http", 409), ("/fails/unavailable", 503), ("/fails/forbidden", 403), ("/fails/none", 500),
     ("/nowhere", 404), ("/admins", 403), ("/api/me", 200)],
)  # fmt: skip
async def test_whatever_the_handler_does(acme: Client, path: str, status: int) -> None:
    for _ in range(5):
        assert (await acme.get(path, ALICE)).status == status
    assert (await acme.get(path)).status == 401
    assert is_empty(work(acme))


async def test_an_idempotent_request_and_a_body_that_does_not_come(acme: Client) -> None:
    DOORS[-1].opened.set()
    for _ in range(5):
        assert (await acme.post("/door", {**ALICE, "Idempotency-Key": "k"})).status in (200, 409)
    async with acme.wire() as wire:
        await wire.send("POST /body", ALICE, {"Content-Length": "10"})
        await until(lambda: work(acme).in_work == 1)
        assert (await wire.answer())[0] == 408
    await until(lambda: is_empty(work(acme)))


async def test_a_stream_holds_its_place_until_it_ends(acme: Client) -> None:
    tasks = send(acme, 4, ALICE, "/stream")
    await until(lambda: work(acme).waiting == 1)
    DOORS[-1].opened.set()
    assert [(got.status, len(got.raw)) for got in await asyncio.gather(*tasks)] == [(200, 1000)] * 4
    assert is_empty(work(acme))


async def test_pipelined_requests_are_in_work_one_after_the_other(acme: Client) -> None:
    DOORS[-1].opened.set()
    head = "\r\n".join(["GET {} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {ALICE['Authorization']}", "", ""])
    paths = ["/door", "/fails/error", "/nowhere", "/api/me"] * 10
    async with acme.wire() as wire:
        wire.writer.write("".join(head.format(path) for path in paths).encode())
        assert [(await wire.answer())[0] for _ in paths] == [200, 500, 404, 200] * 10
    await until(lambda: is_empty(work(acme)))


@pytest.mark.parametrize("path", ["/door", "/stream"])
async def test_a_client_that_hangs_up(acme: Client, path: str) -> None:
    """In work, and while it waits for its turn."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            wire = await stack.enter_async_context(acme.wire())
            await wire.send(f"GET {path}", ALICE)
        await until(lambda: work(acme).waiting == 3)
    DOORS[-1].opened.set()
    await until(lambda: is_empty(work(acme)))
    assert [got.status for got in await asyncio.gather(*send(acme, 12))] == [200] * 12
    assert is_empty(work(acme))


# The count itself ----------------------------------------------------------------------------------------------------------


async def test_a_turn_that_comes_at_the_moment_of_the_cancellation_is_passed_on() -> None:
    one = Concurrency(1)
    assert one.enter("ann")
    assert not one.enter("ann")
    first, second = asyncio.create_task(one.wait("ann")), asyncio.create_task(one.wait("ann"))
    await asyncio.sleep(0)
    one.leave("ann")  # it is the first one's turn ...
    first.cancel()  # ... who does not want it any more
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert (one.in_work, one.waiting) == (1, 0)
    one.leave("ann")
    assert is_empty(one)


async def test_first_come_first_served_and_none_overtakes() -> None:
    one, order = Concurrency(1), []
    assert one.enter("ann")

    async def turn(number: int) -> None:
        if not one.enter("ann"):
            await one.wait("ann")
        order.append(number)
        await asyncio.sleep(0)
        one.leave("ann")

    tasks = [asyncio.create_task(turn(number)) for number in range(4)]
    await asyncio.sleep(0)
    one.leave("ann")
    tasks.append(asyncio.create_task(turn(99)))  # comes when a place has just been given back
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 99]
    assert is_empty(one)


async def test_many_who_wait_give_up_or_are_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.02)
    some, in_work, most = Concurrency(2), 0, 0

    async def turn(number: int) -> None:
        nonlocal in_work, most
        if not some.enter("ann"):
            await some.wait("ann")
        in_work += 1
        most = max(most, in_work)
        try:
            await asyncio.sleep((number % 5) * 0.003)
        finally:
            in_work -= 1
            some.leave("ann")

    tasks = [asyncio.create_task(turn(number)) for number in range(200)]
    for number, task in enumerate(tasks):
        if number % 7 == 0:
            task.cancel()
        if number % 20 == 0:
            await asyncio.sleep(0.004)
    ends = Counter(type(end) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert set(ends) <= {type(None), TooManyRequests, asyncio.CancelledError}
    assert most == 2
    assert is_empty(some)
