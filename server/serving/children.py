"""How a child process is started, and how its parent learns that it is ready."""

from __future__ import annotations

import asyncio
import os
import sys


def command() -> list[str]:
    """The command that starts another process like this one."""
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py":
        return [sys.executable, "-m", "server", *sys.argv[1:]]
    return [sys.executable, script, *sys.argv[1:]]


async def became_ready(descriptor: int) -> bool:
    """Whether the child wrote its byte before it closed the pipe (or died)."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        return await reader.read(1) == b"1"
    finally:
        transport.close()
