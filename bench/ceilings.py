"""What one Postgres bounds, however many servers there are: `python bench/ceilings.py`. See docs/explanation/scale.md.

Writes that NOTIFY beside the same without, on a Postgres that waits for its disk; the revocations that every process reads and
holds; the audit log as one table, and the same rows in partitions by month.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from crowd import AUDIT, cursor_in
from growth import session_cost
from issuer import org, user
from postgres import OPTIONS, Postgres
from stats import table

from handlers.audit import PAGE
from server.auth.revocation import Revocations
from server.auth.revocation_feed import PAGE_ROWS

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_ROW = "INSERT INTO data (user_id, name) VALUES ($1, 'x')"
_REVOKED = """INSERT INTO revocations (kind, subject, expires_at, owner) SELECT 'session', 'sess_' || lpad(n::text, 24, '0'),
    now() + interval '1 hour', 'user_' || n FROM generate_series($1::int, $2::int) AS n"""
_READ = "SELECT changed_in::text, kind, subject, issued_before, expires_at FROM revocations_page($1::text::xid8, $2, $3, $4)"
_PARTS = """
CREATE TABLE parts (LIKE audit_log INCLUDING DEFAULTS, PRIMARY KEY (created_at, id)) PARTITION BY RANGE (created_at);
CREATE INDEX ON parts (org_id, created_at DESC, id DESC) WHERE org_id IS NOT NULL;
DO $do$ BEGIN
    FOR n IN -13 .. {ahead} LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF parts FOR VALUES FROM (%L) TO (%L)', 'parts_' || n + 13,
                       date_trunc('month', now()) + make_interval(months => n), date_trunc('month', now()) + make_interval(months => n + 1));
    END LOOP;
END $do$;
CREATE TABLE parts_default PARTITION OF parts DEFAULT;
ALTER TABLE parts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY admin_select ON parts FOR SELECT TO {app} USING (org_id = (SELECT NULLIF(current_setting('gatepost.admin_org_id', true), '')));
GRANT SELECT ON parts TO {app};
INSERT INTO parts SELECT * FROM audit_log;
"""
_INSERTS = """DO $do$ BEGIN FOR n IN 1 .. 5000 LOOP
    INSERT INTO {table} (org_id, user_id, actor, action, target, row_id) VALUES ('org', 'user', 'user', 'insert', 'data', 'row');
