"""The operations port: is the process alive, and should requests be sent to it? Never a tenant's data."""

from __future__ import annotations

import asyncio

from aiohttp import web

from .answers import answer
from .app import not_ready
from .identity import Unavailable
from .scope import DATABASE
from .settings import ConfigError


class Operations:
    """/livez and /readyz on a port of their own."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._runner: web.AppRunner | None = None
        self.draining = False

    async def start(self, host: str, port: int) -> None:
        """Listen, unless the port is 0. Raises ConfigError when it is taken."""
        if port == 0:
            return
        app = web.Application()
        app.add_routes([web.get("/livez", self._livez), web.get("/readyz", self._readyz)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"ops.port: cannot listen on {host}:{port} ({error.strerror or error})") from error

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, request: web.Request) -> web.Response:
        return answer({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        reasons = ["draining"] if self.draining else not_ready(self._app)
        reasons += await self._database()
        return answer({"status": "not ready", "reasons": reasons} if reasons else {"status": "ok"}, 503 if reasons else 200)

    async def _database(self) -> list[str]:
        try:
            async with asyncio.timeout(2), self._app[DATABASE].connection() as connection:
                await connection.fetchval("SELECT 1")
        except (Unavailable, TimeoutError):
            return ["the database cannot be asked"]
        return []
