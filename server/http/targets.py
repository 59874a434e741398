"""Refuses request targets that two parsers could read differently.

Such a target is a way around the gate, so it is refused before any decision is made.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

AS_IT_STANDS: Final = r"A-Za-z0-9_~!$&'()*+,;=:@.-"
"""The path characters that need no escape (RFC 3986 3.3), as the contents of a set in a regular expression."""
# The common case in one match: a path of plain segments, none of them `.` or `..`, and a query without escapes.
_NO_DOTS: Final = r"(?!\.{1,2}(?:[/?;]|\Z))"
_QUERY: Final = rf"(?:\?[/?{AS_IT_STANDS}]*)?\Z"
_PLAIN: Final = re.compile(rf"(?:/{_NO_DOTS}[{AS_IT_STANDS}]*)+{_QUERY}")
PLAINEST: Final = re.compile(rf"(?:/{_NO_DOTS}[{AS_IT_STANDS}]+)+{_QUERY}")
"""The same without empty segments, so without a trailing slash either. No target that it matches is malformed."""
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODED_TRICK: Final = re.compile(r"%(?:2[fF]|2[eE]|5[cC]|25)")
_DOT_SEGMENT: Final = re.compile(r"/\.{1,2}(?:[/;]|\Z)")
# C0 and C1 controls, DEL, and the two separators that regular expressions of other languages treat as line ends.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?\Z")


def malformed(target: str) -> bool:
    """Whether a raw request target is refused with 400, for every caller.

    Refused are: invalid escapes, escapes that are not UTF-8, encoded or plain dot segments, encoded slashes, backslashes
    and percent signs in the path, NUL and control characters anywhere, and a raw space, backslash, `#` or non-ASCII character.
    """
    return not _PLAIN.match(target) and _malformed_at_length(target)


def _malformed_at_length(target: str) -> bool:
    if not target.isascii() or " " in target or "\\" in target or "#" in target or _BAD_ESCAPE.search(target):
        return True
    path, _, query = origin_form(target).partition("?")
    if not path.startswith("/") or _ENCODED_TRICK.search(path) or _DOT_SEGMENT.search(path):
        return True
    return _unreadable(path) or _unreadable(query)


def origin_form(target: str) -> str:
    """The path and query of an absolute-form target (RFC 9112 3.2.2). A target without a plain host is returned unchanged."""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        authority, slash, path = rest.partition("/")
        named = _AUTHORITY.match(authority)
        if named and int(named[1] or 0) <= 65535:
            return slash + path if slash else "/"
    return target


def _unreadable(text: str) -> bool:
    try:
        return _CONTROL.search(unquote_to_bytes(text).decode("utf-8")) is not None
    except UnicodeDecodeError:
        return True
