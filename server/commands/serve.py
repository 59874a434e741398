"""Serve (the default command)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from typing import Any

from aiohttp import web

from ..app import build
from ..observe import LOG
from ..ops import Operations
from ..settings import ConfigError, Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags are those of every command: --host, --port, --workers, --config."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT."""
    app = build(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(app, settings))


def _loop_factory() -> Any:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


async def _serve(app: web.Application, settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, shutdown_timeout=settings.get("limits.drain_seconds"))
    operations = Operations(app)
    try:
        await runner.setup()
        site = web.TCPSite(runner, settings.get("host"), settings.get("port"))
        await _bind(site, settings.get("host"), settings.get("port"))
        await operations.start(settings.get("ops.host"), settings.get("ops.port"))
        _announce(runner, settings)
        await stop.wait()
        operations.draining = True
        LOG.info("draining")
        return 0
    finally:
        await runner.cleanup()
        await operations.stop()


async def _bind(site: web.TCPSite, host: str, port: int) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(f"port: cannot serve on {host}:{port} ({error.strerror or error})") from error


def _announce(runner: web.AppRunner, settings: Settings) -> None:
    host, port = runner.addresses[0][:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Gatepost serves on {url}", flush=True)
    if settings.get("env") == "development":
        port_word = "" if port == 8080 else f" GATEPOST_PORT={port}"
        del port_word
        print(
            "  no credential:   curl -i " + url + "/api/me\n"
            '  with a token:    curl -i -H "Authorization: Bearer $(' + _token_command() + ')" ' + url + "/api/me\n"
            "  the routes:      " + sys.executable + " -m server routes",
            flush=True,
        )


def _token_command() -> str:
    return f"{sys.executable} -m server token --user user_1 --org org_1 --role org:admin"
