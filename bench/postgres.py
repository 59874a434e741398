"""A real Postgres for one run: a throwaway one, or the server that a URL names, where databases are made and dropped again.

Three databases: `locked` has Gatepost's schema; `open` is a copy of it in which row-level security is switched off (made when
asked for); `bare` has the table `data` alone, for the bare server. The same rows are in each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import asyncpg
import machine

from server.embedded.server import EmbeddedPostgres
from server.schema.migrate import migrate

# Alike for everybody: nothing here has to survive a power cut, and nothing may start up in the middle of a measurement.
OPTIONS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off", "jit": "off",
           "shared_buffers": "256MB", "max_connections": "300", "max_wal_size": "8GB"}  # fmt: skip
USER = "'user_' || lpad({}::text, 24, '0')"
# $1 users, $2 rows of each, $3 the number of the first user. The rows of one user do not lie beside each other.
FILL = f"""INSERT INTO data (user_id, org_id, name, payload, created_at, updated_at)
SELECT {USER.format("u")}, CASE WHEN r % 2 = 0 THEN 'org_' || lpad((u % 100)::text, 24, '0') END, 'item ' || r,
       jsonb_build_object('kind', 'note', 'n', r, 'done', r % 3 = 0, 'tags', jsonb_build_array('a', 'b')), at, at
  FROM generate_series(0, $2::int - 1) AS r, generate_series($3::int, $3::int + $1::int - 1) AS u,
       LATERAL (SELECT timestamptz '2026-01-01 00:00:00.123+00' + u * interval '1 second' + r * interval '1 minute' AS at) AS t"""
BARE = """CREATE TABLE data (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id text NOT NULL, org_id text, name text NOT NULL,
    payload jsonb NOT NULL DEFAULT '{}', created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX data_by_user ON data (user_id, created_at DESC, id DESC);
CREATE INDEX data_by_org ON data (org_id, id);"""


class Postgres:
    """`with Postgres(url=..., bin=...) as postgres:` neither: the embedded one. `url` is a superuser's."""

    def __init__(self, url: str | None = None, bin: Path | None = None, options: Mapping[str, str] = OPTIONS) -> None:
        run = secrets.token_hex(4)
        self.serving, self.plain = f"bench_app_{run}", f"bench_bare_{run}"
        self.locked, self.open, self.bare = (f"bench_{name}_{run}" for name in ("locked", "open", "bare"))
        self._password = secrets.token_hex(16)
        self._url = urlsplit(url or os.environ.get("TEST_DATABASE_URL") or "")
        self._folder: Path | None = None
        self._embedded: EmbeddedPostgres | None = None
        self._bin, self._options = bin, options
        self.pid: int | None = None
        self.version = ""

    def __enter__(self) -> Postgres:
        if not self._url.scheme:
            self._folder = Path(tempfile.mkdtemp(prefix="gatepost-bench-"))
            self._folder.chmod(0o711)  # Postgres, as another user, must pass through
            roles = (self.serving, self.plain)
            self._embedded = EmbeddedPostgres(self._folder / "postgres", bin=self._bin, options=self._options, roles=roles)
        try:
            if self._embedded is not None:
                self._embedded.start()
            asyncio.run(self._make())
            self._pin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._embedded is not None:
            self._embedded.stop()
        else:
            asyncio.run(self._drop())
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, role: str, database: str) -> str:
        """The URL of one of our roles."""
        if self._embedded is not None:
            return f"postgresql://{role}@/{database}?" + urlencode({"host": str(self._embedded.socket), "port": 5432})
        query = f"?{self._url.query}" if self._url.query else ""
        return f"postgresql://{role}:{self._password}@{self._url.netloc.rpartition('@')[2]}/{database}{query}"

    @property
    def way(self) -> str:
        """How it is reached."""
        return "by its Unix socket" if self._embedded is not None or str(self._host()["host"]).startswith("/") else "by TCP"

    @contextlib.asynccontextmanager
    async def admin(self, database: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the superuser, whom row-level security does not bind."""
        if self._embedded is not None:
            where: dict[str, Any] = {"host": str(self._embedded.socket), "port": 5432, "user": self._embedded.superuser}
        else:
            where = {"user": unquote(self._url.username or "postgres"), **self._host()}
        own = unquote(self._url.path.lstrip("/")) or "postgres"
        connection = await asyncpg.connect(**where, database=database or own, command_timeout=3600)
        try:
            yield connection
        finally:
            await connection.close()

    def _host(self) -> dict[str, Any]:
        asked = {name: values[0] for name, values in parse_qs(self._url.query).items()}
        found: dict[str, Any] = {"host": asked.get("host", self._url.hostname or "localhost")}
        found["port"] = int(asked.get("port", self._url.port or 5432))
        return found | ({"password": unquote(self._url.password)} if self._url.password else {})

    async def _make(self) -> None:
        async with self.admin() as admin:
            self.version = await admin.fetchval("SHOW server_version")
            for role in (self.serving, self.plain):
                await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{self._password}'")
            for name in (self.locked, self.bare):
                await admin.execute(f"CREATE DATABASE {name}")
            self._backend = await admin.fetchval("SELECT pg_backend_pid()")
            self.pid = self._postmaster(self._backend)
        async with self.admin(self.locked) as locked:
            await migrate(locked, serving_role=self.serving)
        async with self.admin(self.bare) as bare:
            await bare.execute(BARE + f"ALTER TABLE data OWNER TO {self.plain};")

    def _postmaster(self, backend: int) -> int | None:
        """The process that is the parent of a session's; None where the server is not on this machine."""
        with contextlib.suppress(OSError):
            if "postgres" in Path(f"/proc/{backend}/comm").read_text():
                return int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])
        return None

    def _pin(self) -> None:
        with contextlib.suppress(PermissionError):
            if self.pid is not None:
                machine.pin(self.pid, {machine.cpus()[1]})

    async def fill(self, users: int, rows: int, first: int = 0, databases: tuple[str, ...] | None = None) -> None:
        """So many rows for each of so many users, from the user with the number `first` on."""
        for name in databases or (self.locked, self.bare):
            async with self.admin(name) as admin:
                await admin.execute(FILL, users, rows, first)
                await admin.execute("VACUUM ANALYZE data")

    async def copy_open(self) -> None:
        """Make `open`: the locked database as it is now, with row-level security switched off. No connection may be open."""
        async with self.admin() as admin:
            await admin.execute(f"CREATE DATABASE {self.open} TEMPLATE {self.locked}")
            await admin.execute(f"GRANT CONNECT ON DATABASE {self.open} TO {self.serving}")
        async with self.admin(self.open) as admin:
            await admin.execute("ALTER TABLE data DISABLE ROW LEVEL SECURITY")
            await admin.execute("VACUUM ANALYZE data")

    async def _drop(self) -> None:
        async with self.admin() as admin:
            for name in (self.locked, self.open, self.bare):
                await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            for role in (self.serving, self.plain):
                await admin.execute(f"DROP ROLE IF EXISTS {role}")
