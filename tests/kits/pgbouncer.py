"""A real PgBouncer in transaction mode in front of a test's Postgres, with as few connections to it as one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kits.postgres import Server

PGBOUNCER = shutil.which("pgbouncer") or next((path for path in ("/usr/sbin/pgbouncer",) if os.access(path, os.X_OK)), None)


class PgBouncer:
    """Listens on loopback and lets everybody in; `size` connections per database and role to the Postgres behind."""

    def __init__(self, server: Server, size: int, *extra: str) -> None:
        self.server, self.size, self.extra, self.port = server, size, extra, _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="gp-pgb-"))
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str, database: str) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def start(self) -> None:
        address = self.server.connect_args("-", "-")
        users = "".join(f'"{name}" "{self.server.passwords.get(name, "")}"\n'
                        for name in {self.server.serving_role, self.server.admin, *self.server.roles})  # fmt: skip
        (self.folder / "users.txt").write_text(users)
        (self.folder / "pgbouncer.ini").write_text("\n".join([
            "[databases]", f"* = host={address['host']} port={address['port']}",
            "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {self.port}", "unix_socket_dir =", "auth_type = trust",
            f"auth_file = {self.folder / 'users.txt'}", "pool_mode = transaction", f"default_pool_size = {self.size}",
            "max_client_conn = 500", "server_login_retry = 0.2", "log_connections = 0", "log_disconnections = 0",
            f"admin_users = {self.server.admin}", *self.extra, ""]))  # fmt: skip
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            nobody = pwd.getpwnam("nobody")
            as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        assert PGBOUNCER
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen([PGBOUNCER, self.folder / "pgbouncer.ini"], stdout=log, stderr=log,
                                             preexec_fn=_die_with_parent, **as_user)  # fmt: skip
        end = time.monotonic() + 10
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError((self.folder / "log").read_text())

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def send(self, how: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(how)

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def pgbouncer(server: Server, size: int = 1, *extra: str) -> Iterator[PgBouncer]:
    """A running one, stopped afterwards; `extra` are further lines of its settings."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    bouncer = PgBouncer(server, size, *extra)
    try:
        bouncer.start()
        yield bouncer
    finally:
        bouncer.stop()
