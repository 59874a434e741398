"""Running a Postgres program: as which user of the operating system, and never longer than this process."""

import contextlib
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LAUNCHER = Path(__file__).resolve().with_name("launcher.py")
# How to stop Postgres (in order, at once, by force), and the seconds that each step may take.
STOP_LIMITS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_OVERFLOW_UID = 65534  # what Linux shows for a user that is not mapped into the user namespace


class PostgresError(Exception):
    """The embedded Postgres cannot be used; the message is one line for the operator."""


class Account(NamedTuple):
    """The user that a Postgres program runs as, which must not be root.

    kind `self`    this process's own user
    kind `user`    this process is root; the program switches to `uid`, `gid`
    kind `alias`   this process is root; the program runs in a user namespace in which root is `uid`, `gid`: it has none of
                   root's capabilities, but owns and can read root's files
    """

    kind: str
    uid: int
    gid: int

    @property
    def file_owner(self) -> int:
        """The uid, as this process sees it, that owns the files that Postgres writes."""
        return 0 if self.kind == "alias" else self.uid

    def our_name(self) -> str:
        """The name of this process's user, as Postgres sees it through its socket. Raises PostgresError if it has none."""
        uid = self.uid if self.kind == "alias" else os.geteuid()
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            raise PostgresError(f"user {uid} has no name on this machine, and Postgres needs one") from None


def accounts(data: Path) -> Iterator[Account]:
    """The accounts that Postgres could run as, best first. `data` is its data folder, which may not exist yet."""
    if os.geteuid() != 0:
        yield Account("self", os.geteuid(), os.getegid())
        return
    found = data.stat() if data.exists() else None
    if found and found.st_uid != 0:
        yield Account("user", found.st_uid, found.st_gid)
        return
    users = pwd.getpwall()
    if not found:
        yield from (Account("user", user.pw_uid, user.pw_gid) for user in users if user.pw_name == "nobody")
    # In a user namespace every unmapped user appears as the overflow user: as that one, Postgres would let all of them in.
    others = [user for user in users if user.pw_uid not in (0, _OVERFLOW_UID)]
    if others and sys.platform == "linux":
        yield Account("alias", others[0].pw_uid, others[0].pw_gid)


def command(account: Account, folder: Path, at_our_death: signal.Signals, program: list[str]) -> list[str]:
    """The command line that runs `program` in `folder` as `account`; it gets `at_our_death` when this process dies."""
    who = [account.kind, str(account.uid), str(account.gid)]
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    return [*launcher, str(os.getpid()), str(int(at_our_death)), *who, str(folder), *program]


def environment() -> dict[str, str]:
    """The environment of a Postgres program: no secrets, no PG* settings, the locale C, the time zone UTC."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def run(account: Account, folder: Path, program: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a short Postgres program to its end and return its status and output. Raises PostgresError after two minutes."""
    line = command(account, folder, signal.SIGKILL, program)
    try:
        return subprocess.run(
            line,
            check=False,
            env=environment(),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        raise PostgresError(f"{program[0]} did not end within two minutes") from None


def is_postgres_on(pid: int, data: Path) -> bool:
    """Whether process `pid` is running and is a Postgres server on the folder `data`; the pid alone may have been reused."""
    if pid <= 0:
        return False
    if not os.path.exists("/proc/self/cmdline"):  # not Linux
        ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        line = subprocess.run(ps, check=False, capture_output=True, text=True).stdout
        return "postgres" in line and str(data) in line
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # a zombie has none
    except OSError:
        return False
    if os.path.basename(words[0]) not in (b"postgres", b"postmaster"):
        return False
    if os.fsencode(data) in words:
        return True
    with contextlib.suppress(OSError):  # started by hand with a relative path: its working folder is the data folder
        return os.path.samefile(f"/proc/{pid}/cwd", data)
    return False


def exists(pid: int) -> bool:
    """Whether a process `pid` exists, of any user, running or a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop this Postgres process, by force if it does not stop in order, and wait for its end (at most 40 seconds)."""
    for how, limit in STOP_LIMITS:
        if process.poll() is not None:
            return
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit)


class PidFile(NamedTuple):
    """The content of `postmaster.pid`; `pid` is 0 if the file is missing or unreadable."""

    pid: int
    socket: Path
    ready: bool


def read_pid_file(data: Path) -> PidFile:
    """Read `postmaster.pid` in the data folder. Check it with `is_postgres_on` before relying on it: it may be stale."""
    try:
        lines = os.fsdecode((data / "postmaster.pid").read_bytes()).split("\n")
        pid = int(lines[0])
    except (OSError, ValueError):
        return PidFile(0, data, False)
    if len(lines) < 8:
        return PidFile(max(pid, 0), data, False)
    return PidFile(max(pid, 0), Path(lines[4]), lines[7].strip() == "ready")
