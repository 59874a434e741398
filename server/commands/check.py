"""Check the settings, the plugins, the database role and its policies, and the key sets."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aiohttp import web

from ..app import PROVIDERS, TABLE, build, not_ready, open_providers
from ..database import direct_connection
from ..identity import Unavailable
from ..safety import problems, warnings
from ..settings import ConfigError, Settings
from ..storage import Storage, beside_running_server
from .capacity import Capacity, capacity


@dataclass(frozen=True, slots=True)
class _Found:
    """What the database told: what is wrong, what is merely worth knowing, and how many connections it gives."""

    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    capacity: Capacity | None = None


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the effective settings with their sources, then what is wrong. Status 0, or 2 where something is."""
    app = build(settings)
    found, unready = asyncio.run(_look(app, settings))
    rows = settings.explain()
    if args.json:
        print(json.dumps(_told(rows, found, unready)))
        return 2 if found.problems else 0
    widths = max(len(key) for key, _, _ in rows), min(48, max(len(value) for _, value, _ in rows))
    for key, value, source in rows:
        print(f"{key:{widths[0]}}  {value:{widths[1]}}  {source}")
    print(f"providers: {', '.join(name for name, _ in app[PROVIDERS])}; routes: {len(app[TABLE].rows)}")
    if found.capacity is not None:
        print(found.capacity.line())
    for line in [*app[TABLE].warnings, *found.warnings, *unready]:
        print(f"warning: {line}")
    for line in found.problems:
        print(f"problem: {line}")
    print("problems: " + (str(len(found.problems)) if found.problems else "none"))
    return 2 if found.problems else 0


def _told(rows: list[tuple[str, str, str]], found: _Found, unready: list[str]) -> dict[str, object]:
    return {
        "settings": [{"key": key, "value": value, "source": source} for key, value, source in rows],
        "problems": found.problems,
        "warnings": found.warnings,
        "connections": asdict(found.capacity) if found.capacity else None,
        "not_ready": unready,
    }


async def _look(app: web.Application, settings: Settings) -> tuple[_Found, list[str]]:
    """What the database told, and the providers that cannot verify anything now."""
    found = await _find(settings)
    async with asynccontextmanager(open_providers)(app):
        return found, not_ready(app)


async def _find(settings: Settings) -> _Found:
    # Past a transaction pooler, where there is one: it would mix up the statements that asyncpg prepares here.
    url = settings.get("database.direct_url") or settings.get("database.url")
    connect = {"dsn": url} if url else beside_running_server(settings)
    if connect is not None:
        try:
            async with direct_connection(connect) as connection:
                room = await capacity(connection, settings)
                told = [*await warnings(connection), room.shortage()]
                return _Found(await problems(connection), [line for line in told if line], room)
        except Unavailable as error:
            return _Found([f"the database cannot be reached: {error}"])
    return _Found(await _embedded(settings))


async def _embedded(settings: Settings) -> list[str]:
    """No server runs on the embedded Postgres: look at it ourselves, if it has ever been made."""
    if not (Path(settings.get("data_folder")) / "postgres").exists():
        return []
    storage = Storage(settings)
    try:
        await storage.open()
    except ConfigError as error:
        return [str(error)]
    finally:
        await storage.close()
    return []
