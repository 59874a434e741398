"""Growing tables: rows, pages, API keys, users. Part of scale.py."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
from book import Book
from issuer import request, user
from postgres import USER
from stage import Stage, add_keys

from providers.api_key.key_format import Key

CALLERS = 100
"""At most so many different callers ask, whatever the size: their number is a curve of its own."""
PAGE = 100
_READER = 900_000_000
"""The number of the user who has very many rows."""
_KEYS = f"""INSERT INTO api_keys (id, hash, name, user_id, created_by)
SELECT 'filler_' || n, sha256(convert_to(n::text, 'UTF8')), 'bench', {USER.format("n")}, 'bench'
  FROM generate_series($1::int, $2::int) AS n"""
_USERS = f"""INSERT INTO users (id, username, first_name, email, created_at, updated_at)
SELECT {USER.format("n")}, 'name ' || n, 'first', 'u' || n || '@example.com', now(), now()
  FROM generate_series($1::int, $2::int) AS n"""


def rows(book: Book) -> None:
    """A page of ten rows, for users who have ten rows each."""
    stage, points, before = book.stage, [], 0
    with stage.gatepost() as child:
        for size in book.sizes(book.args.most):
            asyncio.run(stage.postgres.fill((size - before) // 10, 10, before // 10, (stage.postgres.locked,)))
            before = size
            sent = [request("/api/data?limit=10", stage.issuer.token(n)) for n in range(min(size // 10, CALLERS))]
            stage.load(child, sent, count=200)
            points += book.point(size, partial(stage.measure, child, sent, seconds=book.args.seconds))
    book.write(f"`GET /api/data?limit=10` of a user with ten rows, {CALLERS} callers at the most", "rows in the table", points)


def pages(book: Book) -> None:
    """Page 1 and page 10,000 of a user with very many rows."""
    stage, most = book.stage, book.args.most
    asyncio.run(stage.postgres.fill(1, most, _READER, (stage.postgres.locked,)))
    numbers = [number for number in (1, 10, 100, 1000, 10_000, 100_000) if number * PAGE <= most]
    token, measures = stage.issuer.token(_READER), {}
    with stage.gatepost() as child:
        for number in numbers:
            cursor = asyncio.run(_cursor(stage, (number - 1) * PAGE)) if number > 1 else ""
            sent = [request(f"/api/data?limit={PAGE}{cursor}", token)]
            stage.load(child, sent, count=100)
            measures[number] = partial(stage.measure, child, sent, seconds=book.args.seconds)
        points = book.together(measures)
    book.write(f"Pages of {PAGE} rows of one user who has {most:,}", "number of the page", points)


async def _cursor(stage: Stage, skip: int) -> str:
    """The cursor after so many rows, as a Link header gives it."""
    sql = "SELECT row_to_json(r)::text FROM (SELECT created_at, id FROM data WHERE user_id = $1 ORDER BY created_at DESC, id DESC OFFSET $2 LIMIT 1) AS r"
    async with stage.postgres.admin(stage.postgres.locked) as admin:
        row = json.loads(await admin.fetchval(sql, user(_READER), skip - 1))
    text = json.dumps([row["created_at"], row["id"]]).encode()
    return "&cursor=" + base64.urlsafe_b64encode(text).decode().rstrip("=")


def keys(book: Book) -> None:
    """A key that the server knows already, and the lookup of one that it does not."""
    stage, warm, cold, before = book.stage, [], [], 0
    made: list[Key] = []
    with stage.gatepost() as child:
        for size in book.sizes(book.args.most):
            ours = min(size, CALLERS)
            made += asyncio.run(add_keys(stage.postgres, ours - len(made)))
            asyncio.run(_insert(stage, _KEYS, before + 1, size - ours, "api_keys"))
            before = size - ours
            sent = [request("/api/me", key=key.text) for key in made]
            stage.load(child, sent, count=2 * len(sent), connections=4)  # many unknown keys at once are made to wait
            lookup = partial(_lookups, stage, [key.digest for key in made])
            known, looked = book.point(size, partial(stage.measure, child, sent, seconds=book.args.seconds), lookup)
            warm.append(known)
            cold.append(looked)
    book.write("`GET /api/me` with a managed API key that the server has seen within the minute", "keys in the table", warm)
    book.write("The query that finds a key (server: of one asyncpg connection)", "keys in the table", cold)


def users(book: Book) -> None:
    """A profile, out of a growing table of users."""
    stage, points, before = book.stage, [], 0
    with stage.gatepost() as child:
        for size in book.sizes(book.args.most):
            asyncio.run(_insert(stage, _USERS, before, size - 1, "users"))
            before = size
            sent = [request("/api/me/profile", stage.issuer.token(n)) for n in range(min(size, CALLERS))]
            stage.load(child, sent, count=2 * len(sent))
            points += book.point(size, partial(stage.measure, child, sent, seconds=book.args.seconds))
    book.write("`GET /api/me/profile`", "users in the table", points)


async def _insert(stage: Stage, sql: str, first: int, last: int, table: str) -> None:
    async with stage.postgres.admin(stage.postgres.locked) as admin:
        if last >= first:
            await admin.execute(sql, first, last)
        await admin.execute(f"VACUUM ANALYZE {table}")


def _lookups(stage: Stage, digests: list[bytes]) -> dict[str, float]:
    return asyncio.run(_look(stage, digests, round(500 * stage.args.seconds)))


async def _look(stage: Stage, digests: list[bytes], number: int) -> dict[str, float]:
    """So many lookups on one connection in the serving role; CPU of this thread and of the session's process."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {stage.server_cpu})
    connection = await asyncpg.connect(stage.postgres.url(stage.postgres.serving, stage.postgres.locked))
    try:
        process = Path(f"/proc/{connection.get_server_pid()}/schedstat")
        ask = partial(connection.fetch, "SELECT * FROM public.key_by_hash($1)")
        for digest in itertools.islice(itertools.cycle(digests), 50):
            assert len(await ask(digest)) == 1
        ours, theirs = time.thread_time(), on_cpu(process)
        for digest in itertools.islice(itertools.cycle(digests), number):
            await ask(digest)
        ours, theirs = time.thread_time() - ours, on_cpu(process) - theirs
    finally:
        await connection.close()
        os.sched_setaffinity(0, before)
    return {"server_us": ours / number * 1e6, "postgres_us": theirs / number * 1e6}


def on_cpu(schedstat: Path) -> float:
    """Seconds; 0 where Postgres is on another machine."""
    return int(schedstat.read_text().split()[0]) / 1e9 if schedstat.exists() else 0.0


def session_clock(connection: asyncpg.Connection) -> Callable[[], float]:
    """Returns a clock: the CPU seconds that this connection's process in Postgres has used."""
    return partial(on_cpu, Path(f"/proc/{connection.get_server_pid()}/schedstat"))


async def session_cost(connection: asyncpg.Connection, times: int, work: Callable[[], Awaitable[Any]]) -> float:
    """CPU microseconds of this connection's process in Postgres for one of so many times."""
    clock = session_clock(connection)
    began = clock()
    for _ in range(times):
        await work()
    return (clock() - began) / times * 1e6
