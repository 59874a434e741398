"""The text of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from typing import Any, Final

from ..http.answers import encode_json
from ..http.row_json import RowJson

HEARTBEAT: Final = b":\n\n"
_LINES: Final = re.compile(r"\r\n|\r|\n")
_NOT_IN_A_FIELD: Final = re.compile(r"[\r\n\0]")


_last: tuple[RowJson, str | None, str | None, bytes] | None = None
"""The row that was encoded last, and its frame: streams that receive the same change send it one after the other."""


def encode(data: Any, event: str | None = None, id: str | None = None) -> bytes:
    """Returns one event as bytes. A `str` is sent as it is, each of its lines as a `data:` line; anything else as JSON.

    Line ends and NUL in `event` and `id`, which would begin another field, are removed. Raises TypeError for data that has
    no JSON form, and for bytes.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        raise TypeError("send takes text, or anything that has a JSON form, not bytes")
    if type(data) is RowJson:
        return _frame_of_row(data, event, id)
    text = data if isinstance(data, str) else encode_json(data).decode()
    lines = [f"event: {_NOT_IN_A_FIELD.sub('', str(event))}"] if event is not None else []
    if id is not None:
        lines.append(f"id: {_NOT_IN_A_FIELD.sub('', str(id))}")
    lines += [f"data: {line}" for line in _LINES.split(text)]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def _frame_of_row(row: RowJson, event: str | None, id: str | None) -> bytes:
    global _last
    if _last is None or _last[0] is not row or _last[1:3] != (event, id):
        _last = (row, event, id, encode(row.text, event, id))
    return _last[3]


def end_frame(reason: str) -> bytes:
    """Returns the last event of a stream, `end`."""
    return encode({"reason": reason}, "end")
