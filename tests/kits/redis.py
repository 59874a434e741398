"""A real Redis of one test: started on a free port, stopped, killed, started again on the same port."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

PASSWORD = "canary-of-the-storage"


class Redis:
    """`url` is what `limits.storage` takes."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        self._program, self._folder = program, folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        words = ["--port", self.port, "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "", "--dir", self._folder]
        self._process = subprocess.Popen([self._program, *map(str, words)], stdout=subprocess.DEVNULL)
        async with asyncio.timeout(10):
            while True:
                with suppress(OSError):
                    assert await self.command("PING") == b"+PONG"
                    return
                await asyncio.sleep(0.02)

    async def command(self, *words: str) -> bytes:
        """The first line of the answer to one command."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"AUTH {PASSWORD}\r\n{' '.join(words)}\r\n".encode())
            await reader.readline()
            return (await reader.readline()).strip()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def pause(self) -> None:
        """It stops answering, and its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
