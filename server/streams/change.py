"""One change of a row, as a stream gets it, and where changes can go."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, Protocol

from ..http.row_json import RowJson


class Change(NamedTuple):
    """One change of a row.

    event   `created`, `updated`, `deleted`, or `resync`: changes may have been missed, load everything again
    id      the row's primary key, as text; None for `resync`
    row     a mapping of its columns that the caller may see now; None for `deleted` and `resync`
    """

    event: str
    id: str | None
    row: RowJson | None


RESYNC: Final = Change("resync", None, None)


class Outlet(Protocol):
    """Sends the changes of one stream without waking its task."""

    def pass_on(self, ready: deque[Change]) -> bool | None:
        """Send these changes, oldest first, and remove each that is sent.

        Returns False if the client is or falls behind, and None if the stream has ended.
        """

    async def wait(self) -> None:
        """Wait while the client is behind."""
