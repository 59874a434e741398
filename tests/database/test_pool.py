"""The pool: callers take turns, each caller's requests are served in order, and a connection with unfinished work is closed.

The connections here are plain objects."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from server.database import pool as room
from server.database.pool import Pool
from server.gate.deadline import within


def queued(pool: Pool) -> int:
    """All requests that wait for a connection; `Pool.waiting` counts the late ones only."""
    return len(list(pool._waiting))


class Line:
    """A connection that has only a state."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = self.in_transaction = self.busy = False

    def is_closed(self) -> bool:
        return self.closed

    def is_in_transaction(self) -> bool:
        return self.in_transaction

    def terminate(self) -> None:
        self.closed = True


class Lines:
    """Opens lines, or fails to."""

    def __init__(self) -> None:
        self.opened = 0
        self.down = False

    async def connect(self) -> Line:
        await asyncio.sleep(0)
        if self.down:
            raise ConnectionRefusedError
        self.opened += 1
        return Line(self.opened)


def make(size: int) -> tuple[Pool[Line], Lines]:
    lines = Lines()
    return Pool(lines.connect, size, must_discard=lambda line: line.busy), lines


async def test_connections_are_opened_when_needed_and_used_again() -> None:
    pool, lines = make(3)
    one = await pool.acquire()
    pool.release(one)
    assert await pool.acquire() is one
    assert (lines.opened, pool.open, pool.idle) == (1, 1, 0)


async def test_who_waits_longest_is_served_first_and_nobody_overtakes() -> None:
    pool, _ = make(1)
    held = await pool.acquire()
    served: list[int] = []

    async def borrow(number: int) -> None:
        line = await pool.acquire()
        served.append(number)
        await asyncio.sleep(0)
        pool.release(line)

    waiting = [asyncio.create_task(borrow(number)) for number in range(5)]
    await asyncio.sleep(0)
    pool.release(held)
    late = asyncio.create_task(borrow(99))  # comes when a connection has just been given back
    await asyncio.gather(*waiting, late)
    assert served == [0, 1, 2, 3, 4, 99]


async def test_never_more_than_the_size() -> None:
    pool, lines = make(4)
    most = 0

    async def work() -> None:
        nonlocal most
        line = await pool.acquire()
        most = max(most, pool.open)
        await asyncio.sleep(0)
        pool.release(line)

    await asyncio.gather(*(work() for _ in range(100)))
    assert (most, lines.opened, pool.idle) == (4, 4, 4)


@pytest.mark.parametrize("fault", ["closed", "in_transaction", "busy"])
async def test_an_unclean_connection_is_discarded_and_replaced(fault: str) -> None:
    pool, lines = make(1)
    line = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    setattr(line, fault, True)
    pool.release(line)
    another = await waiting
    assert line.closed
    assert (another is not line, lines.opened, pool.open) == (True, 2, 1)


async def test_one_that_died_while_idle_is_not_lent() -> None:
    pool, _ = make(2)
    line = await pool.acquire()
    pool.release(line)
    line.closed = True
    assert await pool.acquire() is not line


async def test_a_waiter_who_gives_up_loses_nothing() -> None:
    pool, _ = make(1)
    held = await pool.acquire()
    with pytest.raises(TimeoutError):
        await within(0.01, pool.acquire())
    pool.release(held)
    assert await pool.acquire() is held


async def test_a_wait_ends_at_its_own_time_and_loses_nothing() -> None:
    pool, lines = make(1)
    held = await pool.acquire()
    began = asyncio.get_running_loop().time()
    long, short = asyncio.create_task(pool.acquire("a", 30)), asyncio.create_task(pool.acquire("a", 0.05))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(short, 5)
    assert 0.05 <= asyncio.get_running_loop().time() - began < 5
    assert not long.done()
    pool.release(held)
    assert await asyncio.wait_for(long, 5) is held
    assert lines.opened == 1


