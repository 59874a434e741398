"""The operations port: is the process alive, and should requests be sent to it? Never a tenant's data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from .answers import answer
from .app import not_ready
from .identity import Unavailable
from .scope import DATABASE
from .settings import ConfigError


class Operations:
    """/livez and /readyz, on a port or a unix socket of their own."""

    def __init__(self, reasons: Callable[[], Awaitable[list[str]]]) -> None:
        """`reasons()`: why requests should not be sent here; none when they may."""
        self._reasons = reasons
        self._runner: web.AppRunner | None = None
        self.draining = False

    async def start(self, host: str, port: int) -> None:
        """Listen, unless the port is 0. Raises ConfigError when it is taken."""
        if port == 0:
            return
        try:
            await web.TCPSite(await self._serve(), host, port).start()
        except OSError as error:
            raise ConfigError(f"ops.port: cannot listen on {host}:{port} ({error.strerror or error})") from error

    async def start_unix(self, path: Path) -> None:
        """Listen on a unix socket: how a worker tells its parent."""
        await web.UnixSite(await self._serve(), str(path)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self) -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/livez", self._livez), web.get("/readyz", self._readyz)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        return self._runner

    async def _livez(self, request: web.Request) -> web.Response:
        return answer({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        reasons = ["draining"] if self.draining else await self._reasons()
        return answer({"status": "not ready", "reasons": reasons} if reasons else {"status": "ok"}, 503 if reasons else 200)


async def reasons_of(app: web.Application) -> list[str]:
    """Why this process should get no request now: what its providers say, and whether the database answers."""
    reasons = not_ready(app)
    try:
        async with asyncio.timeout(2), app[DATABASE].connection() as connection:
            await connection.fetchval("SELECT 1")
    except (Unavailable, TimeoutError):
        reasons.append("the database cannot be asked")
    return reasons
