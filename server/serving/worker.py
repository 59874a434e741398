"""A child process as one of several workers: its number, its port, and how it reaches its parent."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from .balancing import ConnectionBalancer

VARIABLE: Final = "_GATEPOST_WORKER"
"""The environment variable that makes a process a worker.

Its value is `<number>,<port>,<descriptor to write to when ready>,<folder of the workers' sockets>`.
"""


class Worker:
    """One child process of a server with several workers."""

    def __init__(self, text: str) -> None:
        """`text` is the value of the variable VARIABLE."""
        number, port, ready, folder = text.split(",", 3)
        self.number, self.port, self._ready = int(number), int(port), int(ready)
        self._folder = Path(folder)
        self.ops_socket = self._folder / f"{number}.sock"
        self._parent = os.getppid()

    @staticmethod
    def here() -> Worker | None:
        """The worker that this process is; None where it is a server of its own."""
        text = os.environ.get(VARIABLE)
        return Worker(text) if text else None

    def balancer(self) -> ConnectionBalancer:
        """This worker's part in spreading connections evenly. Raises OSError, ValueError."""
        return ConnectionBalancer(self._folder, self.number)

    def tell_ready(self) -> None:
        """Tell the parent that this worker answers requests."""
        os.write(self._ready, b"1")
        os.close(self._ready)

    async def until_orphaned(self) -> None:
        """Return once the parent has ended, however it ended: nothing else would ever stop this process."""
        while os.getppid() == self._parent:  # noqa: ASYNC110 - nothing else reports it
            await asyncio.sleep(0.5)
