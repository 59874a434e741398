"""Reads and checks the members of one table of the settings; a mistake is one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from server import nearest_name

from ..jwt.texts import is_safe_url


class Members:
    """One table. Each method returns None (or an empty result) for a missing member; ValueError for an invalid one."""

    def __init__(self, where: str, given: Mapping[str, Any]) -> None:
        """`where` names the table in messages."""
        self.where = where
        self.given = given

    def mistake(self, name: str, problem: str) -> ValueError:
        """Returns the error that names the member."""
        return ValueError(f"{self.where}: {name} {problem}")

    def refuse_others(self, known: Iterable[str]) -> None:
        """Raises ValueError for a member that is not in `known`, with the nearest known name."""
        names = list(known)
        for name in self.given:
            if name not in names:
                near = nearest_name(name, names)
                nearest = f"; the nearest known one is {near!r}" if near else f"; known: {', '.join(names)}"
                raise ValueError(f"{self.where}: unknown member {name!r}{nearest}")

    def text(self, name: str, *, empty: bool = False) -> str | None:
        """Returns a string of one line without surrounding spaces."""
        value = self.given.get(name)
        return None if value is None else self._checked(name, value, empty)

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Returns one of `choices`; the first for a missing member."""
        value = self.text(name) or choices[0]
        if value not in choices:
            raise self.mistake(name, f"must be {' or '.join(choices)}, not {value!r}")
        return value

    def words(self, name: str, *, required: bool = False, empty: bool = False) -> list[str]:
        """Returns a list of distinct strings; a single string is a list of one."""
        value = self.given.get(name, [])
        listed = value if isinstance(value, list) else [value]
        words = [self._checked(name, word, empty) for word in listed]
        if required and not words:
            raise self.mistake(name, "is missing" if name not in self.given else "must name at least one")
        if len(words) != len(set(words)):
            raise self.mistake(name, "contains a duplicate")
        return words

    def table(self, name: str) -> Mapping[str, Any]:
        """Returns an inner table; empty if missing."""
        value = self.given.get(name, {})
        if not isinstance(value, Mapping):
            raise self.mistake(name, 'must be a table such as { user_id = "sub" }')
        return value

    def seconds(self, name: str, default: float, most: float) -> float:
        """Returns a number of seconds from 0 to `most`."""
        value = self.given.get(name, default)
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise self.mistake(name, f"must be a number of seconds from 0 to {most:g}")
        return float(value)

    def url(self, name: str, *, query: bool = False) -> str | None:
        """Returns a safe URL (`is_safe_url`) exactly as written."""
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
            raise self.mistake(name, "must be a string (or, where several are allowed, a list of strings), and not empty")
        return value
