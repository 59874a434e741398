"""Reads that wait for a connection are sent together: each sees its own caller's rows, and none suffers from another's failure.

Reads that were sent together have the same `now()`, which is when their transaction began.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.database import pool as pool_module
from server.database import together
from server.database.connections import Database
from server.database.turns import Read, Shares, Turns, Waiter
from server.http.errors import Unavailable, Unprocessable
from tests.conftest import TestDatabase

MINE = "SELECT user_id, now()::text AS sent FROM data WHERE name LIKE $1"
WAIT = "SELECT now()::text AS sent, pg_sleep($1::float8)::text"


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's speed decides nothing here."""
    for module, name in ((together, "SLOW"), (together, "LONGEST"), (together, "PAUSE"), (pool_module, "PATIENCE")):
        monkeypatch.setattr(module, name, 60.0)


@asynccontextmanager
async def opened(db: TestDatabase, *, pooled: bool = False) -> AsyncIterator[Database]:
    """A database with a single connection."""
    made = Database(size=1, acquire_seconds=60, statement_seconds=60, pooled=pooled)
    await made.open({"dsn": db.url})
    yield made
    await made.close()


@pytest.fixture
async def database(db: TestDatabase) -> AsyncIterator[Database]:
    async with opened(db) as made:
        yield made


async def queued(database: Database, number: int) -> None:
    assert database.pool is not None
    while len(list(database.pool._waiting)) != number:
        await asyncio.sleep(0)


async def all_waiting(database: Database, reads: Iterable[Awaitable[Any]]) -> list[asyncio.Future[Any]]:
    """Start these reads while the only connection is lent; they wait in this order when it comes back."""
    started: list[asyncio.Future[Any]] = []
    async with database.connection():
        for one in reads:
            started.append(asyncio.ensure_future(one))
            await queued(database, len(started))
    return started


def mine(database: Database, user: str, like: str = "%") -> Awaitable[str]:
    return database.read((user, "", ""), MINE, (like,), user)


def wait(database: Database, seconds: float, caller: str) -> Awaitable[str]:
    return database.read((caller, "", ""), WAIT, (seconds,), caller)


def sent(text: str) -> str:
    return str(json.loads(text)[0]["sent"])


async def add(db: TestDatabase, users: Iterable[str]) -> None:
    for user in users:
        await db.rows("INSERT INTO data (user_id, name) VALUES ($1, 'x')", user)


async def test_reads_that_wait_are_sent_together_and_each_sees_its_own_rows(database: Database, db: TestDatabase) -> None:
    users = [f"user_{number}" for number in range(10)]
    await add(db, users)
    for _ in range(3):  # the plan is made anew, and kept later
        found = await asyncio.gather(*await all_waiting(database, [mine(database, user) for user in [*users, "", "other"]]))
        rows = [json.loads(text) for text in found]
        assert [[row["user_id"] for row in one] for one in rows] == [[user] for user in users] + [[], []]
        together_with = Counter(one[0]["sent"] for one in rows if one)
        assert sorted(together_with.values()) == [2, 4, 4]  # the two that see nothing went with the last two
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM data") == 0


async def test_only_reads_of_the_same_statement(database: Database) -> None:
    asked = [wait(database, 0, "a"), mine(database, "b"), wait(database, 0, "c")]
    first, none, third = await asyncio.gather(*await all_waiting(database, asked))
    assert none == "[]"
    assert sent(first) == sent(third)


async def test_a_read_that_does_not_wait_is_sent_alone(database: Database) -> None:
    assert len({sent(await wait(database, 0, "a")) for _ in range(3)}) == 3


async def test_one_that_fails_fails_alone(database: Database) -> None:
    """Here by its value, in Postgres; below by one that the driver cannot send."""
    sql = "SELECT 12 / $1::int AS n"
    asked = [database.read((user, "", ""), sql, (by,), user) for user, by in (("a", 1), ("b", 0), ("c", 3), ("d", 4))]
    found = await asyncio.gather(*await all_waiting(database, asked), return_exceptions=True)
    assert [found[0], *found[2:]] == ['[{"n":12}]', '[{"n":4}]', '[{"n":3}]']
    assert isinstance(found[1], Exception)


