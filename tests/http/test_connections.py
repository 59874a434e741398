"""Too many connections, too few descriptors, too many header lines, JSON too deep: bounded, and the others are served."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from kits import ROOT
from kits.app import Client, ask, build_app, serving

from server.http.descriptors import _AcceptErrors, room_for
from server.http.response import STANDARD_HEADERS
from server.settings.setting import ConfigError
from tests.conftest import ALICE, Serve

HEALTH = ("GET", "/api/health")


async def test_connections_beyond_the_limit_are_answered_503_and_the_others_are_served() -> None:
    async with serving(build_app(limits__connections=3)) as port, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(Client(port)) for _ in range(3)]
        for client in held:
            assert (await client.ask(*HEALTH)).status == 200
        for _ in range(5):
            async with Client(port) as more:
                reply = await more.reply()  # without asking
                assert (reply.status, reply.json) == (503, {"error": "Service Unavailable"})
                assert reply.headers["retry-after"] == "1"
                assert {name.title() for name in reply.headers} >= {name.title() for name in STANDARD_HEADERS} | {"X-Request-Id"}
                assert reply.ends_the_connection
                assert await more.closed_by_server()
        for client in held:
            assert (await client.ask(*HEALTH)).status == 200
        await held.pop().close()
        async with asyncio.timeout(5):
            while True:  # the server hears of the end a moment later
                async with Client(port) as next_one:
                    if (await next_one.ask(*HEALTH)).status == 200:
                        break


# Descriptors -----------------------------------------------------------------------------------------------------------

# The real application on the loop that is named, in a process that may have few descriptors and uses them all up on a word.
SERVER = """
import asyncio, resource, sys
sys.path[:0] = ["tests"]
from kits.app import build_app, serving
from server.telemetry.log import start_logging

async def main():
    start_logging("human")
    loop = asyncio.get_running_loop()
    async with serving(build_app(limits__connections=1000)) as port:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        print(port, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        held = []
        try:
            while True:
                held.append(open("/dev/null"))
        except OSError:
            print("none left", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        for one in held:
            one.close()
        print("free again", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


class Exhausted:
    """The process of SERVER."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")


@asynccontextmanager
async def exhausted(loop: str) -> AsyncIterator[Exhausted]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, loop, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        yield Exhausted(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.long
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_without_descriptors_old_connections_are_served_and_the_log_is_bounded(loop: str) -> None:
    async with exhausted(loop) as server, AsyncExitStack() as stack:
        port = int(await server.line())
        old = await stack.enter_async_context(Client(port))
        assert (await old.ask(*HEALTH)).status == 200
        server.go_on()
        assert await server.line() == "none left"
        for _ in range(50):
            await stack.enter_async_context(Client(port))
        for _ in range(12):  # three seconds, in which the bare loop writes thousands of lines
            assert (await old.ask(*HEALTH)).status == 200
            await asyncio.sleep(0.25)
        server.go_on()
        assert await server.line() == "free again"
        async with asyncio.timeout(10):
            while True:
                try:
                    assert (await ask(port, *HEALTH)).status == 200
                    break
                except (asyncio.IncompleteReadError, ConnectionError):
                    continue
        assert (await old.ask(*HEALTH)).status == 200
        server.go_on()
        _, log = await server.process.communicate()
        assert server.process.returncode == 0
        lines = log.decode().splitlines()
        assert len([line for line in lines if "accept" in line]) <= 10
        assert len(lines) <= 20, lines
        if loop == "asyncio":
            assert "out of system resource" in log.decode(), "the test has used up nothing"


def test_one_line_a_second_and_nothing_else_is_held_back() -> None:
    now = [100.0]
    bound = _AcceptErrors(lambda: now[0])

    def passes(text: str) -> bool:
        return bound.filter(logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None))

    accept = "socket.accept() out of system resource\nsocket: ..."
    assert [passes(accept) for _ in range(3)] == [True, False, False]
    assert passes("Task exception was never retrieved")
    now[0] += 1
    retry = "Exception in callback BaseSelectorEventLoop._start_serving(<...>)\nhandle: ..."
    assert [passes(text) for text in (accept, accept, retry)] == [True, False, False]


ROOM = "import resource as r, sys; from server.http.descriptors import room_for; r.setrlimit(r.RLIMIT_NOFILE, ({}, {})); print(room_for({}, {}), r.getrlimit(r.RLIMIT_NOFILE)[0])"


@pytest.mark.parametrize(("soft", "hard", "connections", "others", "room", "raised"), [
    (2048, 2048, 1000, 32, 1000, 2048), (256, 4096, 1000, 32, 1000, 1096), (256, 512, 1000, 32, 416, 512), (64, 64, 1000, 32, 32, 64),
])  # fmt: skip
def test_room_is_made_for_connections_or_fewer_are_taken(
    soft: int, hard: int, connections: int, others: int, room: int, raised: int
) -> None:
    code = ROOM.format(soft, hard, connections, others)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(room), str(raised)]
    assert ("too few descriptors" in done.stderr) == (room < connections)


def test_enough_room_changes_nothing() -> None:
    assert room_for(10, 1) == 10


# Heads and bodies ------------------------------------------------------------------------------------------------------


async def test_more_header_lines_than_are_allowed_are_a_431() -> None:
    async with serving(build_app(limits__headers=20)) as port:
        for lines, status in ((19, 200), (30, 431)):  # and Host
            more = [(f"X-{number}", "1") for number in range(lines)]
            assert (await ask(port, *HEALTH, *more)).status == status


@pytest.mark.parametrize(("depth", "status"), [(5, 201), (6, 400)])
async def test_json_deeper_than_is_allowed_is_a_400(serve: Serve, depth: int, status: int) -> None:
    client = await serve({"limits.json_depth": 5})
    nested = "[" * (depth - 2) + "]" * (depth - 2)
    body = f'{{"name": "x", "payload": {{"a": {nested}}}}}'
    headers = {**ALICE, "Content-Type": "application/json"}
    assert (await client.send("POST", "/api/data", headers, data=body)).status == status


@pytest.mark.parametrize(("key", "value"), [
    ("headers", 0), ("json_depth", 0), ("json_depth", 257), ("connections", 0), ("connections", 1_000_001),
])  # fmt: skip
def test_limits_out_of_range_prevent_startup(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"limits.{key}: must be "):
        build_app(**{f"limits__{key}": value})


async def test_the_deepest_that_can_be_set_works(serve: Serve) -> None:
    client = await serve({"limits.json_depth": 256})
    for depth, status in ((254, 201), (255, 400), (50_000, 400)):
        body = f'{{"name": "x", "payload": {{"a": {"[" * depth + "]" * depth}}}}}'
        assert (await client.send("POST", "/api/data", {**ALICE, "Content-Type": "application/json"}, data=body)).status == status
