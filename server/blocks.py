"""Whose turn it is on one connection that several blocks of code share: blocks in blocks, one at a time on each level.

Savepoints must nest, so a block waits for its sisters; what stands in a block goes on, whichever task it runs in.
"""

from __future__ import annotations

import asyncio


class Block:
    """A stretch of work under one scope, inside another one (`above`) or outermost."""

    __slots__ = ("above", "closed", "scope", "turn")

    def __init__(self, scope: tuple[str, str, str], above: Block | None) -> None:
        self.scope, self.above = scope, above
        self.turn = asyncio.Lock()
        """Held by a statement of this block while it runs, and by a block inside it for all of its life."""
        self.closed = False

    def within(self, other: Block) -> bool:
        """Is this `other`, or somewhere inside it?"""
        block: Block | None = self
        while block is not None and block is not other:
            block = block.above
        return block is other

    def must_be_open(self) -> None:
        """Raises RuntimeError once the block, or one around it, is over: its transaction is not there any more."""
        block: Block | None = self
        while block is not None:
            if block.closed:
                raise RuntimeError("used after its block was left")
            block = block.above

    async def close(self) -> None:
        """Wait for what is still inside; nothing comes in any more."""
        async with self.turn:
            self.closed = True
