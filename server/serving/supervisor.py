"""Several worker processes on one port: each takes a part of the connections, and one that dies is replaced.

The parent serves no request. It owns the embedded Postgres, holds the port (so that port 0 is one number for all), answers
on the operations port for all workers, and passes SIGTERM on to them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from ..settings.sources import Settings
from ..telemetry.log import LOG
from ..telemetry.metrics import Counts, Family, from_json
from .balancing import prepare
from .children import became_ready, command
from .ports import hold_port
from .signals import ended_first
from .worker import VARIABLE

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
"""Seconds before a worker that has died is started again: doubled each time that it does not become ready."""


class Supervisor:
    """Keeps the children of the setting `workers` running until the server is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="gatepost-ops-"))
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = False
        self._leaving: set[int] = set()
        self._minders: set[asyncio.Task[None]] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self._restarting = asyncio.Lock()
        self._holder: Any = None
        self._counts = Counts()

    async def run(self, stop: asyncio.Event, announce: Callable[[str, int], None]) -> int:
        """Start the children, announce (host, port) once all are ready, and replace those that die. Returns the exit status.

        Raises ConfigError when the port is taken.
        """
        self._holder = hold_port(self._settings.get("host"), self._settings.get("port"))
        host, port = self._holder.getsockname()[:2]
        try:
            with suppress(OSError):  # then the workers log a warning, and serve what the kernel gives them
                prepare(self._folder, self._settings.get("workers") + 1)  # one more while they are replaced
            ready = [await self._start(number, port) for number in range(self._settings.get("workers"))]
            if not await self._before(stop, starting := asyncio.gather(*ready)):
                return 0
            if not all(starting.result()):
                await self._stop_all()
                return max((child.returncode or 1 for child in self._children.values()), default=1)
            announce(host, port)
            for number in self._children:
                hold(self._minders, self._mind(number, port))
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

    async def _before(self, stop: asyncio.Event, starting: asyncio.Future[Any]) -> bool:
        """Wait until the children are ready or have failed. False if the server was stopped meanwhile: it ends them."""
        if await ended_first(starting, stop):
            return True
        await self._stop_all()
        await starting
        return False

    def restart_soon(self) -> None:
        """Begin `restart`, unless the workers are still starting."""
        if not self._minders:
            LOG.warning("SIGHUP ignored: the workers are still starting")
            return
        hold(self._restarts, self.restart())

    def kill(self) -> None:
        """End every child at once, without draining."""
        for child in self._children.values():
            with suppress(ProcessLookupError):
                child.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def restart(self) -> None:
        """Replace the workers one after the other: the new one starts, then the old one drains. The port is always open.

        The new ones read the settings again. If one cannot start (a mistake in the settings), the old ones stay.
        """
        async with self._restarting:
            port = self._holder.getsockname()[1]
            for old in sorted(self._children):
                new = max(self._children) + 1
                if self._stopping or not await (await self._start(new, port)):
                    LOG.error("a new worker did not start: the old ones stay", extra={"fields": {"worker": new}})
                    self._children.pop(new, None)
                    return
                hold(self._minders, self._mind(new, port))
                self._leaving.add(old)
                await self._end([self._children[old]])
                self._counts.retire(old)
                del self._children[old]
            LOG.info("restarted", extra={"fields": {"workers": len(self._children)}})

    async def not_ready(self) -> list[str]:
        """Why no requests should be sent here: the reasons of every worker, each with the worker's number; else empty."""
        return [f"worker {number}: {reason}" for number, raw in await self._ask_all("/readyz") for reason in _reasons(raw)]

    async def families(self) -> list[Family]:
        """The metrics of all workers, added up."""
        for number, raw in await self._ask_all("/metrics.json"):
            with suppress(ValueError):
                self._counts.update(number, from_json(raw))
        return self._counts.total()

    async def _ask_all(self, path: str) -> list[tuple[int, bytes]]:
        """(number, answer) of every worker."""
        numbers = sorted(self._children)
        return list(zip(numbers, await asyncio.gather(*(self._ask(number, path) for number in numbers)), strict=True))

    async def _ask(self, number: int, path: str) -> bytes:
        """A worker's answer on its operations socket; empty if there is none within 3 seconds."""
        connector = aiohttp.UnixConnector(str(self._folder / f"{number}.sock"))
        try:
            async with (
                asyncio.timeout(3),
                aiohttp.ClientSession(connector=connector) as client,
                client.get(f"http://worker{path}") as response,
            ):
                return await response.read()
        except (OSError, aiohttp.ClientError, TimeoutError):
            return b""

    async def _start(self, number: int, port: int) -> asyncio.Task[bool]:
        """Start a child; the task's result is whether it became ready."""
        listening, ready = os.pipe()
        os.set_inheritable(ready, True)
        environment = {**os.environ, VARIABLE: f"{number},{port},{ready},{self._folder}"}
        child = await asyncio.create_subprocess_exec(*command(), env=environment, pass_fds=(ready,))
        os.close(ready)
        self._children[number] = child
        return asyncio.create_task(became_ready(listening))

    async def _mind(self, number: int, port: int) -> None:
        """Start the worker `number` again whenever it dies."""
        pause = _FIRST_PAUSE
        while not self._stopping:
            status = await self._children[number].wait()
            if self._is_over(number):
                return
            LOG.error("a worker died", extra={"fields": {"worker": number, "status": status, "restart_in": pause}})
            self._counts.retire(number)
            await asyncio.sleep(pause)
            if self._is_over(number):  # it was replaced meanwhile
                return
            (self._folder / f"{number}.sock").unlink(missing_ok=True)
            became_ready = await (await self._start(number, port))
            pause = _FIRST_PAUSE if became_ready else min(pause * 2, _LONGEST_PAUSE)

    def _is_over(self, number: int) -> bool:
        """Whether the worker `number` is not to be started again."""
        return self._stopping or number in self._leaving

    async def _stop_all(self) -> None:
        await self._end([child for child in self._children.values() if child.returncode is None])

    async def _end(self, children: list[asyncio.subprocess.Process]) -> None:
        """SIGTERM to each, and SIGKILL to those that are still running long after the drain should have ended."""
        for child in children:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        limit = float(self._settings.get("limits.drain_seconds")) + 8  # before an orchestrator does so, after 10
        waiting = [asyncio.create_task(child.wait()) for child in children]
        if waiting and (await asyncio.wait(waiting, timeout=limit))[1]:
            for child in children:
                with suppress(ProcessLookupError):
                    child.kill()


def hold(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run `work` as a task, held in `tasks` while it runs: the event loop alone does not keep a task alive."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _reasons(raw: bytes) -> list[str]:
    """The reasons in a worker's answer to /readyz."""
    try:
        return list(json.loads(raw).get("reasons", ()))
    except ValueError:
        return ["does not answer"]
