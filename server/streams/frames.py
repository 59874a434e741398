"""The text of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from ..http.answers import encode_json
from ..http.row_json import RowJson

HEARTBEAT: Final = b":\n\n"
_LINES: Final = re.compile(r"\r\n|\r|\n")
_NOT_IN_A_FIELD: Final = re.compile(r"[\r\n\0]")


def encode(data: Any, event: str | None = None, id: str | None = None) -> bytes:
    """Returns one event as bytes. A `str` is sent as it is, each of its lines as a `data:` line; anything else as JSON.

    Line ends and NUL in `event` and `id`, which would begin another field, are removed. Raises TypeError for data that has
    no JSON form, and for bytes.
    """
    if type(data) is RowJson:
        return frame_of_row(data, event, id)
    if isinstance(data, bytes | bytearray | memoryview):
        raise TypeError("send takes text, or anything that has a JSON form, not bytes")
    text = data if isinstance(data, str) else encode_json(data).decode()
    lines = [f"event: {_NOT_IN_A_FIELD.sub('', str(event))}"] if event is not None else []
    if id is not None:
        lines.append(f"id: {_NOT_IN_A_FIELD.sub('', str(id))}")
    lines += [f"data: {line}" for line in _LINES.split(text)]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def frame_of_row(row: RowJson, event: str | None, id: str | None) -> bytes:
    """Returns the event with a row. The streams that receive the same change send it one after the other: it is made once."""
    sent = row.sent
    if sent is None or sent[0] != event or sent[1] != id:
        sent = row.sent = (event, id, encode(row.text, event, id))
    frame: bytes = sent[2]
    return frame


@lru_cache(maxsize=8)
def in_a_chunk(frame: bytes) -> bytes:
    """Returns the frame as a chunk of a response with `Transfer-Encoding: chunked` (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(frame), frame)


@lru_cache(maxsize=64)
def frame_without_row(event: str, id: str | None) -> bytes:
    """Returns the event for a change that has no row: `deleted` with its id, or `resync`."""
    return encode({} if id is None else {"id": id}, event, id)


def end_frame(reason: str) -> bytes:
    """Returns the last event of a stream, `end`."""
    return encode({"reason": reason}, "end")
