"""Does anything grow, and is anybody let in? `make soak`, or `python bench/soak.py`: a mix of everything for 20 minutes.

Two workers with production's settings serve honest tenants, hostile ones, sign-outs and rotations, while Postgres is restarted
now and then. At the end a table says what was answered, what was wrong, and what grew. Exit status 1 where an answer was wrong,
a row was another tenant's, an ended credential was still taken after a second, or memory or descriptors grew.
SOAK_HOURS=8 runs for longer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import machine
from machine import Child
from soak_actors import SECRET, Tally, abuser, ended, flood, honest, keys, patches, unread
from stage import Stage, arguments
from stats import table

GROWTH_MIB = 64
"""How much more resident memory than after the warm-up, for both workers and the parent together, is growth."""


def main(words: list[str] | None = None) -> int:
    """Run, print the table; 1 if something was wrong."""
    parser = arguments(__doc__)
    hours = float(os.environ.get("SOAK_HOURS", "0")) or 1 / 3
    parser.add_argument("--minutes", type=float, default=hours * 60, help="default: 20, or SOAK_HOURS")
    parser.add_argument("--fault-every", type=float, default=60.0, metavar="SECONDS", help="between two restarts of Postgres")
    parser.add_argument("--tenants", type=int, default=20, help="honest ones")
    args = parser.parse_args(words)
    settings = {"workers": 2, "clerk.webhook_signing_secret": SECRET}
    with Stage(args) as stage, stage.gatepost(settings, cpu={*machine.cpus()}, far=False) as child:
        rows, failures = asyncio.run(soak(stage, child, args))
    print(", ".join(f"{name} {value}" for name, value in stage.facts().items()), "\n")
    print(table(["what", "value"], rows))
    print("\n" + ("failed: " + ", ".join(failures) if failures else "nothing failed"))
    return 1 if failures else 0


async def soak(stage: Stage, child: Child, args: argparse.Namespace) -> tuple[list[list[str]], list[str]]:
    """(the lines of the table, what failed)."""
    tally, end = Tally(), time.monotonic() + args.minutes * 60
    actors = [
        *(honest(child.port, stage.issuer, number, tally, end) for number in range(args.tenants)),
        ended(child.port, stage.issuer, tally, end),
        keys(child.port, stage.issuer, tally, end),
        abuser(child.port, stage.issuer, tally, end),
        patches(child.port, stage.issuer, tally, end),
        *(flood(child.port, number, tally, end) for number in range(3)),
        unread(child.port, stage.issuer, tally, end),
        faults(stage, tally, end, args.fault_every),
    ]
    running = [asyncio.create_task(_named(actor)) for actor in actors]
    await asyncio.sleep(min(60.0, args.minutes * 60 / 3))
    seen = [_figures(child)]
    for quarter in (3, 2, 1):
        await asyncio.sleep(max(0.0, end - time.monotonic() - quarter * args.minutes * 60 / 4))
        seen.append(_figures(child))
    await asyncio.gather(*running)
    await asyncio.sleep(3)
    seen.append(_figures(child))
    return _lines(args, tally, seen), _failures(tally, seen[0], seen[-1])


async def _named(actor: Coroutine[Any, Any, None]) -> None:
    try:
        await actor
    except Exception as error:
        error.add_note(f"in {actor.__qualname__}")
        raise


async def faults(stage: Stage, tally: Tally, end: float, every: float) -> None:
    """Restart Postgres (or end all connections of the server, where it is not ours to restart)."""
    while time.monotonic() + every + 10 < end:
        await asyncio.sleep(every)
        with tally.fault():
            if stage.postgres._embedded is not None and tally.faults % 2:
                stage.postgres._embedded.stop()  # it ends with the thread that started it
                await asyncio.sleep(1)
                stage.postgres._embedded.start()
            else:
                async with stage.postgres.admin() as admin:
                    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
                    await admin.fetch(query, stage.postgres.serving)
            await asyncio.sleep(5)


def _figures(child: Child) -> dict[str, float]:
    """Resident memory in MiB, open descriptors and log lines of the server's processes."""
    descriptors = 0
    for pid in machine.tree(child.pid):
        with contextlib.suppress(OSError):
            descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    lines = child.log.read_bytes().count(b"\n")
    return {"memory MiB": machine.memory_mib(child.pid), "descriptors": descriptors, "log lines": lines}


def _lines(args: argparse.Namespace, tally: Tally, seen: list[dict[str, float]]) -> list[list[str]]:
    worst = max(tally.ends, default=0.0)
    lines = [
        ["minutes", f"{args.minutes:g}"],
        ["requests of honest tenants", f"{tally.requests:,}"],
        ["their 503 and 429 during a fault", f"{tally.busy:,}"],
        ["their 503 and 429 otherwise", f"{tally.busy_without_fault:,}"],
        ["requests of hostile clients", f"{tally.hostile:,}"],
        ["faults", str(tally.faults)],
        ["wrong answers", str(len(tally.wrong))],
        ["rows of another tenant", str(tally.foreign)],
        ["credentials ended", str(len(tally.ends))],
        ["ended later than within a second", f"{tally.late} (slowest {worst:.2f} s)"],
        ["honest p50, p99 ms", "{:.1f}, {:.1f}".format(*tally.quantiles())],
    ]
    lines += [[f"{name}, after the warm-up and each quarter", ", ".join(f"{one[name]:.0f}" for one in seen)] for name in seen[0]]
    return lines + [["example of a wrong answer", one] for one in tally.wrong[:5]]


def _failures(tally: Tally, before: dict[str, float], after: dict[str, float]) -> list[str]:
    found = [name for name, bad in (("wrong answers", tally.wrong), ("foreign rows", tally.foreign), ("late", tally.late)) if bad]
    if after["memory MiB"] > before["memory MiB"] + GROWTH_MIB:
        found.append("memory grew")
    if after["descriptors"] > before["descriptors"] + 50:
        found.append("descriptors grew")
    return found


if __name__ == "__main__":
    sys.exit(main())
