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
from stage import Stage, arguments
from stats import curve
from tables import scale_tables

Point = Callable[[], Mapping[str, float]]
"""Measures one size once: `server_us` and `postgres_us` of a request."""


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
    result: dict[str, Any] = {"kind": "scale", "curves": [], "neighbours": [], "neighbour_rate": args.others_rate}
    with Stage(args) as stage:
        book = Book(stage, result["curves"])
        for part in args.parts:
            found = PARTS[part](book)
            if part == "neighbours":
                result["neighbours"] = found
        result["facts"] = stage.facts()
    return result


class Book:
    """Where the curves are written."""

    def __init__(self, stage: Stage, curves: list[dict[str, Any]]) -> None:
        self.stage, self.args, self._curves = stage, stage.args, curves

    def sizes(self, most: int) -> list[int]:
        """10, 100, 1,000, ... up to `most`."""
        found = [10]
        while found[-1] * 10 <= most:
            found.append(found[-1] * 10)
        return found

    def point(self, size: int, *measures: Point) -> list[dict[str, float]]:
        """Measure each of these at one size, in turn, round by round; the least, as other work can only add to it."""
        rounds = [[measure() for measure in measures] for _ in range(self.args.rounds)]
        whats = ("server_us", "postgres_us")
        return [
            {"size": size, **{what: min(one[what] for one in column) for what in whats}} for column in zip(*rounds, strict=True)
        ]

    def together(self, measures: Mapping[int, Point]) -> list[dict[str, float]]:
        """Where all sizes are there at once, they are measured in turn, so that no hour favours one of them."""
        points = self.point(0, *measures.values())
        return [{**point, "size": size} for size, point in zip(measures, points, strict=True)]

    def write(self, name: str, of: str, points: list[dict[str, float]], word: str | None = None) -> None:
        """`of`: what the sizes are numbers of. `word`: where the rule has nothing to say."""
        if word is None:
            words = {what: curve([point["size"] for point in points], [point[f"{what}_us"] for point in points])
                     for what in ("server", "postgres") if points[0][f"{what}_us"] >= 1}  # fmt: skip
            word = ", ".join(f"{said} in {'Postgres' if what == 'postgres' else 'the server'}" for what, said in words.items())
        self._curves.append({"name": name, "of": of, "points": points, "word": word})
        print(f"{name}: {word}", file=sys.stderr, flush=True)


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
}

if __name__ == "__main__":
    sys.exit(main())
