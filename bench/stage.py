"""What every benchmark needs: Postgres with rows in it, the two servers, and one measurement of one of them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
import msgspec
from issuer import ISSUER, PARTY, Issuer, org, user
from load import Job
from machine import Child
from postgres import Postgres

from providers.api_key.key_format import Key, make
from server.settings.core import CORE

HERE = Path(__file__).resolve().parent
# On, and counting, but out of reach: their cost is measured, and no request is refused. Only settings that this version has.
FAR = {
    key: value
    for key, value in {"limits.caller": "100000000/minute", "limits.address": "100000000/minute"}.items()
    if key in CORE
}


def arguments(text: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=defaults.get("rounds", 5), help="each measures everything once")
    parser.add_argument("--seconds", type=float, default=defaults.get("seconds", 3.0), help="of one measurement")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument(
        "--database-bin", type=Path, metavar="FOLDER", help="programs of another Postgres than the embedded one"
    )
    parser.add_argument("--database-url", metavar="URL", help="a superuser's URL of a running Postgres (or TEST_DATABASE_URL)")
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS", help="repeat a noisy measurement for so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for report.py and check.py")
    return parser


class Stage:
    """`with Stage(args) as stage:` Postgres, an issuer, and a folder for what is thrown away afterwards."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.postgres = Postgres(args.database_url, args.database_bin)
        self.issuer = Issuer()
        self.server_cpu, self.load_cpu = machine.cpus()
        self.folder = Path(tempfile.mkdtemp(prefix="gatepost-bench-"))
        self.folder.chmod(0o711)  # a Postgres in it, as another user, must pass through
        self._jobs = 0

    def __enter__(self) -> Stage:
        try:
            self.postgres.__enter__()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.postgres.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)

    def facts(self) -> dict[str, str]:
        return machine.facts() | {"Postgres": f"{self.postgres.version} {self.postgres.way}", "limits": "on" if FAR else "not in this version"}

    @contextlib.contextmanager
    def limit(self) -> Iterator[Child]:
        """The bare server."""
        env = {
            "LIMIT_DATABASE": self.postgres.url(self.postgres.plain, self.postgres.bare),
            "LIMIT_POOL": str(self.args.connections),
        }
        child = Child([sys.executable, str(HERE / "limit.py")], env, {self.server_cpu}, self.folder / "limit.log")
        try:
            yield child
        finally:
            child.stop()

    @contextlib.contextmanager
    def gatepost(
        self,
        settings: Mapping[str, Any] | None = None,
        keys: Sequence[Key] = (),
        cpu: set[int] | None = None,
        env: Mapping[str, str] | None = None,
        far: bool = True,
    ) -> Iterator[Child]:
        """Gatepost with production's settings. `far`: limits that count but refuse no request. `keys` are static ones."""
        given = self.settings(settings, far=far)
        file = self.folder / f"gatepost-{time.monotonic_ns()}.toml"
        file.write_text(_toml(given, keys))
        more = {
            "CLERK_JWT_KEY": self.issuer.pem,
            "DATABASE_URL": self.postgres.url(self.postgres.serving, self.postgres.locked),
        }
        command = [sys.executable, "-m", "server", "--config", str(file)]
        child = Child(command, more | dict(env or {}), cpu or {self.server_cpu}, self.folder / "gatepost.log")
        try:
            yield child
        finally:
            child.stop()

    def settings(self, more: Mapping[str, Any] | None = None, *, far: bool = True) -> dict[str, Any]:
        """What differs from the defaults."""
        usual = {"env": "production", "host": "127.0.0.1", "port": 0, "ops.port": 0, "data_folder": str(self.folder / "data"),
                 "clerk.issuer": [ISSUER], "clerk.authorized_parties": [PARTY]}  # fmt: skip
        return usual | (FAR if far else {}) | dict(more or {})

    def load(self, child: Child, requests: Sequence[bytes], cpu: set[int] | None = None, **job: Any) -> dict[str, Any]:
        """One run of the loader against a server; what it says of it."""
        with self.loading(child, requests, cpu, **job) as running:
            out, _ = running.communicate()
        if running.returncode:
            raise RuntimeError("the loader failed")
        result: dict[str, Any] = json.loads(out)
        return result

    @contextlib.contextmanager
    def loading(
        self, child: Child, requests: Sequence[bytes], cpu: set[int] | None = None, **job: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A loader that runs beside; ended with the block."""
        self._jobs += 1
        path = self.folder / f"job-{self._jobs}"
        path.write_bytes(
            msgspec.msgpack.encode(Job(child.port, list(requests), **{"connections": self.args.connections, **job}))
        )
        running = subprocess.Popen([sys.executable, str(HERE / "load.py"), str(path)], stdout=subprocess.PIPE)
        machine.pin(running.pid, cpu or {self.load_cpu})
        try:
            yield running
        finally:
            running.kill()
            running.wait()
            path.unlink()

    def load_from_each(self, child: Child, requests: Sequence[bytes], cpus: set[int], **job: Any) -> float:
        """One loader on each of these CPUs, so that none of them has less for a server than another; requests a second."""
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(self.loading(child, requests, {cpu}, **job)) for cpu in sorted(cpus)]
            told = [json.loads(one.communicate()[0]) for one in running]
        return sum(one["requests"] / one["seconds"] for one in told)

    def measure(self, child: Child, requests: Sequence[bytes], **job: Any) -> dict[str, Any]:
        """One measurement: what the loader says, and the CPU microseconds per request of server and Postgres.

        One that others have disturbed is repeated while `--patience` lasts, and the least disturbed one counts.
        """
        begun, tries = time.monotonic(), []
        while True:
            machine.wait_quiet(self.args.patience / 2)
            tries.append(self._once(child, requests, job))
            if tries[-1]["foreign"] < machine.FOREIGN or time.monotonic() - begun >= self.args.patience or "count" in job:
                return min(tries, key=lambda one: one["foreign"])

    def _once(self, child: Child, requests: Sequence[bytes], job: Mapping[str, Any]) -> dict[str, Any]:
        postgres = [self.postgres.pid] if self.postgres.pid is not None else []
        busy, began = machine.busy_seconds(), time.monotonic()
        server, database = machine.cpu_now([child.pid]), machine.cpu_now(postgres)
        result = self.load(child, requests, **job)
        spent = machine.cpu_between(server, machine.cpu_now([child.pid]))
        in_postgres = machine.cpu_between(database, machine.cpu_now(postgres))
        if result["bad"] or result["broken"]:
            raise RuntimeError(f"unexpected answers: {result['bad']}, broken connections: {result['broken']}")
        number, seconds = result["requests"], result["seconds"]
        if not number:
            raise RuntimeError(f"no answer within {seconds:.0f} s")
        others = machine.busy_seconds() - busy - spent - in_postgres - result["cpu"]
        return {
            "requests": number, "rps": number / seconds, "p50_ms": result["p50"] * 1e3, "p99_ms": result["p99"] * 1e3,
            "server_us": spent / number * 1e6, "postgres_us": in_postgres / number * 1e6 if postgres else math.nan,
            "foreign": max(others, 0.0) / (time.monotonic() - began),
        }  # fmt: skip


async def add_keys(postgres: Postgres, number: int) -> list[Key]:
    """Managed keys in the database, one for each of the first users."""
    keys = [make("production") for _ in range(number)]
    rows = [(key.id, key.digest, user(at), org(at)) for at, key in enumerate(keys)]
    async with postgres.admin(postgres.locked) as admin:
        await admin.executemany(
            "INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by) VALUES ($1, $2, 'bench', $3, $4, $3)", rows
        )
        await admin.execute("VACUUM ANALYZE api_keys")
    return keys


def fill(stage: Stage, users: int, rows: int) -> None:
    """So many rows for each of so many users, in both databases."""
    asyncio.run(stage.postgres.fill(users, rows))


def _toml(settings: Mapping[str, Any], keys: Sequence[Key]) -> str:
    """JSON's texts, numbers, true, false and arrays of them are TOML's too."""
    tables: dict[str, list[str]] = {"": []}
    for name, value in settings.items():
        table, _, key = name.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {json.dumps(value)}")
    lines = tables.pop("") + [line for table, inner in tables.items() for line in (f"[{table}]", *inner)]
    for at, static in enumerate(keys):
        digest = hashlib.sha256(static.text.encode()).hexdigest()
        lines += [
            "[[api_key.keys]]",
            f'id = "bench_{at}"',
            f'hash = "sha256:{digest}"',
            f'user_id = "{user(at)}"',
            f'org_id = "{org(at)}"',
        ]
    return "\n".join(lines) + "\n"
