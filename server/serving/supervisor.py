"""Several processes on one port: each takes a part of the connections, and one that dies is replaced.

The parent serves no request. It owns the embedded Postgres, holds the port (so that port 0 is one number for all),
answers on the operations port for everybody, and passes SIGTERM on.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from ..settings.sources import Settings
from ..telemetry.log import LOG
from ..telemetry.metrics import Counts, Family, from_json
from .balancing import prepare
from .ports import hold_port
from .worker import VARIABLE

_LONGEST_PAUSE: Final = 5.0


class Supervisor:
    """Keeps `workers` children running until told to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="gatepost-ops-"))
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = False
        self._leaving: set[int] = set()
        self._minders: list[asyncio.Task[None]] = []
        self._restarting = asyncio.Lock()
        self._holder: Any = None
        self._counts = Counts()

    async def run(self, stop: asyncio.Event, announce: Callable[[str, int], None]) -> int:
        """Start the children, announce (host, port) once all are ready, and mind them. Gives the exit status."""
        self._holder = hold_port(self._settings.get("host"), self._settings.get("port"))
        host, port = self._holder.getsockname()[:2]
        try:
            with suppress(OSError):  # then the workers warn, and keep what the kernel gives them
                prepare(self._folder, self._settings.get("workers") + 1)  # one more while they are replaced
            ready = [await self._start(number, port) for number in range(self._settings.get("workers"))]
            if not all(await asyncio.gather(*ready)):
                await self._stop_all()
                return max((child.returncode or 1 for child in self._children.values()), default=1)
            announce(host, port)
            self._minders = [asyncio.create_task(self._mind(number, port)) for number in self._children]
            await stop.wait()
            self._stopping = True
            LOG.info("draining")
            await self._stop_all()
            for minder in self._minders:
                minder.cancel()
            return 0
        finally:
            await self._stop_all()
            self._holder.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def restart(self) -> None:
        """Replace the workers one after the other: a new one first, then the old one drains. Nobody waits for a port.

        The new ones read the settings anew. Where they cannot start (a mistake in the settings), the old ones stay.
        """
        async with self._restarting:
            assert self._holder is not None
            port = self._holder.getsockname()[1]
            for old in sorted(self._children):
                new = max(self._children) + 1
                if self._stopping or not await (await self._start(new, port)):
                    LOG.error("a new worker did not start: the old ones stay", extra={"fields": {"worker": new}})
                    self._children.pop(new, None)
                    return
                self._minders.append(asyncio.create_task(self._mind(new, port)))
                self._leaving.add(old)
                await self._end([self._children[old]])
                self._counts.retire(old)
                del self._children[old]
            LOG.info("restarted", extra={"fields": {"workers": len(self._children)}})

    async def not_ready(self) -> list[str]:
        """Why requests should not be sent here: what every worker says of itself."""
        told = await asyncio.gather(*(self._ask(number, "/readyz") for number in sorted(self._children)))
        said = [_reasons(raw) for raw in told]
        return [f"worker {number}: {reason}" for number, reasons in enumerate(said) for reason in reasons]

    async def families(self) -> list[Family]:
        """What all workers have counted, as one."""
        numbers = sorted(self._children)
        for number, raw in zip(
            numbers, await asyncio.gather(*(self._ask(one, "/metrics.json") for one in numbers)), strict=True
        ):
            with suppress(ValueError):
                self._counts.update(number, from_json(raw))
        return self._counts.total()

    async def _ask(self, number: int, path: str) -> bytes:
        """A worker's answer on its operations socket; nothing where it gives none in time."""
        connector = aiohttp.UnixConnector(str(self._folder / f"{number}.sock"))
        try:
            async with (
                asyncio.timeout(3),
                aiohttp.ClientSession(connector=connector) as client,
                client.get(f"http://worker{path}") as got,
            ):
                return await got.read()
        except (OSError, aiohttp.ClientError, TimeoutError):
            return b""

    async def _start(self, number: int, port: int) -> asyncio.Task[bool]:
        """Start a child; the task says whether it became ready."""
        listening, ready = os.pipe()
        os.set_inheritable(ready, True)
        environment = {**os.environ, VARIABLE: f"{number},{port},{ready},{self._folder}"}
        child = await asyncio.create_subprocess_exec(*_command(), env=environment, pass_fds=(ready,))
        os.close(ready)
        self._children[number] = child
        return asyncio.create_task(_said_ready(listening))

    async def _mind(self, number: int, port: int) -> None:
        pause = 0.1
        while not self._stopping:
            status = await self._children[number].wait()
            if self._is_over(number):
                return
            LOG.error("a worker died", extra={"fields": {"worker": number, "status": status, "restart_in": pause}})
            self._counts.retire(number)
            await asyncio.sleep(pause)
            if self._is_over(number):  # its place was taken meanwhile
                return
            (self._folder / f"{number}.sock").unlink(missing_ok=True)
            became_ready = await (await self._start(number, port))
            pause = 0.1 if became_ready else min(pause * 2, _LONGEST_PAUSE)

    def _is_over(self, number: int) -> bool:
        return self._stopping or number in self._leaving

    async def _stop_all(self) -> None:
        await self._end([child for child in self._children.values() if child.returncode is None])

    async def _end(self, children: list[asyncio.subprocess.Process]) -> None:
        """SIGTERM to each, and SIGKILL to who has not gone long after the drain should have ended."""
        for child in children:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        limit = 2 * float(self._settings.get("limits.drain_seconds")) + 10
        waiting = [asyncio.create_task(child.wait()) for child in children]
        if waiting and (await asyncio.wait(waiting, timeout=limit))[1]:
            for child in children:
                with suppress(ProcessLookupError):
                    child.kill()


def _reasons(raw: bytes) -> list[str]:
    try:
        return list(json.loads(raw).get("reasons", ()))
    except ValueError:
        return ["does not answer"]


def _command() -> list[str]:
    """How this very process was started."""
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py":
        return [sys.executable, "-m", "server", *sys.argv[1:]]
    return [sys.executable, script, *sys.argv[1:]]


async def _said_ready(descriptor: int) -> bool:
    """Did the child write its byte before it closed the pipe (or died)?"""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        return await reader.read(1) == b"1"
    finally:
        transport.close()
