"""What the tests stand on: a real Postgres, a real server on a real port, and callers with a name.

One throwaway Postgres per run with one migrated database, emptied after each test; one server per test, or several:

    async def test_something(client):                      # a server with the usual settings
        got = await client.get("/api/me", ALICE)           # ALICE is a header: `Authorization: Stub user_id="alice", ...`
        assert got.status == 200 and got.json()["user_id"] == "alice"

    async def test_other(serve):                           # a server with settings of its own, and a plugin
        client = await serve({"limits.body_seconds": 0.3}, extra={"acme": acme})

TEST_DATABASE_URL names a Postgres to use instead of the throwaway one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from aiohttp import ClientSession, DummyCookieJar, web
from aiohttp.test_utils import TestServer
from kits.postgres import Server, servers
from multidict import CIMultiDictProxy
from yarl import URL

from server import hookimpl
from server.app import build
from server.http.connection_server import ConnectionServer
from server.settings.sources import Settings

# Secrets ---------------------------------------------------------------------------------------------------------------

# What no line of ours or of a library that we stand on may hold, whatever test it is: credentials, and the tests' canaries.
_SECRET = re.compile(r"canary|gp_\w{8}|st_[\w-]{43}|[sp]k_(?:live|test)_\w|whsec_\w|eyJ[\w-]+\.[\w-]+\.|(?:Bearer|Stub|Basic) \S{6}|://[^/\s]*:[^/\s]+@|hunter2")


class _Sweep(logging.Handler):
    """Searches every log line of a test, with all that comes along."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] in ("gatepost", "server", "providers", "handlers"):
            said = f"{record.getMessage()} {getattr(record, 'fields', '')}"
            if hit := _SECRET.search(said):
                self.found.append(f"{record.name}: {said[: hit.start()]}[{hit[0][:3]}...]")


@pytest.fixture(autouse=True)
def _no_secret_is_logged() -> Iterator[None]:
    """After every test: no log line held a secret."""
    sweep = _Sweep()
    logging.getLogger().addHandler(sweep)
    yield
    logging.getLogger().removeHandler(sweep)
    assert not sweep.found, f"a secret was logged: {sweep.found}"


# Callers ---------------------------------------------------------------------------------------------------------------


def stub(user_id: str, **more: str) -> dict[str, str]:
    """The header with which the stub provider identifies a caller: `stub("alice", org_id="a", org_role="org:admin")`."""
    said = {"user_id": user_id, **more}
    return {"Authorization": "Stub " + ", ".join(f'{name}="{value}"' for name, value in said.items())}


READ, CREATE = "org:invoices:read", "org:invoices:create"
ALICE = stub("alice", org_id="org_a", org_role="org:member")
ALICE_ALONE = stub("alice")
BOB = stub("bob", org_id="org_b", org_role="org:member")
ADMIN_A = stub("anna", org_id="org_a", org_role="org:admin")
ADMIN_B = stub("bert", org_id="org_b", org_role="org:admin")
CLERK_A = stub("alice", org_id="org_a", org_role="org:member", org_permissions=f"{READ} {CREATE}")
CLERK_B = stub("bob", org_id="org_b", org_role="org:member", org_permissions=f"{READ} {CREATE}")
# A key of an organisation: no user stands behind it.
ROBOT_A = {"X-API-Key": "gp_the-key-of-robot-a"}
KEYS = [{"id": "robot_a", "hash": "sha256:" + hashlib.sha256(ROBOT_A["X-API-Key"].encode()).hexdigest(), "org_id": "org_a",
         "org_role": "org:admin", "org_permissions": [READ, CREATE]}]  # fmt: skip
BAD_CREDENTIALS: dict[str, dict[str, str]] = {
    "stub without parameters": {"Authorization": "Stub"},
    "stub without user": {"Authorization": 'Stub org_id="org_a"'},
    "stub with user twice": {"Authorization": 'Stub user_id="alice", user_id="bob"'},
    "stub with unknown parameter": {"Authorization": 'Stub user_id="alice", admin="yes"'},
    "stub with open quote": {"Authorization": 'Stub user_id="alice'},
    "stub with empty user": {"Authorization": 'Stub user_id=""'},
    "stub through a proxy": {**stub("alice"), "X-Forwarded-For": "203.0.113.9"},
    "stub for another host": {**stub("alice"), "Host": "gatepost.example"},
    "unknown key": {"X-API-Key": "gp_nobody-knows-this-key"},
    "unknown key as bearer": {"Authorization": "Bearer gp_nobody-knows-this-key"},
    "not a key": {"X-API-Key": "password"},
    "garbage token": {"Authorization": "Bearer garbage"},
    "unsigned token": {"Authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."},
    "basic": {"Authorization": "Basic YWxpY2U6YWxpY2U="},
    "empty": {"Authorization": ""},
}


