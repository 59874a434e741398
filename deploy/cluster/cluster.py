"""The whole cluster on one machine, for `make cluster` and the drill.

The files are those that real machines get (machine_files.py), with the addresses, folders, sizes and times of `LOCAL`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from machine_files import passwords, render, values_of  # noqa: E402
from machines import Machine, Network, search_path  # noqa: E402 - beside this file

NUMBERS = {
    **{f"pg{n}": 10 + n for n in (1, 2, 3)}, **{f"etcd{n}": 20 + n for n in (1, 2, 3)},
    "proxy": 31, "pooler": 32, "redis": 33, **{f"gatepost{n}": 40 + n for n in (1, 2, 3)},
}  # fmt: skip
DATABASES, SERVERS = ("pg1", "pg2", "pg3"), ("gatepost1", "gatepost2", "gatepost3")
PROGRAMS = {"etcd": "etcd-server", "haproxy": "haproxy", "pgbouncer": "pgbouncer", "redis-server": "redis-server"}
"""Programs and their Debian packages."""
LOCAL = {
    # The shortest that Patroni allows: a failover takes up to 20 seconds. All on one disk: etcd gets more time.
    "PATRONI_TTL": "20", "PATRONI_LOOP_WAIT": "2", "PATRONI_RETRY_TIMEOUT": "3", "PATRONI_START_TIMEOUT": "0",
    "PATRONI_WATCHDOG": "off",
    "ETCD_HEARTBEAT": "200", "ETCD_ELECTION": "2000",
    # A killed process loses nothing that it has written; only a power failure does.
    "POSTGRES_FSYNC": "off",
    "POSTGRES_SHARED_BUFFERS": "16MB", "POSTGRES_MAX_WAL": "64MB", "GATEPOST_POOL_SIZE": "8",
}  # fmt: skip
DISK = "size=320m"
"""Of each Postgres, if this user may mount: a small disk can be filled."""


def missing() -> list[str]:
    """What must be installed first; empty: all is here."""
    names = [f"{name} is not installed (Debian: apt-get install {package})" for name, package in PROGRAMS.items()
             if shutil.which(name, path=search_path()) is None]  # fmt: skip
    if postgres_bin() is None:
        names.append("Postgres is not installed (Debian: apt-get install postgresql)")
    if not (tools() / "patroni").exists():
        names.append("Patroni is not installed (make cluster-tools)")
    return names


def postgres_bin() -> Path | None:
    """The programs of the newest Postgres of this system."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def tools() -> Path:
    """Where Patroni's programs are."""
    return Path(os.environ.get("CLUSTER_TOOLS", ROOT / ".cache" / "cluster")) / "bin"


