"""The third and the fourth lock, and the one statement that they share. Part of locks.py.

Statements go through Gatepost's own Database on one connection. The CPU time is this thread's and that of the session's process.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inproc import Client, Step, cheapest
from issuer import user
from stage import Stage

from handlers.data import PAGE
from server.database.connections import Database, Scope

# What a page without its WHERE would be: row-level security alone chooses the rows.
NO_WHERE = PAGE.replace("user_id = $1 AND", "$1::text IS NOT NULL AND")
# The same JSON from the same rows, without a scope in the statement.
PLAIN = f"SELECT coalesce(string_agg(row_to_json(r)::text, E'\\x1e'), '') FROM ({PAGE}) AS r"
_END = datetime.max.replace(tzinfo=UTC)

Cost = tuple[float, float | None]
"""CPU microseconds of this process, and of Postgres where it is on this machine."""


async def prices(stage: Stage, client: Client, sent: list[bytes]) -> list[dict[str, Any]]:
    """First what a whole request takes; then the price of each lock."""
    postgres, callers = stage.postgres, itertools.cycle([user(n) for n in range(stage.args.users)])
    async with (
        _database(postgres.url(postgres.serving, postgres.locked)) as (locked, locked_session),
        _database(postgres.url(postgres.serving, postgres.open)) as (unlocked, unlocked_session),
    ):
        steps = _statements(locked, callers, "locked", "read", "no_where", "scoped")
        steps |= _statements(unlocked, callers, "open", "read", "plain")
        us = await _costs(stage, steps, (locked_session, unlocked_session))
    turn = itertools.cycle(sent)

    async def whole() -> None:
        await client.send(next(turn))

    for one in sent:
        await client.must(one, b"200")
    request = await cheapest({"whole": whole}, stage.args.repetitions, max(1, stage.args.batch // 10))
    return [
        _row("a whole request", (request["whole"][0], us["locked read"][1]), (0.0, 0.0)),
        _row("3 the query's own WHERE (against row-level security alone)", us["locked read"], us["locked no_where"]),
        _row("4 row-level security (against the same table without it)", us["locked read"], us["open read"]),
        _row("(the caller's scope, set in the statement itself, against none)", us["open read"], us["open plain"]),
        _row("(BEGIN, set, SELECT, COMMIT, against the one statement)", us["locked scoped"], us["locked read"]),
    ]


def _row(lock: str, with_it: Cost, without: Cost) -> dict[str, Any]:
    of_postgres = None if with_it[1] is None or without[1] is None else with_it[1] - without[1]
    return {"lock": lock, "server_us": with_it[0] - without[0], "postgres_us": of_postgres}


@contextlib.asynccontextmanager
async def _database(url: str) -> AsyncIterator[tuple[Database, Path]]:
    """Gatepost's Database with one connection, and the file with the CPU time of its session."""
    database = Database(size=1, acquire_seconds=5, statement_seconds=30, pooled=False)
    await database.open({"dsn": url})
    try:
        async with database.connection() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
        yield database, Path(f"/proc/{pid}/schedstat")
    finally:
        await database.close()


def _statements(database: Database, callers: Iterator[str], where: str, *names: str) -> dict[str, Step]:
    def arguments() -> tuple[Scope, tuple[Any, ...]]:
        caller = next(callers)
        return (caller, "", ""), (caller, _END, None, 51)

    async def read() -> None:
        scope, args = arguments()
        await database.read(scope, PAGE, args)

    async def no_where() -> None:
        scope, args = arguments()
        await database.read(scope, NO_WHERE, args)

    async def plain() -> None:
        async with database.connection() as connection:
            await connection.fetchval(PLAIN, *arguments()[1])

    async def scoped() -> None:
        scope, args = arguments()
        async with database.scoped(scope) as db:
            await db.fetchval(PLAIN, *args)

    steps: dict[str, Step] = {"read": read, "no_where": no_where, "plain": plain, "scoped": scoped}
    return {f"{where} {name}": steps[name] for name in names}


async def _costs(stage: Stage, steps: Mapping[str, Step], sessions: Sequence[Path]) -> dict[str, Cost]:
    local = stage.postgres.pid is not None
    for step in steps.values():  # prepared, and planned for good: Postgres makes the lasting plan at the sixth run
        for _ in range(20):
            await step()

    def clock() -> tuple[float, ...]:
        # One of the sessions works while the other sleeps, so that what both have had is what the one has.
        on_cpu = sum(int(session.read_text().split()[0]) for session in sessions) / 1e9 if local else 0.0
        return time.thread_time(), on_cpu

    found = await cheapest(steps, stage.args.repetitions, max(1, stage.args.batch // 10), clock)
    return {name: (us[0], us[1] if local else None) for name, us in found.items()}
