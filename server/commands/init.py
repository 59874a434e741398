"""Write a settings file with every setting in it, explained and switched off."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..plugins.loader import Plugins
from ..settings.sample import sample
from ..settings.setting import ConfigError
from ..settings.sources import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", default="gatepost.toml", metavar="FILE",
        help="where to (default: gatepost.toml); - prints it. A file that is there is left as it is",
    )  # fmt: skip


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write the tables of the server and of all plugins that are loaded; those that the setting `plugins` names too."""
    if args.file != "-" and Path(args.file).exists():
        raise ConfigError(f"init: {args.file} is there already, and was left as it is")
    Plugins(settings)  # each declares its table
    text = sample(settings.declared(), settings.words("plugins"))
    if args.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        with open(args.file, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"init: {args.file} cannot be written ({error.strerror})") from error
    print(f"written: {args.file}. Switch on what you need; `python -m server check` says what is in force and why.")
    return 0
