"""The pytest plugin for products built on Gatepost: a running server, a Clerk on loopback, and clients signed in as any user.

    pytest_plugins = ["server.testing"]                 # in conftest.py

    @pytest.fixture
    def gatepost_settings():
        return {"plugins": ["acme"]}                    # settings that differ from the kit's defaults

    async def test_mine(client_as):
        alice = await client_as("user_alice", org_id="org_1", org_role="org:admin")
        async with alice.get("/api/me") as answer:
            assert answer.status == 200

TEST_DATABASE_URL is the serving role's URL of a migrated database; without it an embedded Postgres is started for the run and
then deleted. Rows remain from test to test: use users and organisations of its own in each test.

The fixture `gatepost_schema` creates your own tables: SQL texts, or paths of files and of folders of numbered files, run as the
owner, as `migrate --schema` runs them. On the database of TEST_DATABASE_URL it runs only with TEST_DATABASE_OWNER_URL; without
that variable the tables must already exist.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer

from ..app import TABLE, build
from ..database.direct import direct_connection
from ..embedded.server import EmbeddedPostgres
from ..gate import expectations
from ..schema.migrate import SERVING_ROLE, apply, serving_role_of
from ..schema.migration import Migration, read_own
from ..schema.startup import DATABASE_NAME, migrate_embedded
from ..settings.sources import Settings
from .clerk import LoopbackClerk
from .events import EventReader, KitClient, ServerEvent

__all__ = ["ClientAs", "EventReader", "KitClient", "LoopbackClerk", "ServerEvent"]

_PROVIDERS = {"providers": ["clerk", "api_key"]}  # the server's default
_UNKNOWN = " (settings of a plugin's table are given one by one, as 'acme.url', and need register_settings)"
ClientAs: TypeAlias = Callable[..., Awaitable[KitClient]]


@pytest.fixture(scope="session")
def gatepost_schema() -> Sequence[str | Path]:
    """SQL that creates your own tables, run as the owner after the migration: texts, or paths of what `migrate --schema` takes.

    Override it with scope="session".
    """
    return ()


@pytest.fixture(scope="session")
def gatepost_database_url(tmp_path_factory: pytest.TempPathFactory, gatepost_schema: Sequence[str | Path]) -> Iterator[str]:
    """The serving role's URL of a migrated database that has your tables."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        if owner_url := os.environ.get("TEST_DATABASE_OWNER_URL"):
            asyncio.run(_apply({"dsn": owner_url}, gatepost_schema, serving_role_of(named)))
        yield named
        return
    postgres = EmbeddedPostgres(Path(tmp_path_factory.mktemp("gatepost")) / "postgres")
    postgres.start()
    try:
        socket = {"host": str(postgres.socket), "port": postgres.port}
        owner = {**socket, "user": postgres.superuser}
        asyncio.run(migrate_embedded(owner))
        asyncio.run(_apply({**owner, "database": DATABASE_NAME}, gatepost_schema, SERVING_ROLE))
        yield f"postgresql://{SERVING_ROLE}@/{DATABASE_NAME}?{urlencode(socket)}"
    finally:
        postgres.stop()


async def _apply(owner: Mapping[str, Any], schema: Sequence[str | Path], serving_role: str) -> None:
    """Run each text in a transaction of its own, and files and folders as `migrate --schema` does."""
    for one in schema:
        if isinstance(one, Path):
            await Migration(owner, serving_role, lambda what: None).run(read_own([one]), schema=None)
            continue
        async with direct_connection(owner) as connection:
            await apply(connection, one, serving_role=serving_role)


@pytest.fixture
def gatepost_settings() -> Mapping[str, Any]:
    """Settings that differ from the kit's defaults, by their full names (`limits.body_bytes`, `acme.url`). Override it.

    They override `gatepost.toml` in the working folder. A name that nothing declares is a ValueError.
    """
    return {}


@pytest.fixture
def gatepost_plugins() -> Mapping[str, object]:
    """Plugin objects by name, treated as installed and named in `plugins`. Override it."""
    return {}


@pytest_asyncio.fixture
async def loopback_clerk() -> AsyncIterator[LoopbackClerk]:
    """A Clerk for this test alone."""
    async with LoopbackClerk() as clerk:
        yield clerk


@pytest_asyncio.fixture
async def gatepost(
    tmp_path: Path,
    loopback_clerk: LoopbackClerk,
    gatepost_database_url: str,
    gatepost_settings: Mapping[str, Any],
    gatepost_plugins: Mapping[str, object],
) -> AsyncIterator[TestServer]:
    """A running server that trusts the loopback Clerk. `gatepost.make_url("/api/me")` returns one of its URLs."""
    defaults = {"env": "test", "ops.port": 0, "database.url": gatepost_database_url, "database.pool_size": 4}
    given = {**defaults, "data_folder": str(tmp_path), **loopback_clerk.settings(), **_PROVIDERS, **gatepost_settings}
    settings = Settings(environ={}, given=given)
    app = build(settings, gatepost_plugins)
    if unknown := sorted(gatepost_settings.keys() - settings.declared().keys()):
        raise ValueError(
            f"gatepost_settings: {unknown[0]!r} is declared neither by the server nor by a loaded plugin{_UNKNOWN}"
        )
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=1)
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture
def expect_access(gatepost: TestServer) -> Callable[[Path], Awaitable[None]]:
    """`await expect_access(Path("access.toml"))` fails with a line for each expectation of the file that does not hold.

    The file is that of `python -m server access --check`.
    """

    async def expect(file: Path) -> None:
        app = gatepost.app
        wrong = await expectations.differences(app.router, app[TABLE], expectations.read_file(file))
        assert not wrong, "\n".join(wrong)

    return expect


@pytest_asyncio.fixture
async def client_as(gatepost: TestServer, loopback_clerk: LoopbackClerk) -> AsyncIterator[ClientAs]:
    """`await client_as("user_1", org_id="org_1", ...)` returns a client signed in with a token of `LoopbackClerk.token`,
    which takes the same arguments. `await client_as(None)` returns a client without a credential. A client is aiohttp's
    ClientSession, with `client.events(path)` for event streams.
    """
    sessions: list[KitClient] = []

    async def sign_in(user_id: str | None = "user_1", **claims: Any) -> KitClient:
        headers = {} if user_id is None else {"Authorization": f"Bearer {loopback_clerk.token(user_id, **claims)}"}
        jar = aiohttp.DummyCookieJar()
        sessions.append(KitClient(gatepost.make_url("/"), headers=headers, cookie_jar=jar))
        return sessions[-1]

    yield sign_in
    for session in sessions:
        await session.close()
