"""Header lines as bytes: those of a handler, and the one that changes every second."""

from __future__ import annotations

import re
from email.utils import formatdate
from typing import Final

from multidict import CIMultiDict

# RFC 9110 5.5: no control character in a field except the tab. A line end would allow header injection.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Date:
    """The lines of a response between the request id and the length of the body, which are the same within a second."""

    second = -1
    lines = b""

    def at(self, second: int) -> bytes:
        """The lines for this time, Unix seconds."""
        self.second = second
        self.lines = f"\r\nDate: {formatdate(second, usegmt=True)}\r\nContent-Length: ".encode()
        return self.lines


DATE: Final = Date()


def line_of(name: str, value: str) -> bytes:
    """A header as a line. Raises ValueError for a control character."""
    line = f"{name}: {value}"
    if _CONTROL.search(line):
        raise ValueError(f"a control character in the header {name!r}")
    return line.encode() + b"\r\n"


def put(headers: CIMultiDict[str], lines: bytes) -> None:
    """Set the headers that these lines have."""
    for line in lines.decode().split("\r\n")[:-1]:
        name, _, value = line.partition(": ")
        headers[name] = value
