"""A large database with skew: what a request costs and how long a command takes as all tables grow. Part of scale.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import asyncpg
from book import Book, Point
from crowd import crowd, cursor_in, expire, grow
from growth import CALLERS, session_clock
from issuer import org, request, user
from machine import Child
from stage import Stage

from server.schema.leaks import seen_by_nobody
from server.schema.migrate import migrate
from server.schema.safety import problems

SMALLEST = 10_000
BATCH = 1000
"""Entries that the server prunes at a time."""
PRUNED = 10
"""Batches of them in a round."""
EVENTS = 200
_EVENT = """SELECT apply_clerk_event($1, 'organizationMembership.updated', now(), jsonb_build_object('id', 'orgmem_bench', 'organization_id',
    $2::text, 'user_id', $3::text, 'role', 'org:member', 'permissions', '[]'::jsonb, 'created_at', $4::text, 'updated_at', $4::text),
    '7 days', '1 day')"""


def large(book: Book) -> None:
    """Every table grows, from 10,000 rows on; a few tenants have most of them."""
    stage, most, audit = book.stage, max(book.args.most_large, SMALLEST), book.args.audit
    end, before = crowd(most, audit), crowd(0)._replace(users=0, organizations=0, memberships=0)
    curves: dict[str, list[dict[str, float]]] = {}
    for size in (size for size in book.sizes(most) if size >= SMALLEST):
        now = crowd(size, audit)
        began = time.monotonic()
        asyncio.run(grow(stage.postgres, before, now, end))
        before = now
        print(f"{size:,}: loaded in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        with stage.gatepost() as child:
            measures = _requests(book, child)
            for name, point in zip(measures, book.point(size, *measures.values()), strict=True):
                curves.setdefault(name, []).append(point)
        for name, one in _commands(book).items():
            curves.setdefault(name, []).append({"size": size, **one})
        book.note({"size": size, **now._asdict(), "bytes": asyncio.run(_bytes(stage))})
    for name, points in curves.items():
        book.write(name, "rows of `data`", points, unit="ms" if "ms" in points[0] else "us")


def _requests(book: Book, child: Child) -> dict[str, Point]:
    """Measures of requests by their name. The user and the organisation with the number 0 have the most rows."""
    stage = book.stage
    heavy, tokens = stage.issuer.token(0), [stage.issuer.token(n) for n in range(CALLERS)]
    here = f"/api/orgs/{org(0)}"
    deep = {
        path: asyncio.run(_cursor(stage, table, tenant, whose))
        for path, table, tenant, whose in (
            ("/api/data", "data", "user_id", user(0)),
            (f"{here}/audit", "audit_log", "org_id", org(0)),
            (f"{here}/members", "memberships", "organization_id", org(0)),
        )
    }
    sent = {
        "`GET /api/data?limit=20`, 100 users": [request("/api/data?limit=20", token) for token in tokens],
        "… of the user with the most rows": [request("/api/data?limit=20", heavy)],
        "… a page behind nine tenths of them": [request(f"/api/data?limit=20{deep['/api/data']}", heavy)],
        "`GET /api/data/{id}`, 1,000 rows": asyncio.run(_own_rows(stage, tokens)),
        "`GET /api/orgs/{org_id}/data?limit=20`, the largest": [request(f"{here}/data?limit=20", heavy)],
        "`GET /api/orgs/{org_id}/audit?limit=20`, the largest": [request(f"{here}/audit?limit=20", heavy)],
        "… a page behind nine tenths of its entries": [request(f"{here}/audit?limit=20{deep[f'{here}/audit']}", heavy)],
        "`GET /api/orgs/{org_id}/members?limit=20`, the largest": [request(f"{here}/members?limit=20", heavy)],
        "… a page behind nine tenths of them ": [request(f"{here}/members?limit=20{deep[f'{here}/members']}", heavy)],
        "`GET /api/keys?limit=20` of the user with the most keys": [request("/api/keys?limit=20", heavy)],
    }
    measures: dict[str, Point] = {}
    number = round(400 * book.args.seconds)  # a number of requests, so that a busy machine measures as many
    for name, requests in sent.items():
        stage.load(child, requests, count=200)
        measures[name] = partial(stage.measure, child, requests, count=number)
    writes = [request("/api/data", token, body=b'{"name": "bench"}') for token in tokens]
    stage.load(child, writes, count=200, expect="201")
    measures["`POST /api/data`, with its entry in the audit log"] = partial(
        stage.measure, child, writes, count=number, expect="201"
    )
    return measures


async def _cursor(stage: Stage, table: str, tenant: str, whose: str) -> str:
    text = json.dumps(list(await cursor_in(stage.postgres, table, tenant, whose, 0.9))).encode()
    return "&cursor=" + base64.urlsafe_b64encode(text).decode().rstrip("=")


async def _own_rows(stage: Stage, tokens: list[str]) -> list[bytes]:
    """Requests for up to ten rows of each of these users."""
    sql = "SELECT id FROM data WHERE user_id = $1 LIMIT 10 OFFSET $2"
    async with stage.postgres.admin(stage.postgres.locked) as admin:
        return [
            request(f"/api/data/{row['id']}", token)
            for number, token in enumerate(tokens)
            for row in await admin.fetch(sql, user(number), 10 if number < 3 else 0)
        ]


def _commands(book: Book) -> dict[str, dict[str, float]]:
    """Milliseconds, the least of the rounds: of a start, and CPU of Postgres for what commands and servers do beside requests."""
    stage, found = book.stage, {}
    for _ in range(book.args.rounds):
        with stage.gatepost() as child:
            found["From the start of a server to ready (elapsed)"] = child.seconds_to_ready
        for name, seconds in asyncio.run(_beside(stage)).items():
            found[name] = min(seconds, found.get(name, seconds))
    return {name: {"ms": seconds * 1e3} for name, seconds in found.items()}


async def _beside(stage: Stage) -> dict[str, float]:
    """CPU seconds of Postgres."""
    found: dict[str, float] = {}
    await expire(stage.postgres, PRUNED * BATCH)
    name = "`migrate`, once more (CPU of Postgres)"
    async with stage.postgres.admin(stage.postgres.locked) as admin, _spent(admin, found, name):
        await migrate(admin, serving_role=stage.postgres.serving)
    connection = await asyncpg.connect(stage.postgres.url(stage.postgres.serving, stage.postgres.locked))
    try:
        async with _spent(connection, found, "What startup checks in the database (CPU of Postgres)"):
            assert not await problems(connection)
        async with _spent(connection, found, "What only `check` asks of it (CPU of Postgres)"):
            assert not await seen_by_nobody(connection)
        async with _spent(connection, found, f"`audit_prune`, {BATCH:,} entries (CPU of Postgres)", PRUNED):
            for _ in range(PRUNED):
                assert await connection.fetchval("SELECT audit_prune(400, $1)", BATCH) == BATCH
        moment, run = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), secrets.token_hex(4)
        async with _spent(connection, found, "A webhook's event of a membership (CPU of Postgres)", EVENTS):
            for event in range(EVENTS):
                await connection.fetchval(_EVENT, f"msg_{run}_{event}", org(0), user(event % CALLERS), moment)
    finally:
        await connection.close()
    async with stage.postgres.admin(stage.postgres.locked) as admin:
        await admin.execute("VACUUM audit_log, memberships, revocations, webhook_inbox")
    return found


@contextlib.asynccontextmanager
async def _spent(connection: asyncpg.Connection, found: dict[str, float], name: str, times: int = 1) -> AsyncIterator[None]:
    """Put the CPU time of this session's process into `found`, of one of so many times."""
    clock = session_clock(connection)
    began = clock()
    yield
    found[name] = (clock() - began) / times


async def _bytes(stage: Stage) -> Any:
    async with stage.postgres.admin(stage.postgres.locked) as admin:
        return await admin.fetchval("SELECT pg_database_size(current_database())")
