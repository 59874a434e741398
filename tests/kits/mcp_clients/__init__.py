"""The official clients of the Model Context Protocol, as programs: the TypeScript SDK (versions 2 and 1) and the Python SDK.

    said = await run_client("typescript", url, headers, mode="auto", calls=[("whoami", {})])
    said["version"], said["tools"], said["results"]
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from .. import ROOT

FOLDER = ROOT / ".cache" / "agents"
HERE = Path(__file__).parent
CONFORMANCE = FOLDER / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"


def node_program(name: str, *arguments: str) -> list[str]:
    """The command line of a program of this folder; skips where its packages are not installed."""
    node = shutil.which("node")
    if node is None or not CONFORMANCE.exists():
        pytest.skip("the clients of the Model Context Protocol are not installed: make client-tools")
    return [node, "--no-warnings", str(HERE / name), str(FOLDER), *arguments]


async def run(command: Sequence[str], seconds: float = 120) -> tuple[int, str, str]:
    """Run a program; returns its status and what it wrote to standard output and to standard error."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode(), err.decode()


async def run_client(
    sdk: str, url: str, headers: Mapping[str, str], *, mode: Any = "auto", calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> Any:
    """What a client got: `version`, `server`, `tools`, and the `results` of its calls (an error has `raised`)."""
    given = json.dumps({"url": url, "headers": dict(headers), "mode": mode, "calls": list(calls)})
    if sdk == "typescript":
        command = node_program("client.mjs", given)
    else:
        python = FOLDER / "venv" / "bin" / "python"
        if not python.exists():
            pytest.skip("the Python SDK of the Model Context Protocol is not installed: make client-tools")
        command = [str(python), str(HERE / "client.py"), given]
    status, out, err = await run(command)
    assert status == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])