class Cluster:
    """`start()`, then whatever a drill does to it, then `close()`."""

    def __init__(self, values: Mapping[str, str] | None = None, key: str | None = None) -> None:
        """`values` replace those of cluster.env; `key` is the PEM of the public key that session tokens are verified with."""
        self.folder = Path(tempfile.mkdtemp(prefix="gatepost-cluster-"))
        self.folder.chmod(0o755)
        self.net = Network(self.folder)
        self.values = {**values_of(HERE / "cluster.env"), **passwords(self.folder / "secrets.env"), **LOCAL, **(values or {})}
        self.values |= {"CLUSTER_NETWORK": self.net.network, "POSTGRES_BIN": str(postgres_bin())}
        self.extra = {"CLERK_JWT_KEY": key or _key()}
        """Further environment of the servers."""
        self.started, self.down = False, set[str]()
        self.program, self.root = [sys.executable, "-m", "server"], ROOT
        """The servers' program, and the folder of their version."""
        for name, number in NUMBERS.items():
            self.values[name.upper()] = self.net.add(name, number).address

    def __getitem__(self, name: str) -> Machine:
        return self.net.machines[name]

    def start(self) -> None:
        """Start everything in order; returns when the cluster answers. Raises RuntimeError with the machine's log."""
        for name in NUMBERS:
            self._prepare(name)
            if not name.startswith("gatepost"):
                self.run(name)
        self.wait("a primary and two standbys", lambda: self.primary() and self.whole(), 90)
        self.wait("HAProxy to see the primary", self.reachable, 30)
        self.migrate()
        for name in SERVERS:
            self.run(name)
        self.wait("the servers", lambda: all(map(self.ready, SERVERS)) and self.get(self.url + "/api/health") is not None, 120)
        self.started = True

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://{self['proxy'].address}:8080"

    def _prepare(self, name: str) -> None:
        machine = self[name]
        own = ("POSTGRES_SOCKETS", "ETCD_DATA", "REDIS_DATA", "RUN_FOLDER")
        paths = {key: str(machine.folder / key.lower()) for key in own}
        paths |= {"CONFIG_FOLDER": str(machine.folder / "config"), "POSTGRES_DATA": str(machine.folder / "disk" / "data")}
        render(name, {**self.values, **paths}, machine.folder / "config")
        for key in ("POSTGRES_SOCKETS", "REDIS_DATA", "RUN_FOLDER"):
            Path(paths[key]).mkdir(mode=0o700)
        (machine.folder / "disk").mkdir(mode=0o700)
        if name.startswith("pg") and self.net.spaces:
            words = ["mount", "-t", "tmpfs", "-o", f"{DISK},mode=0700", "tmpfs", str(machine.folder / "disk")]
            subprocess.run(words, check=False, capture_output=True)
        machine.hand_over()

    def run(self, name: str) -> None:
        """Start the program of a machine."""
        self._start(name)
        self.down.discard(name)  # not before: `watch`, in another thread, would start it a second time

    def _start(self, name: str) -> None:
        machine, kind = self[name], name.rstrip("123")
        config = machine.folder / "config"
        if kind == "gatepost":
            env = {**values_of(config / "gatepost.env"), **self.extra, "PYTHONPATH": str(self.root)}
            machine.start("gatepost", self.program, env, ours=True)
            return
        words: dict[str, list[str | Path]] = {
            "etcd": ["etcd", "--config-file", config / "etcd.yaml"],
            "pg": [tools() / "patroni", config / "patroni.yaml"],
            "proxy": ["haproxy", "-db", "-f", config / "haproxy.cfg"],
            "pooler": ["pgbouncer", config / "pgbouncer.ini"],
            "redis": ["redis-server", config / "redis.conf"],
        }
        machine.start(kind, words[kind], {})

    def kill(self, name: str, *, dark: bool = False) -> None:
        """The machine's power fails; it is down until `run`."""
        self.down.add(name)
        self[name].kill(dark=dark)

    def watch(self) -> list[str]:
        """Start what has ended by itself, as a unit with Restart=always would; their names."""
        ended = [name for name, machine in self.net.machines.items() if machine.ended() and name not in self.down]
        for name in ended:
            self.run(name)
        return ended

    def migrate(self) -> None:
        """Bring the schema up to date, as a machine that does not serve."""
        done = self.command("migrate")
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`python -m server WORDS` with the owner's URL."""
        config = self.folder / "migrate"
        render("migrate", self.values, config)
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.root), **values_of(config / "migrate.env")}
        line = [*self.program, *words]
        return subprocess.run(line, env=env, cwd=config, capture_output=True, text=True, check=False, timeout=120)

    def get(self, url: str) -> Any:
        """The JSON of an answer with status 200, or None."""
        try:
            with urllib.request.urlopen(url, timeout=3) as answer:
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError, urllib.error.URLError):
            return None

    def ready(self, name: str) -> bool:
        return self.get(f"http://{self[name].address}:9090/readyz") is not None

    def members(self, asked: str | None = None) -> list[dict[str, Any]]:
        """What a Patroni knows of the members; the first that answers, or the one of machine `asked`."""
        for name in [asked] if asked else DATABASES:
            if (known := self.get(f"http://{self[name].address}:8008/cluster")) is not None:
                return list(known["members"])
        return []

    def primary(self) -> str | None:
        """The machine that holds the lease and accepts writes."""
        for name in DATABASES:
            if self.get(f"http://{self[name].address}:8008/primary") is not None:
                return name
        return None

    def standby(self) -> str | None:
        """The machine that confirms commits."""
        confirming = (one for one in self.members() if one["role"] == "sync_standby" and one["state"] == "streaming")
        return next((one["name"] for one in confirming), None)

    def whole(self) -> bool:
        """Whether all three databases are there, both standbys stream, and one of them confirms commits if one must."""
        streaming = [one for one in self.members() if one["state"] == "streaming"]
        return len(streaming) == 2 and (self.values["PATRONI_SYNCHRONOUS"] != "on" or self.standby() is not None)

    def reachable(self) -> bool:
        """Whether HAProxy leads to a Postgres."""
        words = [f"{self.values['POSTGRES_BIN']}/pg_isready", "-q", "-t", "2", "-h", self["proxy"].address, "-p", "5000"]
        return subprocess.run(words, check=False).returncode == 0

    def wait(self, what: str, ready: Callable[[], Any], seconds: float) -> None:
        """Wait until `ready()` is true. Raises RuntimeError with the ends of all logs."""
        end = time.monotonic() + seconds
        while not ready():
            ended = [name for name, machine in self.net.machines.items() if machine.ended()]
            if time.monotonic() > end or (ended and not self.started):
                raise RuntimeError(f"{what}: {', '.join(ended) or f'not within {seconds:.0f} s'}\n" + self.logs(ended))
            time.sleep(0.2)

    def logs(self, names: Collection[str] = (), lines: int = 12) -> str:
        """The last lines of the logs of these machines, or of all."""
        files = sorted(path for path in self.folder.glob("*/*.log") if not names or path.parent.name in names)
        ends = {path.parent.name: path.read_text(errors="replace").splitlines()[-lines:] for path in files}
        return "\n".join(f"== {name}\n" + "\n".join(end) for name, end in ends.items())

    def close(self) -> None:
        """End everything, and remove what it has made; a second Ctrl-C does not interrupt it."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.net.close()


def _key() -> str:
    """A public key whose private key nobody has: every session token is refused."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
