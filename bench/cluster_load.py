"""The constant load of the cluster's drill: writes with a key, reads, sign-outs, revoked keys and live streams, and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from cluster_ended import FAILED, Ended, use, watch
from issuer import Issuer, user
from soak_actors import deliver

TIME = aiohttp.ClientTimeout(total=12, connect=3)


@dataclass
class Load:
    """What all clients sent and got since the last `reset`."""

    url: str
    servers: list[str]
    issuer: Issuer
    answers: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    foreign: int = 0
    stale: int = 0
    """Reads that did not have a row which the same client had been told was written."""
    acked: dict[str, str] = field(default_factory=dict)
    """Rows that were acknowledged, by name, with their user; never reset."""
    sent: dict[str, str] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    writes: list[tuple[float, float, bool]] = field(default_factory=list)
    """(sent, answered, acknowledged) of every attempt to write."""
    heard: dict[str, float] = field(default_factory=dict)
    """Names of rows that a live stream brought, and when."""
    streams: int = 0
    numbers: int = 500_000
    stopping: bool = False

    def reset(self) -> None:
        """Begin a new row of the table; what was acknowledged stays known."""
        self.answers, self.lost, self.wrong, self.foreign, self.stale, self.writes = Counter(), 0, [], 0, 0, []

    @property
    def requests(self) -> int:
        return self.answers.total() + self.lost

    async def ask(self, session: aiohttp.ClientSession, method: str, path: str, token: str, expected: tuple[int, ...], **more: Any) -> Any:
        """(status, JSON) of one counted request; status 0 where no answer came."""
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        try:
            async with session.request(method, self.url + path, headers=headers, timeout=TIME, **more) as answer:
                raw, status = await answer.read(), answer.status
        except FAILED:
            self.lost += 1
            return 0, None
        self.answers[str(status)] += 1
        if status not in (*expected, 503):
            self.wrong.append(f"{method} {path}: {status} {raw[:100]!r}")
        with contextlib.suppress(ValueError):
            return status, json.loads(raw or b"null")
        return status, None

    async def write(self, session: aiohttp.ClientSession, number: int, token: str) -> str | None:
        """Write one row, repeating with the same key until it is acknowledged; its name."""
        name, key = uuid.uuid4().hex, str(uuid.uuid4())
        self.sent[name] = user(number)
        while not self.stopping:
            began = time.monotonic()
            status, _ = await self.ask(session, "POST", "/api/data", token, (201, 409), json={"name": name}, headers={"Idempotency-Key": key})
            self.writes.append((began, time.monotonic(), status == 201))
            if status == 201:
                self.acked[name] = user(number)
                return name
            await asyncio.sleep(0.2)
        return None


async def writer(load: Load, number: int) -> None:
    """Write, and read what was written."""
    async with aiohttp.ClientSession() as session:
        token = load.issuer.token(number)
        while not load.stopping:
            name = await load.write(session, number, token)
            if name is not None:
                status, rows = await load.ask(session, "GET", "/api/data?limit=20", token, (200,))
                if status == 200:
                    load.foreign += sum(row["user_id"] != user(number) for row in rows)
                    load.stale += name not in {row["name"] for row in rows}
            await asyncio.sleep(random.uniform(0.2, 0.4))


async def reader(load: Load, number: int) -> None:
    """Read, on a connection of its own each time: as another browser would."""
    token = load.issuer.token(number)
    while not load.stopping:
        async with aiohttp.ClientSession() as session:
            for path in ("/api/data?limit=20", "/api/me"):
                status, got = await load.ask(session, "GET", path, token, (200,))
                if status == 200:
                    rows = got if isinstance(got, list) else [got]
                    load.foreign += sum(row["user_id"] != user(number) for row in rows)
        await asyncio.sleep(random.uniform(0.2, 0.4))


async def signer_out(load: Load) -> None:
    """A session that is used at every server, ended by Clerk's webhook, and must then be refused by all of them."""
    async with aiohttp.ClientSession(timeout=TIME) as session:
        host, _, port = load.url.removeprefix("http://").partition(":")
        while not load.stopping:
            load.numbers += 1
            number, token = load.numbers, load.issuer.token(load.numbers)
            await asyncio.gather(*(use(session, server, token) for server in load.servers))
            while not load.stopping and await deliver(session, int(port), f"sess_{number:024d}", number, host=host) != 204:
                await asyncio.sleep(0.2)
            await watch(load, session, Ended("session", token, time.monotonic()))
            await asyncio.sleep(0.5)


async def key_revoker(load: Load, number: int) -> None:
    """A key that is made, used, revoked, and must then be refused."""
    async with aiohttp.ClientSession(timeout=TIME) as session:
        token = load.issuer.token(number)
        while not load.stopping:
            status, made = await load.ask(session, "POST", "/api/keys", token, (201,), json={"name": "drill"})
            if status == 201:
                await asyncio.gather(*(use(session, server, made["secret"]) for server in load.servers))
                while not load.stopping:
                    status, _ = await load.ask(session, "DELETE", f"/api/keys/{made['id']}", token, (204, 404))
                    if status in (204, 404):
                        await watch(load, session, Ended("key", made["secret"], time.monotonic()))
                        break
                    await asyncio.sleep(0.2)
            await asyncio.sleep(0.5)


async def stream(load: Load, number: int) -> None:
    """A live stream that reconnects whenever it ends."""
    headers = {"Authorization": f"Bearer {load.issuer.token(number)}"}
    while not load.stopping:
        with contextlib.suppress(*FAILED):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=40)) as session, session.get(load.url + "/api/data/events", headers=headers) as answer:
                load.streams += answer.status == 200
                async for line in answer.content:
                    _heard(load, number, line)
                    if load.stopping:
                        return
        await asyncio.sleep(0.3)


def _heard(load: Load, number: int, line: bytes) -> None:
    if line.startswith(b"data: {"):
        row = json.loads(line[6:])
        if "name" in row:
            load.heard[row["name"]] = time.monotonic()
            load.foreign += row["user_id"] != user(number)


WRITERS = 4


def actors(load: Load) -> list[Any]:
    """Everything that runs at once: about forty requests a second."""
    return [
        *(writer(load, number) for number in range(WRITERS)), *(reader(load, number) for number in range(WRITERS)),
        *(stream(load, number) for number in range(WRITERS)), signer_out(load), signer_out(load), key_revoker(load, 200_000),
    ]  # fmt: skip
