"""Check the settings, the plugins, the database role and its policies, and the key sets."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

from ..app import LIMITS, TABLE, build, open_providers
from ..database.hosts import split
from ..http.errors import Unavailable
from ..plugins.providers import NOT_READY, PROVIDERS, not_ready
from ..schema import leaks as oracles
from ..schema import pooler
from ..schema.capacity import Capacity, capacity
from ..schema.connection_mistakes import DIRECT_URL, URL, connected, unreachable
from ..schema.embedded_database import as_serving_role, embedded_owner, exists
from ..schema.safety import problems, public_rows, warnings
from ..schema.session_sql import session_faults
from ..schema.startup import beside_running_server
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from ..telemetry.collected import collected_warnings
from .colours import paint


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found in the database: problems, warnings, how many connections it allows, and which tables have public rows.

    `looked`: whether there was a database.
    """

    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    capacity: Capacity | None = None
    looked: bool = True
    public_rows: list[str] = field(default_factory=list)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the effective settings with their sources, then warnings and problems. Returns 0, or 2 if there is a problem."""
    with collected_warnings() as logged:
        app = build(settings)
        found, unready = asyncio.run(_look(app, settings))
    found.warnings[:0] = [*app[TABLE].warnings, *app[LIMITS].warnings]
    found.warnings.extend(line for line in logged if line not in found.warnings and not _says_unready(line, unready))
    rows = settings.explain()
    if args.json:
        print(json.dumps(_as_json(rows, found, unready)))
        return 2 if found.problems else 0
    widths = max(len(key) for key, _, _ in rows), min(48, max(len(value) for _, value, _ in rows))
    for key, value, source in rows:
        print(f"{key:{widths[0]}}  {value:{widths[1]}}  {source}")
    served = [row for row in app[TABLE].rows if row.method != "HEAD"]
    print(f"providers: {', '.join(one.name for one in app[PROVIDERS])}; routes: {len(served)}")
    if found.capacity is not None:
        print(found.capacity.line())
    if not found.looked:
        print("database: not checked, because database.url is not set and no embedded Postgres has been created here yet")
    for line in found.public_rows:
        print(f"public rows: {line}")
    for line in [*found.warnings, *unready]:
        print(f"{paint('warning:', 'yellow')} {line}")
    for line in found.problems:
        print(f"{paint('problem:', 'red')} {line}")
    print("problems: " + (paint(str(len(found.problems)), "red") if found.problems else paint("none", "green")))
    return 2 if found.problems else 0


def _says_unready(logged: str, unready: list[str]) -> bool:
    """Whether the line of the log tells what one of `unready` does: why a provider cannot verify credentials now."""
    name, _, why = logged.partition(": the keys cannot be refreshed: ")
    return any(line.endswith(f"{name}: {why}") for line in unready) or (bool(unready) and logged.startswith(NOT_READY))


def _as_json(rows: list[tuple[str, str, str]], found: _Findings, unready: list[str]) -> dict[str, object]:
    return {
        "settings": [{"key": key, "value": value, "source": source} for key, value, source in rows],
        "database_checked": found.looked,
        "problems": found.problems,
        "warnings": found.warnings,
        "public_rows": found.public_rows,
        "connections": asdict(found.capacity) if found.capacity else None,
        "not_ready": unready,
    }


async def _look(app: web.Application, settings: Settings) -> tuple[_Findings, list[str]]:
    """Returns what was found in the database, and why providers cannot verify credentials now."""
    found = await _find(settings)
    async with asynccontextmanager(open_providers)(app):
        return found, not_ready(app)


async def _find(settings: Settings) -> _Findings:
    """Look at the database directly and, where there is a pooler, through the pooler too.

    The embedded Postgres is started where no server runs on it, and stopped again.
    """
    url, direct = settings.get("database.url"), settings.get("database.direct_url")
    if url:
        return await _find_in({"dsn": direct or url}, settings)
    if (beside := beside_running_server(settings)) is not None:
        return await _find_in(beside, settings)
    if not exists(settings):
        return _Findings([], looked=False)
    try:
        async with embedded_owner(settings) as owner:
            return await _find_in(as_serving_role(owner), settings)
    except ConfigError as error:
        return _Findings([str(error)])


async def _find_in(connect: dict[str, Any], settings: Settings) -> _Findings:
    url, direct = settings.get("database.url"), settings.get("database.direct_url")
    try:
        async with connected(connect, DIRECT_URL if direct else URL) as connection:
            if faults := await session_faults(connection):
                return _Findings(faults)
            available = await capacity(connection, settings)
            wrong = await problems(connection) + await oracles.seen_by_nobody(connection)
            notes = [*await warnings(connection), *await oracles.warnings(connection), *_hosts(url), available.shortage()]
            if url and direct:
                pooled = settings.get("database.pooler") == "transaction"
                more, also = await _through(url, connection, pooled=pooled)
                wrong, notes = list(dict.fromkeys([*wrong, *more])), [*notes, *also]
            public = await public_rows(connection)
        return _Findings(wrong, [line for line in notes if line], available, public_rows=public)
    except Unavailable as error:
        return _Findings([unreachable(error)])


async def _through(url: str, direct: Any, *, pooled: bool) -> tuple[list[str], list[str]]:
    """(problems, warnings) of the database at `database.url`, as the server will see it."""
    async with connected({"dsn": url, "statement_cache_size": 0}, URL) as connection:
        if not await pooler.same_place(connection, direct):
            return ["database.direct_url: leads to a different database from database.url (DATABASE_URL)"], []
        # A pooler logs in by itself, perhaps as another role.
        return await problems(connection), await pooler.warnings(connection, direct) if pooled else []


def _hosts(url: str | None) -> list[str]:
    if url and len(split(url)) > 1 and "target_session_attrs" not in url:
        return ["database.url names several hosts without target_session_attrs=read-write: the server may connect to a standby"]
    return []
