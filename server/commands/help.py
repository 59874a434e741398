"""Show the help of a command, or every environment variable (`help environment`)."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from ..plugins.loader import Plugins
from ..settings.setting import Setting
from ..settings.sources import Settings, env_name

ENVIRONMENT = "environment"
STATUSES = """\
exit status:
  0    success
  1    failure, such as a database that cannot be reached, or an expectation
       of `access --check` that does not hold
  2    a mistake in the settings or the arguments, or a problem that `check` finds
  130  interrupted by Ctrl-C

environment:
  Every setting has a variable, such as DATABASE_URL and GATEPOST_PORT.
  `{program} help environment` lists all of them. With _FILE after its name, a
  variable names a file that holds the value. NO_COLOR switches colours off."""
_MORE = (
    ("GATEPOST_CONFIG", "the settings file (default: gatepost.toml in the working folder)"),
    (
        "NO_COLOR",
        "if it is not empty, no colours are printed. They are also off if TERM is dumb or the output is not a terminal",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="*", metavar="TOPIC", help=f"a command, or {ENVIRONMENT}")
    parser.add_argument("--json", action="store_true", help="print the environment variables as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print every environment variable, with its meaning and default. The help of commands is argparse's. Returns 0."""
    Plugins(settings)  # each declares its table
    found = list(variables(settings.declared()))
    if args.json:
        print(json.dumps([{"variable": name, "setting": key, "help": text} for name, key, text in found]))
        return 0
    for name, key, text in found:
        print(f"{name}  ({key})" if key else name)
        print(textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    return 0


def instead(words: Sequence[str]) -> list[str] | None:
    """The command line that shows the help of a command: `keys --help` for the words `keys`. None: run this command."""
    topics = [word for word in words if not word.startswith("-")]
    return None if topics == [ENVIRONMENT] else [*topics, "--help"]


def variables(declared: Mapping[str, Setting]) -> Iterator[tuple[str, str, str]]:
    """(variable, key of the setting, help with the default) of each setting that a variable can set, then the others."""
    for key, setting in declared.items():
        if setting.kind in ("table", "tables"):
            continue
        words = [setting.help or key]
        if setting.allowed:
            words.append(setting.allowed)
        if setting.default not in (None, (), []):
            words.append(f"default: {setting.default}")
        yield env_name(key, setting), key, "; ".join(words)
    for name, text in _MORE:
        yield name, "", text
