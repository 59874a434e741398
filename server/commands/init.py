"""Write a settings file that lists every setting, explained and commented out."""

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
        help="the file to write (default: gatepost.toml); - prints it. An existing file is not overwritten",
    )  # fmt: skip


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write the settings of the server and of every loaded plugin, also of those named by `plugins`. Returns 0.

    Raises ConfigError if the file exists or cannot be written.
    """
    if args.file != "-" and Path(args.file).exists():
        raise ConfigError(f"init: {args.file} already exists; not overwritten")
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
    print(
        f"written: {args.file}. Uncomment what you need; `python -m server check` shows the values in force and their sources."
    )
    return 0
