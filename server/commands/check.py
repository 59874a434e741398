"""Check the settings, the plugins, the database role and its policies, and the key sets."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from .. import oracles, pooler
from ..app import PROVIDERS, TABLE, build, not_ready, open_providers
from ..database import direct_connection
from ..hosts import split
from ..identity import Unavailable
from ..safety import problems
from ..settings import ConfigError, Settings
from ..storage import Storage, beside_running_server


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the effective settings with their sources, then what is wrong. Status 0, or 2 where something is."""
    app = build(settings)
    found, warned, unready = asyncio.run(_look(app, settings))
    rows = settings.explain()
    if args.json:
        print(
            json.dumps(
                {
                    "settings": [{"key": k, "value": v, "source": s} for k, v, s in rows],
                    "problems": found,
                    "warnings": warned,
                    "not_ready": unready,
                }
            )
        )
        return 2 if found else 0
    widths = max(len(key) for key, _, _ in rows), min(48, max(len(value) for _, value, _ in rows))
    for key, value, source in rows:
        print(f"{key:{widths[0]}}  {value:{widths[1]}}  {source}")
    print(f"providers: {', '.join(name for name, _ in app[PROVIDERS])}; routes: {len(app[TABLE].rows)}")
    for line in [*app[TABLE].warnings, *warned, *unready]:
        print(f"warning: {line}")
    for line in found:
        print(f"problem: {line}")
    print("problems: " + (str(len(found)) if found else "none"))
    return 2 if found else 0


async def _look(app: web.Application, settings: Settings) -> tuple[list[str], list[str], list[str]]:
    """(problems of the database, warnings about it, providers that cannot verify anything now)."""
    found, warned = await _find(settings)
    async with asynccontextmanager(open_providers)(app):
        return found, warned, not_ready(app)


async def _find(settings: Settings) -> tuple[list[str], list[str]]:
    """Problems and warnings of the database, seen past a pooler."""
    url, direct = settings.get("database.url"), settings.get("database.direct_url")
    connect = {"dsn": direct or url} if url else beside_running_server(settings)
    if connect is None:
        return await _embedded(settings), []
    try:
        async with direct_connection(connect) as connection:
            found = await problems(connection) + await oracles.seen_by_nobody(connection)
            warned = await oracles.warnings(connection) + _hosts(url)
            if url and direct:
                pooled = settings.get("database.pooler") == "transaction"
                more, also = await _through(url, connection, pooled=pooled)
                found, warned = list(dict.fromkeys([*found, *more])), warned + also
        return found, warned
    except Unavailable as error:
        return [f"the database cannot be reached: {error}"], []


async def _through(url: str, direct: Any, *, pooled: bool) -> tuple[list[str], list[str]]:
    """(problems, warnings) of what stands at `database.url`, as the server will see it."""
    async with direct_connection({"dsn": url, "statement_cache_size": 0}) as connection:
        if not await pooler.same_place(connection, direct):
            return ["database.direct_url: leads to another database than database.url (DATABASE_URL)"], []
        # A pooler logs in by itself: as whom?
        return await problems(connection), await pooler.warnings(connection, direct) if pooled else []


def _hosts(url: str | None) -> list[str]:
    if url and len(split(url)) > 1 and "target_session_attrs" not in url:
        return ["database.url names several hosts and no target_session_attrs=read-write: a standby may be taken"]
    return []


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
