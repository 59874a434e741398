"""A trie of route templates: `/api/shops/{id}/orders` is found in as many steps as it has segments."""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar

from ..http.targets import AS_IT_STANDS

T = TypeVar("T")
Shape = tuple[str | None, ...]
"""The segments of a template, with None for each parameter. A path is a shape without parameters."""

# No escapes, so that the text is its own meaning; and neither `.` nor `..`.
_LITERAL: Final = re.compile(rf"(?!\.{{1,2}}\Z)[{AS_IT_STANDS}]+\Z")
_PARAMETER: Final = re.compile(r"\{[_a-zA-Z][_a-zA-Z0-9]*\}\Z")


def shape_of(template: str) -> Shape | None:
    """The shape of a template; None where a segment is neither plain text nor a parameter that matches any segment."""
    shape: list[str | None] = []
    for segment in template.split("/")[1:]:
        if not _LITERAL.match(segment) and not _PARAMETER.match(segment):
            return None
        shape.append(None if segment[0] == "{" else segment)
    return tuple(shape) if template.startswith("/") else None


def beginning(template: str) -> str:
    """The fixed part of a path by which aiohttp's router indexes a template; it tries templates with the same one in order."""
    literal, brace, _ = template.partition("{")
    if brace:  # up to the last slash before the parameter
        literal = literal.rpartition("/")[0]
    return literal.rstrip("/")


class _Node(Generic[T]):
    __slots__ = ("literals", "parameter", "values")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.parameter: _Node[T] | None = None
        self.values: list[T] = []


class Trie(Generic[T]):
    """Values by shape."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, shape: Shape, value: T) -> None:
        """Add a value; a shape may have several."""
        node = self._root
        for segment in shape:
            if segment is not None:
                node = node.literals.setdefault(segment, _Node())
            else:
                node.parameter = node = node.parameter or _Node()
        node.values.append(value)

    def find(self, shape: Shape | list[str]) -> list[T]:
        """The values of every shape that matches all that this one matches; for a path, of every shape that matches it."""
        nodes = [self._root]
        for segment in shape:
            following = []
            for node in nodes:
                if segment is not None and segment in node.literals:
                    following.append(node.literals[segment])
                if node.parameter is not None:
                    following.append(node.parameter)
            nodes = following
        return [value for node in nodes for value in node.values]
