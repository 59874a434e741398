"""`within`: a coroutine is awaited for a limited time."""

from __future__ import annotations

import asyncio

import pytest

from server.gate.deadline import within


async def test_what_does_not_wait_sets_no_timer() -> None:
    async def at_once() -> int:
        return 7

    loop = asyncio.get_running_loop()
    scheduled = len(loop._scheduled)  # type: ignore[attr-defined]
    assert await within(60, at_once()) == 7
    assert len(loop._scheduled) == scheduled  # type: ignore[attr-defined]


async def test_what_waits_gets_its_answers() -> None:
    async def twice() -> list[int]:
        await asyncio.sleep(0)
        return [await asyncio.sleep(0.001, 1), await asyncio.sleep(0, 2)]

    assert await within(5, twice()) == [1, 2]


async def test_too_long_is_a_timeout_and_the_work_is_cancelled() -> None:
    ended: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    with pytest.raises(TimeoutError):
        await within(0.01, for_ever())
    assert ended == ["cancelled"]
    await asyncio.sleep(0)  # the task itself is not cancelled


@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_comes_through(waits: bool) -> None:
    async def fail() -> None:
        if waits:
            await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await within(5, fail())


async def test_a_cancellation_from_outside_stays_one() -> None:
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(_run(wait))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _run(wait: object) -> None:
    await within(60, wait())  # type: ignore[operator]