@pytest.mark.parametrize("first", ["its time", "the cancellation"])
async def test_a_wait_that_is_cancelled_when_its_time_is_up(first: str) -> None:
    pool, _ = make(1)
    held = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire("a", 0.01))
    await asyncio.sleep(0)
    if first == "its time":
        pool._waiting.end_expired(asyncio.get_running_loop().time() + 1)
        waiting.cancel()
    else:
        waiting.cancel()
        pool._waiting.end_expired(asyncio.get_running_loop().time() + 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pool.release(held)
    assert await within(1, pool.acquire("a", 1)) is held


async def test_a_connection_that_opens_too_slowly_ends_the_wait_too() -> None:
    pool, _ = make(1)
    pool._connect = lambda: asyncio.sleep(30)  # type: ignore[assignment, return-value]
    with pytest.raises(TimeoutError):
        await within(5, pool.acquire("a", 0.05))
    assert pool.open == 0


async def test_a_waiter_cancelled_in_the_moment_of_the_hand_over_hands_it_on() -> None:
    pool, _ = make(1)
    held = await pool.acquire()
    first, second = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.release(held)  # the first one's future is set ...
    first.cancel()  # ... and it is told to stop before it runs
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is held


async def test_a_database_that_is_down_fails_each_who_asks_and_recovers() -> None:
    pool, lines = make(1)
    lines.down = True
    asked = await asyncio.gather(*(pool.acquire() for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in asked] == [ConnectionRefusedError] * 3
    assert pool.open == 0
    lines.down = False
    assert (await pool.acquire()).number == 1


async def test_who_cannot_have_a_new_one_waits_for_one_that_there_is() -> None:
    pool, lines = make(2)
    held = await pool.acquire()
    lines.down = True
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    pool.release(held)
    assert await waiting is held
    second = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0.01)
    held.closed = True
    pool.release(held)  # and when the last one is gone, the failure is told
    with pytest.raises(ConnectionRefusedError):
        await second


async def test_a_failure_to_open_takes_one_that_was_returned_meanwhile() -> None:
    pool, lines = make(2)
    held = await pool.acquire()
    lines.down = True
    opening = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)  # it has begun to open one
    assert pool.opening == 1
    pool.release(held)
    assert await opening is held
    assert pool.open == pool.lent == 1


async def test_expired_ones_are_not_lent_again() -> None:
    pool, _ = make(3)
    several = [await pool.acquire() for _ in range(3)]
    for line in several:
        pool.release(line)
    pool.expire()
    assert pool.open == 0
    assert all(line.closed for line in several)
    assert (await pool.acquire()).number == 4


async def test_giving_back_twice_lends_it_once() -> None:
    pool, _ = make(2)
    line = await pool.acquire()
    pool.release(line)
    pool.release(line)
    assert await pool.acquire() is line
    assert await pool.acquire() is not line


async def test_closing_ends_everything_and_sends_the_waiting_away() -> None:
    pool, _ = make(1)
    held = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(ConnectionError):
        await waiting
    assert held.closed
    pool.release(held)
    assert pool.open == 0


# No more in use than do any good ------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PROMPT", 2)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request counts as late after two seconds, not 5 ms: a slow machine does not decide these tests."""
    monkeypatch.setattr(room, "PATIENCE", 2.0)


async def test_no_more_than_a_few_are_lent_while_they_come_back_soon(few: None, patient: None) -> None:
    pool, lines = make(8)
    most = 0

    async def work() -> None:
        nonlocal most
        line = pool.take() or await pool.acquire()
        most = max(most, pool.lent)
        await asyncio.sleep(0)
        pool.release(line)

    for _ in range(20):
        await asyncio.gather(*(work() for _ in range(50)))
    assert (most, lines.opened, pool.lent, queued(pool)) == (2, 2, 0, 0)


async def test_who_waits_behind_slow_ones_gets_one_more(few: None) -> None:
    pool, lines = make(5)
    slow = [await pool.acquire() for _ in range(2)]
    assert pool.take() is None
    more = [await asyncio.wait_for(pool.acquire(), 5) for _ in range(3)]  # while the slow ones stay where they are
    assert (lines.opened, pool.lent) == (5, 5)
    late = asyncio.ensure_future(within(0.2, pool.acquire()))  # create_task refuses a generator from Python 3.12 on
    await asyncio.sleep(0.05)
    assert pool.waiting == 1  # for longer than is usual: that is what the metrics tell
    with pytest.raises(TimeoutError):
        await late  # never more than the size
    for line in (*slow, *more):
        pool.release(line)
    assert (pool.lent, pool.idle, queued(pool)) == (0, 5, 0)


async def test_after_a_slow_time_few_are_lent_again(few: None, patient: None) -> None:
    pool, _ = make(5)
    lent = [await pool.acquire() for _ in range(5)]
    waiting = [asyncio.create_task(pool.acquire()) for _ in range(4)]
    await asyncio.sleep(0)
    for line in lent[:3]:
        pool.release(line)  # nobody has waited for long: they are put aside
    assert (pool.lent, pool.idle, queued(pool)) == (2, 3, 4)
    pool.release(lent[3])  # from here on whoever waits is served by those who are done
    assert await waiting[0] is lent[3]
    for task in waiting[1:]:
        pool.release(await asyncio.wait_for(task, 5))


async def test_all_who_wait_are_served_whatever_the_order(few: None) -> None:
    pool, _ = make(4)

    async def work(number: int) -> int:
        line = await pool.acquire()
        await asyncio.sleep(0.02 if number % 7 == 0 else 0)
        pool.release(line)
        return number

    async with asyncio.timeout(20):
        assert sorted(await asyncio.gather(*(work(number) for number in range(200)))) == list(range(200))
    assert (pool.lent, queued(pool)) == (0, 0)


