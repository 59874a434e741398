"""One process from start to end: bind the port, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeAlias

from aiohttp import web

from ..app import DISPATCHER, HOUSE, SERVER_DATABASE, warn
from ..http.connection_server import ConnectionServer
from ..plugins.providers import PROVIDERS, judge, not_ready
from ..settings.sources import Settings
from ..streams.events import STREAMS
from ..telemetry.log import LOG
from .balancing import ConnectionBalancer
from .operations import Operations
from .ports import cannot_bind, take_waiting
from .process_metrics import families_of, reasons_of
from .reload import restart_on_changes
from .signals import ended_first, ignore_hangup, stop_signal
from .supervisor import Supervisor
from .worker import Worker

Announce: TypeAlias = Callable[[str, int], None]
"""Called with (host, port) when the server is ready to answer."""
_GRACE_SECONDS: Final = 0.5
"""How long an open connection may still bring a request once the server is stopping."""
_POLL_SECONDS: Final = 0.02


def loop_factory() -> Any:
    """uvloop's factory of event loops; None (asyncio's own) where it is not installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def serve(app: web.Application, settings: Settings, worker: Worker | None, announce: Announce) -> int:
    """Serve until SIGTERM or SIGINT, as a server of its own or as one `worker`; returns the exit status."""
    stop = stop_signal()
    ignore_hangup(worker)
    seconds: float = settings.get("limits.drain_seconds")
    grace = min(_GRACE_SECONDS, seconds)
    runner = web.AppRunner(app, shutdown_timeout=seconds - grace)
    operations = Operations(lambda: reasons_of(app), lambda: families_of(app))
    balancer: ConnectionBalancer | None = None
    try:
        if not await _opened(runner, stop):
            return 0
        balancer = _balancer(runner, worker)
        host, port = settings.get("host"), worker.port if worker else settings.get("port")
        await _bind(web.TCPSite(runner, host, port, reuse_port=worker is not None), host, port)
        if worker is None:
            await operations.start(settings.get("ops.host"), settings.get("ops.port"))
            bound_host, bound_port = runner.addresses[0][:2]
            _freeze_memory()
            announce(bound_host, bound_port)
            await stop.wait()
        else:
            await operations.start_unix(worker.ops_socket)
            _freeze_memory()
            worker.tell_ready()
            resting = [] if balancer is None else [_rest_when_unfit(app, balancer)]
            await _first(stop.wait(), worker.until_orphaned(), *resting)
        operations.draining = True
        LOG.info("draining")
        await _drain(app, runner, balancer, grace)
        return 0
    finally:
        if balancer is not None:
            balancer.close()
        await runner.cleanup()
        await operations.stop()


async def _opened(runner: web.AppRunner, stop: asyncio.Event) -> bool:
    """Open the application, which may wait for its database. False if the server was stopped meanwhile."""
    opening = asyncio.ensure_future(runner.setup())
    if await ended_first(opening, stop):
        await opening
        return True
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await opening
    return False


def _freeze_memory() -> None:
    """Exempt everything that is in memory now from the collector of reference cycles: it stays.

    The collector took a twelfth of the time under load, nearly all of it for modules and settings. A request leaves hardly a
    cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _balancer(runner: web.AppRunner, worker: Worker | None) -> ConnectionBalancer | None:
    """Balance connections between this worker and the others; None where there are no others, or it cannot be done."""
    if worker is None or not isinstance(server := runner.server, ConnectionServer):
        return None
    try:
        balancer = worker.balancer()
        balancer.open(server.take)
    except (OSError, ValueError) as error:
        LOG.warning("connections are not spread evenly", extra={"fields": {"error": type(error).__name__}})
        return None
    server.sharing = balancer
    return balancer


async def _rest_when_unfit(app: web.Application, balancer: ConnectionBalancer) -> None:
    """Let no worker hand connections to this one while it can only refuse: quick answers would draw them all here."""
    while True:
        with contextlib.suppress(Exception):  # a plugin's `not_ready`; the operations port reports it
            balancer.rest(bool(not_ready(app)) or app[SERVER_DATABASE].revocations.stale)
        await asyncio.sleep(1)


async def _drain(app: web.Application, runner: web.AppRunner, balancer: ConnectionBalancer | None, grace: float) -> None:
    """Accept no new connection, and leave the open ones `grace` seconds for a request that is on its way.

    A client may have sent its next request on a kept connection just before it could know that we are stopping. Its answer
    ends the connection. `runner.cleanup` then closes the idle connections and waits for the requests that are under way.
    """
    app[DISPATCHER].draining = True
    if balancer is not None:
        balancer.leave()
    waiting = take_waiting(port for site in runner.sites for port in getattr(site._server, "sockets", ()))
    for site in list(runner.sites):
        await site.stop()
    app[STREAMS].drain()  # not before the port is closed: their clients connect again at once
    loop, server = asyncio.get_running_loop(), runner.server
    if server is None:
        return
    for connection in waiting:
        await loop.connect_accepted_socket(server, connection)
    end = loop.time() + grace
    while (server.connections or balancer is not None) and loop.time() < end:  # noqa: ASYNC110 - aiohttp reports no end
        await asyncio.sleep(_POLL_SECONDS)


async def supervise(app: web.Application, settings: Settings, announce: Announce, *, reload: bool = False) -> int:
    """Run the parent of several workers: the embedded Postgres, the operations port, and the children.

    With `reload` they are restarted whenever a file in the working folder changes.
    """
    supervisor = Supervisor(settings)
    stop = stop_signal(supervisor.kill)
    operations = Operations(supervisor.not_ready, supervisor.families)
    storage = app[SERVER_DATABASE]
    watching: list[asyncio.Task[None]] = []

    def announced(host: str, port: int) -> None:
        announce(host, port)
        if reload:
            watching.append(asyncio.create_task(restart_on_changes(Path.cwd(), supervisor.restart)))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.restart_soon)
    try:
        judge(app[PROVIDERS], app[HOUSE])  # before a database is waited for
        await storage.provide()
        warn(app)
        await operations.start(settings.get("ops.host"), settings.get("ops.port"))
        return await supervisor.run(stop, announced)
    finally:
        for one in watching:
            one.cancel()
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
        raise cannot_bind("port: cannot serve", host, port, error) from error
