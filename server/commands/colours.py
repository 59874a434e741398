"""Colours of what commands print, for a terminal only."""

from __future__ import annotations

import os
import sys
from typing import Final, TextIO

_CODES: Final = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}


def coloured(stream: TextIO) -> bool:
    """Does this stream get colours? Only on a terminal that knows them, and without NO_COLOR (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and (os.environ.get("TERM") or "dumb") != "dumb"


def paint(text: str, style: str | None, stream: TextIO | None = None) -> str:
    """Returns the text in a style (red, green, yellow, dim, bold; None: as it is) if the stream gets colours.

    stream  where it will be printed; None: standard output
    """
    if style is None or not coloured(stream or sys.stdout):
        return text
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"


def complaint(message: object) -> str:
    """Returns the line on standard error that reports a mistake or a failure."""
    return f"{paint('gatepost:', 'red', sys.stderr)} {message}"
