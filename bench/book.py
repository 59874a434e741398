"""Where scale.py writes its curves: one size measured, several sizes measured together, and the word for a curve."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from stage import Stage
from stats import curve

Point = Callable[[], Mapping[str, float]]
"""Measures one size once: `server_us` and `postgres_us` of a request."""


class Book:
    """Collects the curves of one run, and says how each grows."""

    def __init__(self, stage: Stage, curves: list[dict[str, Any]], loaded: list[dict[str, Any]]) -> None:
        self.stage, self.args, self._curves, self._loaded = stage, stage.args, curves, loaded

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
        """Where all sizes are there at once, they are measured in turn, so that a disturbance favours none of them."""
        points = self.point(0, *measures.values())
        return [{**point, "size": size} for size, point in zip(measures, points, strict=True)]

    def note(self, loaded: dict[str, Any]) -> None:
        """Keep how many rows each table had at one size."""
        self._loaded.append(loaded)

    def write(self, name: str, of: str, points: list[dict[str, float]], word: str | None = None, *, unit: str = "us") -> None:
        """`of`: what the sizes are numbers of. `word`: where the rule has nothing to say. `unit` "ms": each point has `ms` alone."""
        if word is None and unit == "ms":
            word = curve([point["size"] for point in points], [point["ms"] for point in points])
        if word is None:
            words = {what: curve([point["size"] for point in points], [point[f"{what}_us"] for point in points])
                     for what in ("server", "postgres") if points[0][f"{what}_us"] >= 1}  # fmt: skip
            word = ", ".join(f"{said} in {'Postgres' if what == 'postgres' else 'the server'}" for what, said in words.items())
        self._curves.append({"name": name, "of": of, "points": points, "word": word})
        print(f"{name}: {word}", file=sys.stderr, flush=True)
