"""Rate limits: exact under concurrency, in one process and in two, with the storage and without it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from hypothesis import given, settings
from hypothesis import strategies as st
from kits import tokens as kit
from kits.app import ask, build_app, provider_plugin, serving
from kits.redis import PASSWORD, Redis
from limits import parse
from multidict import CIMultiDict

from server import CredentialRejected, Identity
from server.app import LIMITS
from server.auth.caller import caller_key
from server.http.errors import TooManyRequests
from server.rate_limits import addresses as address_room
from server.rate_limits import callers as callers_module
from server.rate_limits import counters as counters_room
from server.rate_limits.addresses import AddressLimit
from server.rate_limits.callers import CallerLimit
from server.rate_limits.counters import Counters, LocalCounters
from server.rate_limits.rate import Rate, parse_rate
from server.settings.setting import ConfigError
from server.telemetry.decisions import Decision, DenialLog
from tests.conftest import ALICE, ALICE_ALONE, BOB, ROBOT_A, Client, Serve, TestDatabase
from tests.serving.test_workers import running, url_of

# A day: no test runs into the end of a window.
HUNDRED = {"limits.caller": "100/day"}


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    server = Redis(tmp_path)
    await server.start()
    yield server
    server.kill()


async def statuses(
    client: Client, number: int, headers: dict[str, str] = ALICE, path: str = "/api/me", at_once: int = 1000
) -> Counter[int]:
    """Send `number` requests, `at_once` at the same time: a burst can exceed the 50 ms of the storage on a slow Python."""
    turns = asyncio.Semaphore(at_once)

    async def one() -> int:
        async with turns:
            return (await client.get(path, headers)).status

    return Counter(await asyncio.gather(*(one() for _ in range(number))))


FEW = 8
"""Requests at the same time where each must be counted in the storage."""


# One caller ------------------------------------------------------------------------------------------------------------


async def test_a_hundred_of_three_hundred_at_once(serve: Serve) -> None:
    client = await serve(HUNDRED)
    assert await statuses(client, 300) == {200: 100, 429: 200}


async def test_one_callers_requests_are_not_anothers(serve: Serve) -> None:
    client = await serve(HUNDRED)
    assert (await statuses(client, 150))[429] == 50
    assert await statuses(client, 20, BOB) == {200: 20}
    assert await statuses(client, 20, ROBOT_A) == {200: 20}
    assert await statuses(client, 1, ALICE_ALONE) == {429: 1}, "a user is one caller, in whatever organisation"


async def test_the_answers_tell_the_limit(serve: Serve) -> None:
    client = await serve({"limits.caller": "3/day"})
    for remaining in (2, 1, 0):
        got = await client.get("/api/me", ALICE)
        policy, state = got.headers["RateLimit-Policy"], got.headers["RateLimit"].split(";")
        assert (got.status, policy, state[:2]) == (200, '"caller";q=3;w=86400', ['"caller"', f"r={remaining}"])
        assert 0 < int(state[2].removeprefix("t=")) <= 86400
    got = await client.get("/api/me", ALICE)
    assert (got.status, got.json()) == (429, {"error": "Too Many Requests"})
    assert got.headers["RateLimit-Policy"] == '"caller";q=3;w=86400'
    assert got.headers["RateLimit"] == f'"caller";r=0;t={got.headers["Retry-After"]}'
    assert got.headers["Cache-Control"] == "no-store"
    assert "RateLimit" not in (await client.get("/api/health")).headers
    assert "RateLimit" not in (await client.get("/api/me")).headers


async def test_refusals_of_a_known_caller_count_and_bear_the_headers_too(serve: Serve) -> None:
    client = await serve({"limits.caller": "2/day"})
    assert '"caller";r=1' in (await client.get("/api/nowhere", ALICE)).headers["RateLimit"]
    assert '"caller";r=0' in (await client.get("/api/invoices", ALICE)).headers["RateLimit"]


async def test_the_place_of_the_answer_among_the_others(serve: Serve) -> None:
    client = await serve({"limits.caller": "1/day"})
    await client.get("/api/me", ALICE)
    for method, path in (("GET", "/api/nowhere"), ("GET", "/api/invoices"), ("PUT", "/api/data"), ("POST", "/api/data")):
        assert (await client.send(method, path, ALICE)).status == 429
    assert (await client.get("/api/health", ALICE)).status == 200
    assert (await client.get("/api/%2e%2e/me", ALICE)).status == 400
    assert (await client.get("/api/me", {**ALICE, **ROBOT_A})).status == 400
    assert (await client.get("/api/me")).status == 401
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}
    assert (await client.send("OPTIONS", "/api/me", {**ALICE, **preflight})).status == 204


@pytest.mark.parametrize("said", ["off", "auto"])
async def test_off_and_what_auto_is_outside_of_production(said: str, serve: Serve) -> None:
    client = await serve({"limits.caller": said, "limits.address": said})
    assert await statuses(client, 50) == {200: 50}
    assert "RateLimit" not in (await client.get("/api/me", ALICE)).headers


def test_who_is_one_caller() -> None:
    def key(**fields: Any) -> str:
        return caller_key(Identity(**{"provider": "p", **fields}))

    assert key(user_id="u", org_id="a") == key(user_id="u", org_id="b", key_id="k", provider="q"), "sessions and keys of a user"
    assert key(org_id="o", key_id="k") == key(org_id="o", key_id="l", provider="q"), "keys of an organisation"
    different = [key(user_id="u"), key(key_id="u"), key(org_id="u"), key(), key(provider="q"), key(key_id="u", provider="q")]
    assert len(set(different)) == len(different)


# Leases ----------------------------------------------------------------------------------------------------------------


async def admitted(limit: CallerLimit, identity: Identity) -> bool:
    try:
        return (limit.take(caller_key(identity)) or await limit.ask(caller_key(identity))) is not None
    except TooManyRequests:
        return False


@settings(deadline=None)
@given(st.integers(1, 1500), st.integers(1, 4), st.lists(st.integers(0, 3), max_size=400), st.randoms())
def test_all_processes_together_never_grant_more_and_lose_no_more_than_is_said(
    amount: int, processes: int, order: list[int], random: Any
) -> None:
    async def drill() -> None:
        counters, identity = Counters(), Identity(provider="p", user_id="u")
        limits = [CallerLimit(Rate("caller", amount, 86400), counters) for _ in range(processes)]
        granted = sum([await admitted(limits[number % processes], identity) for number in order])
        largest = max(1, amount // 50)
        early, alone = random.choice(limits), random.choice(limits)  # from here on one process gets all, and then one
        while granted < amount - random.randint(0, 2 * largest) and await admitted(early, identity):
            granted += 1
        while await admitted(alone, identity):
            granted += 1
        assert amount - (processes - 1) * (largest - 1) <= granted <= amount
        for limit in limits:
            while await admitted(limit, identity):
                granted += 1
        assert granted == amount

    asyncio.run(drill())


async def test_a_process_that_comes_late_gets_what_is_there() -> None:
    counters, who = Counters(), Identity(provider="p", user_id="u")
    first, second = (CallerLimit(Rate("caller", 1000, 86400), counters) for _ in range(2))
    assert sum([await admitted(first, who) for _ in range(995)]) == 995
    assert sum([await admitted(second, who) for _ in range(20)]) == 5  # a whole lease would be 20


class Clock:
    """A clock that a test sets; it is both the wall's and the monotonic one."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_lease_ends_with_its_window() -> None:
    clock, rate, who = Clock(), Rate("caller", 500, 60), Identity(provider="p", user_id="u")
    limit = CallerLimit(rate, Counters(), clock=clock, ticks=clock)
    clock.now += rate.window("user/u", clock.now).seconds_left  # a window begins
    assert await admitted(limit, who)
    lease = limit.take("user/u")
    assert lease is not None
    assert lease.left > 0
    clock.now += 60.1
    assert limit.take("user/u") is None, "what is left of a window that is over is worth nothing"
    clock.now += 59.8
    assert sum([await admitted(limit, who) for _ in range(600)]) == 500
    clock.now += 0.2
    assert sum([await admitted(limit, who) for _ in range(600)]) == 500, "twice the limit around a border, and no more"


