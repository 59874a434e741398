"""`serve --reload`: a changed file restarts the worker; a mistake in it is a line, and the old worker goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest
from kits import ROOT

PLUGIN = """
from aiohttp import web
from server import answer, hookimpl, public

routes = web.RouteTableDef()

@routes.get("/api/word")
@public
async def word(request: web.Request) -> web.Response:
    return answer({{"word": "{word}"}})

@hookimpl
def register_handlers(settings):
    return list(routes)
"""
SETTINGS = 'public_routes = ["/api/word"]\nplugins = ["module:product"]\nproviders = ["stub"]\nhandlers = ["health"]\nport = 0\nops.port = 0\n'


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "DATABASE_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


async def word_of(url: str) -> str:
    async with aiohttp.ClientSession() as client, client.get(f"{url}/api/word") as got:
        assert got.status == 200
        return str((await got.json())["word"])


async def until(url: str, word: str) -> None:
    async with asyncio.timeout(60):
        while await word_of(url) != word:
            await asyncio.sleep(0.1)


async def told(process: asyncio.subprocess.Process, words: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while words not in (line := (await process.stderr.readline()).decode()):
            assert line, "the log has ended"


async def test_a_changed_file_restarts_and_a_mistake_does_not_end_the_server(db: object, tmp_path: Path) -> None:
    (tmp_path / "product.py").write_text(PLUGIN.format(word="one"))
    (tmp_path / "gatepost.toml").write_text(SETTINGS)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "serve", "--reload", cwd=tmp_path, env=environment(DATABASE_URL=db.url),  # type: ignore[attr-defined]
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    everyone = psutil.Process(process.pid)
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        url = line.split()[-1]
        assert await word_of(url) == "one"
        async with asyncio.timeout(60):
            while await word_of(url) != "two":  # the watch begins a moment after the announcement
                (tmp_path / "product.py").write_text(PLUGIN.format(word="two"))
                await asyncio.sleep(3)
        (tmp_path / "product.py").write_text("this is no Python\n")
        await told(process, "module:product")
        await told(process, "a new worker did not start: the old ones stay")
        assert await word_of(url) == "two"
        (tmp_path / "product.py").write_text(PLUGIN.format(word="three"))
        await until(url, "three")
        (tmp_path / "gatepost.toml").write_text("prot = 1\n" + SETTINGS)
        await told(process, "unknown key 'prot'")
        assert await word_of(url) == "three"
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            for one in (*everyone.children(recursive=True), everyone):
                one.kill()
        await process.communicate()


@pytest.mark.parametrize("env", ["test", "production"])
def test_it_is_for_development(tmp_path: Path, env: str) -> None:
    given = environment(GATEPOST_ENV=env, DATABASE_URL="postgresql://x@127.0.0.1:1/x")
    done = subprocess.run([sys.executable, "-m", "server", "serve", "--reload"], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"gatepost: serve --reload: it is for development, not for {env}\n")


def test_the_options_may_stand_behind_the_command(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("prot = 1\n")
    for words in (["serve", "--config", "other.toml"], ["--config", "other.toml", "serve"], ["check", "--config", "other.toml"]):
        done = subprocess.run([sys.executable, "-m", "server", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("gatepost: other.toml: unknown key 'prot'")
    done = subprocess.run([sys.executable, "-m", "server", "serve", "--port", "70000"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gatepost: port: must be 0 to 65535, not 70000 (command line)\n"
