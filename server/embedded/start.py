"""Starts one Postgres process, and ends one that an earlier process left behind."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from .files import PORT, complaint, new_file
from .process import STOP_LIMITS, Account, PostgresError, command, environment, exists, is_postgres_on, read_pid_file

_START_LIMIT: Final = 120.0  # seconds; recovery after a crash may take long
_DEFAULTS: Final = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log must stay small and must not repeat statements or values, which may be private.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}


def end_leftover(data: Path) -> Iterator[None]:
    """End a Postgres that has outlived its owner, and remove a stale pid file. Yields while it waits."""
    pid = read_pid_file(data).pid
    for how, limit in STOP_LIMITS:
        if not is_postgres_on(pid, data):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        deadline = time.monotonic() + limit
        while is_postgres_on(pid, data) and time.monotonic() < deadline:
            yield
    # Not where the pid is dead: Postgres then removes the file itself, and looks for orphaned sessions when it does.
    if pid and exists(pid):
        (data / "postmaster.pid").unlink(missing_ok=True)


def spawn(folder: Path, bin: Path, account: Account, socket: Path, options: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start Postgres on the cluster in `folder`; it may still be starting when this returns."""
    quoted = str(socket).replace('"', '""')
    settings = {
        **_DEFAULTS,
        **options,
        "listen_addresses": "",
        "port": str(PORT),
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0700",
        "hba_file": str(folder / "pg_hba.conf"),
        "ident_file": str(folder / "pg_ident.conf"),
    }
    program = [str(bin / "postgres"), "-D", str(folder / "data")]
    for name, value in settings.items():
        program += ["-c", f"{name}={value}"]
    log = folder / "postgres.log"
    if log.exists():
        log.replace(f"{log}.old")
    with new_file(log, 0o600) as output:
        return subprocess.Popen(
            command(account, folder, signal.SIGINT, program),
            env=environment(),
            start_new_session=True,  # Ctrl-C must reach this process only, which stops Postgres in order
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def until_ready(folder: Path, process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Yield until Postgres accepts connections. Raises PostgresError, with the error in its log, if it does not."""
    deadline = time.monotonic() + _START_LIMIT
    while True:
        if process.poll() is not None:
            log = (folder / "postgres.log").read_text(errors="replace")
            raise PostgresError(f"Postgres did not start: {complaint(log)}")
        state = read_pid_file(folder / "data")
        if state.ready and state.pid == process.pid:
            return
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGQUIT)
            raise PostgresError(f"Postgres did not start within {_START_LIMIT:.0f} seconds")
        yield
