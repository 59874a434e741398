"""Serve (the default command)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import shlex
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final

from aiohttp import web

from ..app import FRONT, STORAGE, build, not_ready
from ..observe import LOG
from ..ops import Operations, families_of, reasons_of
from ..ports import begin_no_more, take_waiting
from ..settings import ConfigError, Settings
from ..sharing import Sharing
from ..wire import WireServer
from ..workers import Supervisor, Worker

_LAST_WORDS_SECONDS: Final = 0.5
_HANDSHAKES_SECONDS: Final = 0.05


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags are those of every command: --host, --port, --workers, --config."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT: alone, as one of several workers, or as the parent of several."""
    app, worker = build(settings), Worker.here()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        if worker is None and settings.get("workers") > 1:
            return runner.run(_supervise(app, settings))
        return runner.run(_serve(app, settings, worker))


def _loop_factory() -> Any:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _serve(app: web.Application, settings: Settings, worker: Worker | None) -> int:
    stop = _stop_signal()
    runner = web.AppRunner(app, shutdown_timeout=settings.get("limits.drain_seconds"))
    operations = Operations(lambda: reasons_of(app), lambda: families_of(app))
    sharing: Sharing | None = None
    try:
        await runner.setup()
        sharing = _share(runner, worker)
        host, port = settings.get("host"), worker.port if worker else settings.get("port")
        await _bind(web.TCPSite(runner, host, port, reuse_port=worker is not None), host, port)
        if worker is None:
            await operations.start(settings.get("ops.host"), settings.get("ops.port"))
            bound_host, bound_port = runner.addresses[0][:2]
            _settle()
            _announce(bound_host, bound_port, settings)
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


def _share(runner: web.AppRunner, worker: Worker | None) -> Sharing | None:
    """Let connections be handed over between this worker and the others, where there are some."""
    if worker is None or not isinstance(server := runner.server, WireServer):
        return None
    try:
        sharing = worker.sharing()
        sharing.open(server.take)
    except (OSError, ValueError) as error:
        LOG.warning("connections are not spread evenly", extra={"fields": {"error": type(error).__name__}})
        return None
    server.sharing = sharing
    return sharing


async def _rest_when_unfit(app: web.Application, sharing: Sharing) -> None:
    """Let nobody hand connections to a worker that can only refuse: quick answers would draw them all to it."""
    while True:
        with contextlib.suppress(Exception):  # a plugin's `not_ready`; the operations port tells of it
            sharing.rest(bool(not_ready(app)) or app[STORAGE].revocations.stale)
        await asyncio.sleep(1)


async def _drain(app: web.Application, runner: web.AppRunner, sharing: Sharing | None) -> None:
    """Take no new connection; what comes on the open ones for a moment still is answered, and told to come no more.

    A client that keeps a connection may have sent its next request just before it could know that we are stopping; and one
    that the kernel has let in, while we were busy, believes itself served.
    """
    app[FRONT].draining = True
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


async def _supervise(app: web.Application, settings: Settings) -> int:
    """The parent's part: the embedded Postgres, the operations port, and the children."""
    stop = _stop_signal()
    supervisor = Supervisor(settings)
    operations = Operations(supervisor.not_ready, supervisor.families)
    storage = app[STORAGE]
    restarts: set[asyncio.Task[None]] = set()  # held, so that none is collected while it runs
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, lambda: restarts.add(asyncio.create_task(supervisor.restart()))
    )
    try:
        await storage.provide()
        await operations.start(settings.get("ops.host"), settings.get("ops.port"))
        return await supervisor.run(stop, lambda host, port: _announce(host, port, settings))
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


def _announce(host: str, port: int, settings: Settings) -> None:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    hints = _hints(url, settings) if settings.get("env") == "development" else []
    print(f"Gatepost serves on {url}", *hints, sep="\n", flush=True)


def _hints(url: str, settings: Settings) -> list[str]:
    """Commands that work when they are pasted, in any folder, beside a server with these settings."""
    rows, providers = settings.explain(), settings.words("providers")
    program = _program(rows)
    hints = [f"  no credential:  curl -i {url}/api/me"]
    if "clerk" in providers and all(source == "default" for key, _, source in rows if key.startswith("clerk.")):
        token = f"$({program} token --user user_1 --org org_1 --role org:admin)"
        hints.append(f'  with a token:   curl -i -H "Authorization: Bearer {token}" {url}/api/me')
    if "stub" in providers:
        hints.append(f'  with the stub:  curl -i -H \'Authorization: Stub user_id="user_1", org_id="org_1"\' {url}/api/me')
    if "docs" in (settings.words("handlers") or ["docs"]):
        hints.append(f"  read and try:   {url}/api/public/docs")
    return [*hints, f"  the routes:     ({program} routes)"]


def _program(rows: list[tuple[str, str, str]]) -> str:
    """How to start another command with the settings of this one: the folder and the file, and what the environment said."""
    carried = ("data_folder", "env", "plugins", "providers")
    said = [
        f"{source.split()[1].removesuffix('_FILE')}={shlex.quote(value)}"
        for key, value, source in rows
        if key in carried and " GATEPOST_" in source
    ]
    script = os.path.abspath(sys.argv[0])
    words = [script] if os.path.basename(script) == "gatepost" else [sys.executable, "-m", "server"]
    file = next((source[5:] for _, _, source in rows if source.startswith("file ")), "gatepost.toml")
    if file != "gatepost.toml":
        words += ["--config", file]
    return " ".join([f"cd {shlex.quote(os.getcwd())} &&", *said, shlex.join(words)])
