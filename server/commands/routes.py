"""Print every route: method, template, access, handler."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from ..app import TABLE, build
from ..routing.table import Row
from ..settings.sources import Settings

_WIDEST = 56
"""A longer cell overflows its column, so that one route does not push the handlers of all others out of sight."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Build the application without opening anything, and print its route table. Returns 0."""
    table = build(settings)[TABLE]
    rows = [row for row in table.rows if row.method != "HEAD"]
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return 0
    print(as_text(rows))
    for line in table.warnings:
        print(f"gatepost: warning: {line}", file=sys.stderr)
    for pattern in table.unused:
        print(f"# the default public pattern {pattern} covers no route")
    return 0


def as_text(rows: list[Row]) -> str:
    """The route table in aligned columns, a route per line."""
    cells = [(r.method, r.template, r.access, r.handler) for r in rows]
    widths = [max((len(c[column]) for c in cells if len(c[column]) <= _WIDEST), default=0) for column in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(cell, widths, strict=False)), cell[3]]) for cell in cells)
