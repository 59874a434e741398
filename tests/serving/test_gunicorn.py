"""`gunicorn 'server.app:create_app()'` with aiohttp's worker: two processes, drained by SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
import pytest
from kits import ROOT
from kits.pages import free_port

from tests.conftest import ALICE, TestDatabase

pytestmark = pytest.mark.long
SLOW = '''
import asyncio, os
from pathlib import Path
from aiohttp import web
from server import answer, hookimpl, signed_in

routes = web.RouteTableDef()

@routes.get("/api/slow")
@signed_in
async def slow(request):
    Path("arrived").touch()
    await asyncio.sleep(2)
    return answer({"late": True})

@routes.get("/api/pid")
@signed_in
async def pid(request):
    return answer({"pid": os.getpid()})

@hookimpl
def register_handlers():
    return routes
'''


SERVICE = '''
import os
from contextlib import asynccontextmanager
from pathlib import Path
from aiohttp import web
from server import answer, hookimpl, service, signed_in

@asynccontextmanager
async def mailer():
    Path(f"opened.{os.getpid()}").touch()
    yield os.getpid()
    Path(f"closed.{os.getpid()}").touch()

@hookimpl
def register_services():
    return {"mailer": mailer}

routes = web.RouteTableDef()

@routes.get("/api/pid")
@signed_in
async def pid(request):
    return answer({"pid": service(request, "mailer")})

@hookimpl
def register_handlers():
    return routes
'''


@asynccontextmanager
async def gunicorn(folder: Path, *words: str, **more: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, Path]]:
    """(the parent process, its URL, its log file); killed at the end with its workers."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    environment = kept | {"HOME": str(folder), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "GATEPOST_ENV": "test", **more}
    log = folder / "said"
    program = [sys.executable, "-m", "gunicorn", "server.app:create_app()", "-k", "aiohttp.GunicornWebWorker"]
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *program, "--workers", "2", "--bind", f"127.0.0.1:{port}", *words,
            cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}", log
    finally:
        if process.returncode is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            await process.wait()


