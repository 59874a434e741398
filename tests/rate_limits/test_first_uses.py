"""The first use of a one-time value and its repeats: in one process, and in two that share a real Redis."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kits.redis import Redis

from server import Unavailable
from server.rate_limits.counters import Counters
from server.rate_limits.first_uses import FirstUses, LocalUses


def value(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_repeat_until_it_expires() -> None:
    now = [1000.0]
    uses = LocalUses(clock=lambda: now[0])
    assert uses.first(b"a", 60)
    assert not uses.first(b"a", 60)
    assert not uses.first(b"a", 1), "another time to live makes it no other value"
    now[0] += 59.9
    assert not uses.first(b"a", 60)
    now[0] += 5.2
    assert uses.first(b"a", 60)
    assert len(uses) == 1


def test_what_expired_leaves_the_memory() -> None:
    now = [0.0]
    uses = LocalUses(clock=lambda: now[0])
    for number in range(10_000):
        uses.first(value(number), 1 + number % 60)
    now[0] = 66.0
    assert uses.first(b"last", 60)
    assert len(uses) == 1


def test_a_full_store_refuses_and_forgets_nothing() -> None:
    now = [0.0]
    uses = LocalUses(most=100, clock=lambda: now[0])
    assert all(uses.first(value(number), 60) for number in range(100))
    with pytest.raises(Unavailable):
        uses.first(value(100), 60)
    assert not any(uses.first(value(number), 60) for number in range(100))
    now[0] = 65.0
    assert uses.first(value(100), 60)


def test_the_memory_of_100000_values_is_bounded() -> None:
    tracemalloc.start()
    try:
        uses = LocalUses(clock=lambda: 0.0)
        for number in range(100_000):
            assert uses.first(value(number), 60)
        assert tracemalloc.get_traced_memory()[0] < 16 * 2**20
    finally:
        tracemalloc.stop()


async def test_of_many_at_once_one_is_first() -> None:
    uses = FirstUses(Counters())
    assert sum(await asyncio.gather(*(uses.first("x", 60) for _ in range(100)))) == 1


# Redis --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Redis]:
    server = Redis(tmp_path)
    await server.start()
    try:
        yield server
    finally:
        server.kill()


async def test_two_processes_share_them(redis: Redis) -> None:
    one, two = Counters(redis.url), Counters(redis.url)
    try:
        both = [FirstUses(one), FirstUses(two)]
        assert await both[0].first("x", 60)
        assert not await both[1].first("x", 60)
        assert sum(await asyncio.gather(*(both[at % 2].first("race", 60) for at in range(40)))) == 1
        assert await both[1].first("brief", 0.05)
        await asyncio.sleep(0.1)
        assert await both[0].first("brief", 60)
        keys = await redis.command("DBSIZE")
        assert keys == b":3"
    finally:
        await one.close()
        await two.close()


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_an_outage_is_no_answer_and_ends(redis: Redis, fault: str) -> None:
    counters = Counters(redis.url)
    uses = FirstUses(counters)
    try:
        assert await uses.first("x", 60)
        redis.kill() if fault == "killed" else redis.pause()
        with pytest.raises(Unavailable):
            await uses.first("y", 60)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Unavailable):
            await uses.first("z", 60)
        assert loop.time() - began < 0.2, "while the outage is known, nobody waits"
        if fault == "killed":
            await redis.start()
        else:
            redis.resume()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await uses.first("w", 60)
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
        if fault == "paused":
            assert not await uses.first("x", 60)
    finally:
        await counters.close()
