"""One call for all who want its result at the same time."""

import asyncio
import gc
from typing import Any

import pytest

from server import SingleFlight


class Service:
    """Counts its calls; each waits until it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await self.go.wait()
        return number


async def test_who_asks_at_the_same_time_shares_one_call() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    service = Service()
    waiting = [asyncio.create_task(flights.run("a", service)) for _ in range(5)]
    other = asyncio.create_task(flights.run("b", service))
    await asyncio.sleep(0)
    assert len(flights) == 2
    assert "a" in flights
    service.go.set()
    assert await asyncio.gather(*waiting) == [1] * 5
    assert await other == 2
    assert len(flights) == 0


async def test_nothing_is_remembered() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    service = Service()
    service.go.set()
    assert [await flights.run("a", service) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_a_cancelled_waiter_ends_neither_the_call_nor_the_others(gone: int) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    service = Service()
    waiting = [asyncio.create_task(flights.run("a", service)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[gone].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[gone]
    service.go.set()
    assert [await task for number, task in enumerate(waiting) if number != gone] == [1, 1]
    assert service.calls == 1


async def test_every_waiter_gets_the_exception_and_the_next_call_is_a_new_one() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    answers: list[Any] = [OSError("down"), 7]

    async def call() -> int:
        await asyncio.sleep(0)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return int(answer)

    outcomes = await asyncio.gather(*(flights.run("a", call) for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["down"] * 3
    assert await flights.run("a", call) == 7


async def test_a_failure_without_a_waiter_is_not_reported_by_the_loop() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def call() -> int:
        await asyncio.sleep(0.01)
        raise OSError("down")

    waiter = asyncio.create_task(flights.run("a", call))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.sleep(0.05)
    gc.collect()
    assert "a" not in flights
    assert not reported


async def test_close_cancels_the_call_and_its_waiters_get_an_error() -> None:
    flights: SingleFlight[str, int] = SingleFlight("fetch")
    waiting = [asyncio.create_task(flights.run("a", Service())) for _ in range(2)]
    await asyncio.sleep(0)
    await flights.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, RuntimeError)
        assert str(outcome) == "fetch: cancelled"
    assert len(flights) == 0
