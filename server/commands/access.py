"""Show who may call what: a table of routes and callers; with --check, compare it with a file of expectations."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ..app import TABLE, build
from ..gate import expectations
from ..gate.access_table import THIS_CALLER, rules_of, table, usual_callers
from ..settings.sources import Settings
from .caller_arguments import add_caller, described
from .columns import aligned


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the expectations in this TOML file")
    add_caller(parser)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print the table, or what differs from a file. Nothing is opened and no handler runs.

    Returns 0, or 1 if an expectation does not hold. Raises ConfigError, ValueError.
    """
    app = build(settings)
    if args.check is not None:
        return _checked(app, args.check)
    caller = described(args)
    rules = rules_of(app[TABLE])
    rows = table(rules, usual_callers(rules) if caller is None else {"no credential": None, THIS_CALLER: caller})
    if args.json:
        print(json.dumps(rows))
    else:
        print(as_markdown(rows) if args.markdown else as_text(rows))
    return 0


def _checked(app: web.Application, file: Path) -> int:
    expected = expectations.read_file(file)
    wrong = asyncio.run(expectations.differences(app.router, app[TABLE], expected))
    print("\n".join([*wrong, f"{file}: {len(expected) - len(wrong)} of {len(expected)} expectations hold"]))
    return 1 if wrong else 0


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table in aligned columns, one line for each route."""
    return aligned(_cells(rows), _style)


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in _cells(rows)]
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *body])


def _cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    callers = list(rows[0]["callers"]) if rows else []
    lines = [["METHOD", "ROUTE", *callers]]
    for row in rows:
        lines.append([row["method"], row["route"], *(_cell(row["callers"][name]) for name in callers)])
    return lines


def _style(cell: str) -> str | None:
    return {"yes": "green", "401": "dim", "403": "yellow"}.get(cell.partition(" ")[0])


def _cell(answer: Mapping[str, Any]) -> str:
    if answer["status"] == 200:
        return "yes"
    return " ".join([str(answer["status"]), *([answer["reason"]] if answer["status"] != 401 and answer["reason"] else [])])
