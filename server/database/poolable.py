"""What the pool asks of a connection."""

from __future__ import annotations

from typing import Protocol, TypeVar


class Poolable(Protocol):
    """The methods of a connection that the pool uses."""

    def is_closed(self) -> bool: ...

    def is_in_transaction(self) -> bool: ...

    def terminate(self) -> None: ...


C = TypeVar("C", bound=Poolable)
