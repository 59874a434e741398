"""The argument parser of the command line: usage errors are one line, with the nearest command, option or choice."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, cast

from ..installation import DISTRIBUTION
from ..messages import nearest_name
from .colours import complaint


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are one line on standard error, and status 2. Its subparsers are such parsers too."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        if message.startswith("the following arguments are required") and (commands := subcommands(self)):
            message = f"a command is missing: one of {', '.join(commands)}"
        self.exit(2, complaint(f"{message}; see `{self.prog} --help`\n"))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ArgumentParser.parse_args. For unknown words the line names the command that they were given to."""
        words = sys.argv[1:] if args is None else list(args)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            chosen = self._chosen(words)
            options = (option for action in chosen._actions for option in action.option_strings)
            hint = meant(next((word for word in unknown if word.startswith("-")), "").partition("=")[0], options)
            chosen.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def _chosen(self, words: Sequence[str]) -> Parser:
        """The parser of the command that these words name, as deep as they go; else this one."""
        parser, rest = self, list(words)
        while (commands := subcommands(parser)) and (name := next((word for word in rest if word in commands), None)):
            parser, rest = cast("Parser", commands[name]), rest[rest.index(name) + 1 :]
        return parser

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Argparse calls this for a value with choices: a command, or the word after an option."""
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            self.error(unknown_command(value, action.choices))
        known = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(known)}{meant(str(value), known)}")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name; empty if it has no commands."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def unknown_command(name: str, known: Iterable[str]) -> str:
    """The message about a name that no command has: with the nearest one, else with all."""
    names = list(known)
    return f"no command is named {name!r}" + (meant(name, names) or f": it is one of {', '.join(names)}")


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known word that is nearest; "" if none is near."""
    near = nearest_name(word, known)
    return f"; did you mean {near}?" if near else ""


def common(parser: Parser, *, serving: bool = True, default: Any = None) -> Parser:
    """The options that may precede or follow a command; `serving`: include those that only serving uses."""
    parser.add_argument("--config", type=Path, metavar="FILE", default=default, help="settings file (default gatepost.toml)")
    if serving:
        parser.add_argument("--host", default=default, help="address to serve on")
        parser.add_argument("--port", type=int, default=default, help="port to serve on; 0 chooses a free one")
        parser.add_argument("--workers", type=int, default=default, help="processes that share the port")
    return parser


class Version(argparse.Action):
    """`--version`: prints the version of the installed distribution."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"gatepost {metadata.version(DISTRIBUTION)}")
        parser.exit()


def program() -> str:
    """How this program was started, for the usage line."""
    return "gatepost" if os.path.basename(sys.argv[0]) == "gatepost" else "python -m server"