async def test_closing_ends_the_looking_after_those_who_wait(few: None) -> None:
    pool, _ = make(2)
    for _ in range(2):
        await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(ConnectionError):
        await waiting
    assert pool._timer is None or pool._timer.cancelled()


# One caller and the others ----------------------------------------------------------------------------------------------


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_caller_has_more_than_half() -> None:
    pool, lines = make(8)
    held = [await pool.acquire("ann") for _ in range(4)]
    assert pool.take("ann") is None
    waiting = [asyncio.create_task(pool.acquire("ann")) for _ in range(3)]
    await settle()
    assert (lines.opened, pool.lent, queued(pool)) == (4, 4, 3)
    others = [await pool.acquire("ben"), await pool.acquire("cid"), await pool.acquire(None), await pool.acquire(None)]
    pool.release(others[0])
    await settle()
    assert not any(task.done() for task in waiting), "what another gives back is not for a caller with half of the pool"
    pool.release(held[0])
    assert await waiting[0] is held[0]
    for line in (*held, *others):
        pool.release(line)
    for task in waiting[1:]:
        pool.release(await task)
    assert (pool.lent, queued(pool), pool._shares._counts) == (0, 0, {})


async def test_half_of_a_pool_of_one_is_one() -> None:
    pool, _ = make(1)
    assert await pool.acquire("ann")


async def test_callers_take_turns() -> None:
    pool, _ = make(1)
    held, served = await pool.acquire(None), []

    async def borrow(caller: str) -> None:
        line = await pool.acquire(caller)
        served.append(caller)
        pool.release(line)

    tasks = [asyncio.create_task(borrow(caller)) for caller in ("ann",) * 5 + ("ben", "cid", "ben")]
    await settle()
    pool.release(held)
    await asyncio.gather(*tasks)
    assert served == ["ann", "ben", "cid", "ann", "ben", "ann", "ann", "ann"]


async def test_the_servers_own_requests_each_have_a_turn_of_their_own() -> None:
    pool, _ = make(2)
    held, served = [await pool.acquire(None), await pool.acquire(None)], []

    async def borrow(caller: str | None) -> None:
        line = await pool.acquire(caller)
        served.append(caller)
        pool.release(line)

    tasks = [asyncio.create_task(borrow(caller)) for caller in ("ann", "ann", "ann", None, None)]
    await settle()
    pool.release(held[0])
    await asyncio.gather(*tasks)
    assert served == ["ann", None, None, "ann", "ann"]


async def test_who_gives_up_does_not_cost_their_caller_its_turn_or_its_share() -> None:
    pool, _ = make(2)
    ann, ben = await pool.acquire("ann"), await pool.acquire("ben")
    first, second, other = [asyncio.create_task(pool.acquire(caller)) for caller in ("ann", "ann", "cid")]
    await settle()
    first.cancel()
    await settle()
    pool.release(ann)
    assert await second is ann
    pool.release(ben)
    assert await other is ben
    third = asyncio.create_task(pool.acquire("ann"))
    await settle()
    pool.release(ann)  # it is handed over ...
    third.cancel()  # ... and not wanted any more
    await settle()
    pool.release(ben)
    assert (pool.lent, queued(pool), pool._shares._counts) == (0, 0, {})


async def test_a_failure_to_open_gives_the_share_back() -> None:
    pool, lines = make(4)
    lines.down = True
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire("ann")
    lines.down = False
    assert len({await pool.acquire("ann"), await pool.acquire("ann")}) == 2


async def test_shares_are_exact_whatever_happens(few: None) -> None:
    """Random callers, failures, broken connections and cancellations: no bound is exceeded, and no share is leaked."""
    chance, (pool, lines) = random.Random(11), make(6)
    held: Counter[str | None] = Counter()

    async def work(caller: str | None) -> None:
        line = pool.take(caller) or await pool.acquire(caller)
        held[caller] += 1
        try:
            assert caller is None or held[caller] <= 3
            assert pool.open <= 6
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.008)))
            line.closed |= chance.random() < 0.1
            line.in_transaction |= chance.random() < 0.1
        finally:
            held[caller] -= 1
            pool.release(line)

    tasks = []
    async with asyncio.timeout(30):
        for _ in range(1500):
            tasks.append(asyncio.create_task(work(chance.choice(("ann", "ann", "ann", "ben", "cid", None)))))
            lines.down = chance.random() < 0.05
            if chance.random() < 0.2:
                chance.choice(tasks).cancel()
            await asyncio.sleep(chance.choice((0, 0, 0, 0.001)))
        lines.down = False
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError, ConnectionRefusedError}
    assert (pool.lent, pool.opening, queued(pool), pool._shares._counts) == (0, 0, 0, {})
