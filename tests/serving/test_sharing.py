"""Connections are spread evenly over the workers of one port, and none is lost on its way from one to another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from aiohttp import web
from kits.app import build_app

from server.http.connection_server import ConnectionServer
from server.serving.balancing import ConnectionBalancer, prepare
from tests.serving.test_workers import children, running, url_of

ASK = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def asked(connection: Connection) -> bytes:
    """The status of one answer."""
    reader, writer = connection
    writer.write(ASK)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    await reader.readexactly(length)
    return head[9:12]


async def held(process: asyncio.subprocess.Process, port: int, number: int) -> list[int]:
    """The number of client connections of each worker, once they have that many in total."""
    async with asyncio.timeout(10):
        while sum(counts := _held(process, port)) != number:  # one that is handed over is counted twice for a moment
            await asyncio.sleep(0.05)
    return counts


def _held(process: asyncio.subprocess.Process, port: int) -> list[int]:
    counts = Counter(dict.fromkeys(children(process), 0))
    for pid in counts:
        for one in psutil.Process(pid).net_connections("tcp"):
            counts[pid] += bool(one.raddr) and one.laddr.port == port  # also those that have ended and are not closed yet
    return sorted(counts.values())


@pytest.mark.parametrize("workers", [2, 3])
async def test_few_connections_are_spread_evenly(db: Any, tmp_path: Path, workers: int) -> None:
    """By the kernel's hash alone, one worker would usually have many more than another."""
    async with running(db, tmp_path, "--workers", str(workers)) as process, AsyncExitStack() as stack:
        port = urlsplit(await url_of(process)).port
        assert port is not None
        opened: list[Connection] = []
        for at_once in (20, 1, 1, 1, 1, 16, 20):
            made = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(at_once)))
            for _, writer in made:
                stack.callback(writer.close)
            opened += made
            assert set(await asyncio.gather(*map(asked, made))) == {b"200"}
            counts = await held(process, port, len(opened))
            assert counts[-1] - counts[0] <= 4, counts
        assert set(await asyncio.gather(*map(asked, opened))) == {b"200"}  # each works on its new worker
        for _, writer in opened[:30]:
            writer.close()
        await held(process, port, len(opened) - 30)
        for _ in range(30):
            await ask(port, stack)
        counts = await held(process, port, len(opened))
        assert counts[-1] - counts[0] <= 4, counts


@pytest.mark.long
async def test_connections_that_come_and_go_while_workers_are_replaced_are_all_answered(db: Any, tmp_path: Path) -> None:
    """Short connections, so that many are being handed over when a worker stops."""
    async with running(db, tmp_path, "--workers", "3") as process:
        port = urlsplit(await url_of(process)).port
        assert port is not None
        told: Counter[object] = Counter()
        over = asyncio.Event()

        async def come_and_go() -> None:
            while not over.is_set():
                try:
                    connection = await asyncio.open_connection("127.0.0.1", port)
                    told[await asked(connection)] += 1
                    connection[1].close()
                except (OSError, asyncio.IncompleteReadError) as error:
                    told[type(error).__name__] += 1

        clients = [asyncio.create_task(come_and_go()) for _ in range(24)]
        for _ in range(2):
            before = children(process)
            process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(60):
                while children(process) & before:
                    await asyncio.sleep(0.1)
        over.set()
        await asyncio.gather(*clients)
        assert set(told) == {b"200"}, told
        assert told[b"200"] > 500


# Two workers in one process, so that each step can be seen ------------------------------------------------------------


async def ask(port: int, stack: AsyncExitStack) -> Connection:
    connection = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(connection[1].close)
    assert await asked(connection) == b"200"
    return connection


@dataclass
class Worker:
    """An application that takes part as one worker."""

    sharing: ConnectionBalancer
    port: int
    server: ConnectionServer
    stack: AsyncExitStack
    """The client ends of the connections that were opened to its port."""

    @property
    def held(self) -> int:
        """The number of its connections."""
        return len(self.server._connections)

    async def asked(self, times: int) -> None:
        """Open that many connections to its port, one after the other, and keep them open."""
        for _ in range(times):
            await ask(self.port, self.stack)