async def until_answers(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    async with asyncio.timeout(60):
        while True:
            assert process.returncode is None, log.read_text()
            with suppress(aiohttp.ClientError, OSError):
                async with aiohttp.ClientSession() as client, client.get(f"{url}/api/health"):
                    return
            await asyncio.sleep(0.1)


async def pids(url: str) -> set[int]:
    """The pids of the workers that answer, each asked on a new connection."""
    found = set()
    for _ in range(20):
        async with aiohttp.ClientSession() as client, client.get(f"{url}/api/pid", headers=ALICE) as got:
            found.add((await got.json())["pid"])
    return found


async def test_two_workers_serve_and_drain(db: TestDatabase, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    settings = {"DATABASE_URL": db.url, "GATEPOST_PROVIDERS": "stub", "GATEPOST_PLUGINS": "module:slow"}
    async with gunicorn(tmp_path, "--graceful-timeout", "20", **settings) as (process, url, log):
        await until_answers(process, url, log)
        async with aiohttp.ClientSession(url) as client:
            async with client.get("/api/health") as got:
                assert (got.status, await got.json()) == (200, {"status": "ok"})
                assert got.headers["Server"] == "gatepost"
            async with client.get("/api/data") as got:
                assert got.status == 401
            async with client.post("/api/data", headers=ALICE, json={"name": "first"}) as got:
                assert got.status == 201
            async with client.get("/api/data", headers=ALICE) as got:
                assert [row["name"] for row in await got.json()] == ["first"]
        workers = {child.pid for child in psutil.Process(process.pid).children()}
        assert len(workers) == 2
        assert await pids(url) <= workers
        async with aiohttp.ClientSession(url) as client:
            late = asyncio.create_task(client.get("/api/slow", headers=ALICE))
            async with asyncio.timeout(10):
                while not (tmp_path / "arrived").exists():
                    await asyncio.sleep(0.02)
            process.terminate()
            async with await late as got:
                assert (got.status, await got.json()) == (200, {"late": True})
        assert await asyncio.wait_for(process.wait(), 30) == 0, log.read_text()


async def test_its_log_is_that_of_the_own_server(db: TestDatabase, tmp_path: Path) -> None:
    """Denials, and what a 500 is about; in development with the traceback."""
    fails = SLOW.replace('Path("arrived").touch()', 'raise ValueError("what the handler says")')
    (tmp_path / "slow.py").write_text(fails)
    settings = {"DATABASE_URL": db.url, "GATEPOST_PROVIDERS": "stub", "GATEPOST_PLUGINS": "module:slow", "GATEPOST_LOG_FORMAT": "json"}
    for env in ("development", "test"):
        async with gunicorn(tmp_path, **settings, GATEPOST_ENV=env) as (process, url, log):
            await until_answers(process, url, log)
            async with aiohttp.ClientSession(url) as client:
                async with client.get("/api/data") as got:
                    assert got.status == 401
                async with client.get("/api/slow", headers=ALICE) as got:
                    assert got.status == 500
                    request_id = got.headers["X-Request-Id"]
            process.terminate()
            await asyncio.wait_for(process.wait(), 40)
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        (denied,) = [line for line in lines if line["event"] == "denied"]
        assert denied["reason"] == "credential-missing"
        (failed,) = [line for line in lines if line["event"] == "handler failed"]
        assert (failed["request_id"], failed["error"]) == (request_id, "ValueError")
        assert ("what the handler says" in failed.get("exception", "")) is (env == "development")


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["in the workers", "before them"])
async def test_each_worker_has_services_of_its_own(db: TestDatabase, tmp_path: Path, preload: list[str]) -> None:
    (tmp_path / "gp_mailer.py").write_text(SERVICE)
    settings = {"DATABASE_URL": db.url, "GATEPOST_PROVIDERS": "stub", "GATEPOST_PLUGINS": "module:gp_mailer"}
    async with gunicorn(tmp_path, *preload, **settings) as (process, url, log):
        await until_answers(process, url, log)
        async with asyncio.timeout(20):
            while len(workers := {int(file.suffix[1:]) for file in tmp_path.glob("opened.*")}) < 2:
                await asyncio.sleep(0.05)
        assert workers == {child.pid for child in psutil.Process(process.pid).children()}
        assert await pids(url) <= workers
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 40) == 0, log.read_text()
    assert {int(file.suffix[1:]) for file in tmp_path.glob("closed.*")} == workers


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "gatepost: database.url (DATABASE_URL): not set, and gunicorn's workers cannot share an embedded Postgres"),
        ({"DATABASE_URL": "postgresql:///x", "GATEPOST_PROVIDERS": "acme"}, "gatepost: providers: no loaded plugin offers 'acme'"),
        ({"GATEPOST_ENV": "", "DATABASE_URL": "postgresql:///x"},
         "gatepost: env (GATEPOST_ENV): not set; use production, or development or test for this machine only"),
    ],
    ids=["no database", "a mistake in the settings", "no environment"],
)
async def test_a_mistake_is_one_line_and_the_end(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    async with gunicorn(tmp_path, **settings) as (process, _, log):
        assert await asyncio.wait_for(process.wait(), 60) != 0  # 4, or 1 where the other worker was still starting
        said = log.read_text()
        assert any(one.startswith(line) for one in said.splitlines()), said
        assert "ConfigError" not in said  # no traceback
        assert not (tmp_path / ".gatepost").exists()


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["in the workers", "before them"])
@pytest.mark.parametrize("env", ["development", "test"])
async def test_development_is_served_on_loopback_only(env: str, preload: list[str], tmp_path: Path) -> None:
    settings = {"GATEPOST_ENV": env, "DATABASE_URL": "postgresql:///x", "GATEPOST_PROVIDERS": "stub"}
    async with gunicorn(tmp_path, *preload, "--bind", "0.0.0.0:0", **settings) as (process, _, log):
        assert await asyncio.wait_for(process.wait(), 60) != 0
        assert f"gatepost: bind: {env} serves on loopback only, not on 0.0.0.0:" in log.read_text()


async def test_behind_nginx_development_credentials_are_refused(db: TestDatabase, tmp_path: Path) -> None:
    """gunicorn's unix socket, in development by name, behind an nginx that sends the headers that the stub looks for."""
    nginx, folder = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"), Path(tempfile.mkdtemp())
    if nginx is None:
        pytest.skip("no nginx")
    os.chmod(folder, 0o755)
    front = free_port()
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr crit;\nevents {{}}\nhttp {{ access_log off;\n"
        + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass http://unix:{folder}/s; proxy_http_version 1.1;\n"
        'proxy_set_header Host 127.0.0.1; proxy_set_header Connection ""; } } }\n'
    )
    settings = {"GATEPOST_ENV": "development", "DATABASE_URL": db.url, "GATEPOST_PROVIDERS": "stub"}
    words = ("--bind", f"unix:{folder}/s", "--umask", "0")
    try:
        async with gunicorn(tmp_path, *words, **settings) as (process, url, log):
            await until_answers(process, url, log)
            async with aiohttp.ClientSession() as client, client.get(f"{url}/api/me", headers=ALICE) as got:
                assert got.status == 200, "from this machine, not through the proxy"
            proxy = await asyncio.create_subprocess_exec(nginx, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"))
            try:
                await until_answers(process, f"http://127.0.0.1:{front}", log)
                async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{front}/api/health") as got:
                    assert got.status == 200
                async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{front}/api/me", headers=ALICE) as got:
                    assert (got.status, await got.json()) == (401, {"error": "Unauthorized", "reason": "credential-rejected"})
            finally:
                proxy.terminate()
                await proxy.wait()
    finally:
        shutil.rmtree(folder)
