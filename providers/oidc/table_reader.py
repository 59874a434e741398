"""Reads the members of one table of the file, and says in one line what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ..jwt.texts import is_safe_url


class Members:
    """One table. Every reader gives None (or nothing) for a member that is missing and raises ValueError for a bad one."""

    def __init__(self, where: str, given: Mapping[str, Any]) -> None:
        """`where` names the table in messages."""
        self.where = where
        self.given = given

    def mistake(self, name: str, said: str) -> ValueError:
        """The error that names the member."""
        return ValueError(f"{self.where}: {name} {said}")

    def refuse_others(self, known: Iterable[str]) -> None:
        """Raise for a member that is none of `known`, naming the nearest."""
        names = list(known)
        for name in self.given:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                nearest = f"; the nearest known one is {close[0]!r}" if close else f"; known: {', '.join(names)}"
                raise ValueError(f"{self.where}: unknown member {name!r}{nearest}")

    def text(self, name: str, *, empty: bool = False) -> str | None:
        """A text of one line without blanks around it."""
        value = self.given.get(name)
        return None if value is None else self._checked(name, value, empty)

    def words(self, name: str, *, required: bool = False, empty: bool = False) -> list[str]:
        """A text, or a list of texts; none of them twice."""
        value = self.given.get(name, [])
        listed = value if isinstance(value, list) else [value]
        words = [self._checked(name, word, empty) for word in listed]
        if required and not words:
            raise self.mistake(name, "is missing" if name not in self.given else "must name at least one")
        if len(words) != len(set(words)):
            raise self.mistake(name, "says the same thing twice")
        return words

    def table(self, name: str) -> Mapping[str, Any]:
        """An inner table; empty where it is missing."""
        value = self.given.get(name, {})
        if not isinstance(value, Mapping):
            raise self.mistake(name, 'must be a table such as { user_id = "sub" }')
        return value

    def seconds(self, name: str, default: float, most: float) -> float:
        """A number from 0 to `most`."""
        value = self.given.get(name, default)
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise self.mistake(name, f"must be a number of seconds from 0 to {most:g}")
        return float(value)

    def url(self, name: str, *, query: bool = False) -> str | None:
        """A URL that is safe (`is_safe_url`), exactly as it was written."""
        value = self.text(name)
        if value is None:
            return None
        if not is_safe_url(value):
            raise self.mistake(name, "must be a URL that starts with https:// (http:// only for this machine)")
        if "?" in value and not query:
            raise self.mistake(name, "must have no query")
        return value

    def _checked(self, name: str, value: object, empty: bool) -> str:
        if not isinstance(value, str) or not value.isprintable() or value.strip() != value or not (value or empty):
            raise self.mistake(name, "must be a text (or, where several are allowed, a list of texts), and not empty")
        return value
