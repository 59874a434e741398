"""Checks that everything the server needs is installed. Standard library only: it runs before any other import."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Final

NEEDED: Final = (
    "aiohttp", "asyncpg", "cryptography", "jwt", "msgspec", "pluggy", "prometheus_client", "pydantic",
    "standardwebhooks", "structlog",
)  # fmt: skip
"""The hard dependencies of pyproject.toml, as they are imported. uvloop is left out: without it asyncio's own loop serves."""


def refuse_to_start_without() -> None:
    """Exit with status 2 and one line if a dependency is missing; only where Gatepost is the program that was started."""
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


NAMES: Final = ("server", "providers", "handlers")
DISTRIBUTION: Final = "gatepost"
_REMEDY: Final = ": give Gatepost a virtual environment of its own"
_RENAME: Final = ": rename it, because the working folder comes first on Python's path"
# The start of a line of RECORD (`handlers/x.py,sha256=...`) or of top_level.txt that puts a file under one of the names.
# It begins with a newline, not with ^: a literal first byte makes the search ten times as fast.
_CLAIM: Final = re.compile(rb"\n(server|providers|handlers)(?:[/.]|\r?\n)")
_LISTS: Final = {".dist-info": "RECORD", ".egg-info": "top_level.txt"}


def trouble(path: Iterable[str] | None = None) -> str | None:
    """One line if another distribution has files under one of the three names; else None. `path`: default sys.path."""
    where = list(sys.path if path is None else path)
    return _elsewhere() or next((found for folder in dict.fromkeys(where) if (found := _claimed(folder))), None)


def _elsewhere() -> str | None:
    """One line if an import takes one of the names from another place than beside this file; else None."""
    home = Path(__file__).resolve().parent.parent
    for name in NAMES[1:]:
        spec = PathFinder.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin is None:
            return f"the package {name!r} of Gatepost cannot be found beside {home / 'server'}: install Gatepost again"
        if origin != home / name / "__init__.py":
            remedy = _RENAME if origin.is_relative_to(Path.cwd()) and not home.is_relative_to(Path.cwd()) else _REMEDY
            return f"the name {name!r} belongs to {origin}, not to Gatepost in {home}{remedy}"
    return None


def _claimed(folder: str) -> str | None:
    """One line if another distribution, installed in this folder, has a file under one of the names; else None."""
    try:
        installed = [entry for entry in os.listdir(folder or ".") if entry.endswith(tuple(_LISTS))]
    except OSError:
        return None
    for entry in installed:
        stem, kind = os.path.splitext(entry)
        distribution = stem.partition("-")[0]
        if distribution.lower() == DISTRIBUTION:
            continue
        name = _claim(os.path.join(folder, entry, _LISTS[kind]))
        if name is not None:
            return f"the distribution {distribution!r} in {folder} also has files of {name!r}, a package of Gatepost{_REMEDY}"
    return None


def _claim(file: str) -> str | None:
    """The first of the names under which a RECORD or top_level.txt lists a file; None if there is none."""
    try:
        with open(file, "rb") as opened:
            found = _CLAIM.search(b"\n" + opened.read())
    except OSError:
        return None
    return found[1].decode() if found else None
