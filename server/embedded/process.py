"""How a Postgres program is run: as which user of the operating system, and never longer than we live."""

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
# How to stop Postgres: in order, at once, by force; and how many seconds each may take.
STOP_LIMITS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_OVERFLOW_UID = 65534  # what Linux shows for every user that a user namespace does not know


class PostgresError(Exception):
    """The embedded Postgres cannot be used; the message is one line for the operator."""


class Account(NamedTuple):
    """The user a Postgres program runs as.

    `self`: as we do. `user`: we are root, and it gives up root for `uid`, `gid`. `alias`: we are root, and in a user
    namespace of its own it is called `uid`, `gid`, has lost root's powers, and yet owns and reaches root's files.
    """

    kind: str
    uid: int
    gid: int

    @property
    def file_owner(self) -> int:
        """The uid, as we see it, that owns what Postgres writes."""
        return 0 if self.kind == "alias" else self.uid

    def our_name(self) -> str:
        """Our user's name as Postgres sees us at the other end of its socket; PostgresError where there is none."""
        uid = self.uid if self.kind == "alias" else os.geteuid()
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            raise PostgresError(f"user {uid} has no name on this machine, and Postgres needs one") from None


def accounts(data: Path) -> Iterator[Account]:
    """The accounts Postgres could run as, best first; `data` is its data folder, which may not exist yet."""
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
    # Strangers look like the overflow user in there, so being that one would let them in.
    others = [user for user in users if user.pw_uid not in (0, _OVERFLOW_UID)]
    if others and sys.platform == "linux":
        yield Account("alias", others[0].pw_uid, others[0].pw_gid)


def command(account: Account, folder: Path, at_our_death: signal.Signals, program: list[str]) -> list[str]:
    """The command line that runs `program` in `folder` as `account`, and sends it `at_our_death` when we die."""
    who = [account.kind, str(account.uid), str(account.gid)]
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    return [*launcher, str(os.getpid()), str(int(at_our_death)), *who, str(folder), *program]


def environment() -> dict[str, str]:
    """The environment of a Postgres program: none of our secrets, no PG* settings, no locale but C."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def run(account: Account, folder: Path, program: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a short Postgres program to its end (two minutes at most) and return its status and output."""
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
    """Whether process `pid` lives and is a Postgres server on the folder `data`: a bare pid may have been reused."""
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
    with contextlib.suppress(OSError):  # started by hand with a relative path; its working folder is the data
        return os.path.samefile(f"/proc/{pid}/cwd", data)
    return False


def exists(pid: int) -> bool:
    """Whether there is a process `pid` at all, of any user, living or a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop our Postgres process, in order if it can, by force if it must, and wait until it is gone."""
    for how, limit in STOP_LIMITS:
        if process.poll() is not None:
            return
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit)


class PidFile(NamedTuple):
    """What `postmaster.pid` says; `pid` 0 when it says nothing."""

    pid: int
    socket: Path
    ready: bool


def read_pid_file(data: Path) -> PidFile:
    """Read `postmaster.pid` in the data folder. Nothing in it is to be believed before `is_postgres_on`."""
    try:
        lines = os.fsdecode((data / "postmaster.pid").read_bytes()).split("\n")
        pid = int(lines[0])
    except (OSError, ValueError):
        return PidFile(0, data, False)
    if len(lines) < 8:
        return PidFile(max(pid, 0), data, False)
    return PidFile(max(pid, 0), Path(lines[4]), lines[7].strip() == "ready")
