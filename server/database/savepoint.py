"""One savepoint of a request's transaction: who may use it, and when."""

from __future__ import annotations

import asyncio


class Savepoint:
    """A block of work under one scope, inside another savepoint (`above`); None: the outermost."""

    __slots__ = ("above", "closed", "lock", "scope")

    def __init__(self, scope: tuple[str, str, str], above: Savepoint | None) -> None:
        self.scope, self.above = scope, above
        self.lock = asyncio.Lock()
        """Held by a statement of this savepoint while it runs, and by an inner savepoint until it is closed."""
        self.closed = False

    def is_within(self, other: Savepoint) -> bool:
        """Whether this is `other`, or is inside it at any depth."""
        block: Savepoint | None = self
        while block is not None and block is not other:
            block = block.above
        return block is other

    def check_open(self) -> None:
        """Raises RuntimeError once this savepoint, or one around it, is closed: its transaction is over."""
        block: Savepoint | None = self
        while block is not None:
            if block.closed:
                raise RuntimeError("used after its block was left")
            block = block.above

    async def close(self) -> None:
        """Close to new work, after the work in progress has ended."""
        async with self.lock:
            self.closed = True
