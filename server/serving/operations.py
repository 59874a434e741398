"""The operations port: is the process alive, should requests be sent to it, what has it counted? Never a tenant's data.

Its connections are those of the main port, with the same limits: what the parser refuses is not repeated here either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from ..app import AUDIT, METRICS, SERVER_DATABASE
from ..auth.revocation import REVOCATION_FAILURES
from ..database.scope import DATABASE
from ..http.answers import answer
from ..http.errors import Unavailable, error_response
from ..http.protocol import install
from ..http.stamp import new_request_id, stamp
from ..plugins.providers import PROVIDERS, not_ready
from ..settings.setting import ConfigError
from ..telemetry.log import log_failure
from ..telemetry.metrics import Family, Labels, as_json, counter, gauge

_LIMITS: Final = {"head_bytes": 16_384, "head_seconds": 10.0, "headers": 128, "idle_seconds": 75.0, "connections": 64}


class Operations:
    """/livez, /readyz and /metrics, on a port or a unix socket of their own."""

    def __init__(self, reasons: Callable[[], Awaitable[list[str]]], families: Callable[[], Awaitable[list[Family]]]) -> None:
        """`reasons()`: why requests should not be sent here; none when they may. `families()`: what was counted."""
        self._reasons, self._families = reasons, families
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
        install(app, self._handle, **_LIMITS, descriptors=0)  # type: ignore[arg-type]
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        return self._runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """The answer to a request, with the headers that every answer of ours bears."""
        pages = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics, "/metrics.json": self._told}
        page = pages.get(request.raw_path.partition("?")[0])
        if page is None:
            response: web.Response = error_response(404)
        elif request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            response = error_response(405, headers={"Allow": "GET, HEAD"})
        else:
            try:
                response = await page()
            except Exception as error:
                log_failure("operations page failed", error)
                response = error_response(500)
        stamp(response, new_request_id())
        return response

    async def _livez(self) -> web.Response:
        return answer({"status": "ok"})

    async def _readyz(self) -> web.Response:
        reasons = ["draining"] if self.draining else await self._reasons()
        return answer({"status": "not ready", "reasons": reasons} if reasons else {"status": "ok"}, 503 if reasons else 200)

    async def _metrics(self) -> web.Response:
        from ..telemetry.prometheus import (
            CONTENT_TYPE,
            as_text,  # what makes the text takes a megabyte
        )

        return web.Response(body=as_text(await self._families()), headers={"Content-Type": CONTENT_TYPE})

    async def _told(self) -> web.Response:
        """For the parent of several workers."""
        return answer(as_json(await self._families()))


async def families_of(app: web.Application) -> list[Family]:
    """What this process counted, and how its providers, its pool and its revocations stand."""
    pool, age = app[DATABASE].pool, app[SERVER_DATABASE].revocations.age
    families = [*app[METRICS].families(), *_figures(app)]
    if pool is not None:
        states: dict[Labels, list[float]] = {
            ("idle",): [float(pool.idle)],
            ("lent",): [float(pool.lent)],
            ("opening",): [float(pool.opening)],
        }
        families.append(Family("gatepost_pool_connections", "gauge", "Connections to Postgres.", ("state",), states))
        families.append(
            gauge("gatepost_pool_waiting", "Requests that have waited for a connection for more than 5 ms.", pool.waiting)
        )
    dropped: dict[Labels, list[float]] = {(): [float(app[AUDIT].dropped)]}
    families.append(Family("gatepost_audit_dropped_total", "counter", "Denials missing in the audit log.", (), dropped))
    families.append(gauge("gatepost_revocation_lag_seconds", "Since the revocations were read.", age, merge="max"))
    known, pending = app[SERVER_DATABASE].revocations, app[SERVER_DATABASE].pending
    families.append(gauge("gatepost_revocations", "Revocations held in memory.", len(known), merge="max"))
    families.append(gauge("gatepost_endings_pending", "Ends of access to tidy up after.", pending, merge="max"))
    failures = app[REVOCATION_FAILURES]
    families.append(counter("gatepost_revocation_failures_total", "Ends of access not recorded.", "kind", failures))
    families.append(gauge("gatepost_workers", "Processes that serve.", 1))
    families.append(gauge("gatepost_up", "1 where anything serves at all.", 1, merge="max"))
    return families


def _figures(app: web.Application) -> list[Family]:
    """What the providers tell of themselves in `figures`. A plugin that fails at it is left out, and said so."""
    found: dict[str, dict[Labels, list[float]]] = {}
    for name, provider in app[PROVIDERS]:
        try:
            figures = {str(figure): float(value) for figure, value in getattr(provider, "figures", dict)().items()}
        except Exception as error:
            log_failure("provider's figures failed", error, provider=name)
            continue
        for figure, value in figures.items():
            if figure.isidentifier() and figure.isascii():
                found.setdefault(figure, {})[(name,)] = [value]
    return [
        Family(
            f"gatepost_provider_{figure}", "counter" if figure.endswith("_total") else "gauge", "Of a provider.",
            ("provider",), samples, "sum" if figure.endswith("_total") else "max",
        )
        for figure, samples in found.items()
    ]  # fmt: skip


async def reasons_of(app: web.Application) -> list[str]:
    """Why this process should get no request now: what its providers say, and whether the database answers."""
    reasons = not_ready(app)
    try:
        async with asyncio.timeout(2), app[DATABASE].connection() as connection:
            await connection.fetchval("SELECT 1")
    except (Unavailable, TimeoutError):
        reasons.append("the database cannot be asked")
    return reasons