async def test_a_wall_clock_that_is_set_back_locks_no_caller_out() -> None:
    wall, ticks, who = Clock(), Clock(), Identity(provider="p", user_id="u")
    limit = CallerLimit(Rate("caller", 5, 60), Counters(), clock=wall, ticks=ticks)
    assert sum([await admitted(limit, who) for _ in range(9)]) == 5
    wall.now -= 86400
    ticks.now += 60
    assert await admitted(limit, who)


async def test_many_callers_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (callers_module, counters_room, address_room):
        monkeypatch.setattr(room, "MOST_KEYS", 50)
    counters = Counters()
    callers = CallerLimit(Rate("caller", 5, 86400), counters)
    addresses = AddressLimit(Rate("address", 5, 86400), counters)
    for number in range(200):
        assert await admitted(callers, Identity(provider="p", user_id=str(number)))
        for _ in range(5):
            addresses.charge(f"203.0.113.{number}")
    assert len(callers._leases) == len(addresses.refusals) == len(addresses.full) == len(counters._local._counts) == 50
    await addresses.close()


async def test_what_is_over_is_forgotten() -> None:
    clock = Clock()
    callers = CallerLimit(Rate("caller", 5, 60), Counters(), clock=clock, ticks=clock)
    local = LocalCounters(clock)
    for number in range(100):
        clock.now += 10
        assert await admitted(callers, Identity(provider="p", user_id=str(number)))
        local.add(str(number), 1, 60)
    assert len(callers._leases) <= 14  # the windows of a minute, and those that ended since
    assert len(local._counts) <= 8


