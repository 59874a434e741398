"""Faults to order: a network that can be cut, Postgres servers that can be killed, and traffic that counts what it got."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from kits.postgres import FAST, Cluster, bin_folders
from tests.conftest import Client, TestDatabase, stub


class Fragile(Cluster):
    """A Postgres that can be killed, frozen and started again. What was committed outlives its processes."""

    options = (*FAST, "synchronous_commit=on")

    def processes(self) -> list[int]:
        """The server's processes, the first one first."""
        assert self._process
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def send(self, how: signal.Signals) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def down(self, how: signal.Signals) -> None:
        """End it: in order (SIGINT) or at once (SIGKILL, every process)."""
        assert self._process
        if how == signal.SIGKILL:
            self.send(how)
        else:
            self._process.send_signal(how)
        self._process.wait(20)

    def up(self) -> None:
        """Start it again on its data, if it is down."""
        assert self._process
        assert self.folder
        if self._process.poll() is None:
            return
        data = self.folder / "data"
        (data / "postmaster.pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", data, "-k", self.folder, *(word for one in self.options for word in ("-c", one))],
                stdout=log, stderr=log, start_new_session=True, **self._as)  # fmt: skip
        self._wait(data / "postmaster.pid")


@contextlib.contextmanager
def fragile_server() -> Iterator[Fragile]:
    """A Fragile that runs until the block ends. The test is skipped where no Postgres is installed."""
    if not bin_folders():
        pytest.skip("no Postgres to kill is installed")
    server = Fragile(next(iter(bin_folders().values())))
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Standby(Fragile):
    """A streaming copy of another server, made by pg_basebackup; can be promoted."""

    def __init__(self, primary: Fragile) -> None:
        super().__init__(primary.bin)
        self._primary = primary

    def start(self) -> None:
        import tempfile

        assert self._primary.folder
        self.passwords, self.databases, self.roles = self._primary.passwords, [], []
        self.run, self.owner_role, self._as = self._primary.run, self._primary.owner_role, dict(self._primary._as)
        self.folder = Path(tempfile.mkdtemp(prefix="gp-"))
        if "user" in self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
        self._as["cwd"] = self.folder
        subprocess.run([self.bin / "pg_basebackup", "-h", self._primary.folder, "-U", "postgres", "-D", self.folder / "data", "-R",
                        "-c", "fast", "--no-sync"], check=True, capture_output=True, **self._as)  # fmt: skip
        self._address = {"host": str(self.folder), "port": 5432}
        self._process = subprocess.Popen(["true"])
        self._process.wait()
        self.up()

    def _wait(self, status: Path) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(OSError, IndexError):
                if status.read_text().splitlines()[7].strip() in ("ready", "standby"):
                    return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text() if self.folder else "")

    async def promote(self) -> None:
        async with self.as_admin() as admin:
            await admin.fetchval("SELECT pg_promote()")


@contextlib.contextmanager
def with_standby() -> Iterator[tuple[Fragile, Standby]]:
    """A running primary, and a standby of it that is still to be started."""
    with fragile_server() as primary:
        standby = Standby(primary)
        try:
            yield primary, standby
        finally:
            standby.stop()
            with contextlib.suppress(Exception):
                primary.up()


class Link:
    """A TCP port that forwards to a server's socket, and on request drops all data or closes at once."""

    def __init__(self, server: Cluster) -> None:
        self._socket = f"{server.folder}/.s.PGSQL.5432"
        self.refused = 0
        self._mode = "open"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def start(self) -> Link:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def swallow(self) -> None:
        """As after a power failure or a firewall's restart: nothing is returned, and no connection is closed."""
        self._mode = "swallow"
        for task in self._tasks:
            task.cancel()

    def hang_up(self) -> None:
        """Close what is open, and what comes, at once."""
        self._mode = "hang up"
        for writer in self._writers:
            writer.close()

    def open(self) -> None:
        """New connections get through again; those that were swallowed stay so."""
        self._mode = "open"

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self._mode == "swallow":
            return
        if self._mode == "hang up":
            self.refused += 1
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.close()
            return
        self._writers.append(far_writer)
        for one, other in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._pump(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        if self._mode != "swallow":
            writer.close()


@contextlib.asynccontextmanager
async def link(server: Cluster) -> AsyncIterator[Link]:
    one = await Link(server).start()
    try:
        yield one
    finally:
        await one.stop()


@dataclass
class Traffic:
    """Two tenants who read and write without pause, and what they were answered."""

    client: Client
    callers: int = 8
    answers: Counter[str] = field(default_factory=Counter)
    made: dict[int, list[str]] = field(default_factory=dict)
    slowest: float = 0.0
    last_failure: float = 0.0
    last_success: float = 0.0
    _stop: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.ensure_future(self._caller(n)) for n in range(self.callers)]
        await asyncio.sleep(0.3)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _caller(self, number: int) -> None:
        who = ("alice", "bob")[number % 2]
        caller = stub(who, org_id=f"org_{who}")
        while not self._stop:
            name = f"{who} {uuid4().hex}"
            await self._one("POST", self.client.post("/api/data", caller, {"name": name}), name)
            got = await self._one("GET", self.client.get("/api/data?limit=3", caller))
            if got is not None and got.status == 200:
                assert {row["user_id"] for row in got.json()} <= {who}
            await asyncio.sleep(0.005)

    async def _one(self, method: str, asking: Awaitable[Any], name: str | None = None) -> Any:
        begun = time.perf_counter()
        try:
            got = await asking
            status = got.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            got, status = None, 0
        self.slowest = max(self.slowest, time.perf_counter() - begun)
        self.answers[f"{method} {status or 'lost'}"] += 1
        if status not in (200, 201):
            self.last_failure = time.monotonic()
        else:
            self.last_success = time.monotonic()
        if name is not None:
            self.made.setdefault(status, []).append(name)
        return got

    async def well(self, since: float, seconds: float = 30) -> None:
        """Wait for a second of success without a failure."""
        while self.last_success < max(self.last_failure, since) + 1:
            assert time.monotonic() - since < seconds, f"it does not recover: {self.answers}"
            await asyncio.sleep(0.05)

    def told(self, *also: int) -> None:
        """Nothing was lost, and nothing but 200, 201 and 503 (and what is expected also) was answered."""
        seen = {key.split()[1] for key in self.answers}
        assert seen <= {"200", "201", "503", *map(str, also)}, self.answers

    async def kept(self, db: TestDatabase) -> None:
        """Every row that was answered with 201 is there once; one whose answer was another is there once or not at all."""
        there = Counter(row["name"] for row in await db.rows("SELECT name FROM data"))
        assert [name for name in self.made.get(201, []) if there[name] != 1] == []
        assert [name for names in self.made.values() for name in names if there[name] > 1] == []
        assert set(there) <= {name for names in self.made.values() for name in names}

    def report(self, drill: str, recovered: float) -> str:
        count = {key.split()[1]: 0 for key in self.answers}
        for key, n in self.answers.items():
            count[key.split()[1]] += n
        by = ", ".join(f"{status} {n}" for status, n in sorted(count.items()) if status != "lost")
        return f"drill: {drill} | {sum(count.values())} | {by} | {count.get('lost', 0)} | {self.slowest:.1f} s | {recovered:.1f} s"


