"""How the cost of one request grows with everything that can grow: `make bench-scale`, or `python bench/scale.py`.

Rows, API keys, users, routes, public patterns, connections, tokens, the number of the page; then slow clients and one heavy
tenant beside others. Each curve gets a word by a stated rule. docs/explanation/performance.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import growth
import traffic
from book import Book
from large import large
from stage import Stage, arguments
from tables import scale_tables


def main(words: list[str] | None = None) -> int:
    """Measure, print the tables, write the file; the exit status."""
    args = parse(words)
    result = measured(args)
    print(scale_tables(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = arguments(__doc__, rounds=3, seconds=2.0)
    parser.add_argument("--most", type=int, default=1_000_000, help="rows, API keys and users (10000000 takes long)")
    parser.add_argument("--most-large", type=int, default=100_000, help="rows of the part `large` (10000000 takes half an hour)")
    parser.add_argument("--audit", type=int, default=1, help="entries of the audit log for each row of the part `large`")
    parser.add_argument("--most-routes", type=int, default=1000)
    parser.add_argument("--most-connections", type=int, default=200)
    parser.add_argument("--most-tokens", type=int, default=10_000, help="as many as the server remembers")
    parser.add_argument("--slow-clients", type=int, default=200)
    parser.add_argument("--others-rate", type=float, default=300.0, help="requests a second of the heavy tenant's neighbours")
    parser.add_argument("--only", metavar="PARTS", help=f"separated by commas; of {', '.join(PARTS)}")
    args = parser.parse_args(words)
    args.parts = args.only.split(",") if args.only else list(PARTS)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return args


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything as plain data: `curves`, each with its points and its word, and `neighbours`."""
    result: dict[str, Any] = {"kind": "scale", "curves": [], "loaded": [], "neighbours": [], "neighbour_rate": args.others_rate}
    with Stage(args) as stage:
        book = Book(stage, result["curves"], result["loaded"])
        for part in args.parts:
            found = PARTS[part](book)
            if part == "neighbours":
                result["neighbours"] = found
        result["facts"] = stage.facts()
    return result


PARTS: Mapping[str, Callable[[Book], Any]] = {
    "rows": growth.rows,
    "pages": growth.pages,
    "keys": growth.keys,
    "users": growth.users,
    "routes": traffic.routes,
    "patterns": traffic.patterns,
    "tokens": traffic.tokens,
    "connections": traffic.connections,
    "neighbours": traffic.neighbours,
    "large": large,
}

if __name__ == "__main__":
    sys.exit(main())
