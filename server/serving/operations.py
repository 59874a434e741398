"""The operations port: liveness, readiness and metrics, never a tenant's data.

Its connections are of the same class as the main port's: what the parser refuses is not repeated in the answer here either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from ..http.answers import answer
from ..http.backlog import Backlog
from ..http.connection_server import install
from ..http.error_bodies import STANDARD
from ..http.stamp import new_request_id, stamp
from ..telemetry.log import LOG, log_failure
from ..telemetry.metrics import Family, as_json
from .ports import cannot_bind

_LIMITS: Final = {
    "head_bytes": 16_384,
    "head_seconds": 10.0,
    "headers": 128,
    "idle_seconds": 75.0,
    "connections": 64,
}
_HELD_BYTES: Final = 2**26
_WRITE_SECONDS: Final = 30.0


class Operations:
    """/livez, /readyz and /metrics, on a port or a unix socket of their own."""

    def __init__(self, reasons: Callable[[], Awaitable[list[str]]], families: Callable[[], Awaitable[list[Family]]]) -> None:
        """`reasons()` returns why no requests should be sent here (empty: they may); `families()` returns the metrics."""
        self._reasons, self._families = reasons, families
        self._runner: web.AppRunner | None = None
        self.draining = False

    async def start(self, host: str, port: int) -> None:
        """Listen, unless the port is 0. Raises ConfigError when the port is taken."""
        if port == 0:
            return
        try:
            await web.TCPSite(await self._serve(), host, port).start()
        except OSError as error:
            raise cannot_bind("ops.port: cannot listen", host, port, error, "GATEPOST_OPS_PORT (0: none)") from error

    async def start_unix(self, path: Path) -> None:
        """Listen on a unix socket: how the parent asks a worker."""
        await web.UnixSite(await self._serve(), str(path)).start()

    async def stop(self) -> None:
        """Stop listening and close the connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self) -> web.AppRunner:
        app = web.Application()
        install(app, self._handle, **_LIMITS, descriptors=0, backlog=Backlog(_HELD_BYTES, _WRITE_SECONDS))  # type: ignore[arg-type]
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        return self._runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, with the headers that every response has."""
        pages = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics, "/metrics.json": self._metrics_json}
        page, request_id, why = pages.get(request.raw_path.partition("?")[0]), new_request_id(), "the path has no such method"
        if page is None:
            response: web.Response = STANDARD.of(404)
            why = "no such path"
        elif request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            response = STANDARD.of(405, {"Allow": "GET, HEAD"})
        else:
            try:
                response = await page()
                why = getattr(response, "for_log", "")
            except Exception as error:
                log_failure("operations page failed", error, request_id=request_id)
                response = STANDARD.of(500)
        if response.status >= 400 and response.status != 500:
            fields = {"request_id": request_id, "status": response.status, "reason": why}
            LOG.info("operations request refused", extra={"fields": fields})
        stamp(response, request_id)
        return response

    async def _livez(self) -> web.Response:
        return answer({"status": "ok"})

    async def _readyz(self) -> web.Response:
        reasons = ["draining"] if self.draining else await self._reasons()
        if not reasons:
            return answer({"status": "ok"})
        return answer({"status": "not ready", "reasons": reasons}, 503, for_log="; ".join(reasons))

    async def _metrics(self) -> web.Response:
        from ..telemetry.prometheus import CONTENT_TYPE, as_text  # imported when needed: it takes a megabyte

        return web.Response(body=as_text(await self._families()), headers={"Content-Type": CONTENT_TYPE})

    async def _metrics_json(self) -> web.Response:
        """For the parent of several workers, which adds them up."""
        return answer(as_json(await self._families()))
