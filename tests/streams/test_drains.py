"""A server that stops ends its live answers at once, and does not wait for them: as the real program, with one process and several."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from kits.live import events, until, websocket

from tests.conftest import stub
from tests.serving.test_workers import children, running, url_of

PLUGIN = '''
import asyncio, os
from aiohttp import web
from server import answer, event_stream, hookimpl, signed_in, socket

routes = web.RouteTableDef()

@routes.get("/api/ticks")
@signed_in
async def ticks(request):
    async with event_stream(request) as stream:
        await stream.send(str(os.getpid()), event="hello")
        await asyncio.Event().wait()
    return stream.response

@routes.get("/api/echo")
@signed_in
async def echo(request):
    async with socket(request) as ws:
        await ws.send_str(str(os.getpid()))
        async for message in ws:
            await ws.send_str(message.data)
    return ws

@routes.get("/api/flood")
@signed_in
async def flood(request):
    async with event_stream(request) as stream:
        while True:
            await stream.send("x" * 4096)
    return stream.response

@hookimpl
def register_handlers():
    return routes
'''


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment in which the plugin is loaded."""
    (tmp_path / "live_plugin.py").write_text(PLUGIN)
    return {"GATEPOST_PLUGINS": "module:live_plugin", "PYTHONPATH": str(tmp_path), "GATEPOST_LIMITS_DRAIN_SECONDS": "20"}


async def seconds_until(process: Any) -> float:
    started = time.monotonic()
    assert await asyncio.wait_for(process.wait(), 20) == 0
    return time.monotonic() - started


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sigterm_ends_them_at_once(db: Any, tmp_path: Path, beside: dict[str, str], workers: str) -> None:
    async with running(db, tmp_path, "--workers", workers, **beside) as process:
        port = port_of(await url_of(process))
        async with (
            events(port, "/api/ticks", stub("alice")) as one,
            events(port, "/api/ticks", stub("bob")) as two,
            websocket(port, "/api/echo", stub("alice")) as ws,
        ):
            for stream in (one, two):
                assert (await stream.next())["event"] == "hello"
            await ws.receive_str()
            started = time.monotonic()
            process.terminate()
            assert [await stream.end() for stream in (one, two)] == ["draining", "draining"]
            message = await ws.receive()
            assert (ws.close_code, message.extra) == (1001, "draining")
            assert time.monotonic() - started < 3  # on a busy machine
            assert await seconds_until(process) < 6


async def test_sighup_moves_them_to_the_new_workers(db: Any, tmp_path: Path, beside: dict[str, str]) -> None:
    async with running(db, tmp_path, "--workers", "2", **beside) as process:
        port = port_of(await url_of(process))
        before = children(process)
        async with events(port, "/api/ticks", stub("alice")) as stream, websocket(port, "/api/echo", stub("alice")) as ws:
            assert int((await stream.next())["data"]) in before
            await ws.receive_str()
            process.send_signal(signal.SIGHUP)
            assert await stream.end(30) == "draining"
            message = await asyncio.wait_for(ws.receive(), 30)
            assert (message.data, message.extra) == (1001, "draining")
        async with asyncio.timeout(30):
            while children(process) & before:
                await asyncio.sleep(0.1)
        async with events(port, "/api/ticks", stub("alice")) as again:
            assert int((await again.next())["data"]) not in before
        process.terminate()
        assert await seconds_until(process) < 8


async def test_sighup_with_one_process_ends_nothing(db: Any, tmp_path: Path, beside: dict[str, str]) -> None:
    async with running(db, tmp_path, **beside) as process:
        port = port_of(await url_of(process))
        async with events(port, "/api/ticks", stub("alice")) as stream:
            assert (await stream.next())["event"] == "hello"
            process.send_signal(signal.SIGHUP)
            with pytest.raises(TimeoutError):
                await stream.next(1)
        process.terminate()
        assert await seconds_until(process) < 6


async def test_a_worker_that_is_killed_ends_only_its_own(db: Any, tmp_path: Path, beside: dict[str, str]) -> None:
    async with running(db, tmp_path, "--workers", "2", **beside) as process:
        port = port_of(await url_of(process))
        streams: dict[int, Any] = {}
        contexts = []
        while len(streams) < 2:
            contexts.append(events(port, "/api/ticks", stub(f"u{len(contexts)}")))
            stream = await contexts[-1].__aenter__()
            streams.setdefault(int((await stream.next())["data"]), stream)
            assert len(contexts) < 50
        victim, other = streams
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(Exception, match=r"(?i)payload|reset|EOF|^$"):
            await streams[victim].next()
        with pytest.raises(TimeoutError):
            await streams[other].next(0.5)
        for context in contexts:
            await context.__aexit__(None, None, None)
        assert psutil.pid_exists(other)


@pytest.mark.long
async def test_a_reader_that_reads_nothing_is_disconnected_after_ten_seconds(db: Any, tmp_path: Path, beside: dict[str, str]) -> None:
    """The real program has another event loop than the tests; and a drain does not wait for such a reader."""
    async with running(db, tmp_path, **beside) as process:
        port = port_of(await url_of(process))
        name, value = next(iter(stub("alice").items()))
        head = f"GET /api/flood HTTP/1.1\r\nHost: 127.0.0.1\r\n{name}: {value}\r\n\r\n".encode()
        _, one = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        one.write(head)
        one.transport.pause_reading()  # type: ignore[attr-defined]
        started = time.monotonic()

        def is_open() -> bool:
            connections = psutil.Process(process.pid).net_connections()
            return any(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in connections)

        await until(is_open)
        await until(lambda: not is_open(), 25)
        assert time.monotonic() - started > 9
        _, two = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        two.write(head)
        two.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3)
        process.terminate()
        assert await seconds_until(process) < 8
        for writer in (one, two):
            writer.transport.abort()


@pytest.mark.long
async def test_gunicorn_ends_them_at_once(db: Any, tmp_path: Path, beside: dict[str, str]) -> None:
    import sys

    from kits import ROOT
    from kits.pages import free_port

    port = free_port()
    environment = {"PATH": os.environ["PATH"], "GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "GATEPOST_OPS_PORT": "0",
                   "GATEPOST_DATA_FOLDER": str(tmp_path), "DATABASE_URL": db.url, **beside,
                   "PYTHONPATH": f"{tmp_path}:{ROOT}"}  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gunicorn", "server.app:create_app()", "-b", f"127.0.0.1:{port}", "-k", "aiohttp.GunicornWebWorker",
        "-w", "1", "--graceful-timeout", "20", cwd=tmp_path, env=environment, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    break
        async with events(port, "/api/ticks", stub("alice")) as stream:
            assert (await stream.next(20))["event"] == "hello"
            process.terminate()
            assert await stream.end(5) == "draining"
        assert await seconds_until(process) < 10
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
