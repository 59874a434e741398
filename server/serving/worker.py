"""What a child process knows of its place among the workers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from .balancing import ConnectionBalancer

VARIABLE: Final = "_GATEPOST_WORKER"
"""How a child knows that it is one: `<number>,<port>,<descriptor to write to when ready>,<folder of the workers' sockets>`."""


class Worker:
    """What a child process knows of its place."""

    def __init__(self, text: str) -> None:
        number, port, ready, folder = text.split(",", 3)
        self.number, self.port, self._ready = int(number), int(port), int(ready)
        self._folder = Path(folder)
        self.ops_socket = self._folder / f"{number}.sock"
        self._parent = os.getppid()

    @staticmethod
    def here() -> Worker | None:
        """The worker that this process is; None for a server of its own."""
        text = os.environ.get(VARIABLE)
        return Worker(text) if text else None

    def sharing(self) -> ConnectionBalancer:
        """What spreads connections over the workers. Raises OSError, ValueError."""
        return ConnectionBalancer(self._folder, self.number)

    def tell_ready(self) -> None:
        os.write(self._ready, b"1")
        os.close(self._ready)

    async def until_orphaned(self) -> None:
        """Returns when the parent is gone, however it went: nobody would ever stop us."""
        while os.getppid() == self._parent:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.5)
