"""The code blocks of the pages, and a shell beside a real server to run them in."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kits import ROOT

PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "docs/**/*.md", "examples/*/README.md")
    for path in ROOT.glob(pattern)
)


class Block(NamedTuple):
    """A fenced block: its page (from the top of the repository), its language, its text."""

    page: str
    language: str
    text: str


def blocks(*languages: str, page: str | None = None) -> list[Block]:
    """The blocks of these languages (none named: all), of one page or of all."""
    found = []
    for path in PAGES:
        name = str(path.relative_to(ROOT))
        if page in (None, name):
            for match in re.finditer(r"^```(.*?)\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
                found.append(Block(name, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


class Step(NamedTuple):
    """A command of a console block and the lines that it prints."""

    command: str
    shown: str


def steps(text: str) -> list[Step]:
    """`$ command` and what follows it; a command goes on after a backslash."""
    made = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        match = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL)
        assert match is not None
        made.append(Step(match[1], match[2].strip("\n")))
    return made


def fits(shown: str, said: str) -> bool:
    """Whether this is what the page shows. `…` matches anything within a line; standard error is not shown."""
    pattern = "".join(".*" if part == "…" else re.escape(part) for part in re.split("(…)", shown))
    return re.fullmatch(pattern, said.strip("\n")) is not None


@dataclass
class Shell:
    """bash in a folder beside a server; one after the other, variables stay."""

    folder: Path
    ports: dict[str, str]
    _before: str = ""

    def inherit(self, other: Shell) -> None:
        """Take the variables of a shell beside another server."""
        self._before = other._before
        for shown, real in other.ports.items():
            self._before = self._before.replace(real, self.ports[shown])

    async def run(self, command: str) -> tuple[int, str, str]:
        """Status, output, errors. Ports of the pages are those of this server."""
        for shown, real in self.ports.items():
            command = command.replace(shown, real)
        # What is put into a variable is evaluated once and kept, as a terminal does.
        assignment = re.fullmatch(r"(\w+)=.*", command, re.DOTALL)
        more = f"\nstatus=$?\nprintf %s \"${assignment[1]}\"\nexit $status" if assignment else ""
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", f"{self._before}\n{command}{more}\n", cwd=self.folder, env=environment(self.folder),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said, wrong = await asyncio.wait_for(process.communicate(), 120)
        if assignment:
            self._before += f"\n{assignment[1]}={shlex.quote(said.decode())}"
        return int(process.returncode or 0), "" if assignment else said.decode(), wrong.decode()


def environment(folder: Path) -> dict[str, str]:
    """An environment without settings, and with this environment's python first."""
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    return kept | {"HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


_GIVEN: set[int] = set()


def free_port() -> int:
    """A free port of this machine, and a different one each time: the kernel may well name the same one twice."""
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = int(found.getsockname()[1])
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port


@asynccontextmanager
async def shell_beside_a_server(folder: Path, *words: str, **more: str) -> AsyncIterator[Shell]:
    """`python -m server` with its embedded Postgres in this folder, on ports of its own; drained at the end."""
    port, ops = free_port(), free_port()
    given = {"GATEPOST_PORT": str(port), "GATEPOST_OPS_PORT": str(ops), **more}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", *words, cwd=folder, env=environment(folder) | given, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("Gatepost serves on "), line
        yield Shell(folder, {"127.0.0.1:8080": f"127.0.0.1:{port}", "127.0.0.1:9090": f"127.0.0.1:{ops}", ".venv/bin/python": "python"})
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