@contextlib.asynccontextmanager
async def worker(folder: Path, number: int) -> AsyncIterator[Worker]:
    runner = web.AppRunner(build_app(), shutdown_timeout=0.2)
    await runner.setup()
    sharing = ConnectionBalancer(folder, number)
    assert isinstance(runner.server, ConnectionServer)
    sharing.open(runner.server.take)
    runner.server.sharing = sharing
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with AsyncExitStack() as stack:
            yield Worker(sharing, runner.addresses[0][1], runner.server, stack)
    finally:
        sharing.close()
        await runner.cleanup()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    prepare(tmp_path, 2)
    async with worker(tmp_path, 0) as one, worker(tmp_path, 1) as other:
        yield one, other


async def test_who_has_more_hands_the_next_one_over(tmp_path: Path) -> None:
    prepare(tmp_path, 3)
    async with worker(tmp_path, 7) as mine, worker(tmp_path, 8) as other:
        await mine.asked(5)
        assert (mine.held, other.held) == (3, 2)


async def test_whoever_leaves_is_handed_nothing_and_hands_nothing_over(two: tuple[Worker, Worker]) -> None:
    mine, other = two
    await other.asked(4)
    assert (mine.held, other.held) == (2, 2)
    other.sharing.leave()
    await mine.asked(3)
    await other.asked(4)
    assert (mine.held, other.held) == (5, 6)


async def test_a_worker_that_can_only_refuse_is_handed_nothing_until_it_can_do_more(two: tuple[Worker, Worker]) -> None:
    mine, other = two
    other.sharing.rest(True)
    await mine.asked(3)
    assert (mine.held, other.held) == (3, 0)
    other.sharing.rest(False)
    await mine.asked(3)
    assert (mine.held, other.held) == (3, 3)


async def test_no_child_process_holds_a_connection_that_was_handed_over(two: tuple[Worker, Worker]) -> None:
    mine, other = two
    await mine.asked(2)
    [transport] = other.server._connections.values()
    assert not os.get_inheritable(transport.get_extra_info("socket").fileno())


async def test_without_descriptors_no_more_is_handed_over_for_a_while(
    two: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    real = socket.recv_fds
    await mine.asked(1)
    with monkeypatch.context() as full:  # as the kernel does at the limit of open files

        def none(*given: Any) -> tuple[bytes, list[int], int, Any]:
            said, descriptors, *rest = real(*given)
            for one in descriptors:
                os.close(one)
            return said, [], rest[0], rest[1]

        full.setattr(socket, "recv_fds", none)
        reader, writer = await asyncio.open_connection("127.0.0.1", mine.port)
        mine.stack.callback(writer.close)
        assert await asyncio.wait_for(reader.read(), 5) == b""
    await mine.asked(3)
    assert (mine.held, other.held) == (4, 0)


async def test_what_was_handed_to_a_busy_worker_is_answered_when_it_has_time(two: tuple[Worker, Worker]) -> None:
    mine, busy = two
    loop = asyncio.get_running_loop()
    loop.remove_reader(busy.sharing._in)
    opened = [await asyncio.open_connection("127.0.0.1", mine.port) for _ in range(12)]
    for _, writer in opened:
        mine.stack.callback(writer.close)
    asking = [asyncio.create_task(asked(connection)) for connection in opened]
    done, waiting = await asyncio.wait(asking, timeout=0.5)
    assert (len(done), len(waiting)) == (6, 6)  # no more than its share
    loop.add_reader(busy.sharing._in, busy.sharing._take)
    assert set(await asyncio.gather(*asking)) == {b"200"}
    assert (mine.held, busy.held) == (6, 6)


async def test_a_worker_that_was_killed_is_handed_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, 2)
    dead = ConnectionBalancer(tmp_path, 1)
    dead.open(asyncio.sleep)  # type: ignore[arg-type]
    asyncio.get_running_loop().remove_reader(dead._in)
    async with worker(tmp_path, 0) as mine:
        for number in range(4):
            connection = await asyncio.open_connection("127.0.0.1", mine.port)
            mine.stack.callback(connection[1].close)
            if number % 2:  # every second one was on its way when the worker was killed
                dead._in.recv(1)
        dead._in.close()
        while mine.held < 4:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await mine.asked(1)
        assert mine.held == 4
        async with worker(tmp_path, 3) as new:  # its successor begins with none
            await mine.asked(4)
            assert (mine.held, new.held) == (4, 4)
    dead._out.close()
