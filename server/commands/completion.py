"""Print the completion of the command line for a shell: bash, zsh or fish."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..settings.setting import ConfigError
from .parser import Parser, subcommands

SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
bash:  gatepost completion bash > ~/.local/share/bash-completion/completions/gatepost
zsh:   gatepost completion zsh > ~/.zfunc/_gatepost    (a folder of $fpath)
fish:  gatepost completion fish > ~/.config/fish/completions/gatepost.fish

It completes `gatepost`, with the commands of the plugins that are configured here, and needs the
package shtab: pip install 'gatepost[completion]'. Print it again after an upgrade."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def script(parser: Parser, shell: str) -> str:
    """Returns the script for this shell that completes what `parser` takes. Raises ConfigError without the package shtab."""
    try:
        import shtab
    except ImportError:
        raise ConfigError("completion: the package shtab is not installed; run: pip install 'gatepost[completion]'") from None
    _complete_files(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _complete_files(parser: argparse.ArgumentParser, files: object) -> None:
    for action in parser._actions:
        if action.type is Path or action.metavar == "FILE" or (action.metavar == "PATH" and action.option_strings):
            action.complete = files  # type: ignore[attr-defined]  # shtab reads it
    for inner in subcommands(parser).values():
        _complete_files(inner, files)
