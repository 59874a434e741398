"""The audit log as it grows: `python bench/audit_growth.py --sizes 5000000,20000000`. See docs/explanation/scale.md.

At each size: bytes per entry, three pages of an administrator, a write with its entry, the server's own pruning of one month,
and VACUUM behind it. Ends early, and says so, where the disk has less left than `--spare`. On a machine that others use, start
it with `nice`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from crowd import cursor_in, load_audit
from growth import session_cost
from issuer import org, user
from postgres import Postgres
from stats import table

from handlers.audit import PAGE
from server.gate.audit import PRUNE_BATCH

MONTH = 30


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000000,5000000", help="entries, separated by commas, the smallest first")
    parser.add_argument("--spare", type=float, default=25.0, help="GB of the disk that must stay free")
    parser.add_argument(
        "--database-bin", type=Path, metavar="FOLDER", help="programs of another Postgres than the embedded one"
    )
    args = parser.parse_args()
    found: dict[str, dict[str, str]] = {}
    with Postgres(bin=args.database_bin) as postgres:
        print(f"Postgres {postgres.version}", file=sys.stderr)
        for size in map(int, args.sizes.split(",")):
            if (free := shutil.disk_usage(tempfile.gettempdir()).free / 1e9) < args.spare + size * 6e-7:
                print(f"{size:,}: not measured, the disk has {free:.0f} GB left", file=sys.stderr)
                break
            found[f"{size:,}"] = asyncio.run(_measured(postgres, size))
            print(size, found[f"{size:,}"], file=sys.stderr, flush=True)
    names = list(next(iter(found.values()), {}))
    print(table(["", *found], [[name, *(column[name] for column in found.values())] for name in names]))
    return 0


async def _measured(postgres: Postgres, size: int) -> dict[str, str]:
    """The rows of one column of the table, by name. The log is empty before, and empty again afterwards."""
    found: dict[str, str] = {}
    app = await asyncpg.connect(postgres.url(postgres.serving, postgres.locked), command_timeout=3600)
    try:
        async with postgres.admin(postgres.locked) as admin:
            began = time.monotonic()
            await load_audit(admin, size)
            print(f"{size:,}: loaded in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            heap, indexes = await admin.fetchrow("SELECT pg_table_size('audit_log'), pg_indexes_size('audit_log')")
            found["bytes per entry: table, indexes"] = f"{heap / size:.0f}, {indexes / size:.0f}"
            await _pages(postgres, app, found)
            await _writes(app, found)
            await _month(admin, app, found)
            await admin.execute("SET session_replication_role = replica; TRUNCATE audit_log; RESET session_replication_role")
    finally:
        await app.close()
    return found


async def _pages(postgres: Postgres, app: asyncpg.Connection, found: dict[str, str]) -> None:
    """Pages of 20: the newest and a deep one of the largest organisation, and the newest of one with few entries."""
    created, last = await cursor_in(postgres, "audit_log", "org_id", org(0), 0.9)
    newest, deep = (datetime.now(UTC) + timedelta(days=1), "f" * 32), (datetime.fromisoformat(created), last)
    for name, whose, place in (
        ("the newest page, the largest organisation, µs (blocks)", org(0), newest),
        ("a page behind nine tenths of its entries, µs (blocks)", org(0), deep),
        ("the newest page, a small organisation, µs (blocks)", org(9_000), newest),
    ):
        await app.fetchval("SELECT set_config('gatepost.admin_org_id', $1, false)", whose)
        page = await app.prepare(PAGE)
        for _ in range(20):
            await page.fetch(whose, *place, 20)
        cost = min([await session_cost(app, 100, lambda one=page, args=(whose, *place, 20): one.fetch(*args)) for _ in range(10)])
        found[name] = f"{cost:.0f} ({await _blocks(app, whose, place)})"


async def _blocks(app: asyncpg.Connection, whose: str, place: tuple[datetime, str]) -> int:
    """How many blocks Postgres looks at for this page, which no other process on the machine changes."""
    before, last = place
    sql = PAGE.replace("$1", f"'{whose}'").replace("$2", f"'{before.isoformat()}'").replace("$3", f"'{last}'").replace("$4", "20")
    plan = json.loads(await app.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}"))[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def _writes(app: asyncpg.Connection, found: dict[str, str]) -> None:
    """A row of `data` with its entry in the log."""
    await app.execute(f"SELECT set_config('gatepost.user_id', '{user(0)}', false), set_config('gatepost.actor', '{user(0)}', false)")
    sql = f"INSERT INTO data (user_id, name) VALUES ('{user(0)}', 'x')"
    found["a row of `data` with its entry, µs"] = f"{min([await session_cost(app, 300, lambda: app.execute(sql)) for _ in range(5)]):.0f}"


async def _month(admin: asyncpg.Connection, app: asyncpg.Connection, found: dict[str, str]) -> None:
    """Prune the oldest month as the server does, then VACUUM."""
    costs, gone, began = [], 0, time.monotonic()
    while True:
        counted: list[int] = []

        async def prune(into: list[int] = counted) -> None:
            into.append(await app.fetchval("SELECT audit_prune($1, $2)", 390 - MONTH, PRUNE_BATCH))

        cost = await session_cost(app, 1, prune)
        gone += counted[0]
        costs.append(cost / max(counted[0], 1))
        if counted[0] < PRUNE_BATCH:
            break
    seconds = time.monotonic() - began
    tenth = max(1, len(costs) // 10)
    found["entries of the oldest month"] = f"{gone:,}"
    found["pruning it, µs an entry: all, first and last tenth of the batches"] = (
        f"{sum(costs) / len(costs):.2f}, {sum(costs[:tenth]) / tenth:.2f}, {sum(costs[-tenth:]) / tenth:.2f}"
    )
    found["… elapsed, s"] = f"{seconds:.0f}"
    began = time.monotonic()
    cost = await session_cost(admin, 1, lambda: admin.execute("VACUUM (ANALYZE, PARALLEL 0) audit_log"))
    found["VACUUM afterwards, s of CPU, elapsed"] = f"{cost / 1e6:.1f}, {time.monotonic() - began:.0f}"


if __name__ == "__main__":
    sys.exit(main())