# The database ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestDatabase:
    """A migrated database, as a superuser sees it, who bypasses row-level security."""

    __test__ = False
    server: Server
    name: str

    @property
    def url(self) -> str:
        """The serving role's URL."""
        return url_of(self.server, self.server.serving_role, self.name)

    async def rows(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """Run one statement and give its rows."""
        async with self.server.as_admin(self.name) as admin:
            return [dict(row) for row in await admin.fetch(sql, *args)]

    async def count(self, table: str) -> int:
        return int((await self.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"])

    async def empty(self) -> None:
        """Delete every tenant's rows; on small tables that is much faster than TRUNCATE."""
        async with self.server.as_admin(self.name) as admin:
            tables = await admin.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'gatepost_meta'")
            await admin.execute("SET session_replication_role = replica")  # no trigger and no foreign key objects
            await admin.execute(";".join(f"DELETE FROM {table['tablename']}" for table in tables))


def url_of(server: Server, user: str, database: str) -> str:
    """The same as `server.connect_args`, as a URL."""
    args = server.connect_args(user, database)
    who = quote(user, safe="") + (f":{quote(args['password'], safe='')}" if "password" in args else "")
    return f"postgresql://{who}@/{quote(database, safe='')}?" + urlencode({name: args[name] for name in ("host", "port")})


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The Postgres of this run: the embedded one where there are several."""
    server = next(iter(servers().values()))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def migrated(postgres: Server) -> TestDatabase:
    """The one database of this run."""
    return TestDatabase(postgres, asyncio.run(postgres.fresh()))


@pytest.fixture
async def db(migrated: TestDatabase) -> AsyncIterator[TestDatabase]:
    """The database of this run; empty before and after."""
    yield migrated
    await migrated.empty()


# The server ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Got:
    """An answer, read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes

    def json(self) -> Any:
        """The body; it must be JSON, and say so."""
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.raw)


class Client:
    """Talks to one test server over keep-alive connections. It keeps no cookies and follows no redirects."""

    def __init__(self, server: TestServer, app: web.Application) -> None:
        self.server, self.app, self.port = server, app, server.port
        self._session = ClientSession(cookie_jar=DummyCookieJar())

    async def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> Got:
        """One exchange. `json=` or `data=` is the body; `path` is sent unchanged."""
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self._session.request(method, url, headers=headers, allow_redirects=False, **more) as answer:
            return Got(answer.status, answer.headers, await answer.read())

    async def begin(self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> Got:
        """The same for an answer that may be a live one: the body of an event stream is not waited for, and it is closed."""
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        async with self._session.request(method, url, headers=headers, allow_redirects=False, **more) as answer:
            live = answer.content_type == "text/event-stream" and method != "HEAD"
            return Got(answer.status, answer.headers, b"" if live else await answer.read())

    async def get(self, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> Got:
        return await self.send("GET", path, headers, **more)

    async def post(self, path: str, headers: Mapping[str, str] | None = None, json: Any = None, **more: Any) -> Got:
        return await self.send("POST", path, headers, **({"json": json} if json is not None else {}), **more)

    async def patch(self, path: str, headers: Mapping[str, str] | None = None, json: Any = None, **more: Any) -> Got:
        return await self.send("PATCH", path, headers, **({"json": json} if json is not None else {}), **more)

    async def delete(self, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> Got:
        return await self.send("DELETE", path, headers, **more)

    @contextlib.asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """A bare connection, for what no HTTP client would send."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def close(self) -> None:
        await self._session.close()
        await self.server.close()


@dataclass(frozen=True)
class Wire:
    """One connection, byte by byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, head: str, *headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send a request line, the headers (with a Host), and a body as it is."""
        lines = [f"{name}: {value}" for given in ({"Host": "127.0.0.1"}, *headers) for name, value in given.items()]
        self.writer.write("\r\n".join([f"{head} HTTP/1.1", *lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def answer(self, seconds: float = 5) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers with lower-case names, body."""
        async with asyncio.timeout(seconds):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def closed(self, seconds: float = 5) -> bool:
        """Whether the server hangs up, with nothing more to say."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


MakeApp = Callable[..., web.Application]
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
def make_app(tmp_path: Path, db: TestDatabase) -> MakeApp:
    """`make_app({"limits.body_seconds": 0.3}, extra={"acme": plugin})`: an application that has not been started."""

    def make(settings: Mapping[str, Any] | None = None, extra: Mapping[str, object] | None = None) -> web.Application:
        usual = {"env": "test", "ops.port": 0, "providers": ["stub", "api_key"], "database.url": db.url,
                 "database.pool_size": 4, "data_folder": str(tmp_path), "api_key.keys": KEYS}  # fmt: skip
        return build(Settings(environ={}, given={**usual, **(settings or {})}), extra)

    return make


@pytest.fixture
async def serve(make_app: MakeApp) -> AsyncIterator[Serve]:
    """`await serve(settings, extra=...)`: a client of a running server."""
    clients: list[Client] = []

    async def start(
        settings: Mapping[str, Any] | None = None, extra: Mapping[str, object] | None = None, *, port: int | None = None
    ) -> Client:
        app = make_app(settings, extra)
        server = TestServer(app, host="127.0.0.1", port=port)
        await server.start_server(shutdown_timeout=1)
        assert isinstance(server.handler, ConnectionServer)  # our own connections, as in production
        clients.append(Client(server, app))
        return clients[-1]

    yield start
    for client in clients:
        await client.close()


@pytest.fixture
async def client(serve: Serve) -> Client:
    """A client of a server with the usual settings."""
    return await serve()


def plugin(*routes: web.RouteDef) -> object:
    """A plugin that offers these routes, for `extra`."""
    return SimpleNamespace(register_handlers=hookimpl(lambda: routes, specname="register_handlers"))
