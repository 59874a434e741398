"""Several processes on one port, as the real program: started, killed, replaced and drained."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from kits import ROOT
from kits.pages import free_port

from server.serving.supervisor import hold


@asynccontextmanager
async def running(db: Any, folder: Path, *words: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m server` with these arguments; killed at the end with every process that it started."""
    given = {"GATEPOST_ENV": "test", "GATEPOST_PROVIDERS": "stub", "GATEPOST_PORT": "0", "GATEPOST_OPS_PORT": "0",
             "GATEPOST_DATA_FOLDER": str(folder), "DATABASE_URL": db.url, **environment}  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=ROOT, env={"PATH": os.environ["PATH"], **given},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    everyone = [psutil.Process(process.pid)]
    try:
        yield process
        everyone += everyone[0].children(recursive=True) if process.returncode is None else []
    finally:
        if process.returncode is None:
            everyone += everyone[0].children(recursive=True)
            process.kill()
        for one in everyone[1:]:
            if one.is_running():
                one.kill()
        await process.communicate()


async def url_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode()
    assert line.startswith("Gatepost serves on "), line
    return line.split()[-1]


def children(process: asyncio.subprocess.Process) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children()}


async def status(url: str) -> int:
    async with aiohttp.ClientSession() as client, client.get(f"{url}/api/me", headers={"Authorization": 'Stub user_id="u"'}) as got:
        return got.status


async def test_one_port_for_all_and_a_dead_worker_is_replaced(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path, "--workers", "2") as process:
        url = await url_of(process)
        before = children(process)
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(20):
            while victim in children(process) or len(children(process)) < 2:
                await asyncio.sleep(0.05)
            assert await status(url) == 200  # by the surviving worker or the new one
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.long
async def test_a_killed_parent_leaves_no_worker_behind(db: Any, tmp_path: Path) -> None:
    async with running(db, tmp_path, "--workers", "2") as process:
        await url_of(process)
        orphans = [psutil.Process(pid) for pid in children(process)]
        process.kill()
        async with asyncio.timeout(20):
            while any(orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE for orphan in orphans):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_taken_port_is_a_mistake_in_the_settings(db: Any, tmp_path: Path, workers: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with running(db, tmp_path, "--workers", workers, "--port", port) as process:
            out, err = await asyncio.wait_for(process.communicate(), 30)
            assert (process.returncode, out) == (2, b"")
            assert err.decode().splitlines()[-1].startswith(f"gatepost: port: cannot serve on 127.0.0.1:{port}")


@pytest.mark.long
async def test_a_mistake_that_shows_only_in_the_workers_prevents_startup(db: Any, tmp_path: Path) -> None:
    wrong = db.url.replace("gatepost_app", "nobody_at_all")
    async with running(db, tmp_path, "--workers", "2", DATABASE_URL=wrong) as process:
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode in (1, 2)


@pytest.mark.long
async def test_requests_that_were_accepted_are_answered_while_draining(db: Any, tmp_path: Path) -> None:
    """SIGTERM under load: every request that was sent before it on an open connection is answered."""
    async with running(db, tmp_path, "--workers", "2") as process:
        url = await url_of(process)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=20)) as client:
            headers = {"Authorization": 'Stub user_id="u"'}
            for _ in range(20):
                async with client.get(f"{url}/api/data", headers=headers) as got:
                    assert got.status == 200
            under_way = [asyncio.create_task(_get(client, f"{url}/api/data", headers)) for _ in range(20)]
            await asyncio.sleep(0)
            process.terminate()
            answers = await asyncio.gather(*under_way)
        # A connection that was opened too late is refused, and the client can retry; none was accepted and lost.
        assert set(answers) <= {200, "refused"}
        assert 200 in answers
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def _get(client: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> int | str:
    try:
        async with client.get(url, headers=headers) as got:
            return got.status
    except aiohttp.ClientConnectorError:
        return "refused"


async def test_sighup_replaces_every_worker_and_loses_no_request(db: Any, tmp_path: Path) -> None:
    """Kept connections that are used all the time: each request is answered with 200."""
    async with running(db, tmp_path, "--workers", "2") as process:
        url = await url_of(process)
        before, over, answers = children(process), asyncio.Event(), []

        async def keep_asking() -> None:
            async with aiohttp.ClientSession(headers={"Authorization": 'Stub user_id="u"'}) as client:
                while not over.is_set():
                    async with client.get(f"{url}/api/me") as got:
                        answers.append(got.status)
                    await asyncio.sleep(0.005)

        askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(40):
            while children(process) & before or len(children(process)) != 2:
                await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(*askers)
        assert len(answers) > 50
        assert set(answers) == {200}
        assert await status(url) == 200
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_mistake_that_came_into_the_settings_keeps_the_old_workers(db: Any, tmp_path: Path) -> None:
    file = tmp_path / "gatepost.toml"
    file.write_text("")
    async with running(db, tmp_path, "--workers", "2", GATEPOST_CONFIG=str(file)) as process:
        url = await url_of(process)
        before = children(process)
        file.write_text("no_such_key = 1\n")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b"the old ones stay" not in await process.stderr.readline():
                pass
            while children(process) != before:  # the new worker has not ended yet
                await asyncio.sleep(0.05)
        assert await status(url) == 200


async def test_readyz_names_the_workers_by_their_numbers_after_a_restart(db: Any, tmp_path: Path) -> None:
    ops = f"http://127.0.0.1:{free_port()}"
    async with running(db, tmp_path, "--workers", "2", GATEPOST_OPS_PORT=ops.rpartition(":")[2]) as process:
        await url_of(process)
        before = children(process)
        process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(40):
            while children(process) & before or len(children(process)) != 2:
                await asyncio.sleep(0.05)
        stopped = max(children(process), key=lambda pid: psutil.Process(pid).create_time())
        os.kill(stopped, signal.SIGSTOP)
        try:
            async with aiohttp.ClientSession() as client, client.get(f"{ops}/readyz") as got:
                assert (got.status, (await got.json())["reasons"]) == (503, ["worker 3: does not answer"])
        finally:
            os.kill(stopped, signal.SIGCONT)


async def test_a_task_that_has_ended_is_not_kept() -> None:
    tasks: set[asyncio.Task[None]] = set()
    over = asyncio.Event()

    async def work() -> None:
        await over.wait()

    hold(tasks, work())
    assert len(tasks) == 1
    over.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)
    assert tasks == set()
