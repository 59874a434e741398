"""One process: bind, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from aiohttp import web

from ..app import DISPATCHER, SERVER_DATABASE
from ..http.protocol import ConnectionServer
from ..plugins.providers import not_ready
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from ..telemetry.log import LOG
from .balancing import ConnectionBalancer
from .operations import Operations, families_of, reasons_of
from .ports import begin_no_more, take_waiting
from .supervisor import Supervisor
from .worker import Worker

Announce: TypeAlias = Callable[[str, int], None]
"""Told (host, port) when the server is ready to answer."""
_LAST_WORDS_SECONDS: Final = 0.5
_HANDSHAKES_SECONDS: Final = 0.05


def loop_factory() -> Any:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def serve(app: web.Application, settings: Settings, worker: Worker | None, announce: Announce) -> int:
    """Serve until SIGTERM or SIGINT, as a server of its own or as one `worker`; the exit status."""
    stop = _stop_signal()
    runner = web.AppRunner(app, shutdown_timeout=settings.get("limits.drain_seconds"))
    operations = Operations(lambda: reasons_of(app), lambda: families_of(app))
    sharing: ConnectionBalancer | None = None
    try:
        await runner.setup()
        sharing = _share(runner, worker)
        host, port = settings.get("host"), worker.port if worker else settings.get("port")
        await _bind(web.TCPSite(runner, host, port, reuse_port=worker is not None), host, port)
        if worker is None:
            await operations.start(settings.get("ops.host"), settings.get("ops.port"))
            bound_host, bound_port = runner.addresses[0][:2]
            _settle()
            announce(bound_host, bound_port)
            await stop.wait()
        else:
            await operations.start_unix(worker.ops_socket)
            _settle()
            worker.tell_ready()
            resting = [] if sharing is None else [_rest_when_unfit(app, sharing)]
            await _first(stop.wait(), worker.until_orphaned(), *resting)
        operations.draining = True
        LOG.info("draining")
        await _drain(app, runner, sharing)
        return 0
    finally:
        if sharing is not None:
            sharing.close()
        await runner.cleanup()
        await operations.stop()


def _settle() -> None:
    """What is in memory now stays: the collector of reference cycles need not look at it again.

    It took a twelfth of the time under load, nearly all of it for modules and settings. A request makes hardly a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _share(runner: web.AppRunner, worker: Worker | None) -> ConnectionBalancer | None:
    """Let connections be handed over between this worker and the others, where there are some."""
    if worker is None or not isinstance(server := runner.server, ConnectionServer):
        return None
    try:
        sharing = worker.sharing()
        sharing.open(server.take)
    except (OSError, ValueError) as error:
        LOG.warning("connections are not spread evenly", extra={"fields": {"error": type(error).__name__}})
        return None
    server.sharing = sharing
    return sharing


async def _rest_when_unfit(app: web.Application, sharing: ConnectionBalancer) -> None:
    """Let nobody hand connections to a worker that can only refuse: quick answers would draw them all to it."""
    while True:
        with contextlib.suppress(Exception):  # a plugin's `not_ready`; the operations port tells of it
            sharing.rest(bool(not_ready(app)) or app[SERVER_DATABASE].revocations.stale)
        await asyncio.sleep(1)


async def _drain(app: web.Application, runner: web.AppRunner, sharing: ConnectionBalancer | None) -> None:
    """Take no new connection; what comes on the open ones for a moment still is answered, and told to come no more.

    A client that keeps a connection may have sent its next request just before it could know that we are stopping; and one
    that the kernel has let in, while we were busy, believes itself served.
    """
    app[DISPATCHER].draining = True
    if sharing is not None:
        sharing.leave()
    listening = [port for site in runner.sites for port in getattr(site._server, "sockets", ())]
    begin_no_more(listening)
    await asyncio.sleep(_HANDSHAKES_SECONDS)
    waiting = take_waiting(listening)
    for site in list(runner.sites):
        await site.stop()
    if (server := runner.server) is not None:
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(server, connection)
    await asyncio.sleep(_LAST_WORDS_SECONDS)


async def supervise(app: web.Application, settings: Settings, announce: Announce) -> int:
    """The parent's part: the embedded Postgres, the operations port, and the children."""
    stop = _stop_signal()
    supervisor = Supervisor(settings)
    operations = Operations(supervisor.not_ready, supervisor.families)
    storage = app[SERVER_DATABASE]
    restarts: set[asyncio.Task[None]] = set()  # held, so that none is collected while it runs
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, lambda: restarts.add(asyncio.create_task(supervisor.restart()))
    )
    try:
        await storage.provide()
        await operations.start(settings.get("ops.host"), settings.get("ops.port"))
        return await supervisor.run(stop, announce)
    finally:
        operations.draining = True
        await storage.close()
        await operations.stop()


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _bind(site: web.TCPSite, host: str, port: int) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"port: cannot serve on {host}:{port} ({error.strerror or error})") from error
