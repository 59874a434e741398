"""Write a settings file that lists every setting, explained and commented out; or a plugin to start from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..plugins.loader import Plugins
from ..settings.sample import sample
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from .new_plugin import write_plugin

_DEFAULT = "gatepost.toml"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help=f"the file to write (default: {_DEFAULT}); - prints it. An existing file is not overwritten",
    )  # fmt: skip
    parser.add_argument(
        "--plugin", metavar="NAME",
        help="write a plugin of this name into the working folder instead: handlers, their table, settings and tests",
    )  # fmt: skip


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write the settings of the server and of every loaded plugin, including those named by `plugins`. Returns 0.

    With --plugin, write the files of a plugin instead. Raises ConfigError if a file exists or cannot be written.
    """
    if args.plugin is not None:
        return _plugin(args)
    name = args.file or _DEFAULT
    if name != "-" and Path(name).exists():
        raise ConfigError(f"init: {name} already exists; not overwritten")
    Plugins(settings)  # each declares its table
    text = sample(settings.declared(), settings.words("plugins"))
    if name == "-":
        sys.stdout.write(text)
        return 0
    try:
        with open(name, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"init: {name} cannot be written ({error.strerror})") from error
    print(f"written: {name}. Uncomment what you need; `python -m server check` shows the values in force and their sources.")
    return 0


def _plugin(args: argparse.Namespace) -> int:
    if args.file is not None:
        raise ConfigError("init: FILE and --plugin exclude each other")
    print("written:", ", ".join(write_plugin(args.plugin, Path())))
    print(
        "  test it:         python -m pytest          (needs pytest and pytest-asyncio)",
        "  make its table:  python -m server migrate --schema schema.sql",
        "  serve it:        python -m server",
        f"  see its routes:  python -m server routes | grep {args.plugin.replace('_', '-')}",
        sep="\n",
    )
    return 0
