"""The command line: which command, with which settings, and one clear line when something is wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from .. import installation as ownership
from ..database.connections import direct_connection
from ..http.errors import Unavailable
from ..plugins.hookspecs import Command, CommandContext
from ..plugins.loader import Plugins
from ..schema.startup import StartFailed, beside_running_server
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from ..telemetry.log import start_logging
from . import check, explain, init, migrate, openapi, routes, serve

_OWN = {
    "serve": serve, "init": init, "check": check, "routes": routes, "explain": explain, "migrate": migrate, "openapi": openapi,
}  # fmt: skip


def run(arguments: list[str]) -> int:
    """Run one command line; the exit status."""
    try:
        return _run(arguments)
    except (ConfigError, ValueError) as error:
        print(f"gatepost: {error}", file=sys.stderr)
        return 2
    except (StartFailed, Unavailable) as error:
        print(f"gatepost: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    if trouble := ownership.trouble():
        raise ConfigError(trouble)
    first = _common(argparse.ArgumentParser(add_help=False))
    known, rest = first.parse_known_args(arguments)
    settings = Settings(file=known.config, given={"host": known.host, "port": known.port, "workers": known.workers})
    start_logging(settings.log_format)
    name = next((word for word in rest if not word.startswith("-")), "serve")
    plugged: Mapping[str, tuple[str, Command]] = {}
    plugins = None
    if name not in _OWN or not rest:
        plugins = Plugins(settings)
        plugged = plugins.offers().commands
    args = _parser(plugged).parse_args(arguments)
    if args.command in _OWN or args.command is None:
        return int(_OWN[args.command or "serve"].run(args, settings))
    if plugins is None:
        raise ConfigError(f"no such command: {args.command}")
    plugin, command = plugged[args.command]
    context = CommandContext(
        settings.get("env"), Path(settings.get("data_folder")), plugins.table_of(plugin), lambda: _database(settings)
    )
    return asyncio.run(_await(command, args, context))


async def _await(command: Command, args: argparse.Namespace, context: CommandContext) -> int:
    return await command.run(args, context)


@asynccontextmanager
async def _database(settings: Settings) -> Any:
    """A connection in the serving role, beside a running server on the embedded Postgres too."""
    url = settings.get("database.url")
    connect = {"dsn": url} if url else beside_running_server(settings)
    if connect is None:
        raise StartFailed("no server is running on the embedded Postgres here; start it first, or set DATABASE_URL")
    async with direct_connection(connect) as connection:
        yield connection


def _common(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (default gatepost.toml)")
    parser.add_argument("--host", help="address to serve on")
    parser.add_argument("--port", type=int, help="port to serve on; 0 takes a free one")
    parser.add_argument("--workers", type=int, help="processes that share the port")
    return parser


def _parser(plugged: Mapping[str, tuple[str, Command]]) -> argparse.ArgumentParser:
    parser = _common(argparse.ArgumentParser(prog="python -m server", description="Every route locked, every row locked."))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in _OWN.items():
        module.arguments(commands.add_parser(name, help=(module.__doc__ or "").partition("\n")[0].rstrip(".")))
    for name, (_, command) in plugged.items():
        command.arguments(commands.add_parser(name, help=command.help))
    return parser