async def test_one_that_cannot_be_sent_fails_alone(database: Database, db: TestDatabase) -> None:
    await add(db, ["a", "c"])
    asked: list[Awaitable[str]] = [mine(database, "a"), mine(database, "b", "no\x00"), mine(database, "c")]
    found = await asyncio.gather(*await all_waiting(database, asked), return_exceptions=True)
    assert [json.loads(found[at])[0]["user_id"] for at in (0, 2)] == ["a", "c"]
    assert isinstance(found[1], Unprocessable)


async def test_after_a_failure_that_statement_is_sent_one_by_one_for_a_while(database: Database) -> None:
    sql = "SELECT now()::text AS sent, 12 / $1::int AS n"

    async def several(*numbers: int) -> list[Any]:
        asked = [database.read((str(at), "", ""), sql, (number,), str(at)) for at, number in enumerate(numbers)]
        return await asyncio.gather(*await all_waiting(database, asked), return_exceptions=True)

    assert sum(isinstance(one, Exception) for one in await several(1, 0, 2)) == 1
    assert len({sent(text) for text in await several(1, 2, 3, 4)}) == 4
    assert database._together is not None
    for statement in database._together._paused:
        database._together._paused[statement] = 0.0  # the pause is over
    assert len({sent(text) for text in await several(1, 2, 3, 4)}) == 1
    assert database._together._paused == {}


