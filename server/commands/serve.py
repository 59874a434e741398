"""Serve (the default command)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import sys
from functools import partial

from ..app import build
from ..serving.reload import refuse_to_reload
from ..serving.run import loop_factory, serve, supervise
from ..serving.worker import Worker
from ..settings.sources import Settings


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reload", action="store_true", help="restart when a file in this folder changes (development)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT: alone, as one of several workers, or as their parent. Returns the exit status."""
    worker = Worker.here()
    reload = worker is None and getattr(args, "reload", False)
    if reload:
        refuse_to_reload(settings.get("env"))
    app = build(settings, beside_parent=worker is not None)
    announce = partial(_announce, settings)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if reload or (worker is None and settings.get("workers") > 1):
            return runner.run(supervise(app, settings, announce, reload=reload))
        return runner.run(serve(app, settings, worker, announce))


def _announce(settings: Settings, host: str, port: int) -> None:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    hints = _hints(url, settings) if settings.get("env") == "development" else []
    with contextlib.suppress(OSError):  # a full or closed standard output must not stop the server
        print(f"Gatepost serves on {url}", *hints, sep="\n", flush=True)


def _hints(url: str, settings: Settings) -> list[str]:
    """Commands to paste into a shell, in any folder, while a server with these settings runs."""
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
    """How to start another command with the settings of this one: its folder, its file, and its environment variables."""
    carried = ("data_folder", "env", "plugins", "providers")
    variables = [
        f"{source.split()[1].removesuffix('_FILE')}={shlex.quote(value)}"
        for key, value, source in rows
        if key in carried and " GATEPOST_" in source
    ]
    script = os.path.abspath(sys.argv[0])
    words = [script] if os.path.basename(script) == "gatepost" else [sys.executable, "-m", "server"]
    file = next((source[5:] for _, _, source in rows if source.startswith("file ")), "gatepost.toml")
    if file != "gatepost.toml":
        words += ["--config", file]
    return " ".join([f"cd {shlex.quote(os.getcwd())} &&", *variables, shlex.join(words)])
