"""Clients that are generated from the document: they compile without an error, and talk to a real server. Linters of documents.

The programs in clients/ are compiled against what was generated, so a type that is missing or wrong is an error there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kits import ROOT
from kits.todo import EXAMPLE, todo_table

from providers.clerk import token_command
from tests.conftest import Client, Serve, TestDatabase

TOOLS = ROOT / ".cache" / "clients"
BIN = TOOLS / "node_modules" / ".bin"
PYTHON_BIN = TOOLS / "venv" / "bin"
PROGRAMS = Path(__file__).parent / "clients"
installed = pytest.mark.skipif(
    shutil.which("node") is None or not (TOOLS / ".installed").exists(),
    reason="the generators of clients are not installed: make client-tools",
)
pytestmark = [installed, pytest.mark.long]
INFO = {"openapi.contact": {"name": "Support", "email": "help@example.com"},
        "openapi.license": {"name": "Apache 2.0", "identifier": "Apache-2.0"}}  # fmt: skip
COMPILER = {
    "strict": True, "noUncheckedIndexedAccess": True, "exactOptionalPropertyTypes": False, "target": "es2022", "module": "commonjs",
    "moduleResolution": "node10", "lib": ["es2022", "dom", "dom.iterable"], "types": ["node"], "outDir": "out",
}  # fmt: skip


@pytest.fixture
async def client(serve: Serve, db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A server with the tutorial's plugin, and one of odd types."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.syspath_prepend(PROGRAMS)
    async with todo_table(db):
        yield await serve({"providers": ["clerk", "api_key"], "plugins": ["module:todo_app.api", "module:odd_app"], **INFO})


@pytest.fixture
async def folder(client: Client, tmp_path: Path) -> Path:
    """A folder with the server's document, and the packages beside it."""
    folder = tmp_path / "generated"
    folder.mkdir()
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    (folder / "openapi.json").write_bytes((await client.get("/api/public/openapi.json")).raw)
    return folder


async def run(folder: Path, program: Path | str, *words: str) -> str:
    """What the program prints; it must end with status 0."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    environment = kept | {"HOME": str(folder), "PATH": f"{PYTHON_BIN}:{os.environ['PATH']}", "REDOCLY_TELEMETRY": "off", "CI": "true"}
    process = await asyncio.create_subprocess_exec(
        str(program), *words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed = (await asyncio.wait_for(process.communicate(), 300))[0].decode()
    assert process.returncode == 0, f"{program} {words}:\n{printed}"
    return printed


async def compiled(folder: Path, *files: str) -> None:
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": COMPILER, "files": files}))
    assert await run(folder, BIN / "tsc", "-p", "tsconfig.json") == ""


async def token_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A development token of alice in the organisation north, as `python -m server token` prints it."""
    parser = argparse.ArgumentParser()
    token_command.arguments(parser)
    context: Any = SimpleNamespace(env="test", folder=folder, settings={})
    capsys.readouterr()
    assert await token_command.run(parser.parse_args(["--user", "alice", "--org", "north"]), context) == 0
    return capsys.readouterr().out.strip()


def url_of(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}"


# Generators ------------------------------------------------------------------------------------------------------------


async def test_openapi_typescript(folder: Path) -> None:
    await run(folder, BIN / "openapi-typescript", "openapi.json", "--output", "schema.ts")
    shutil.copy(PROGRAMS / "fetch.ts", folder)
    await compiled(folder, "schema.ts", "fetch.ts")


async def test_hey_api(client: Client, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page with a Link, a create, a PATCH, a 422 and a 401, typed and called. The one credential is taken everywhere."""
    await run(folder, BIN / "openapi-ts", "--input", "openapi.json", "--output", "hey", "--no-log-file")
    shutil.copy(PROGRAMS / "program.ts", folder)
    await compiled(folder, "program.ts")
    printed = await run(folder, "node", "out/program.js", url_of(client), await token_of(tmp_path, capsys))
    assert json.loads(printed) == {
        "titles": ["201 one false", "201 two false", "201 three false"],
        "pages": [["three", "two"], ["one"]],
        "last": None,
        "invalid": [422, "Unprocessable Content", ["title"]],
        "refused": [401, "Unauthorized", "credential-missing"],
        "changed": ["new", {"a": 1}],
    }


async def test_openapi_python_client(client: Client, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without its hooks: the ruff that they run rewrites annotations of the generator's own code so that mypy complains.
    (folder / "generator.yaml").write_text("post_hooks: []\n")
    words = ["generate", "--path", "openapi.json", "--output-path", "generated", "--meta", "none", "--config", "generator.yaml"]
    printed = await run(folder, PYTHON_BIN / "openapi-python-client", *words)
    # It does not know files of any type: those of the docs page. Everything else is read without a warning.
    assert re.findall(r"^(?:WARNING|ERROR) .*", printed, re.MULTILINE) == ["WARNING parsing GET /api/public/docs/{file} within public."]
    shutil.copy(PROGRAMS / "program.py", folder)
    assert "Success" in await run(folder, PYTHON_BIN / "mypy", "--strict", "generated", "program.py")
    await client.post("/api/orgs/north/todos", {"Authorization": f"Bearer {await token_of(tmp_path, capsys)}"}, {"title": "before"})
    printed = await run(folder, PYTHON_BIN / "python", "program.py", url_of(client), await token_of(tmp_path, capsys))
    assert json.loads(printed) == {"fields": ["title"], "reason": "credential-missing", "name": "new"}


# Linters ---------------------------------------------------------------------------------------------------------------


async def test_redocly(folder: Path) -> None:
    printed = await run(folder, BIN / "redocly", "lint", "openapi.json", "--extends=recommended", "--format=json")
    found = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert [one["ruleId"] for one in found["problems"]] == []


# Rules of Spectral that are not in its recommended set, and that the document breaks.
ACCEPTED = {
    "contact-properties": "it wants a URL; the setting has a name and an e-mail address",
    "license-url": "it wants a URL; the identifier stands for it (OpenAPI 3.1, 4.8.4)",
}


async def test_spectral(folder: Path) -> None:
    (folder / "rules.yaml").write_text('extends: [["spectral:oas", all]]\n')
    printed = await run(folder, BIN / "spectral", "lint", "--ruleset", "rules.yaml", "--format", "json", "--fail-severity", "error", "openapi.json")
    found = json.loads(printed[printed.index("[") : printed.rindex("]") + 1])
    assert {one["code"]: one["message"] for one in found}.keys() == ACCEPTED.keys()
