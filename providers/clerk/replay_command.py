"""`python -m server replay`: apply the stored events again, oldest first, after an error in applying them was fixed."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Final

from server import CommandContext

from .webhooks import revoke_for

_AT_A_TIME: Final = 200
_REPLAY: Final = "SELECT event_at, event_id, outcome FROM replay_clerk_events($1, $2, $3, $4)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


async def run(given: argparse.Namespace, context: CommandContext) -> int:
    """Print how many events were applied, stale (superseded by newer ones), only stored, or failed. Returns 1 if any failed."""
    counts: Counter[str] = Counter()
    at, last = datetime(1970, 1, 1, tzinfo=UTC), ""
    async with context.database() as connection:
        while rows := await connection.fetch(_REPLAY, at, last, _AT_A_TIME, revoke_for(context.settings)):
            counts.update(row["outcome"] for row in rows)
            at, last = rows[-1]["event_at"], rows[-1]["event_id"]
            print(f"replay: {counts.total()} events, up to {at:%Y-%m-%d %H:%M}", file=sys.stderr, flush=True)
    totals = {name: counts[name] for name in ("applied", "stale", "stored", "failed")}
    print(json.dumps(totals) if given.json else ", ".join(f"{name}: {number}" for name, number in totals.items()))
    return 1 if counts["failed"] else 0
