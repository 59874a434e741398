"""What each lock costs: `make bench-locks`, or `python bench/locks.py`.

The real application with production's settings and a real Postgres, driven in this process (bench/inproc.py). The price of a
lock is the difference between two ways of doing the same: with it and without it. What is taken away is taken away here, by
this program, from the outside: Gatepost itself has no switch for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import lock_dpop
import lock_gate
import lock_opaque
import lock_sql
import lock_token
import uvloop
from issuer import request
from stage import FAR, Stage, arguments, fill
from tables import locks_tables


def main(words: list[str] | None = None) -> int:
    """Measure, print the table, write the file; the exit status."""
    args = parse(words)
    result = measured(args)
    print(locks_tables(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=40, help="the least of so many counts")
    parser.add_argument(
        "--batch", type=int, default=1000, help="runs in one repetition (a tenth of it where Postgres is asked)"
    )
    return parser.parse_args(words)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything as plain data: `request` (a whole one), `locks`, each with its price (None where it has none there),
    `token`, the checks of a new one with theirs, and `verify_us`, one bare verification of a signature."""
    allowed = os.sched_getaffinity(0)
    with Stage(args) as stage:
        fill(stage, args.users, args.rows)
        asyncio.run(stage.postgres.copy_open())
        os.sched_setaffinity(0, {stage.server_cpu})
        try:
            return uvloop.run(_measured(stage))
        finally:
            os.sched_setaffinity(0, allowed)


async def _measured(stage: Stage) -> dict[str, Any]:
    tokens = [stage.issuer.token(n) for n in range(stage.args.users)]
    result: dict[str, Any] = {
        "kind": "locks",
        "facts": stage.facts(),
        "rows": stage.args.rows,
        "verify_us": stage.issuer.verify_us(),
    }
    async with lock_gate.application(stage) as (app, client):
        gate = await lock_gate.the_gate(stage, app, client, tokens)
        credentials = await lock_gate.credentials(stage, app, client, tokens)
        result["request"], *sql = await lock_sql.prices(stage, client, [request("/api/data", token) for token in tokens])
    result["token"] = await lock_token.checks(stage, tokens)
    bound = [*await lock_dpop.prices(stage), *await lock_opaque.prices(stage)]
    limits = [await lock_gate.limits(stage, tokens)] if FAR else []
    result["locks"] = [*gate, *sql, *limits, *credentials, *bound]
    return result


if __name__ == "__main__":
    sys.exit(main())
