"""Drills: faults under load, with the real program where that matters. Each prints a line of figures; docs/explanation/drills-process.md has them.

`make test-long ARGS="tests/drills/test_drills.py -s -p no:xdist"` shows the lines.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import glob
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from kits import tokens as kit
from kits.app import LOCAL, Client, Reply, build_app, routes_plugin, serving, stub
from kits.pages import free_port

from providers.api_key.key_format import make
from server import raw_body, signed_in
from server.plugins.providers import PROVIDERS
from server.testing.clerk import LoopbackClerk
from tests.conftest import TestDatabase
from tests.serving.test_workers import children, running, url_of

pytestmark = pytest.mark.long
SAID = collections.Counter[Any]
ME = [("Host", LOCAL), stub("u")]


def report(name: str, **figures: Any) -> None:
    print(f"drill: {name}: " + ", ".join(f"{word.replace('_', ' ')} {value}" for word, value in figures.items()))


class Load:
    """Callers that send requests without pause, each on a kept connection; a request ends as a status, `refused` or `lost`."""

    def __init__(self, port: int, *paths: str, headers: Any = ME, source: str | None = None, keep: bool = True) -> None:
        self.port, self.paths, self.headers, self.source, self.keep = port, paths or ("/api/me",), headers, source, keep
        self.sent, self.ends = 0, SAID()
        self.seconds: list[float] = []
        self.stopped = False
        self.lost_at: list[float] = []

    async def caller(self, number: int) -> None:
        while not self.stopped:
            client = Client(self.port)
            try:
                await self._open(client)
            except OSError:
                self.sent += 1
                self.ends["refused"] += 1
                await asyncio.sleep(0.02)
                continue
            await self._ask(client, number)
            await client.close()

    async def _open(self, client: Client) -> None:
        local = (self.source, 0) if self.source else None
        client.reader, client.writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=local)

    async def _ask(self, client: Client, number: int) -> None:
        while not self.stopped and client.writer is not None:
            self.sent += 1
            started = time.perf_counter()
            try:
                path = self.paths[(self.sent + number) % len(self.paths)]
                lines = self.headers() if callable(self.headers) else self.headers
                reply = await client.ask("GET", path, lines)
                self.ends[reply.status] += 1
                self.seconds.append(time.perf_counter() - started)
                if not self.keep:
                    return
            except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
                self.ends["lost"] += 1
                self.lost_at.append(time.monotonic())
                return

    @contextlib.asynccontextmanager
    async def of(self, callers: int) -> AsyncIterator[Load]:
        tasks = [asyncio.create_task(self.caller(number)) for number in range(callers)]
        try:
            yield self
        finally:
            self.stopped = True
            await asyncio.wait_for(asyncio.gather(*tasks), 20)

    def p99(self) -> str:
        ordered = sorted(self.seconds)
        return f"{ordered[int(len(ordered) * 0.99)] * 1000:.0f} ms" if ordered else "-"


async def gone(process: asyncio.subprocess.Process) -> int:
    return await asyncio.wait_for(process.wait(), 40)


@pytest.mark.alone
async def test_sigterm_at_full_load_loses_no_request(db: TestDatabase, tmp_path: Path) -> None:
    """Readiness ends first; each connection ends with its answer; later requests are refused and can be sent elsewhere."""
    ops = free_port()
    async with running(db, tmp_path, "--workers", "2", GATEPOST_OPS_PORT=str(ops)) as process:
        port = int((await url_of(process)).rpartition(":")[2])
        async with Load(port, "/api/me", "/api/data", "/api/health").of(60) as load, aiohttp.ClientSession() as client:
            await asyncio.sleep(2)
            before = load.ends.copy()
            assert before["refused"] == before["lost"] == 0
            process.terminate()
            at, unready = time.monotonic(), None
            while unready is None:
                try:
                    async with client.get(f"http://127.0.0.1:{ops}/readyz") as got:
                        unready = time.monotonic() - at if got.status == 503 else None
                except aiohttp.ClientConnectionError:
                    break
            assert unready is not None, "readiness never ended while it drained"
            assert await gone(process) == 0
            seconds = time.monotonic() - at
    report("SIGTERM at full load", callers=60, sent=load.sent, answered=sum(n for end, n in load.ends.items() if isinstance(end, int)),
         of_them_200=load.ends[200], refused=load.ends["refused"], lost=load.ends["lost"], unready_after=f"{unready * 1000:.0f} ms", gone_after=f"{seconds:.2f} s")  # fmt: skip
    assert load.ends["lost"] == 0
    assert set(load.ends) <= {200, "refused"}
    assert load.ends[200] > 500


@pytest.mark.alone
async def test_replacing_the_workers_at_full_load_loses_and_refuses_nothing(db: TestDatabase, tmp_path: Path) -> None:
    """SIGHUP while half of the callers open a connection for each request: the kernel gives some to a worker that stops."""
    async with running(db, tmp_path, "--workers", "2") as process:
        port = int((await url_of(process)).rpartition(":")[2])
        before, at = children(process), time.monotonic()
        async with Load(port, "/api/me", "/api/data").of(30) as kept, Load(port, "/api/me", keep=False).of(30) as new:
            await asyncio.sleep(1)
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(120):
                while children(process) & before or len(children(process)) != 2:
                    await asyncio.sleep(0.05)
            seconds = time.monotonic() - at
            await asyncio.sleep(0.5)
        process.terminate()
        assert await gone(process) == 0
    report("SIGHUP at full load", sent=kept.sent + new.sent, answered_200=kept.ends[200] + new.ends[200], refused=kept.ends["refused"] + new.ends["refused"],
         lost=kept.ends["lost"] + new.ends["lost"], p99_of_new=new.p99(), replaced_after=f"{seconds:.1f} s")  # fmt: skip
    assert set(kept.ends) == set(new.ends) == {200}


@pytest.mark.alone
async def test_a_killed_worker_costs_what_it_had_in_hand(db: TestDatabase, tmp_path: Path) -> None:
    async with running(db, tmp_path, "--workers", "2") as process:
        port = int((await url_of(process)).rpartition(":")[2])
        async with Load(port, "/api/me", "/api/data").of(40) as load:
            await asyncio.sleep(1)
            victim, at = min(children(process)), time.monotonic()
            os.kill(victim, signal.SIGKILL)
            async with asyncio.timeout(120):
                while victim in children(process) or len(children(process)) < 2:
                    await asyncio.sleep(0.01)
            replaced = time.monotonic() - at
            await asyncio.sleep(3)
            last = max(load.lost_at, default=at) - at
        process.terminate()
        assert await gone(process) == 0
    report("worker killed", callers=40, sent=load.sent, answered_200=load.ends[200], lost=load.ends["lost"], refused=load.ends["refused"],
         replaced_after=f"{replaced:.2f} s", last_loss_after=f"{last:.2f} s")  # fmt: skip
    assert load.ends["lost"] <= 40, "more than one request for each connection"
    assert load.ends["refused"] == 0
    assert last < 1, "later than with the worker that died"
    assert set(load.ends) <= {200, "lost"}


async def take(request: web.Request) -> web.Response:
    return web.json_response({"bytes": len(await raw_body(request))})


async def test_slow_heads_and_bodies_are_cut_and_others_are_served() -> None:
    """200 clients drip heads, 100 stall in a body, 50 drip a body: all of these connections are closed in time."""
    ends, latest = SAID(), 0.0
    limits = {"limits__head_seconds": 2.0, "limits__body_seconds": 2.0, "limits__idle_seconds": 3.0, "limits__concurrency": 200}
    routes = routes_plugin(web.post("/api/take", signed_in(take)))
    head = b"POST /api/take HTTP/1.1\r\nHost: localhost\r\n" + ": ".join(stub("slow")).encode() + b"\r\nContent-Type: application/json\r\n"
    kinds = {"head": (b"GET /api/me HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"), "stalled body": (head + b"Content-Length: 99\r\n\r\n", b""), "dripped body": (head + b"Content-Length: 99\r\n\r\n", b"x")}

    async def slow(port: int, kind: str) -> None:
        nonlocal latest
        started = time.monotonic()
        async with Client(port) as client:
            start, drip = kinds[kind]
            await client.send(start)
            reading = asyncio.create_task(client.reply(timeout=30))
            while not reading.done():
                await asyncio.sleep(0.25)
                with contextlib.suppress(ConnectionError):
                    await client.send(drip)
            try:
                ends[kind, (await reading).status] += 1
            except (asyncio.IncompleteReadError, ConnectionError):
                ends[kind, "hung up"] += 1
            latest = max(latest, time.monotonic() - started)

    async with serving(build_app({"acme": routes}, **limits)) as port, Load(port).of(10) as load:
        flood = [slow(port, kind) for kind, number in (("head", 200), ("stalled body", 100), ("dripped body", 50)) for _ in range(number)]
        await asyncio.gather(*flood)
    report("slow heads and bodies", slow=len(flood), ends={f"{kind}: {end}": number for (kind, end), number in ends.items()}, last_cut_after=f"{latest:.1f} s",
         good_sent=load.sent, good_200=load.ends[200], good_p99=load.p99())  # fmt: skip
    assert ends == {("head", 408): 200, ("stalled body", 408): 100, ("dripped body", 408): 50}
    assert latest < 8
    assert set(load.ends) == {200}


async def test_a_flood_of_bad_signatures_beside_good_callers() -> None:
    """A flood from one address beside good callers at another. Every good caller is served."""
    kid = kit.rsa_key()
    clerk = {"clerk__jwt_key": kit.pem(kid), "clerk__publishable_key": kit.PUBLISHABLE_KEY, "clerk__authorized_parties": [kit.PARTY]}
    head, payload, _ = kit.encode(kit.claims()).split(".")
    good = [("Host", LOCAL), ("Authorization", f"Bearer {kit.encode(kit.claims())}")]

    def forged() -> list[tuple[str, str]]:
        return [("Host", LOCAL), ("Authorization", f"Bearer {head}.{payload}.{kit.b64(secrets.token_bytes(256))}")]

    figures = {}
    for limit in ("off", "100/minute"):
        app = build_app({}, providers=["clerk"], limits__address=limit, **clerk)
        async with (
            serving(app) as port,
            Load(port, headers=good, source="127.0.0.1").of(4) as callers,
            Load(port, headers=forged, source="127.0.0.2").of(16) as flood,
        ):
            await asyncio.sleep(4)
        figures[limit] = {"flood": dict(flood.ends), "good": dict(callers.ends), "p99 of the good": callers.p99()}
        assert set(callers.ends) == {200}
        assert set(flood.ends) <= {401, 429}
        assert flood.sent > 1_000
        if limit != "off":
            assert flood.ends[401] <= 200, "two windows at most"
    report("bad signatures", seconds=4, **{f"limit_{limit}": found for limit, found in figures.items()})


class Endless:
    """A key set that sends bytes as long as the client reads."""

    def __init__(self) -> None:
        self.given = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(1_600):  # 100 MiB
                await response.write(b" " * 65_536)
                self.given += 65_536
        return response


async def test_a_key_set_of_100_megabytes_is_not_read() -> None:
    endless, app = Endless(), web.Application()
    app.router.add_get("/{path:.*}", endless.answer)
    async with serving(app) as keys:
        before = psutil.Process().memory_info().rss
        clerk = {"clerk__secret_key": kit.SECRET_KEY, "clerk__publishable_key": kit.PUBLISHABLE_KEY, "clerk__authorized_parties": [kit.PARTY], "clerk__api_url": f"http://127.0.0.1:{keys}"}
        started = time.monotonic()
        async with serving(build_app({}, providers=["clerk"], **clerk)) as port, Client(port) as client:
            opened = time.monotonic() - started
            reply = await client.ask("GET", "/api/me", [("Host", LOCAL), ("Authorization", f"Bearer {kit.encode(kit.claims())}")])
            health = await client.ask("GET", "/api/health", [("Host", LOCAL)])
            grown = psutil.Process().memory_info().rss - before
    report("key set of 100 MiB", bytes_sent=endless.given, open_after=f"{opened:.2f} s", a_session=reply.status, health=health.status, memory=f"+{grown / 2**20:.0f} MiB")
    assert (reply.status, health.status) == (503, 200)
    assert endless.given < 16 * 2**20, "what fits into the sockets, and no more"
    assert grown < 64 * 2**20


async def test_memory_is_bounded_under_floods_of_unknown_credentials(db: TestDatabase, tmp_path: Path) -> None:
    """Distinct forged tokens, key ids and keys from 16,000 addresses: the same number again costs no more memory."""
    async with LoopbackClerk() as clerk:
        environment = {"GATEPOST_PROVIDERS": "clerk,api_key", "GATEPOST_TRUSTED_PROXIES": "127.0.0.0/8", "GATEPOST_LIMITS_ADDRESS": "1000/minute", "CLERK_SECRET_KEY": clerk.secret_key,
                       "CLERK_PUBLISHABLE_KEY": clerk.publishable_key, "CLERK_API_URL": clerk.url, "CLERK_AUTHORIZED_PARTIES": clerk.party}  # fmt: skip
        head, payload, _ = clerk.token().split(".")
        async with running(db, tmp_path, **environment) as process:
            port = int((await url_of(process)).rpartition(":")[2])
            assert process.stderr is not None
            logged = asyncio.create_task(process.stderr.read())
            number = 0

            def request() -> bytes:
                nonlocal number
                number += 1
                credential = f"X-API-Key: {make('live').text}" if number % 8 == 0 else f"Authorization: Bearer {head}.{payload}.{kit.b64(secrets.token_bytes(256))}"
                if number % 5 == 0:  # with a key id of its own
                    own = kit.b64(json.dumps({"alg": "RS256", "kid": f"k{number}"}).encode())
                    credential = f"Authorization: Bearer {own}.{payload}.AAAA"
                address = f"2001:db8:0:{number % 16_000:x}::1"
                return f"GET /api/{number} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {address}\r\n{credential}\r\n\r\n".encode()

            async def flood(each: int) -> SAID:
                ends = SAID()
                async with Client(port) as client:
                    for _ in range(each // 25):
                        await client.send(b"".join(request() for _ in range(25)))
                        for _ in range(25):
                            ends[(await client.reply(timeout=30)).status] += 1
                return ends

            memory, ends, started = [rss(process)], SAID(), time.monotonic()
            for _ in range(4):
                for got in await asyncio.gather(*(flood(2_500) for _ in range(6))):
                    ends += got
                memory.append(rss(process))
            seconds = time.monotonic() - started
            process.terminate()
            assert await gone(process) == 0
            log = (await logged).decode()
    report("distinct credentials and addresses", requests=number, ends=dict(ends), seconds=f"{seconds:.0f}", rss_mib=[round(one / 2**20) for one in memory], log_lines=len(log.splitlines()))
    assert set(ends) <= {401, 429, 503}
    assert memory[-1] - memory[2] < 8 * 2**20, "it grows with the number of strangers"
    assert len(log.splitlines()) < 25 * (seconds + 5), "a flood fills the log"


def rss(process: asyncio.subprocess.Process) -> int:
    return int(psutil.Process(process.pid).memory_info().rss)


def caches(thing: Any, levels: int = 4) -> Mapping[str, int]:
    """The number of entries in each container that a built-in provider holds."""
    found: dict[str, int] = {}
    for name in [*getattr(thing, "__dict__", {}), *getattr(type(thing), "__slots__", ())]:
        inner = getattr(thing, name, None)
        if isinstance(inner, dict | set | list | collections.deque):
            found[name] = len(inner)
        elif levels and type(inner).__module__.startswith(("server", "providers")):
            found |= {f"{name}.{key}": size for key, size in caches(inner, levels - 1).items()}
    return found


async def test_no_container_of_a_provider_grows_with_unknown_credentials() -> None:
    """Seen from within: forged tokens, opaque tokens and unknown key ids leave nothing in any container."""
    async with LoopbackClerk() as clerk:
        given = {key.replace(".", "__"): value for key, value in clerk.settings().items()}
        app = build_app({}, **{**given, "providers": ["clerk"]})
        head, payload, _ = clerk.token().split(".")
        async with serving(app) as port, Client(port) as client:
            assert (await client.ask("GET", "/api/me", [("Host", LOCAL), ("Authorization", f"Bearer {clerk.token()}")])).status == 200
            before = {one.name: caches(one.provider) for one in app[PROVIDERS]}
            for number in range(3_000):
                own = kit.b64(json.dumps({"alg": "RS256", "kid": f"k{number}", "n": number}).encode())
                forged = f"{own if number % 2 else head}.{payload}.{kit.b64(secrets.token_bytes(256))}"
                assert (await client.ask("GET", "/api/me", [("Host", LOCAL), ("Authorization", f"Bearer {forged}")])).status in (401, 503)  # beyond the budget of fetches
            after = {one.name: caches(one.provider) for one in app[PROVIDERS]}
    report("containers", forged=3_000, before=sum(before["clerk"].values()), after=sum(after["clerk"].values()), containers=len(after["clerk"]))
    assert len(after["clerk"]) >= 3
    assert sum(after["clerk"].values()) <= sum(before["clerk"].values()) + 5


async def test_a_clock_that_jumps(db: TestDatabase, tmp_path: Path) -> None:
    """The real process with its clock set forward, back and to 1970: tokens are checked against that time; nothing else breaks."""
    library = next(iter(glob.glob("/usr/lib/*/faketime/libfaketime.so.1")), None)
    if library is None:
        pytest.skip("faketime is not installed")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    async with LoopbackClerk() as clerk:
        environment = {"GATEPOST_PROVIDERS": "clerk,api_key", "GATEPOST_LIMITS_CALLER": "1000/minute", "CLERK_SECRET_KEY": clerk.secret_key, "CLERK_PUBLISHABLE_KEY": clerk.publishable_key,
                       "CLERK_API_URL": clerk.url, "CLERK_AUTHORIZED_PARTIES": clerk.party, **faked}  # fmt: skip
        now = time.time()
        good, later, earlier = clerk.token(ttl=600), clerk.token(now=now + 7200, ttl=600), clerk.token(now=now - 7200, ttl=600)
        slugs: dict[str, list[Any]] = {}
        async with running(db, tmp_path, **environment) as process:
            port = int((await url_of(process)).rpartition(":")[2])

            async def at(name: str, offset: str) -> list[Any]:
                other = tmp_path / "next"
                other.write_text(offset)
                other.replace(clock)
                found = []
                for _ in range(2):  # the second from the caches
                    found = [await outcome(port, token) for token in (good, later, earlier)]
                slugs[name] = [*found, (await one(port, "/api/health")).status, (await one(port, "/api/data", good)).status]
                return found

            assert await at("now", "+0") == [200, "token-not-active-yet", "token-expired"]
            assert await at("two hours on", "+7200") == ["token-expired", 200, "token-expired"]
            assert await at("two hours back", "-7200") == ["token-not-active-yet", "token-not-active-yet", 200]
            assert await at("1970", "@1970-01-02 00:00:00") == ["token-not-active-yet"] * 3
            assert await at("2100", "@2100-01-01 00:00:00") == ["token-expired"] * 3
            assert await at("now again", "+0") == [200, "token-not-active-yet", "token-expired"]
            process.terminate()
            assert await gone(process) == 0
    report("clock jumps", **{name.replace(" ", "_"): found for name, found in slugs.items()})
    assert all(found[3] == 200 and found[4] in (200, 401) for found in slugs.values())


async def one(port: int, path: str, token: str | None = None) -> Reply:
    async with Client(port) as client:
        lines = [("Host", LOCAL), *([("Authorization", f"Bearer {token}")] if token else [])]
        return await client.ask("GET", path, lines)


async def outcome(port: int, token: str) -> int | str:
    reply = await one(port, "/api/me", token)
    return reply.json["reason"] if reply.status == 401 else reply.status
