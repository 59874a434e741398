"""Spreads the connections of one port evenly over its workers.

The kernel chooses a worker for each connection by a hash. When a load balancer keeps only a few connections open, one worker
often has twice as many as another. So a worker that has more than another hands a new connection over, before it reads
anything from it. The number of connections of each worker is in a file that all of them map into memory; connections are
handed over through a unix socket of each worker, in a folder that only this user can open.

This is an optimisation only: if anything goes wrong, the worker that has a connection serves it. Only connections that are on
their way to a worker when it is killed are lost, like those that wait in the queue of such a worker's port.
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
"""How many other workers a worker compares itself with. The best of a few chosen at random is nearly the best of all."""
_PAUSE_SECONDS: Final = 1.0


def prepare(folder: Path, slots: int) -> None:
    """Make the shared file in `folder` for at most `slots` workers at a time. Raises OSError.

    It holds 64-bit integers: for each slot the number of its connections (-1: it takes none), for each slot how many
    connections it took from others, and for each pair of slots how many the first has handed to the second.
    """
    (folder / _FILE).write_bytes(array("q", [_AWAY] * slots + [0] * slots + [0] * slots * slots).tobytes())


class ConnectionBalancer:
    """One worker's part in the balancing. Each number in the file is written by one worker only, so no lock is needed."""

    def __init__(self, folder: Path, number: int) -> None:
        """`number` is the worker's. Its slot is `number` modulo the slots: as numbers go up one at a time, no two workers
        that run at the same time share one.

        Raises OSError or ValueError where the shared file cannot be used.
        """
        self._folder = folder
        with (folder / _FILE).open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._slots = math.isqrt(len(self._cells) + 1) - 1
        self._own = number % self._slots
        self._others = [slot for slot in range(self._slots) if slot != self._own]
        self._count = 0
        self._left, self._resting = True, False
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._in = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._serve: Callable[[socket.socket], Awaitable[object]] | None = None
        self._starting: set[asyncio.Future[object]] = set()

    def open(self, serve: Callable[[socket.socket], Awaitable[object]]) -> None:
        """Take part; `serve` is called with each connection that another worker hands over. Raises OSError."""
        self._cells[self._own] = _AWAY  # an earlier worker in this slot may have been killed
        self._cells[self._slots + self._own] = self._handed_to(self._own)  # what was on its way to it is lost
        path = self._path(self._own)
        path.unlink(missing_ok=True)
        self._in.bind(str(path))
        self._serve = serve
        for one in (self._in, self._out):
            one.setblocking(False)
        asyncio.get_running_loop().add_reader(self._in, self._take)
        self._left = False
        self._publish()

    def came(self, transport: asyncio.BaseTransport) -> bool:
        """Count a new connection. False: another worker has it now, and this worker must drop its copy."""
        if not self._left:
            candidates = self._others if len(self._others) <= _ENOUGH else random.sample(self._others, _ENOUGH)
            present = [slot for slot in candidates if self._cells[slot] != _AWAY]
            mine = self._count + self._on_the_way(self._own)
            for other in sorted(present, key=self._load):
                if self._load(other) >= mine:
                    break
                if self._hand_over(transport, other):
                    return False
        self.add(1)
        return True

    def add(self, number: int) -> None:
        """Count connections that came from another worker (1) or have ended (-1)."""
        self._count += number
        self._publish()

    def rest(self, resting: bool) -> None:
        """Set whether this worker takes connections from others. One that only refuses is quick, and would attract them all."""
        self._resting = resting
        self._publish()

    def leave(self) -> None:
        """Stop taking part: no worker hands over to this one, and it hands over none. Those on their way still arrive."""
        self._left = True
        self._publish()

    def close(self) -> None:
        """Leave, take the connections that have arrived, and no more. Can be called more than once."""
        self.leave()
        if self._serve is not None:
            self._take()
            asyncio.get_running_loop().remove_reader(self._in)
            self._path(self._own).unlink(missing_ok=True)
            self._serve = None
        self._in.close()
        self._out.close()

    def _publish(self) -> None:
        self._cells[self._own] = _AWAY if self._left or self._resting else self._count

    def _load(self, slot: int) -> int:
        """The number of a worker's connections, including those that are on their way to it."""
        return self._cells[slot] + self._on_the_way(slot)

    def _on_the_way(self, slot: int) -> int:
        return self._handed_to(slot) - self._cells[self._slots + slot]

    def _handed_to(self, slot: int) -> int:
        return sum(self._cells[2 * self._slots + slot :: self._slots])

    def _hand_over(self, transport: asyncio.BaseTransport, slot: int) -> bool:
        rights = array("i", [transport.get_extra_info("socket").fileno()])
        try:
            self._out.sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, str(self._path(slot)))
        except OSError:  # it has died, or its queue is full
            return False
        self._cells[(2 + self._own) * self._slots + slot] += 1
        return True

    def _take(self) -> None:
        with suppress(OSError):  # raised when none is left
            while self._serve is not None:
                _, descriptors, _, _ = socket.recv_fds(self._in, 1, 1)
                self._cells[self._slots + self._own] += 1
                for descriptor in descriptors:
                    connection = socket.socket(fileno=descriptor)
                    connection.set_inheritable(False)  # a child process must not keep a client's connection open
                    connection.setblocking(False)
                    starting = asyncio.ensure_future(self._serve(connection))
                    self._starting.add(starting)
                    starting.add_done_callback(self._starting.discard)
                if not descriptors:  # this process has no free descriptor: take none for a while
                    self.rest(True)
                    asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self.rest, False)

    def _path(self, slot: int) -> Path:
        return self._folder / f"{slot}.in"
