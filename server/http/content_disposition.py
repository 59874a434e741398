"""The header `Content-Disposition` of a download, whatever characters the file's name has."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

LONGEST_NAME: Final = 200
"""How many characters of a file's name are sent."""
_UNQUOTABLE: Final = re.compile(r"[^ !#-\[\]-~]")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff/\\\\]")


def content_disposition(name: str, *, inline: bool = False) -> str:
    """The value of `Content-Disposition` (RFC 6266) that saves a file as `name`, or with `inline` shows it under that name.

    Any text can be a name: quotes, line ends and letters beyond ASCII cannot break the header. Slashes, control characters and
    those that change the direction of writing become `_`; at most 200 characters are sent. Show a file of a user's inline only
    if its content type is one that runs no scripts.
    """
    clean = _UNPRINTABLE.sub("_", name)[:LONGEST_NAME].strip(" .") or "file"
    kind = "inline" if inline else "attachment"
    plain = _UNQUOTABLE.sub("_", clean)
    extended = "" if plain == clean else f"; filename*=UTF-8''{quote(clean, safe='')}"
    return f'{kind}; filename="{plain}"{extended}'
