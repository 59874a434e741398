"""`make cluster`: the whole cluster on one machine. Ctrl-C ends it, and nothing is left behind."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cluster import Cluster, missing, tools


def main() -> int:
    """Start, say where everything is, and wait for Ctrl-C."""
    if lacking := missing():
        sys.exit("\n".join(lacking))
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: done.set())
    cluster = Cluster()
    try:
        print("Starting three etcd, three Postgres, HAProxy, PgBouncer, Redis and three servers ...", flush=True)
        starting = threading.Thread(target=cluster.start, daemon=True)
        failed: list[BaseException] = []
        threading.excepthook = lambda args: failed.append(args.exc_value or RuntimeError("no start")) or done.set()
        starting.start()
        while starting.is_alive() and not done.wait(0.2):
            pass
        if failed:
            raise SystemExit(str(failed[0]))
        if not done.is_set():
            describe(cluster)
            done.wait()
    finally:
        print("Ending it ...", flush=True)
        cluster.close()
    return 0


def describe(cluster: Cluster) -> None:
    """Print the addresses, and commands that work."""
    made = cluster.command("keys", "create", "--name", "cluster", "--user", "user_1", "--days", "1")
    key = made.stdout.strip()
    for name, machine in cluster.net.machines.items():
        more = " (primary)" if name == cluster.primary() else " (synchronous standby)" if name == cluster.standby() else ""
        print(f"  {name:10} {machine.address}{more}")
    config, curl = cluster["pg1"].folder / "config" / "patroni.yaml", f"curl -H 'X-API-Key: {key}'"
    body = "-H 'Content-Type: application/json' -d '{\"name\": \"first\"}'"
    url = cluster.url
    commands = [f"{tools()}/patronictl -c {config} list", f"{curl} {url}/api/me", f"{curl} {body} {url}/api/data"]
    print(f"\nLogs: {cluster.folder}/*/*.log", *commands, "\nCtrl-C ends all of it.", sep="\n  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
