"""The arithmetic of the benchmarks: ratios of the same round, percentiles, the shape of a curve, Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

FLAT = 1.25
"""A curve is flat where no size costs more than this many times what the smallest costs."""
RULE = (
    f"flat: no size costs more than {FLAT} times the smallest. Otherwise log or linear: whichever straight line fits better "
    "(least squares), through the cost against log n or against n."
)


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and half the distance between the smallest and the largest of them."""

    median: float
    half_range: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ± {self.half_range:.2f}"


def half_range(values: Iterable[float]) -> float:
    """Half the distance between the smallest and the largest value."""
    listed = list(values)
    return (max(listed) - min(listed)) / 2


def ratio(pairs: Iterable[tuple[float, float]]) -> Ratio:
    """Of (measured, reference) of each round. What disturbs a whole round disturbs both, so each round has its own ratio."""
    ratios = [measured / reference for measured, reference in pairs]
    return Ratio(statistics.median(ratios), half_range(ratios))


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value of sorted `ordered` below which `part` (0 to 1) of them lie (nearest rank)."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def curve(sizes: Sequence[float], costs: Sequence[float]) -> str:
    """`flat`, `log` or `linear`, by RULE."""
    if max(costs) <= FLAT * costs[0]:
        return "flat"
    against_log = _misfit([math.log10(size) for size in sizes], costs)
    against_size = _misfit(sizes, costs)
    return "log" if against_log <= against_size else "linear"


def _misfit(x: Sequence[float], y: Sequence[float]) -> float:
    """The sum of squares that the best straight line leaves."""
    slope, start = statistics.linear_regression(x, y)
    return sum((value - start - slope * place) ** 2 for place, value in zip(x, y, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
