"""Asks the whole gate about a request with a real credential; all handlers are replaced, so that none runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import web
from yarl import URL

from ..app import AUDIT, TABLE, build
from ..auth.identity import IDENTITY, Identity
from ..gate.verdict import GATE, Verdict
from ..http.aiohttp_private import replace_handler
from ..plugins.services import SERVICES
from ..settings.sources import Settings

_SECONDS: Final = 30


@dataclass(slots=True)
class _Reached:
    """Takes the place of every handler, and remembers the caller who reached it."""

    identity: Identity | None = None

    async def answer(self, request: web.Request) -> web.Response:
        self.identity = request.get(IDENTITY)
        return web.Response()


async def ask(settings: Settings, method: str, target: str, token: str) -> tuple[Verdict, Identity | None]:
    """Returns how the gate of a server with these settings answers, and the caller if it admits the request.

    It listens on a free port of the loopback address, with the real providers and the database, and records no refusal. The
    request has no body. Raises ConfigError, StartFailed.
    """
    app, reached = build(settings, beside_parent=True), _Reached()
    for route in app[TABLE].rules:
        replace_handler(route, reached.answer)
    for unwanted in (app[AUDIT].running, app[SERVICES].running):  # no refusal is recorded, and no plugin's work begins
        app.cleanup_ctx.remove(unwanted)
    async with _serving(app) as port:
        status, body = await _request(port, method, target, token)
    reason = body.get("reason") if isinstance(body, dict) else None
    return (Verdict(200) if status == 200 else Verdict(status, reason, GATE)), reached.identity


@asynccontextmanager
async def _serving(app: web.Application) -> Any:
    runner = web.AppRunner(app, shutdown_timeout=1)
    try:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _request(port: int, method: str, target: str, token: str) -> tuple[int, Any]:
    url = URL(f"http://127.0.0.1:{port}{target}", encoded=True)
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as client,
        client.request(method, url, headers={"Authorization": f"Bearer {token}"}, allow_redirects=False) as response,
    ):
        if method == "HEAD" or response.status == 200:
            return response.status, None
        return response.status, await response.json(content_type=None)
