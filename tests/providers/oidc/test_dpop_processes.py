"""Used DPoP proofs in two servers that share a real Redis, and in one process under a flood."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kits import oidc as oidc_kit
from kits.dpop import Holder
from kits.oidc import AUDIENCE, Issuer
from kits.redis import Redis

from providers.oidc.dpop import DpopGuard
from providers.oidc.dpop_proof import Proof
from providers.oidc.settings import read
from server import Unavailable
from server.rate_limits.counters import Counters
from server.rate_limits.first_uses import FirstUses
from tests.conftest import Client, Serve

PATH = "/api/me"
HOLDER = Holder()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    server = Redis(tmp_path)
    await server.start()
    try:
        yield server
    finally:
        server.kill()


async def two(serve: Serve, issuer: Issuer, redis: Redis) -> tuple[Client, Client]:
    """Two servers at one public address."""
    table = {"issuer": issuer.url, "audience": AUDIENCE, "dpop": "accept"}
    settings = {"providers": ["oidc"], "oidc.issuers": [table], "limits.storage": redis.url, "resource.url": "https://api.acme.example"}
    return await serve(settings), await serve(settings)


def headers(token: str, **members: Any) -> dict[str, str]:
    return HOLDER.headers(token, "GET", f"https://api.acme.example{PATH}", **members)


async def test_a_proof_counts_once_in_two_processes(serve: Serve, issuer: Issuer, redis: Redis) -> None:
    clients = await two(serve, issuer, redis)
    token = HOLDER.token(issuer)
    proved = headers(token)
    assert (await clients[0].get(PATH, proved)).status == 200
    got = await clients[1].get(PATH, proved)
    assert (got.status, got.json()["reason"]) == (401, "proof-replayed")
    proved = headers(token)
    race = await asyncio.gather(*(clients[at % 2].get(PATH, proved) for at in range(20)))
    assert sorted(got.status for got in race) == [200, *([401] * 19)]
    for client in clients:
        assert (await client.get(PATH, headers(token))).status == 200


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_an_outage_of_the_store_is_a_503(serve: Serve, issuer: Issuer, redis: Redis, fault: str) -> None:
    client, _ = await two(serve, issuer, redis)
    token, bearer = HOLDER.token(issuer), {"Authorization": f"Bearer {issuer.token()}"}
    used = headers(token)
    assert (await client.get(PATH, used)).status == 200
    redis.kill() if fault == "killed" else redis.pause()
    for proved in (headers(token), used):
        got = await client.get(PATH, proved)
        assert got.status == 503
        assert int(got.headers["Retry-After"]) >= 1
    assert (await client.get(PATH, bearer)).status == 200, "no other request needs the store"
    assert (await client.get(PATH, headers(token, htm="POST"))).status == 401, "what is wrong without it stays wrong"
    if fault == "killed":
        await redis.start()
    else:
        redis.resume()
    async with asyncio.timeout(10):
        while (await client.get(PATH, headers(token))).status == 503:
            await asyncio.sleep(0.1)
    if fault == "paused":
        assert (await client.get(PATH, used)).json()["reason"] == "proof-replayed"


async def test_a_proof_is_remembered_for_as_long_as_it_could_be_valid() -> None:
    [settings] = read({"issuers": [{"issuer": "https://a.example", "audience": "x", "dpop": "accept"}]})
    assert settings.dpop is not None
    asked: list[float] = []

    async def first_use(value: str, seconds: float) -> bool:
        asked.append(seconds)
        return True

    now = 1_800_000_000.0
    guard = DpopGuard([settings], None, lambda: now)
    await guard.open(SimpleNamespace(resource_url="https://x.example", env="test", first_use=first_use))  # type: ignore[arg-type]
    for off in (0, 55, -55):
        await guard._check_first(Proof("j", "GET", "", now + off, "", None, None, None), HOLDER.jkt, settings.dpop)
    assert asked == [65, 120, 10]


async def test_a_hundred_thousand_proofs_are_bounded_in_memory() -> None:
    """What a flood of valid proofs leaves in a process: the values alone, and nothing once they are too old."""
    [settings] = read({"issuers": [{"issuer": "https://a.example", "audience": "x", "dpop": "accept"}]})
    assert settings.dpop is not None
    guard = DpopGuard([settings], None, time.time)
    uses = FirstUses(Counters())
    uses._local._clock = lambda: 0.0
    house = SimpleNamespace(resource_url="https://x.example", env="test", first_use=uses.first)
    await guard.open(house)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        for number in range(100_000):
            proof = Proof(f"{number:0250}", "GET", "", time.time(), "", None, None, None)
            await guard._check_first(proof, HOLDER.jkt, settings.dpop)
        assert tracemalloc.get_traced_memory()[0] < 16 * 2**20
    finally:
        tracemalloc.stop()
    uses._local._most = 100_000
    with pytest.raises(Unavailable):
        await guard._check_first(proof._replace(jti="one more"), HOLDER.jkt, settings.dpop)
