"""Connections, spread evenly over the workers of one port.

The kernel chooses a worker for each connection by a hash. Of the few that a load balancer keeps open one worker then often has
twice as many as another. So a worker that has more than another hands a new connection over, before anything of it is read.
How many each one has is in a file that all map into their memory; connections go through a socket of each worker, in a folder
that nobody else can open.

This is a help, never a condition: where anything goes wrong, whoever has a connection serves it. Only what is on its way to a
worker that is killed is lost, like what waits in the queue of such a worker's port.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import random
import socket
from array import array
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_FILE: Final = "connections"
_AWAY: Final = -1
_ENOUGH: Final = 4
"""With how many others a worker compares itself. The best of a few that are drawn by lot is nearly the best of all."""
_PAUSE_SECONDS: Final = 1.0


def prepare(folder: Path, slots: int) -> None:
    """Make the file for so many workers at a time: for each how many connections it has, or that it takes none; how many it
    took from others; and how many each one has handed to each other. Raises OSError."""
    (folder / _FILE).write_bytes(array("q", [_AWAY] * slots + [0] * slots + [0] * slots * slots).tobytes())


class ConnectionBalancer:
    """One worker's part. Each number has one worker that writes it, so no lock is needed."""

    def __init__(self, folder: Path, number: int) -> None:
        """`number` is the worker's; of numbers that go up one at a time no two that live at once have the same slot.

        Raises OSError, ValueError.
        """
        self._folder = folder
        with (folder / _FILE).open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._slots = math.isqrt(len(self._cells) + 1) - 1
        self._own = number % self._slots
        self._others = [slot for slot in range(self._slots) if slot != self._own]
        self._count = 0
        self._gone, self._resting = True, False
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._in = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._serve: Callable[[socket.socket], Awaitable[object]] | None = None
        self._starting: set[asyncio.Future[object]] = set()

    def open(self, serve: Callable[[socket.socket], Awaitable[object]]) -> None:
        """Take part; `serve` is given each connection that another worker hands over. Raises OSError."""
        self._cells[self._own] = _AWAY  # a worker before us in this slot may have been killed
        self._cells[self._slots + self._own] = self._handed_to(self._own)  # what was on its way to it is lost
        path = self._path(self._own)
        path.unlink(missing_ok=True)
        self._in.bind(str(path))
        self._serve = serve
        for one in (self._in, self._out):
            one.setblocking(False)
        asyncio.get_running_loop().add_reader(self._in, self._take)
        self._gone = False
        self._tell()

    def came(self, transport: asyncio.BaseTransport) -> bool:
        """Count a new connection; False where another worker has it now, and this one's end of it is to be dropped."""
        if not self._gone:
            asked = self._others if len(self._others) <= _ENOUGH else random.sample(self._others, _ENOUGH)
            there = [slot for slot in asked if self._cells[slot] != _AWAY]
            mine = self._count + self._on_the_way(self._own)
            for other in sorted(there, key=self._load):
                if self._load(other) >= mine:
                    break
                if self._hand_over(transport, other):
                    return False
        self.add(1)
        return True

    def add(self, number: int) -> None:
        """Count connections that came from another worker (1), or ended (-1)."""
        self._count += number
        self._tell()

    def rest(self, resting: bool) -> None:
        """Is this worker not fit for more connections than the kernel gives it? Quick refusals would draw them all here."""
        self._resting = resting
        self._tell()

    def leave(self) -> None:
        """From now on nobody hands us anything, and we hand over nothing; what is on its way still comes."""
        self._gone = True
        self._tell()

    def close(self) -> None:
        """Leave, take what has come, and no more. May be called again."""
        self.leave()
        if self._serve is not None:
            self._take()
            asyncio.get_running_loop().remove_reader(self._in)
            self._path(self._own).unlink(missing_ok=True)
            self._serve = None
        self._in.close()
        self._out.close()

    def _tell(self) -> None:
        self._cells[self._own] = _AWAY if self._gone or self._resting else self._count

    def _load(self, slot: int) -> int:
        """How many connections a worker has, with those that are on their way to it."""
        return self._cells[slot] + self._on_the_way(slot)

    def _on_the_way(self, slot: int) -> int:
        return self._handed_to(slot) - self._cells[self._slots + slot]

    def _handed_to(self, slot: int) -> int:
        return sum(self._cells[2 * self._slots + slot :: self._slots])

    def _hand_over(self, transport: asyncio.BaseTransport, slot: int) -> bool:
        rights = array("i", [transport.get_extra_info("socket").fileno()])
        try:
            self._out.sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, str(self._path(slot)))
        except OSError:  # it has died, or does not keep up
            return False
        self._cells[(2 + self._own) * self._slots + slot] += 1
        return True

    def _take(self) -> None:
        with suppress(OSError):  # until there is none left, which is an error of this kind
            while self._serve is not None:
                _, descriptors, _, _ = socket.recv_fds(self._in, 1, 1)
                self._cells[self._slots + self._own] += 1
                for descriptor in descriptors:
                    connection = socket.socket(fileno=descriptor)
                    connection.set_inheritable(False)  # no child process of ours is to hold a client's connection
                    connection.setblocking(False)
                    starting = asyncio.ensure_future(self._serve(connection))
                    self._starting.add(starting)
                    starting.add_done_callback(self._starting.discard)
                if not descriptors:  # we have no descriptor left for it: no more of them for a while
                    self.rest(True)
                    asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self.rest, False)

    def _path(self, slot: int) -> Path:
        return self._folder / f"{slot}.in"
