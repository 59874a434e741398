"""Shutdown of the real program: received requests are answered, and nothing else delays the end of the process."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_workers import children, running, url_of

BODY = b'{"name": "sent while draining"}'
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


_WRITERS: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def close_what_was_opened() -> AsyncIterator[None]:
    yield
    for writer in _WRITERS:
        writer.transport.abort()
    _WRITERS.clear()
    await asyncio.sleep(0)


async def opened(url: str, data: bytes = b"") -> Opened:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    _WRITERS.append(writer)
    writer.write(data)
    await writer.drain()
    return reader, writer


def head(method: str, path: str, length: int = 0) -> bytes:
    body = f"Content-Type: application/json\r\nContent-Length: {length}\r\n" if length else ""
    return f'{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Stub user_id="u"\r\n{body}\r\n'.encode()


async def kept(url: str) -> Opened:
    """A connection that was used once and is kept open."""
    reader, writer = await opened(url, head("GET", "/api/me"))
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(0.1)
    return reader, writer


# The bounds below are for a busy machine; on an idle one each of these ends takes less than a second.
async def seconds_until_end(process: asyncio.subprocess.Process, within: float = 20, status: int = 0) -> float:
    started = time.monotonic()
    assert await asyncio.wait_for(process.wait(), within) == status
    return time.monotonic() - started


@WORKERS
async def test_a_body_that_is_still_coming_is_awaited_and_answered(db: Any, tmp_path: Path, workers: str) -> None:
    async with running(db, tmp_path, "--workers", workers, GATEPOST_LIMITS_DRAIN_SECONDS="15") as process:
        url = await url_of(process)
        _idle = await kept(url)
        reader, writer = await opened(url, head("POST", "/api/data", len(BODY)) + BODY[:10])
        await asyncio.sleep(0.3)
        process.terminate()
        await asyncio.sleep(2)
        writer.write(BODY[10:])
        response = await asyncio.wait_for(reader.read(), 5)
        assert response.startswith(b"HTTP/1.1 201")
        assert b"Connection: close" in response
        assert await seconds_until_end(process) < 5


@WORKERS
async def test_idle_connections_hold_nothing(db: Any, tmp_path: Path, workers: str) -> None:
    async with running(db, tmp_path, "--workers", workers) as process:
        url = await url_of(process)
        connections = [await kept(url) for _ in range(3)]
        connections += [await opened(url), await opened(url, head("GET", "/api/me")[:20])]
        await asyncio.sleep(0.1)
        process.terminate()
        assert await seconds_until_end(process) < 5
        for reader, _ in connections:
            await asyncio.wait_for(reader.read(), 1)


async def test_a_request_on_a_kept_connection_is_answered_in_the_first_moment(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path) as process:
        reader, writer = await kept(await url_of(process))
        process.terminate()
        await asyncio.sleep(0.1)
        writer.write(head("GET", "/api/me"))
        assert b"Connection: close" in await asyncio.wait_for(reader.read(), 5)


async def test_requests_behind_another_are_answered_too(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path) as process:
        url = await url_of(process)
        reader, writer = await opened(url, head("POST", "/api/data", len(BODY)) + BODY[:10])
        await asyncio.sleep(0.2)
        process.terminate()
        await asyncio.sleep(0.2)
        writer.write(BODY[10:] + 2 * head("GET", "/api/me"))
        response = await asyncio.wait_for(reader.read(), 5)
        assert response.count(b"HTTP/1.1 2") == 3
        assert response.count(b"Connection: close") == 1


async def test_a_body_that_never_comes_holds_the_process_for_drain_seconds(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path, GATEPOST_LIMITS_DRAIN_SECONDS="2") as process:
        _open = await opened(await url_of(process), head("POST", "/api/data", len(BODY)) + BODY[:10])
        await asyncio.sleep(0.2)
        process.terminate()
        assert 1.8 < await seconds_until_end(process) < 8


async def test_responses_that_no_client_reads_hold_the_process_for_drain_seconds(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path, GATEPOST_LIMITS_DRAIN_SECONDS="2") as process:
        url = await url_of(process)
        _reader, writer = await opened(url)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(4000):
            writer.write(head("GET", "/api/public/openapi.json"))
        await asyncio.sleep(1)
        process.terminate()
        assert 1.8 < await seconds_until_end(process) < 8


@WORKERS
async def test_a_second_interrupt_ends_it_at_once(db: Any, tmp_path: Path, workers: str) -> None:
    async with running(db, tmp_path, "--workers", workers, GATEPOST_LIMITS_DRAIN_SECONDS="15") as process:
        url = await url_of(process)
        _open = await opened(url, head("POST", "/api/data", len(BODY)) + BODY[:10])
        started = children(process)
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(1)
        assert process.returncode is None
        process.send_signal(signal.SIGINT)
        assert await seconds_until_end(process, status=130) < 3
        for _ in range(100):
            if not any(Path(f"/proc/{pid}").exists() for pid in started):
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("a worker is still there")


async def test_sighup_does_not_end_a_single_process(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path) as process:
        url = await url_of(process)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        async with asyncio.timeout(5):
            while b"SIGHUP ignored" not in (line := await process.stderr.readline()):
                assert line
        await kept(url)
        process.terminate()
        assert await seconds_until_end(process) < 5
