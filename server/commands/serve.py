"""Serve (the default command)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
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
