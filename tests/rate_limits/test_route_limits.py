"""`@limited`: the bounds of one route, for callers, and for clients without a credential by their addresses."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kits import tokens as kit
from kits.app import ask, build_app, routes_plugin, serving
from kits.redis import Redis

from server import answer, body, caller_of, limited, public, raw_body, requires, signed_in
from server.app import LIMITS, METRICS, SERVER_DATABASE, TABLE, build, warn
from server.commands.explain import explain
from server.http.limited import Bounds, bounds_of
from server.openapi.document import DOCUMENT
from server.rate_limits import concurrency as turns_module
from server.settings.sources import Settings
from tests.conftest import ADMIN_A, ALICE, ALICE_ALONE, BAD_CREDENTIALS, BOB, ROBOT_A, Client, Serve, plugin

PATTERNS = ["/api/webhooks(.*)", "/api/health", "/api/public(.*)", "/open(.*)"]
HELD: list[asyncio.Event] = []
routes = web.RouteTableDef()


@routes.get("/mail")
@signed_in
@limited(rate="3/day")
async def mail(request: web.Request) -> web.Response:
    return answer({})


@routes.get("/mail/{id}")
@limited(rate="3/day")
@requires(role="org:admin")
async def one_mail(request: web.Request) -> web.Response:
    return answer({})


@routes.post("/mail")
@limited(rate="2/day")
@signed_in
async def send_mail(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.post("/open/login")
@public
@limited(rate="3/day")
async def login(request: web.Request) -> web.Response:
    raise web.HTTPUnauthorized


@routes.get("/open/search")
@public(optional=True)
@limited(rate="2/day")
async def search(request: web.Request) -> web.Response:
    identity = caller_of(request)
    return answer({"user": identity.user_id if identity else None})


async def hold(request: web.Request) -> web.Response:
    gate = asyncio.Event()
    HELD.append(gate)
    await gate.wait()
    return answer({})


@routes.get("/export")
@signed_in
@limited(concurrency=2)
async def export(request: web.Request) -> web.Response:
    return await hold(request)


@routes.get("/open/export")
@public
@limited(concurrency=1)
async def open_export(request: web.Request) -> web.Response:
    return await hold(request)


@routes.get("/download")
@signed_in
@limited(concurrency=1)
async def download(request: web.Request) -> web.Response:
    return answer(b"x" * 8_000_000)


@routes.get("/open/download")
@public
@limited(concurrency=1)
async def open_download(request: web.Request) -> web.Response:
    return answer(b"x" * 8_000_000)


@routes.get("/slow")
@signed_in
async def slow(request: web.Request) -> web.Response:
    return await hold(request)


@routes.get("/open/slow")
@public
async def open_slow(request: web.Request) -> web.Response:
    return await hold(request)


async def length(request: web.Request) -> web.Response:
    return answer({"length": len(await raw_body(request))})


@routes.put("/large")
@signed_in
@limited(body_bytes=3_000_000)
async def large(request: web.Request) -> web.Response:
    return await length(request)


@routes.put("/small")
@signed_in
@limited(body_bytes=100, body_seconds=0.3)
async def small(request: web.Request) -> web.Response:
    return await length(request)


@routes.put("/open/large")
@public
@limited(body_bytes=3_000_000)
async def open_large(request: web.Request) -> web.Response:
    return await length(request)


@routes.put("/open/usual")
@public
async def open_usual(request: web.Request) -> web.Response:
    return await length(request)


@routes.post("/json")
@signed_in
@limited(body_bytes=3_000_000)
async def large_json(request: web.Request) -> web.Response:
    return answer({"length": len((await body(request, dict[str, str]))["text"])})


@routes.post("/form")
@signed_in
@limited(body_bytes=3_000_000)
async def form(request: web.Request) -> web.Response:
    return answer({"length": len(str((await request.post())["text"]))})


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    HELD.clear()


@pytest.fixture
async def acme(serve: Serve) -> Client:
    return await serve({"public_routes": PATTERNS}, extra={"acme": plugin(*routes)})


async def statuses(client: Client, number: int, path: str, caller: dict[str, str], method: str = "GET") -> Counter[int]:
    return Counter([(await client.send(method, path, caller)).status for _ in range(number)])


# Rates of callers ----------------------------------------------------------------------------------------------------------


async def test_each_caller_has_a_rate_of_each_route(acme: Client) -> None:
    assert await statuses(acme, 5, "/mail", ALICE) == {200: 3, 429: 2}
    assert await statuses(acme, 1, "/mail", ALICE_ALONE) == {429: 1}, "a user is one caller, in whatever organisation"
    assert await statuses(acme, 3, "/mail", BOB) == {200: 3}
    assert await statuses(acme, 3, "/mail", ROBOT_A) == {200: 3}
    assert await statuses(acme, 3, "/mail", ALICE, "POST") == {201: 2, 429: 1}, "another method of the path is another route"
    assert await statuses(acme, 3, "/api/me", ALICE) == {200: 3}


async def test_the_refusal(acme: Client) -> None:
    await statuses(acme, 3, "/mail", ALICE)
    got = await acme.get("/mail", ALICE)
    assert (got.status, got.json()) == (429, {"error": "Too Many Requests", "reason": "rate"})
    assert 0 < int(got.headers["Retry-After"]) <= 86400
    assert got.headers["RateLimit-Policy"] == '"route";q=3;w=86400'
    assert got.headers["RateLimit"] == f'"route";r=0;t={got.headers["Retry-After"]}'
    assert got.headers["Cache-Control"] == "no-store"
    assert acme.app[METRICS].limited == {"rate": 1}


async def test_both_limits_are_announced_and_both_hold(serve: Serve) -> None:
    client = await serve({"public_routes": PATTERNS, "limits.caller": "5/day"}, extra={"acme": plugin(*routes)})
    for left in (2, 1, 0):
        got = await client.get("/mail", ALICE)
        assert got.headers["RateLimit-Policy"] == '"caller";q=5;w=86400, "route";q=3;w=86400'
        first, second = got.headers["RateLimit"].split(", ")
        assert (first.split(";")[:2], second.split(";")[:2]) == (['"caller"', f"r={left + 2}"], ['"route"', f"r={left}"])
    got = await client.get("/mail", ALICE)
    assert (got.status, got.json().get("reason")) == (429, "rate")
    assert got.headers.getall("RateLimit-Policy") == ['"caller";q=5;w=86400, "route";q=3;w=86400']
    assert (await client.get("/api/me", ALICE)).status == 200
    got = await client.get("/mail", ALICE)
    assert (got.status, got.json().get("reason")) == (429, None), "the limit of all routes comes first"


async def test_the_place_of_the_answer_among_the_others(acme: Client) -> None:
    for path in ("/mail/1", "/mail/2", "/mail/%33"):
        assert (await acme.get(path, ALICE)).status == 403, "a request that is then forbidden counts"
    assert (await acme.get("/mail/4", ALICE)).status == 429, "the path parameter makes no other route"
    assert (await acme.get("/mail/4", ADMIN_A)).status == 200
    assert (await acme.get("/mail/4", {**ALICE, **ROBOT_A})).status == 400
    assert (await acme.get("/mail/4")).status == 401
    assert (await acme.get("/mail/4", BAD_CREDENTIALS["unknown key"])).status == 401
    assert (await acme.get("/mail/%2e%2e", ALICE)).status == 400


@pytest.mark.parametrize("variants", [["HEAD /mail"], ["GET /mail?x=1", "GET /mail?x=2"], ["GET /m%61il", "GET /%6dail"]])
async def test_no_variant_of_a_request_has_a_count_of_its_own(acme: Client, variants: list[str]) -> None:
    assert await statuses(acme, 3, "/mail", ALICE) == {200: 3}
    for variant in variants:
        method, _, path = variant.partition(" ")
        assert (await acme.send(method, path, ALICE)).status == 429


# Rates of clients without a credential -------------------------------------------------------------------------------------


def via(address: str) -> tuple[str, str]:
    return ("X-Forwarded-For", address)


def token() -> tuple[str, str]:
    return ("Authorization", f"Bearer {kit.encode(kit.claims())}")


def clerk(**given: Any) -> web.Application:
    own = {"clerk__jwt_key": kit.pem(kit.rsa_key()), "clerk__publishable_key": kit.PUBLISHABLE_KEY, "clerk__authorized_parties": [kit.PARTY]}
    return build_app({"acme": routes_plugin(*routes)}, **{"providers": ["clerk", "api_key"], "public_routes": PATTERNS, **own, **given})


PRODUCTION = {"env": "production", "database__url": "postgresql://gatepost_app@127.0.0.1:1/none"}


async def test_a_public_login_is_counted_by_address() -> None:
    async with serving(clerk(trusted_proxies=["127.0.0.1"])) as port:
        async def tries(number: int, *headers: tuple[str, str]) -> list[int]:
            return [(await ask(port, "POST", "/open/login", *headers)).status for _ in range(number)]

        assert await tries(5, via("198.51.100.7")) == [401] * 3 + [429] * 2
        assert await tries(1, via("198.51.100.7"), token()) == [429], "the credentials of a public route are not read"
        assert await tries(1, via("203.0.113.1, 198.51.100.7")) == [429]
        assert await tries(2, via("198.51.100.8")) == [401] * 2
        assert await tries(2, via("2001:db8::1")) + await tries(2, via("2001:db8::ffff:1")) == [401, 401, 401, 429], "a /64 is one"
        got = await ask(port, "POST", "/open/login", via("198.51.100.7"))
        assert (got.json, got.headers["cache-control"]) == ({"error": "Too Many Requests", "reason": "rate"}, "no-store")
        assert got.headers["ratelimit"] == f'"route";r=0;t={got.headers["retry-after"]}'


async def test_an_optional_caller_is_counted_by_themselves_and_a_visitor_by_address() -> None:
    async with serving(clerk(trusted_proxies=["127.0.0.1"])) as port:
        async def found(method: str, *headers: tuple[str, str]) -> int:
            return (await ask(port, method, "/open/search", via("198.51.100.7"), *headers)).status

        assert [await found(method) for method in ("GET", "HEAD", "GET", "HEAD")] == [200, 200, 429, 429]
        assert [await found("GET", token()) for _ in range(3)] == [200, 200, 429]
        assert (await ask(port, "GET", "/open/search", via("198.51.100.9"), token())).status == 429
        got = await ask(port, "GET", "/open/search", via("198.51.100.9"))
        assert (got.status, got.headers.get("ratelimit")) == (200, None), "an answer that may be cached tells no one's count"


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ({}, True),  # outside production only this machine is served: its address is one client's
        ({**PRODUCTION}, False),
        ({**PRODUCTION, "limits__address": "off"}, False),
        ({**PRODUCTION, "limits__address": "1000/day"}, True),
        ({**PRODUCTION, "trusted_proxies": ["127.0.0.1"]}, False),  # the proxy names no client
        ({**PRODUCTION, "trusted_proxies": ["10.0.0.0/8"]}, True),
    ],
)
async def test_an_address_that_may_be_a_proxys_is_not_counted(given: dict[str, Any], counted: bool) -> None:
    async with serving(clerk(**given)) as port:
        got = [(await ask(port, "POST", "/open/login")).status for _ in range(5)]
        assert got == ([401] * 3 + [429] * 2 if counted else [401] * 5)
        got = [(await ask(port, "GET", "/mail", token())).status for _ in range(4)]
        assert got == [200, 200, 200, 429], "callers are counted in any case"


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "@limited" in record.getMessage()]


def test_the_start_warns_of_routes_whose_clients_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    warn(clerk(**PRODUCTION))
    lines = warned(caplog)
    assert {line.partition(":")[0] for line in lines} == {"POST /open/login", "GET /open/search", "GET /open/export", "GET /open/download"}
    assert all("trusted_proxies" in line for line in lines)
    caplog.clear()
    for app in (clerk(), clerk(**PRODUCTION, trusted_proxies=["10.0.0.0/8"]), clerk(**PRODUCTION, limits__address="10/minute")):
        warn(app)
    assert warned(caplog) == []


async def test_very_many_addresses_take_bounded_memory_and_displace_no_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    app = clerk(trusted_proxies=["127.0.0.1"])
    shared = app[LIMITS]._shared
    for kept in (shared.leases_of_clients, shared.clients._counts):
        monkeypatch.setattr(kept, "most", 5)
    async with serving(app) as port:
        assert [(await ask(port, "GET", "/mail", token())).status for _ in range(3)] == [200] * 3
        for number in range(30):
            assert (await ask(port, "GET", "/open/search", via(f"198.51.100.{number}"))).status == 200
        assert max(len(shared.leases_of_clients), len(shared.clients._counts)) <= 5
        assert (await ask(port, "GET", "/mail", token())).status == 429


# The storage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    server = Redis(tmp_path)
    await server.start()
    yield server
    server.kill()


async def test_two_processes_count_together(redis: Redis) -> None:
    def process() -> web.Application:
        return clerk(trusted_proxies=["127.0.0.1"], limits__storage=redis.url)

    async with serving(process()) as one, serving(process()) as two:
        for ask_for, good in ((("POST", "/open/login", via("198.51.100.7")), 401), (("GET", "/mail", token()), 200)):
            got = Counter([(await ask(port, *ask_for)).status for _ in range(3) for port in (one, two)])
            assert got == {good: 3, 429: 3}


# Requests at once ------------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def start(client: Client, number: int, path: str, caller: dict[str, str]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(client.get(path, caller)) for _ in range(number)]


async def test_the_others_wait_and_keep_no_place_of_their_callers(serve: Serve) -> None:
    client = await serve({"public_routes": PATTERNS, "limits.concurrency": 4}, extra={"acme": plugin(*routes)})
    sent = start(client, 8, "/export", ALICE)
    await until(lambda: len(HELD) == 2)
    await asyncio.sleep(0.1)
    assert len(HELD) == 2
    assert (await client.get("/api/me", ALICE)).status == 200, "what waits for this route takes no other place"
    others = start(client, 2, "/export", BOB) + start(client, 2, "/slow", ALICE)
    await until(lambda: len(HELD) == 6)
    for number in range(12):
        await until(lambda number=number: len(HELD) > number)  # type: ignore[misc]
        HELD[number].set()
    assert Counter([got.status for got in await asyncio.gather(*sent, *others)]) == {200: 12}
    assert client.app[LIMITS].concurrency.in_work == 0


async def test_who_waits_too_long_is_a_429(acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "WAIT_SECONDS", 0.1)
    sent = start(acme, 2, "/export", ALICE)
    await until(lambda: len(HELD) == 2)
    got = await acme.get("/export", ALICE)
    assert (got.status, got.json(), got.headers["Retry-After"]) == (429, {"error": "Too Many Requests", "reason": "concurrency"}, "1")
    for gate in HELD:
        gate.set()
    assert [one.status for one in await asyncio.gather(*sent)] == [200, 200]
    more = start(acme, 2, "/export", ALICE)
    await until(lambda: len(HELD) == 4)
    for gate in HELD:
        gate.set()
    await asyncio.gather(*more)


async def test_access_that_ends_while_a_request_waits(acme: Client) -> None:
    sent = start(acme, 3, "/export", ALICE)
    own = acme.app[LIMITS]._routes["GET /export"]._own
    assert own is not None
    await until(lambda: len(HELD) == 2 and own.waiting == 1)
    revocations = acme.app[SERVER_DATABASE].revocations
    revocations._entries["user", "alice"], revocations._ends["user", "alice"] = math.inf, math.inf
    for gate in HELD:
        gate.set()
    assert Counter([got.status for got in await asyncio.gather(*sent)]) == {200: 2, 401: 1}
    assert (own.in_work, acme.app[LIMITS].concurrency.in_work) == (0, 0)


async def test_a_client_that_hangs_up_while_it_waits_leaves_nothing(acme: Client) -> None:
    sent = start(acme, 4, "/export", ALICE)
    await until(lambda: len(HELD) == 2)
    for task in sent:
        task.cancel()
    await asyncio.gather(*sent, return_exceptions=True)
    for gate in HELD:
        gate.set()
    limits = acme.app[LIMITS]
    await until(lambda: limits.concurrency.in_work == 0)
    own = limits._routes["GET /export"]._own
    assert own is not None
    await until(lambda: own.in_work == 0 and own.waiting == 0)


async def test_clients_without_a_credential_take_turns_by_address(acme: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "WAIT_SECONDS", 0.1)
    sent = start(acme, 1, "/open/export", {})
    await until(lambda: len(HELD) == 1)
    got = await acme.get("/open/export", {})
    assert (got.status, got.json()["reason"]) == (429, "concurrency")
    HELD[0].set()
    assert (await sent[0]).status == 200
    again = start(acme, 1, "/open/export", {})
    await until(lambda: len(HELD) == 2)
    HELD[1].set()
    assert (await again[0]).status == 200


@pytest.mark.parametrize(("path", "caller"), [("/download", ALICE), ("/open/download", {})])
async def test_a_response_that_is_not_taken_holds_its_place(
    acme: Client, monkeypatch: pytest.MonkeyPatch, path: str, caller: dict[str, str]
) -> None:
    monkeypatch.setattr(turns_module, "WAIT_SECONDS", 0.1)
    async with acme.wire() as wire:
        await wire.send(f"GET {path}", caller)
        await asyncio.sleep(0.5)
        got = await acme.get(path, caller)
        assert (got.status, got.json()["reason"]) == (429, "concurrency")
        assert (await acme.get("/api/me", ALICE)).status == 200
        assert len((await wire.answer())[2]) == 8_000_000
    assert (await acme.get(path, caller)).status == 200


async def test_a_request_with_an_idempotency_key_is_counted_too(acme: Client) -> None:
    got = [await acme.post("/mail", {**ALICE, "Idempotency-Key": "k"}, {}) for _ in range(3)]
    assert [one.status for one in got] == [201, 201, 429]
    assert got[1].headers["Idempotency-Replayed"] == "true"


# Bodies ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "caller", "size", "status"),
    [
        ("/large", ALICE, 3_000_000, 200), ("/large", ALICE, 3_000_001, 413), ("/large", {}, 10, 401),
        ("/small", ALICE, 100, 200), ("/small", ALICE, 101, 413),
        ("/open/large", {}, 3_000_000, 200), ("/open/large", {}, 3_000_001, 413),
        ("/open/usual", {}, 262_144, 200), ("/open/usual", {}, 262_145, 413),
    ],
)  # fmt: skip
async def test_the_largest_body(acme: Client, path: str, caller: dict[str, str], size: int, status: int, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, size, 65_536):
            yield b"x" * min(65_536, size - at)

    got = await acme.send("PUT", path, caller, data=pieces() if chunked else io.BytesIO(b"x" * size))
    assert got.status == status
    assert status != 200 or got.json() == {"length": size}


@pytest.mark.parametrize(("size", "status"), [(2_900_000, 200), (3_000_001, 413)])
async def test_json_and_forms_keep_the_routes_bound(acme: Client, size: int, status: int) -> None:
    for path, kind, start, end in (("/json", "json", b'{"text": "', b'"}'), ("/form", "x-www-form-urlencoded", b"text=", b"")):
        data = io.BytesIO(start + b"x" * size + end)
        got = await acme.send("POST", path, {**ALICE, "Content-Type": f"application/{kind}"}, data=data)
        assert (got.status, status != 200 or got.json() == {"length": size}) == (status, True)


async def test_the_longest_time_for_a_body(acme: Client) -> None:
    async with acme.wire() as wire:
        await wire.send("PUT /small", {**ALICE, "Content-Length": "10"}, body=b"x")
        assert (await wire.answer(2))[0] == 408


# What is told, and mistakes --------------------------------------------------------------------------------------------------


async def test_routes_explain_and_the_document() -> None:
    app = build_app({"acme": routes_plugin(*routes)}, public_routes=PATTERNS)
    words = {(row.method, row.template): row.access for row in app[TABLE].rows}
    assert words["GET", "/mail"] == words["HEAD", "/mail"] == "signed in, rate 3/day"
    assert words["PUT", "/small"] == "signed in, body_bytes 100, body_seconds 0.3"
    assert words["GET", "/open/search"] == "public, caller optional, rate 2/day"
    assert (await explain(app, "GET", "/export"))["limits"] == "concurrency 2"
    assert "limits" not in await explain(app, "GET", "/slow")
    paths = json.loads(app[DOCUMENT].json)["paths"]
    assert paths["/open/login"]["post"]["x-gatepost-limits"] == {"rate": "3/day"}
    assert "rate 3/day" in paths["/open/login"]["post"]["description"]
    assert "429" in paths["/open/login"]["post"]["responses"]
    assert "413" in paths["/open/large"]["put"]["responses"]
    assert "429" not in paths["/open/large"]["put"]["responses"]
    assert "x-gatepost-limits" not in paths["/slow"]["get"]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, ValueError), ({"rate": "20"}, ValueError), ({"rate": "0/minute"}, ValueError), ({"rate": "auto"}, ValueError),
        ({"rate": "off"}, ValueError), ({"rate": "2/minute; 3/hour"}, ValueError), ({"rate": 20}, TypeError), ({"rate": ""}, ValueError),
        ({"body_bytes": 0}, ValueError), ({"body_bytes": -1}, ValueError), ({"body_bytes": "1 MiB"}, TypeError),
        ({"body_bytes": 1.5}, TypeError), ({"body_bytes": True}, TypeError), ({"concurrency": 0}, ValueError),
        ({"concurrency": "2"}, TypeError), ({"body_seconds": 0}, ValueError), ({"body_seconds": float("nan")}, ValueError),
        ({"body_seconds": float("inf")}, ValueError), ({"bytes": 3}, TypeError),
    ],
)  # fmt: skip
def test_mistakes_are_found_at_import(asked: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        limited(**asked)
    assert "\n" not in str(raised.value)
    assert str(raised.value)


def test_limits_are_declared_once_beside_the_access() -> None:
    async def mine(request: web.Request) -> web.Response:
        return web.Response()

    for declared in (limited(rate="1/day")(signed_in(mine)), signed_in(limited(rate="1/day")(mine))):
        assert bounds_of(declared) == Bounds(rate="1/day")
        with pytest.raises(TypeError, match="twice"):
            limited(concurrency=1)(declared)
    with pytest.raises(TypeError):
        limited(mine)  # type: ignore[call-arg,arg-type]


def test_a_pattern_of_rates_is_that_of_the_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for text in ("20/minute", "20 per minute", "10 per 5 seconds", "1/Day"):
        assert limited(rate=text)(lambda: None)
        build(Settings(environ={}, given={"env": "test", "providers": ["stub"], "data_folder": str(tmp_path), "limits.caller": text}))
