"""A row of a table in the JSON that Postgres made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode


class RowJson(Mapping[str, Any]):
    """A row's columns by name, read-only. `text` is the JSON that Postgres made, which is sent to clients unchanged.

    `sent` is the form in which the row was sent last, for code that sends it to many clients.
    """

    __slots__ = ("_columns", "sent", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sent: Any = None
        self._columns: dict[str, Any] | None = None

    def _all(self) -> dict[str, Any]:
        if self._columns is None:
            self._columns = _decode(self.text)
        return self._columns

    def __getitem__(self, column: str) -> Any:
        return self._all()[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        """A row has columns: nothing is decoded to find that out."""
        return True

    def __repr__(self) -> str:
        """Without the values, which are a tenant's."""
        return f"RowJson({', '.join(self)})"
