"""Finds routes that are written as another framework has them, and says how to write them here."""

from __future__ import annotations

import re
from typing import Final

from .patterns import Pattern, PatternError

_PARAMETER: Final = re.compile(r"\{(\w+):(\w+)\}")
_BRACES: Final = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")
_FOREIGN: Final = re.compile(r":([A-Za-z_]\w*)\Z|<(?:\w+:)?([A-Za-z_]\w*)>\Z")
_CONVERTERS: Final = frozenset({"int", "integer", "float", "number", "str", "string", "path", "uuid", "slug", "any", "bool"})
"""What other frameworks write behind a parameter's name. Here it is a regular expression, which matches only this word."""
_TWICE: Final = "never be executed"


def mistake_in(method: str, path: str) -> str | None:
    """Returns what is wrong with a route's method or path and how to write it, in one sentence; None if nothing is."""
    if method == "*":
        return "the method must be one of GET, POST and so on: a view needs a route for each, as web.get(path, handler)"
    if not path.startswith("/"):
        return f"the path must begin with /: write /{path}"
    if "?" in (plain := _BRACES.sub("{}", path)) or "#" in plain:
        return "a path has no ? and no #: describe query parameters by @describe(query=Model), and read them by query(...)"
    for name, word in _PARAMETER.findall(path):
        if word.lower() in _CONVERTERS:
            return (
                f"{{{name}:{word}}} matches only the text {word!r}, as a regular expression follows the colon: write {{{name}}}"
            )
    for segment in plain.split("/"):
        if foreign := _FOREIGN.match(segment):
            return f"the segment {segment} is plain text, not a parameter: write {{{foreign[1] or foreign[2]}}}"
    return None


def registration_error(error: Exception) -> str:
    """Returns aiohttp's objection to a route in one sentence."""
    return "a route with this method and path exists already" if _TWICE in str(error) else str(error)


def how_to_open(path: str) -> str:
    """Returns `; add '/articles/:slug' to public_routes to open it` for a route's path; "" if no such pattern covers it."""
    pattern = re.sub(
        r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})*))?\}", lambda part: f":{part[1]}" + (f"({part[2]})" if part[2] else ""), path
    )
    try:
        covers = Pattern(pattern).covers(path)
    except PatternError:
        covers = False
    return f"; to open it, add '{pattern}' to public_routes" if covers else ""
