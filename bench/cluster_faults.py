"""What the cluster's drill breaks, and how it is mended: each fault breaks one thing of a running cluster."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import DATABASES, ROOT, SERVERS, Cluster

ETCD = ("etcd1", "etcd2", "etcd3")


@dataclass(frozen=True)
class Fault:
    """`break_(cluster)` returns what mends it. `hold`: seconds that it stays broken at least; `down`: writes cannot work before
    it is mended; `asynchronous`: with synchronous_mode off, so that losses are expected; `spaces`: needs network namespaces."""

    name: str
    break_: Callable[[Cluster], Callable[[], None]]
    hold: float = 1.0
    down: bool = False
    asynchronous: bool = False
    spaces: bool = False
    short: bool = False
    """Part of the short version, too."""


def _kill_primary(cluster: Cluster) -> Callable[[], None]:
    name = _primary(cluster)
    cluster.kill(name)
    return lambda: cluster.run(name)


def _cut_primary(cluster: Cluster) -> Callable[[], None]:
    name = _primary(cluster)
    others = [*ETCD, *(one for one in DATABASES if one != name)]
    cluster.net.cut(name, others)
    return lambda: cluster.net.mend(name, others)


def _stop_primary(cluster: Cluster) -> Callable[[], None]:
    name = _primary(cluster)
    cluster[name].send(signal.SIGSTOP)
    return lambda: cluster[name].send(signal.SIGCONT)


def _killed(*names: str) -> Callable[[Cluster], Callable[[], None]]:
    def kill(cluster: Cluster) -> Callable[[], None]:
        for name in names:
            cluster.kill(name)
        return lambda: [cluster.run(name) for name in names] and None

    return kill


def _switchover(cluster: Cluster) -> Callable[[], None]:
    leader, candidate = _primary(cluster), cluster.standby()
    _patroni(cluster, leader, "POST", "/switchover", {"leader": leader, "candidate": candidate})
    return lambda: None


def _new_schema(cluster: Cluster) -> Callable[[], None]:
    cluster.root = newer_version(cluster.folder / "newer")
    cluster.migrate()
    return lambda: None


def _roll_servers(cluster: Cluster) -> Callable[[], None]:
    for name in SERVERS:
        cluster.down.add(name)
        cluster[name].stop(40)
        cluster.run(name)
        cluster.wait(name, lambda name=name: cluster.ready(name), 90)
        time.sleep(2)  # HAProxy has seen it
    return lambda: None


def _fill_primary(cluster: Cluster) -> Callable[[], None]:
    return _fill(cluster, _primary(cluster))


def _fill_standby(cluster: Cluster) -> Callable[[], None]:
    return _fill(cluster, cluster.standby() or _primary(cluster))


def _fill(cluster: Cluster, name: str) -> Callable[[], None]:
    path = cluster[name].folder / "disk" / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError:
                continue
    return path.unlink


def _kill_without_its_last_words(cluster: Cluster) -> Callable[[], None]:
    """With asynchronous replication: the network between the databases is lost for two seconds, then the primary's machine."""
    name = _primary(cluster)
    others = [one for one in DATABASES if one != name]
    cluster.net.cut(name, others)
    time.sleep(2)
    cluster.kill(name, dark=True)
    cluster.net.mend(name, others)
    return lambda: cluster.run(name)


FAULTS = [
    Fault("the primary's machine is killed", _kill_primary, short=True),
    Fault("the primary is cut off from etcd and its peers; clients still reach it", _cut_primary, spaces=True),
    Fault("the primary's machine stands still (SIGSTOP), and wakes after another was chosen", _stop_primary, short=True),
    Fault("a planned switchover", _switchover, short=True),
    Fault("a Gatepost server's machine is killed", _killed("gatepost1"), hold=4, short=True),
    Fault("HAProxy is killed for 2 s", _killed("proxy"), hold=2, down=True),
    Fault("PgBouncer is killed for 2 s", _killed("pooler"), hold=2, down=True, short=True),
    Fault("Redis is killed for 5 s", _killed("redis"), hold=5),
    Fault("one etcd is killed for 10 s", _killed("etcd1"), hold=10),
    Fault("two etcd are killed for 30 s", _killed("etcd1", "etcd2"), hold=30),
    Fault("the schema is migrated to a newer revision", _new_schema),
    Fault("the servers are replaced by the newer version, one by one", _roll_servers),
    Fault("the disk of the synchronous standby is full for 15 s", _fill_standby, hold=15, spaces=True),
    Fault("the disk of the primary is full for 15 s", _fill_primary, hold=15, spaces=True),
    Fault("asynchronous replication: the primary's machine is killed after 2 s without its peers",
          _kill_without_its_last_words, asynchronous=True, spaces=True),
]  # fmt: skip


def set_synchronous(cluster: Cluster, on: bool) -> None:
    """Change synchronous_mode of the running cluster, and wait until it counts."""
    _patroni(cluster, _primary(cluster), "PATCH", "/config", {"synchronous_mode": on})
    cluster.values["PATRONI_SYNCHRONOUS"] = "on" if on else "off"
    cluster.wait("the change of synchronous_mode", lambda: (cluster.standby() is not None) == on and cluster.whole(), 60)
    time.sleep(3)


def newer_version(folder: Path) -> Path:
    """A copy of this checkout whose schema has the next revision, and one column more."""
    for name in ("server", "providers", "handlers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "schema.sql").read_text("utf-8")
    found = re.search(r"^-- generation (\d+), revision (\d+)$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError("schema.sql does not say its revision")
    text = text.replace(found[0], f"-- generation {found[1]}, revision {int(found[2]) + 1}")
    (folder / "schema.sql").write_text(text + "\nALTER TABLE data ADD COLUMN IF NOT EXISTS drilled text;\n", "utf-8")
    return folder


def _primary(cluster: Cluster) -> str:
    name = cluster.primary()
    if name is None:
        raise RuntimeError("there is no primary\n" + cluster.logs())
    return name


def _patroni(cluster: Cluster, name: str, method: str, path: str, body: object) -> None:
    secret = base64.b64encode(f"patroni:{cluster.values['PATRONI_PASSWORD']}".encode()).decode()
    headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
    url = f"http://{cluster[name].address}:8008{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