def test_windows_of_different_callers_begin_at_different_times() -> None:
    rate = Rate("caller", 5, 60)
    assert len({int(rate.window(f"user/{number}", 0.0).seconds_left) for number in range(500)}) > 50


# Redis -----------------------------------------------------------------------------------------------------------------


async def test_a_hundred_of_three_hundred_over_redis(serve: Serve, redis: Redis) -> None:
    client = await serve({**HUNDRED, "limits.storage": redis.url})
    assert await statuses(client, 300, at_once=FEW) == {200: 100, 429: 200}
    again = await serve({**HUNDRED, "limits.storage": redis.url})
    assert await statuses(again, 10, at_once=FEW) == {429: 10}, "a process that starts knows what was before it"


async def test_a_hundred_of_three_hundred_over_two_processes_and_redis(db: TestDatabase, redis: Redis, tmp_path: Path) -> None:
    given = {"GATEPOST_LIMITS_CALLER": "100/day", "GATEPOST_LIMITS_STORAGE": redis.url}
    async with running(db, tmp_path / "one", **given) as one, running(db, tmp_path / "two", **given) as two, ClientSession() as session:
        urls = [await url_of(one), await url_of(two)]

        turns = asyncio.Semaphore(FEW)

        async def get(url: str, headers: dict[str, str] = ALICE) -> int:
            async with turns, session.get(f"{url}/api/me", headers=headers) as got:
                return got.status

        # The first requests open the connections to the storage; a process that was too slow for it counts there again by now.
        await asyncio.gather(*(get(urls[number % 2], BOB) for number in range(40)))
        await asyncio.sleep(2 * counters_room._RETRY_SECONDS)

        assert Counter(await asyncio.gather(*(get(urls[number % 2]) for number in range(300)))) == {200: 100, 429: 200}


