"""Check the settings, the plugins, the database role and its policies, and the key sets."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from ..app import PROVIDERS, TABLE, build, not_ready, open_providers
from ..database import direct_connection
from ..identity import Unavailable
from ..safety import problems
from ..settings import ConfigError, Settings
from ..storage import Storage, beside_running_server


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the effective settings with their sources, then what is wrong. Status 0, or 2 where something is."""
    app = build(settings)
    found, unready = asyncio.run(_look(app, settings))
    rows = settings.explain()
    if args.json:
        print(
            json.dumps(
                {"settings": [{"key": k, "value": v, "source": s} for k, v, s in rows], "problems": found, "not_ready": unready}
            )
        )
        return 2 if found else 0
    widths = max(len(key) for key, _, _ in rows), min(48, max(len(value) for _, value, _ in rows))
    for key, value, source in rows:
        print(f"{key:{widths[0]}}  {value:{widths[1]}}  {source}")
    print(f"providers: {', '.join(name for name, _ in app[PROVIDERS])}; routes: {len(app[TABLE].rows)}")
    for line in [*app[TABLE].warnings, *unready]:
        print(f"warning: {line}")
    for line in found:
        print(f"problem: {line}")
    print("problems: " + (str(len(found)) if found else "none"))
    return 2 if found else 0


async def _look(app: web.Application, settings: Settings) -> tuple[list[str], list[str]]:
    """(problems of the database, providers that cannot verify anything now)."""
    found = await _find(settings)
    async with asynccontextmanager(open_providers)(app):
        return found, not_ready(app)


async def _find(settings: Settings) -> list[str]:
    url = settings.get("database.url")
    connect = {"dsn": url} if url else beside_running_server(settings)
    if connect is not None:
        try:
            async with direct_connection(connect) as connection:
                return await problems(connection)
        except Unavailable as error:
            return [f"the database cannot be reached: {error}"]
    return await _embedded(settings)


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
