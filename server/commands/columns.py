"""Prints rows of texts in aligned columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .colours import paint


def aligned(rows: Sequence[Sequence[str]], style: Callable[[str], str | None] = lambda cell: None) -> str:
    """The rows, a line each, with every column as wide as its longest text. There is at least one row.

    style  returns how a cell is printed on a terminal: a style of `colours`, or None
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths, style) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int], style: Callable[[str], str | None]) -> str:
    cells = zip(row, widths, strict=True)
    return "  ".join(paint(cell, style(cell)) + " " * (width - len(cell)) for cell, width in cells).rstrip()