async def test_the_storage_may_go_and_come_back(serve: Serve, redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve({**HUNDRED, "limits.storage": redis.url})
    assert await statuses(client, 50, at_once=FEW) == {200: 50}
    redis.kill()
    # No caller is refused for the outage, and none is unlimited: this process counts for itself.
    during = await statuses(client, 300)
    assert set(during) == {200, 429}
    assert 100 <= during[200] <= 102
    assert await statuses(client, 300, BOB) == {200: 100, 429: 200}
    await redis.start()
    async with asyncio.timeout(10):
        while not said(caplog, "answers again"):
            await asyncio.sleep(0.05)
    assert await statuses(client, 300, ROBOT_A, at_once=FEW) == {200: 100, 429: 200}
    keys = await redis.command("KEYS", "*org/org_a*")
    assert keys == b"*1", "counted in the storage again"
    assert len(said(caplog, "does not answer")) == len(said(caplog, "answers again")) == 1
    assert PASSWORD not in str([vars(record) for record in caplog.records])


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if f"limits.storage {words}" in record.getMessage()]


async def test_a_start_without_the_storage(serve: Serve, redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    redis.kill()
    client = await serve({**HUNDRED, "limits.storage": redis.url})
    assert len(said(caplog, "does not answer")) == 1
    assert await statuses(client, 300) == {200: 100, 429: 200}


async def test_a_storage_that_hangs_delays_no_request_and_mixes_nothing(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never answers while it is stopped, so that each `add` that returns has not waited for it."""
    counters = Counters(redis.url)

    def wait_at_most(seconds: float) -> None:  # before and after, a slow machine is no outage
        monkeypatch.setattr(counters_room, "_SECONDS", seconds)
        monkeypatch.setattr(counters_room, "_QUEUE_SECONDS", seconds / 2)

    usual = counters_room._SECONDS
    wait_at_most(10)
    await asyncio.gather(*(counters.add(f"before-{number}", number, 600) for number in range(1, 17)))
    redis.pause()
    wait_at_most(usual)
    during = await asyncio.gather(*(counters.add(f"during-{number}", number, 600) for number in range(1, 200)))
    assert during == list(range(1, 200))
    redis.resume()
    async with asyncio.timeout(10):
        while not said(caplog, "answers again"):
            await asyncio.sleep(0.05)
    wait_at_most(10)
    # Late answers to the calls that were given up must not be taken for answers to these.
    for number in range(1, 17):
        assert await counters.add(f"before-{number}", 1000, 600) == 1000 + number
    await counters.close()


async def test_the_bound_of_a_wait_includes_the_wait_for_a_slot(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(redis.url)
    for _ in range(counters_room._AT_ONCE):
        await counters._slots.acquire()
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        assert await counters.add("a", 3, 600) == 3
    assert asyncio.get_running_loop().time() - started < 1
    assert not said(caplog, "does not answer"), "a burst of calls here is no outage there"
    for _ in range(counters_room._AT_ONCE):
        counters._slots.release()
    assert await counters.add("a", 1, 600) == 1, "counted in the storage again"
    await counters.close()


NO_LIMITS = """
import sys
for name in ("limits", "valkey"):
    sys.modules[name] = None
from server.rate_limits.counters import Counters
from server.rate_limits.rate import parse_rate
from server.settings.setting import ConfigError
assert parse_rate("caller", "10 per 5 seconds", "off")[1:] == (10, 5)
Counters()
try:
    Counters(sys.argv[1])
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("scheme", ["valkey", "redis"])
def test_without_the_extra_memory_counts_and_a_storage_prevents_startup(scheme: str) -> None:
    done = subprocess.run([sys.executable, "-c", NO_LIMITS, f"{scheme}://:{PASSWORD}@localhost:6379"], capture_output=True, text=True, check=True)
    assert done.stdout == "limits.storage: the client is not installed; run: pip install 'gatepost[valkey]'\n"


async def test_a_storage_with_another_password_is_an_outage_and_not_a_leak(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(redis.url.replace(PASSWORD, "wrong-canary"))
    await counters.open()
    assert await counters.add("a", 3, 60) == 3
    assert [record.fields for record in said(caplog, "does not answer")] == [{"error": "AuthenticationError"}]  # type: ignore[attr-defined]
    await counters.close()


# One address -----------------------------------------------------------------------------------------------------------


def clerk_app(**given: Any) -> web.Application:
    """Really signed tokens, and a proxy that is trusted."""
    clerk = {"clerk__jwt_key": kit.pem(kit.rsa_key()), "clerk__publishable_key": kit.PUBLISHABLE_KEY,
             "clerk__authorized_parties": [kit.PARTY]}  # fmt: skip
    return build_app(providers=["clerk", "api_key"], trusted_proxies=["127.0.0.1"], **clerk, **given)


def token(key: Any = None, **members: Any) -> tuple[str, str]:
    return ("Authorization", f"Bearer {kit.encode(kit.claims(**members), key)}")


def via(address: str) -> tuple[str, str]:
    return ("X-Forwarded-For", address)


async def test_a_flood_of_bad_signatures_is_cut_off_and_the_others_are_served() -> None:
    app, forged = clerk_app(limits__address="20/day"), token(kit.rsa_key("forger"))
    async with serving(app) as port:
        flood = [(await ask(port, "GET", "/api/me", forged, via("198.51.100.7"))).status for _ in range(30)]
        assert flood == [401] * 20 + [429] * 10
        assert (await ask(port, "GET", "/api/me", token(), via("198.51.100.8"))).status == 200
        assert (await ask(port, "GET", "/api/me", forged, via("198.51.100.8"))).status == 401
        assert (await ask(port, "GET", "/api/me", token(jti="new"), via("198.51.100.7"))).status == 429, "before any verification"
        assert (await ask(port, "GET", "/api/me", ("Cookie", "__session=x"), via("198.51.100.7"))).status == 429
        assert (await ask(port, "GET", "/api/me", via("198.51.100.7"))).status == 401, "there is nothing to verify"
        assert (await ask(port, "GET", "/api/health", forged, via("198.51.100.7"))).status == 200
        assert (await ask(port, "GET", "/api/%2e%2e", forged, via("198.51.100.7"))).status == 400
        both = (forged, ("X-API-Key", "gp_x"), via("198.51.100.7"))
        assert (await ask(port, "GET", "/api/me", *both)).status == 400


async def test_the_answer_to_an_address_with_too_many() -> None:
    async with serving(clerk_app(limits__address="1/day")) as port:
        await ask(port, "GET", "/api/me", ("Authorization", "Bearer x"))
        got = await ask(port, "GET", "/api/me", ("Authorization", "Bearer x"))
        assert (got.status, got.json) == (429, {"error": "Too Many Requests"})
        assert got.headers["ratelimit-policy"] == '"address";q=1;w=86400'
        assert got.headers["ratelimit"] == f'"address";r=0;t={got.headers["retry-after"]}'
        assert 0 < int(got.headers["retry-after"]) <= 86400


async def test_what_a_client_says_of_its_address_does_not_help_it() -> None:
    async with serving(clerk_app(limits__address="5/day")) as port:
        statuses = [
            (await ask(port, "GET", "/api/me", ("Authorization", "Bearer x"), via(f"6.6.6.{number}, 198.51.100.7"))).status
            for number in range(8)
        ]
        assert statuses == [401] * 5 + [429] * 3


async def test_a_64_of_ipv6_is_one_client() -> None:
    async with serving(clerk_app(limits__address="5/day")) as port:
        bad = ("Authorization", "Bearer x")
        flood = [(await ask(port, "GET", "/api/me", bad, via(f"2001:db8:1:2::{number:x}"))).status for number in range(1, 9)]
        assert flood == [401] * 5 + [429] * 3
        assert (await ask(port, "GET", "/api/me", bad, via("2001:db8:1:3::1"))).status == 401


async def test_only_refused_credentials_are_charged() -> None:
    app = clerk_app(limits__address="1/day")
    async with serving(app) as port:
        for headers in ([], [token()], [("Cookie", "theme=dark")]):
            for _ in range(5):
                await ask(port, "GET", "/api/me", *headers)
        await ask(port, "GET", "/api/invoices", token())  # 403
        await ask(port, "GET", "/api/nowhere", token())  # 404
        assert (await ask(port, "GET", "/api/me", token())).status == 200


class Refuses:
    """A provider that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, request: web.Request) -> Identity | None:
        self.asked += 1
        await asyncio.sleep(0)
        raise CredentialRejected


async def test_nothing_is_verified_for_an_address_with_too_many() -> None:
    provider = Refuses()
    app = build_app({"x": provider_plugin(refuses=provider)}, providers=["refuses"], limits__address="10/day")
    async with serving(app) as port:
        for _ in range(30):
            await ask(port, "GET", "/api/me", ("Authorization", "x"))
    assert provider.asked == 10


class ReadsItsOwnHeader(Refuses):
    reads = ("X-Acme-Key", "Cookie")


async def test_a_credential_in_a_providers_own_header_is_one_like_any_other() -> None:
    provider, own = ReadsItsOwnHeader(), ("x-acme-key", "x")
    app = build_app({"x": provider_plugin(acme=provider)}, providers=["acme"], limits__address="3/day")
    async with serving(app) as port:
        got = [await ask(port, "GET", "/api/me", own) for _ in range(5)]
        assert [one.status for one in got] == [401] * 3 + [429] * 2
        assert provider.asked == 3
        for two in ((own, own), (own, ("Authorization", "Bearer x")), (own, ("X-API-Key", "x"))):
            refused = await ask(port, "GET", "/api/me", *two)
            assert (refused.status, refused.json["reason"]) == (400, "credentials-ambiguous")
        assert (await ask(port, "GET", "/api/me", ("X-Acme-Key", ""))).json["reason"] == "credential-rejected", "nothing to verify"


async def test_a_credential_that_no_provider_takes_is_refused_and_not_missing() -> None:
    class Passes:
        reads = ("X-Acme-Key",)

        async def authenticate(self, request: web.Request) -> Identity | None:
            return None

    async with serving(build_app({"x": provider_plugin(acme=Passes())}, providers=["acme"])) as port:
        for headers, reason in (([("X-Acme-Key", "x")], "rejected"), ([("X-Acme-Key", "")], "missing"), ([], "missing")):
            assert (await ask(port, "GET", "/api/me", *headers)).json["reason"] == f"credential-{reason}"


async def test_refusals_at_one_process_count_at_the_other(redis: Redis) -> None:
    given = {"limits__address": "20/day", "limits__storage": redis.url}
    bad = ("Authorization", "Bearer x")
    async with serving(clerk_app(**given)) as one, serving(clerk_app(**given)) as two:
        assert [(await ask(one, "GET", "/api/me", bad)).status for _ in range(21)] == [401] * 20 + [429]
        # It learns of the others with a refusal of its own, told in the background; a storage that is slow for once is left
        # alone for a moment. By itself it would refuse twenty before it says 429.
        answers: list[int] = []
        while len(answers) < 15 and 429 not in answers:
            answers.append((await ask(two, "GET", "/api/me", bad)).status)
            await asyncio.sleep(0.2)
        assert answers == [401] * (len(answers) - 1) + [429]


async def test_an_address_is_free_again_with_its_window() -> None:
    clock = Clock()
    limit = AddressLimit(Rate("address", 3, 60), Counters(), clock=clock, ticks=clock)
    assert limit.blocked("203.0.113.9") is None
    for _ in range(3):
        assert limit.blocked("203.0.113.9") is None
        assert not limit.full, "no request needs to look up its client's address"
        limit.charge("203.0.113.9")
    wait = limit.blocked("203.0.113.9")
    assert wait is not None
    assert 1 <= wait <= 60
    clock.now += wait
    assert limit.blocked("203.0.113.9") is None
    limit._sweep()
    assert not limit.refusals
    assert not limit.full
    await limit.close()


def test_the_hash_of_a_credential_knows_its_header_and_no_empty_one() -> None:
    limit = AddressLimit(Rate("address", 3, 60), Counters(), credentials=("Authorization", "X-API-Key"))
    key = CIMultiDict({"X-API-Key": "a"})
    assert limit._hash(key) == limit._hash(CIMultiDict({"Authorization": "", "x-api-key": "a"}))
    assert limit._hash(key) != limit._hash(CIMultiDict({"Authorization": "a"}))
    assert limit._hash(CIMultiDict({"Cookie": "a"})) != limit._hash(CIMultiDict({"Cookie": "b", "X-API-Key": ""}))


# Logs ------------------------------------------------------------------------------------------------------------------


def test_callers_beyond_their_rate_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gatepost")
    log = DenialLog(clock=lambda: 0.0)
    for _ in range(1000):
        if log.hears(known=True, status=429):
            log(Decision("id", "GET", "/api/me", "stub", "alice", None, "429", None, "", 0.0))
    assert len(caplog.records) == 20


# Settings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "rate"), [
    ("6000/minute", (6000, 60)), ("10 per 5 seconds", (10, 5)), ("1/2hour", (1, 7200)), ("AUTO", (7, 60)), ("Off", None), (" 3  per 2months ", (3, 5184000)),
])  # fmt: skip
def test_rates(text: str, rate: tuple[int, int] | None) -> None:
    parsed = parse_rate("caller", text, "7/minute")
    assert (parsed and parsed[1:]) == rate


@given(
    st.sampled_from(["1", "007", "999999999"]),
    st.sampled_from(["/", " / ", "per", " per "]),
    st.sampled_from(["", "1", "3 ", " 2"]),
    st.sampled_from(["second", "minute", "hour", "day", "month"]),
    st.sampled_from(["", "s", " ", "s "]),
)
def test_a_rate_is_read_as_the_limits_library_reads_it(amount: str, per: str, times: str, unit: str, end: str) -> None:
    text = f" {amount}{per}{times}{unit}{end}"
    theirs = parse(text)
    assert parse_rate("caller", text, "off") == ("caller", theirs.amount, theirs.get_expiry())


@pytest.mark.parametrize("text", ["", " ", "1/0minute", "6000", "6000/fortnight", "-1/minute", "0/minute", "1/minute;2/hour", "x", "5000000000/day", "9/3year"])
@pytest.mark.parametrize("name", ["caller", "address"])
def test_what_is_no_rate_prevents_startup(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"limits.{name}: "):
        build_app(**{f"limits__{name}": text})


@pytest.mark.parametrize("url", [
    "memcached://localhost:11211", f"redis://:{PASSWORD}@localhost", f"redis://:{PASSWORD}@localhost:x/0", "localhost:6379", PASSWORD,
    f"redis://:{PASSWORD}@localhost:6379/0?socket_timeout=x", "",
])  # fmt: skip
def test_what_is_no_storage_prevents_startup_and_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"limits\.storage: ") as caught:
        build_app(limits__storage=url)
    assert PASSWORD not in str(caught.value)


def test_in_production_both_limits_are_on(tmp_path: Path) -> None:
    given = {"env": "production", "database__url": "postgresql://gatepost_app@localhost/x", "providers": ["api_key"]}
    limits = build_app(**given)[LIMITS]
    assert limits.caller is not None
    assert limits.address is not None
    assert limits.caller._rate == ("caller", 6000, 60)
    assert limits.address._rate == ("address", 3000, 60)