END LOOP; END $do$"""


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--database-bin", type=Path, metavar="FOLDER", help="programs of another Postgres than the embedded one"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement of writes")
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the audit log")
    args = parser.parse_args()
    with Postgres(bin=args.database_bin, options=OPTIONS | DURABLE) as postgres:
        print(f"Postgres {postgres.version}, rows that are written one at a time:\n")
        print(asyncio.run(writes(postgres, args)), flush=True)
    with Postgres(bin=args.database_bin) as postgres:
        print("\nRevocations:\n")
        print(asyncio.run(revocations(postgres)), flush=True)
        print(f"\n{args.entries:,} entries of the audit log over 390 days, microseconds of CPU of Postgres:\n")
        print(asyncio.run(partitions(postgres, args)), flush=True)
    return 0


async def writes(postgres: Postgres, args: argparse.Namespace) -> str:
    """Rows of `data` a second, with the triggers that NOTIFY and without them; the median round."""
    found: dict[tuple[int, bool], list[float]] = {}
    for _ in range(args.rounds):
        for clients in (1, 8, 32):
            for tells in (True, False):
                async with postgres.admin(postgres.locked) as admin:
                    await admin.execute(f"ALTER TABLE data {'ENABLE' if tells else 'DISABLE'} TRIGGER changed_insert")
                found.setdefault((clients, tells), []).append(await _writing(postgres, clients, args.seconds))
    middle = {key: sorted(rates)[len(rates) // 2] for key, rates in found.items()}
    rows = [
        [
            clients,
            f"{middle[clients, False]:.0f}",
            f"{middle[clients, True]:.0f}",
            f"{middle[clients, True] / middle[clients, False]:.2f}",
        ]
        for clients in (1, 8, 32)
    ]
    return table(["clients", "rows/s without NOTIFY", "with", "ratio"], rows)


async def _writing(postgres: Postgres, clients: int, seconds: float) -> float:
    end, done = time.monotonic() + seconds, 0

    async def one(number: int) -> None:
        nonlocal done
        async with postgres.admin(postgres.locked) as connection:
            while time.monotonic() < end:
                await connection.execute(_ROW, user(number))
                done += 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    return done / seconds


async def revocations(postgres: Postgres) -> str:
    """What each process pays when it starts, for each half second, and in memory."""
    rows, before = [], 0
    async with postgres.admin(postgres.locked) as admin, _serving(postgres) as (app, spent):
        for number in (1000, 10_000, 100_000):
            await admin.execute(_REVOKED, before, number - 1)
            await admin.execute("VACUUM ANALYZE revocations")
            before = number
            records: list[asyncpg.Record] = []
            costs = [await spent(1, lambda into=records: _page(app, into)) for _ in range(-(-number // PAGE_ROWS))]
            tracemalloc.start()
            held = Revocations(max_staleness=10)
            held.add(records, time.monotonic(), time.time())
            memory = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            newest = await app.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
            since = await spent(200, lambda newest=newest: app.fetch(_READ, newest, "", "", PAGE_ROWS))
            rows.append(
                [f"{number:,}", f"{sum(costs) / 1000:.0f}", f"{max(costs) / 1000:.0f}", f"{since:.0f}", f"{memory / number:.0f}"]
            )
    head = ["live", "all of them, ms of Postgres", "the longest page, ms", "the new ones, µs", "bytes each in a process"]
    return table(head, rows)


async def _page(app: asyncpg.Connection, records: list[asyncpg.Record]) -> None:
    """Add the page behind these records."""
    place = [records[-1][name] for name in ("changed_in", "kind", "subject")] if records else ["0", "", ""]
    records += await app.fetch(_READ, *place, PAGE_ROWS)


async def partitions(postgres: Postgres, args: argparse.Namespace) -> str:
    """One table, and 14 months in partitions with none and with twelve made ahead."""
    found: dict[str, list[str]] = {"one table": [], "14 partitions": [], "26 partitions": []}
    async with postgres.admin(postgres.locked) as admin, _serving(postgres) as (app, _):
        await admin.execute("SET session_replication_role = replica")
        await admin.execute(AUDIT, 0, args.entries - 1, 100_000, 10_000, args.entries)
        for name, ahead in (("one table", None), ("14 partitions", 0), ("26 partitions", 12)):
            if ahead is not None:
                await admin.execute("DROP TABLE IF EXISTS parts")
                await admin.execute(_PARTS.format(ahead=ahead, app=postgres.serving))
            await admin.execute("VACUUM ANALYZE")
            relation = "audit_log" if ahead is None else "parts"
            insert = min(
                [await session_cost(admin, 1, lambda r=relation: admin.execute(_INSERTS.format(table=r))) for _ in range(args.rounds)]
            )
            newest, deep = await _pages(postgres, app, relation, args.rounds)
            found[name] += [f"{insert / 5000:.0f}", f"{newest:.0f}", f"{deep:.0f}"]
        gone: list[int] = []

        async def prune() -> None:
            gone.append(await app.fetchval("SELECT audit_prune(370, 10000)"))

        deleted = await session_cost(app, 1, prune)
        number = await admin.fetchval("SELECT count(*) FROM parts_1")
        truncated = await session_cost(admin, 1, lambda: admin.execute("TRUNCATE parts_1"))
    found["one table"].append(f"{deleted / gone[0]:.2f}")
    found["26 partitions"].append(f"{truncated / number:.2f}")
    found["14 partitions"].append("")
    head = ["", "an insert", "the newest page of 20", "a page behind nine tenths", "pruning, of each entry"]
    return table(head, [[name, *values] for name, values in found.items()])


async def _pages(postgres: Postgres, app: asyncpg.Connection, relation: str, rounds: int) -> tuple[float, float]:
    """CPU microseconds of the newest page of the largest organisation, and of one far behind."""
    created, last = await cursor_in(postgres, "audit_log", "org_id", org(0), 0.9)
    places = ((datetime.now(UTC) + timedelta(days=1), "f" * 32), (datetime.fromisoformat(created), last))
    await app.fetchval("SELECT set_config('gatepost.admin_org_id', $1, false)", org(0))
    page, costs = await app.prepare(PAGE.replace("audit_log", relation)), []
    for place in places:
        for _ in range(20):
            assert len(await page.fetch(org(0), *place, 20)) == 20
        costs.append(min([await session_cost(app, 100, lambda p=place: page.fetch(org(0), *p, 20)) for _ in range(rounds)]))
    return costs[0], costs[1]


@contextlib.asynccontextmanager
async def _serving(postgres: Postgres) -> AsyncIterator[tuple[asyncpg.Connection, Callable[..., Awaitable[float]]]]:
    """A connection of the serving role, and what measures work on it."""
    app = await asyncpg.connect(postgres.url(postgres.serving, postgres.locked))
    try:
        yield app, lambda times, work: session_cost(app, times, work)
    finally:
        await app.close()


if __name__ == "__main__":
    sys.exit(main())
