"""The parts of bench/streams.py: Gatepost or a peer with streams, who writes rows, and the client that holds the streams."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import machine
import msgspec
from issuer import org, request
from machine import ROOT, Child
from stage import HERE, Stage
from stream_client import Watch

PEERS = ROOT / ".cache" / "peers" / "bin" / "python"
PEER_NAMES = ("fastapi", "litestar")
ORG = org(0)
PATH = {"gatepost": "/api/orgs/{}/data/events", "fastapi": "/events", "litestar": "/events"}
TEN = 10
_ready: dict[tuple[str, int], list[bytes]] = {}
"""Requests by shape, path and first number: the tokens are signed once for all servers with the same path."""
INSERT = "INSERT INTO org_data (organization_id, created_by, name) VALUES ($1, 'user_bench', $2)"


def files(number: int) -> str | None:
    """Let this process and its children open so many files. Returns a sentence where the machine does not allow it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        if wanted < number:
            return f"a process may open {hard} files here (ulimit -Hn), and {number} are needed"
    return None


def requests(stage: Stage, server: str, number: int, first: int = 0, shape: str = "broadcast") -> list[bytes]:
    """The requests that open a stream for each of so many users, as many as were asked for first.

    shape   `broadcast`: all users are in one organisation; `tenants`: TEN in each
    """
    ready = _ready.setdefault((f"{shape} {PATH[server]}", first), [])
    for at in range(first + len(ready), first + number):
        tenant = ORG if shape == "broadcast" else tenant_of(at)
        ready.append(request(PATH[server].format(tenant), stage.issuer.token(100 * at, tenant)))
    return ready[:number]


def tenant_of(number: int) -> str:
    """The organisation of the stream with this number, in the shape `tenants`."""
    return f"org_t{number // TEN:023d}"


class Writer(Protocol):
    def add(self, name: str, tenant: str = ORG) -> float:
        """Write a row with this name for an organisation; the time just before its COMMIT."""


class DirectWriter:
    """Writes to Gatepost's database past the server, as another service would."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._runner = stage, asyncio.Runner()
        self._context = stage.postgres.admin(stage.postgres.locked)
        self._connection: asyncpg.Connection = self._runner.run(self._context.__aenter__())

    def add(self, name: str, tenant: str = ORG) -> float:
        return self.commit(INSERT, [(tenant, name)])

    def commit(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> float:
        """Execute the statement for each row in one transaction; the time just before the COMMIT."""
        return self._runner.run(self._commit(sql, rows))

    async def _commit(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> float:
        transaction = self._connection.transaction()
        await transaction.start()
        for row in rows:
            await self._connection.execute(sql, *row)
        committing = time.monotonic()
        await transaction.commit()
        return committing

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


class PeerWriter:
    """Asks the peer to write a row, since it can tell its streams of no other."""

    def __init__(self, port: int) -> None:
        self._port = port

    def add(self, name: str, tenant: str = ORG) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)  # a new one: idle ones are soon closed
        with contextlib.closing(connection):
            connection.request("POST", f"/rows/{tenant}/{name}")
            return float(json.loads(connection.getresponse().read()))

    def close(self) -> None:
        """Nothing is kept open."""


@contextlib.contextmanager
def peer(stage: Stage, name: str) -> Iterator[Child]:
    """FastAPI or Litestar, in their own environment."""
    env = {"PEER_DATABASE": stage.postgres.url(stage.postgres.plain, stage.postgres.bare), "PEER_KEY": stage.issuer.pem}
    child = Child([str(PEERS), str(HERE / f"peer_{name}.py")], env, {stage.server_cpu}, stage.folder / f"{name}.log")
    try:
        yield child
    finally:
        child.stop()


@contextlib.contextmanager
def gatepost(stage: Stage, workers: int = 1) -> Iterator[Child]:
    """Gatepost with its usual settings but for the numbers of streams, which one client may all open here."""
    settings = {"workers": workers, "streams.per_caller": 6000, "streams.total": 6000}
    cpu = {stage.server_cpu} if workers == 1 else {stage.server_cpu, stage.load_cpu}
    with stage.gatepost(settings, cpu=cpu) as child:
        yield child


class Client:
    """The process that holds the streams; see stream_client.py for what it can be asked."""

    def __init__(self, stage: Stage, child: Child, opening: Sequence[bytes], folder: Path) -> None:
        path = folder / f"watch-{time.monotonic_ns()}"
        path.write_bytes(msgspec.msgpack.encode(Watch(child.port, list(opening))))
        command = [sys.executable, str(HERE / "stream_client.py"), str(path)]
        self._log = child.log
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        machine.pin(self._process.pid, {stage.load_cpu})

    def ask(self, word: str, value: Any = None) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({word: value}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the client of the streams has ended")
        return json.loads(line)

    def open(self, number: int) -> float:
        """Open so many more streams; the seconds that it took. Raises RuntimeError unless all are open."""
        told = self.ask("open", number)
        if told["statuses"] != {"200": number}:
            raise RuntimeError(f"{number} streams were asked for: {told}; the end of the server's log:\n{_last_lines(self._log)}")
        return float(told["seconds"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _last_lines(log: Path) -> str:
    """The last lines of a server's log, without those of streams that have ended."""
    return "\n".join([line for line in log.read_text().splitlines() if '"stream ended"' not in line][-5:])


@contextlib.contextmanager
def watching(stage: Stage, child: Child, opening: Sequence[bytes]) -> Iterator[Client]:
    """A client that can open these streams; they are closed with the block."""
    client = Client(stage, child, opening, stage.folder)
    try:
        yield client
    finally:
        client.close()