async def test_a_slow_one_does_not_keep_the_others(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `LONGEST` seconds the round trip is cancelled, and each is run by itself: the others are not behind the slow one."""
    monkeypatch.setattr(together, "LONGEST", 0.2)
    asked = await all_waiting(database, [wait(database, seconds, user) for user, seconds in (("a", 0), ("b", 2), ("c", 0))])
    found = await asyncio.gather(*asked)
    assert len({sent(text) for text in found}) == 3
    assert database._together is not None
    assert len(database._together._paused) == 1


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_one_that_is_cancelled_takes_no_other_with_it(database: Database, which: int) -> None:
    """The first one is the one that reads for the others."""
    asked = await all_waiting(database, [wait(database, 0.2, user) for user in "abc"])
    await queued(database, 0)
    asked[which].cancel()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found[which], asyncio.CancelledError)
    assert len([sent(text) for at, text in enumerate(found) if at != which]) == 2
    assert sent(await wait(database, 0, "d"))
    assert database.pool is not None
    assert (database.pool.lent, database.pool.idle) == (0, 1)


async def test_a_connection_that_dies_under_them(database: Database, db: TestDatabase) -> None:
    asked = await all_waiting(database, [wait(database, 0.5, user) for user in "abcd"])
    await queued(database, 0)
    async with db.server.as_admin(db.name) as admin:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost' AND datname = $1"
        await admin.execute(kill.replace("$1", f"'{db.name}'"))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, str | Unavailable) for one in found)
    assert sum(isinstance(one, str) for one in found) >= 3
    assert sent(await wait(database, 0, "d"))


async def test_the_end_of_the_server(db: TestDatabase) -> None:
    async with opened(db) as database:
        asked = await all_waiting(database, [wait(database, 30, user) for user in "abc"])
        await queued(database, 0)
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, Unavailable) for one in found)


async def test_behind_a_pooler_each_is_sent_alone(db: TestDatabase) -> None:
    async with opened(db, pooled=True) as database:
        found = await asyncio.gather(*await all_waiting(database, [wait(database, 0, user) for user in "abc"]))
    assert len({sent(text) for text in found}) == 3


async def test_callers_take_turns_and_one_at_its_bound_is_left() -> None:
    shares = Shares(2)
    turns: Turns[Any] = Turns(shares)
    loop = asyncio.get_running_loop()
    waiting: dict[tuple[str, int], Waiter[Any]] = {}
    for caller, statements in (("a", "xxx"), ("b", "yx"), ("c", "x"), ("d", "xx")):
        for number, statement in enumerate(statements):
            waiter: Waiter[Any] = Waiter(loop.create_future(), 0.0, caller, 1.0, Read(statement, ()))
            waiting[caller, number] = waiter
            turns.add(waiter)
    turns.add(Waiter(loop.create_future(), 0.0, None, 1.0))  # the server's own, which reads nothing
    assert shares.take("c")
    assert shares.take("c")
    found = turns.take_along("x", 4, None)
    names = {waiter: name for name, waiter in waiting.items()}
    # b's first waits for another statement, and c is at its bound.
    assert [names[one] for one in found] == [("a", 0), ("d", 0), ("a", 1), ("d", 1)]
    assert all(one.taken for one in found)
    assert len(list(turns)) == 5
    assert turns.take_along("z", 4, None) == []


def moment(text: str) -> str:
    return str(json.loads(text)[0]["at"])


async def test_after_a_failure_they_are_before_those_that_came_later(database: Database) -> None:
    """They had their turn. A failure of one does not put the others behind every request that came after them."""
    sql, later = "SELECT clock_timestamp()::text AS at, 12 / $1::int AS n", "SELECT clock_timestamp()::text AS at, $1::int AS n"
    asked = [database.read((user, "", ""), sql, (by,), user) for user, by in (("a", 1), ("b", 0), ("c", 3), ("d", 4))]
    asked += [database.read((user, "", ""), later, (1,), user) for user in "aefgh"]
    found = await asyncio.gather(*await all_waiting(database, asked), return_exceptions=True)
    assert isinstance(found.pop(1), Exception)
    moments = [moment(str(text)) for text in found]
    assert max(moments[:3]) < min(moments[3:])


async def test_the_time_of_a_failure_does_not_count_as_waiting(database: Database) -> None:
    """Otherwise a read that had its turn, and failed because of another, would be a 503."""
    pool = database.pool
    assert pool is not None
    async with database.connection() as connection:
        waiting = [asyncio.ensure_future(pool.acquire_for(Read("x", ()), user, 60)) for user in "abc"]
        await queued(database, 3)
        before = {waiter: waiter.deadline for waiter in pool._waiting}
        taken = pool.take_along("x", 3, connection)
        waiting[1].cancel()
        await asyncio.gather(waiting[1], return_exceptions=True)
        pool.put_back(taken, 7.0)
        assert [(one.caller, one.deadline - before[one]) for one in pool._waiting] == [("a", 7.0), ("c", 7.0)]
        assert pool.take_along("x", 3, connection) == []
        assert pool._shares._counts == {}
    for one in (waiting[0], waiting[2]):
        pool.release(await one)  # type: ignore[arg-type]


async def test_what_others_read_for_a_caller_counts_towards_its_half(db: TestDatabase) -> None:
    """Otherwise one caller's reads are on every connection at once: its own half, and carried along on the others' half."""
    database = Database(size=6, acquire_seconds=60, statement_seconds=60, pooled=False)
    await database.open({"dsn": db.url})
    pool = database.pool
    assert pool is not None
    others = [await pool.acquire(user) for user in "bcde"]
    own = [await pool.acquire("a") for _ in range(2)]
    reads = [asyncio.ensure_future(pool.acquire_for(Read("x", ()), "a", 60)) for _ in range(6)]
    await queued(database, 6)
    taken = pool.take_along("x", 3, others[0])
    assert len(taken) == 1, "a has two connections, and this is its third of three"
    assert [pool.take_along("x", 3, one) for one in (*others, *own)] == [[]] * 6
    pool.put_back(taken, 0.0)
    pool.release(own.pop())
    assert await reads[0] in pool._lent, "what was put back is served first"
    assert pool.take_along("x", 3, others[1]) != []
    pool.carried(list(pool._waiting))  # counts nothing that was not taken along
    for one in reads:
        one.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    await database.close()


async def test_a_caller_that_reads_for_itself_is_one_connection(db: TestDatabase) -> None:
    database = Database(size=4, acquire_seconds=60, statement_seconds=60, pooled=False)
    await database.open({"dsn": db.url})
    pool = database.pool
    assert pool is not None
    held = [await pool.acquire() for _ in range(3)]
    own = await pool.acquire("a")
    reads = [asyncio.ensure_future(pool.acquire_for(Read("x", ()), "a", 60)) for _ in range(5)]
    await queued(database, 5)
    taken = pool.take_along("x", 3, own)
    assert (len(taken), pool._shares._counts) == (3, {"a": 1})
    pool.carried(taken)
    assert pool._shares._counts == {"a": 1}
    for one in (*held, own):
        pool.release(one)
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    await database.close()


async def test_put_back_when_the_server_ends(database: Database) -> None:
    pool = database.pool
    assert pool is not None
    async with database.connection() as connection:
        waiting = asyncio.ensure_future(pool.acquire_for(Read("x", ()), "a", 60))
        await queued(database, 1)
        taken = pool.take_along("x", 3, connection)
        pool.close()
        pool.put_back(taken, 0.0)
        with pytest.raises(ConnectionError):
            await waiting


async def test_a_cancellation_while_large_arguments_are_sent_is_not_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg catches it while it waits for Postgres to take more; the request would go on after its time."""
    monkeypatch.setattr(together, "LONGEST", 2.0)
    sql = "SELECT length($2), pg_sleep($1::float8)::text"
    values = [(30.0 if user == "a" else 0.0, "x" * 4_000_000) for user in "abcd"]
    asked = [database.read((user, "", ""), sql, value, user) for user, value in zip("abcd", values, strict=True)]
    first, *others = await all_waiting(database, asked)
    await queued(database, 0)
    assert database.pool is not None
    (connection,) = database.pool._lent
    while connection._transport.get_write_buffer_size() == 0:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert [json.loads(await one)[0]["length"] for one in others] == [4_000_000] * 3


async def test_random_reads_return_their_own_callers_rows_and_leave_nothing(db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them reads that fail, that cannot be sent, that are slow, that are cancelled, and that have a large argument."""
    monkeypatch.setattr(together, "PAUSE", 0.0)
    monkeypatch.setattr(together, "LONGEST", 0.1)
    rng, users, made = random.Random(7), [f"user_{number}" for number in range(12)], 0
    await add(db, users)
    kinds = {"": 80, "zero": 2, "slow": 1, "no\x00": 2, "x" * 100_000: 1}
    sql = (
        "SELECT user_id, $1::int AS n, length($2) AS length, 12 / (CASE WHEN $2 = 'zero' THEN 0 ELSE 1 END) AS d,"
        " CASE WHEN $2 = 'slow' THEN pg_sleep(0.2)::text END AS s FROM data"
    )

    async def one(database: Database, number: int) -> int:
        user, kind = rng.choice(users), rng.choices([*kinds], [*kinds.values()])[0]
        if number % 20 == 0:
            async with database.scoped((user, "", ""), caller=user) as block:
                assert [row["user_id"] for row in await block.fetch("SELECT user_id FROM data")] == [user]
            return 1
        try:
            rows = json.loads(await database.read((user, "", ""), sql, (number, kind), user))
        except Exception:
            assert kind in ("zero", "no\x00")
            return 0
        assert [(row["user_id"], row["n"], row["length"]) for row in rows] == [(user, number, len(kind))]
        return 1

    database = Database(size=3, acquire_seconds=60, statement_seconds=60, pooled=False)
    await database.open({"dsn": db.url})
    running: set[asyncio.Task[int]] = set()
    results: list[int | BaseException] = []
    while made < 800:
        running |= {asyncio.create_task(one(database, number)) for number in range(made, made + 40)}
        made += 40
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        for task in rng.sample(sorted(running, key=id), 3):
            task.cancel()
        results += await asyncio.gather(*running, return_exceptions=True)
        running.clear()
    assert not [one for one in results if isinstance(one, Exception)]
    assert results.count(1) > 600
    await database._resets.wait()
    pool = database.pool
    assert pool is not None
    assert (pool.lent, pool.opening, len(pool._waiting.queues), pool._shares._counts) == (0, 0, 0, {})
    await database.close()
