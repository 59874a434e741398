"""`python -m server keys …`"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import sys
from collections.abc import Mapping

from server import Command, CommandContext

from .provider import PREFIX


def commands() -> Mapping[str, Command]:
    """The subcommands of this provider."""
    return {"keys": Command("API keys: print the hash of one", _arguments, _run)}


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("hash", help="read a key from standard input and print its hash for [[api_key.keys]]")


async def _run(args: argparse.Namespace, context: CommandContext) -> int:
    key = (getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key.startswith(PREFIX) or len(key) < 16:
        raise ValueError(f"a key begins with {PREFIX!r} and has at least 16 characters")
    print("sha256:" + hashlib.sha256(key.encode()).hexdigest())
    return 0
