"""Is everything installed that the server needs? Standard library only, and asked before anything else is imported."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

NEEDED = (
    "aiohttp", "asyncpg", "cryptography", "jwt", "limits", "msgspec", "pluggy", "prometheus_client", "pydantic",
    "standardwebhooks",
)  # fmt: skip


def refuse_to_start_without() -> None:
    """End the program with status 2 and one line where something is missing; only when we are the program."""
    started_as = sys.argv[0] if sys.argv else ""
    if started_as != "-m" and os.path.basename(started_as) not in ("gatepost", "__main__.py"):
        return
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"gatepost: not installed here: {', '.join(missing)}. Run `make install`, or `pip install -e '.[dev]'` in a virtual"
            " environment, and use its python.",
            file=sys.stderr,
        )
        sys.exit(2)
