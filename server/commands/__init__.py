"""The command line: parses it, runs one command with its settings, and reports a mistake in one line."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from .. import installation as ownership
from ..database.statements import IN_UTC, SET_SCOPE_AND_WRITER
from ..http.errors import Unavailable
from ..plugins.hookspecs import Command, CommandContext
from ..plugins.loader import Plugins
from ..schema.connection_mistakes import URL, connected, of_a_statement, unreachable
from ..schema.startup import StartFailed, beside_running_server
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from ..telemetry.log import start_logging
from . import access, check, completion, explain, init, migrate, openapi, revoke, routes, serve, streams, tables
from . import help as help_command
from .colours import complaint
from .parser import Parser, Version, common, program, unknown_command

_OWN = {
    "serve": serve, "init": init, "check": check, "routes": routes, "explain": explain, "access": access, "tables": tables,
    "migrate": migrate, "openapi": openapi, "revoke": revoke, "help": help_command,
}  # fmt: skip
_COMPLETION = "completion"
_ABOUT = "An API server: routes need a signed-in caller unless you open them, and row-level security keeps tenants apart."


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit status: 0, 1 for a failure, 2 for a mistake in the settings or arguments."""
    try:
        streams.prepare()
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except (ConfigError, ValueError) as error:
        print(complaint(error), file=sys.stderr)
        return 2
    except StartFailed as error:
        print(complaint(error), file=sys.stderr)
        return 1
    except Unavailable as error:
        lost = str(error).startswith("database: ")  # a connection that a command had
        print(complaint(unreachable(error) if lost else error), file=sys.stderr)
        return 1
    except OSError as error:
        if (failed := streams.report(error)) is None:
            raise
        return failed
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (told := of_a_statement(error)) is None:
            raise
        print(complaint(told), file=sys.stderr)
        return 2 if isinstance(told, ConfigError) else 1


def _run(arguments: list[str]) -> int:
    if trouble := ownership.trouble():
        raise ConfigError(trouble)
    known, rest = common(Parser(prog=program(), add_help=False)).parse_known_args(arguments)
    name = next((word for word in rest if not word.startswith("-")), None)
    if name == "help" and (other := help_command.instead(rest[rest.index(name) + 1 :])) is not None:
        return _run([*(("--config", str(known.config)) if known.config else ()), *other])
    if "-h" in rest or "--help" in rest or (name is None and "--version" in rest):
        _parser(_commands_for_help(known, name, rest)).parse_args(arguments)  # which prints, and exits
    if name == _COMPLETION:
        whole = _parser(_commands_for_help(known, None, rest), "gatepost")
        print(completion.script(whole, whole.parse_args(arguments).shell))
        return 0
    settings = _settings(known)
    start_logging(settings.log_format)
    if name is None or name in _OWN:
        args = _parser({}).parse_args(arguments)
        return int(_OWN[args.command or "serve"].run(args, settings))
    plugins = Plugins(settings)
    plugged = _plugged(plugins)
    if rest[0] == name and name not in plugged:
        raise ValueError(f"{unknown_command(name, [*_OWN, _COMPLETION, *plugged])}; see `{program()} --help`")
    args = _parser(plugged).parse_args(arguments)
    plugin, command = plugged[args.command]
    folder, table = Path(settings.get("data_folder")), plugins.table_of(plugin)
    context = CommandContext(settings.get("env"), folder, table, lambda: _database(settings), operator_scope)
    return asyncio.run(_await(command, args, context))


def _settings(known: argparse.Namespace) -> Settings:
    """The settings with those of the command line. Raises ConfigError."""
    return Settings(file=known.config, given={"host": known.host, "port": known.port, "workers": known.workers})


def _plugged(plugins: Plugins) -> Mapping[str, tuple[str, Command]]:
    """The commands of the plugins: (plugin, command) by name. Raises ConfigError."""
    plugged = plugins.offers().commands
    for name in plugged.keys() & {*_OWN, _COMPLETION}:
        raise ConfigError(f"plugin {plugged[name][0]!r}: its command {name!r} has the name of one of the server's commands")
    return plugged


def _commands_for_help(known: argparse.Namespace, name: str | None, rest: list[str]) -> Mapping[str, tuple[str, Command]]:
    """The plugins' commands that `--help` lists. A mistake in the settings is reported, and leaves out what it affects."""
    if name in (*_OWN, _COMPLETION) or "--version" in rest:
        return {}
    names: list[str] = []
    try:
        settings = _settings(known)
        names = settings.words("plugins")
        return _plugged(Plugins(settings))
    except ConfigError as error:
        print(complaint(f"{error}; some commands may not be listed"), file=sys.stderr)
    for plugins in (names, []):
        try:
            return _plugged(Plugins(Settings(file=Path(os.devnull), environ={}, given={"plugins": plugins})))
        except ConfigError:
            continue
    return {}


async def _await(command: Command, args: argparse.Namespace, context: CommandContext) -> int:
    return await command.run(args, context)


@asynccontextmanager
async def _database(settings: Settings) -> Any:
    """A connection in the serving role; on the embedded Postgres beside the running server.

    Raises StartFailed where no server runs on the embedded Postgres.
    """
    url = settings.get("database.url")
    connect = {"dsn": url} if url else beside_running_server(settings)
    if connect is None:
        raise StartFailed("no server is running on the embedded Postgres here; start it first, or set DATABASE_URL")
    async with connected(connect, URL) as connection:
        yield connection


@asynccontextmanager
async def operator_scope(connection: Any, user_id: str | None, org_id: str | None) -> AsyncIterator[None]:
    """`CommandContext.scoped`: a transaction under this scope, written by the operator."""
    async with connection.transaction():
        scope = (user_id or "", org_id or "", org_id or "")
        await connection.execute(f"{SET_SCOPE_AND_WRITER}, {IN_UTC}", *scope, "operator", "")
        yield


def _parser(plugged: Mapping[str, tuple[str, Command]], prog: str | None = None) -> Parser:
    """The parser of the whole command line, with the plugins' commands. `prog`: its name (default: as it was started)."""
    name = prog or program()
    form = argparse.RawDescriptionHelpFormatter
    parser = common(
        Parser(prog=name, description=_ABOUT, epilog=help_command.STATUSES.format(program=name), formatter_class=form)
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, module in [*_OWN.items(), (_COMPLETION, completion)]:
        about = (module.__doc__ or "").partition("\n")[0]
        own = commands.add_parser(command, help=about.rstrip("."), description=about)
        common(own, serving=command == "serve", default=argparse.SUPPRESS)
        module.arguments(own)
    for command, (_, plugin) in plugged.items():
        plugin.arguments(commands.add_parser(command, help=plugin.help, description=f"{plugin.help}."))
    return parser
