"""The test kit for those who build on Gatepost: a running server, a Clerk on loopback, and clients signed in as anyone.

    pytest_plugins = ["server.testing"]                 # in conftest.py

    @pytest.fixture
    def gatepost_settings():
        return {"plugins": ["acme"]}                    # what differs from the usual settings

    async def test_mine(client_as):
        alice = await client_as("user_alice", org_id="org_1", org_role="org:admin")
        async with alice.get("/api/me") as answer:
            assert answer.status == 200

TEST_DATABASE_URL is the serving role's URL of a migrated database; without it an embedded one is started for the run
and thrown away. Rows stay from test to test: let each test have users and organisations of its own.

Tables of your own come from the fixture `gatepost_schema`, SQL that is run as the owner. On the database that
TEST_DATABASE_URL names this needs TEST_DATABASE_OWNER_URL; without it the tables are taken to be there.
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

from ..app import build
from ..database.connections import direct_connection
from ..embedded.server import EmbeddedPostgres
from ..schema.migrate import SERVING_ROLE, apply, serving_role_of
from ..schema.startup import NAME, migrate_embedded
from ..settings.sources import Settings
from .clerk import LoopbackClerk

__all__ = ["ClientAs", "LoopbackClerk"]

ClientAs: TypeAlias = Callable[..., Awaitable[aiohttp.ClientSession]]


@pytest.fixture(scope="session")
def gatepost_schema() -> Sequence[str]:
    """SQL texts that make your own tables, run as the owner once the database is migrated. Override it, for the session."""
    return ()


@pytest.fixture(scope="session")
def gatepost_database_url(tmp_path_factory: pytest.TempPathFactory, gatepost_schema: Sequence[str]) -> Iterator[str]:
    """The serving role's URL of a migrated database with your tables."""
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
        asyncio.run(_apply({**owner, "database": NAME}, gatepost_schema, SERVING_ROLE))
        yield f"postgresql://{SERVING_ROLE}@/{NAME}?{urlencode(socket)}"
    finally:
        postgres.stop()


async def _apply(owner: Mapping[str, Any], texts: Sequence[str], serving_role: str) -> None:
    """Run each text as `migrate --schema` does."""
    async with direct_connection(owner) as connection:
        for text in texts:
            await apply(connection, text, serving_role=serving_role)


@pytest.fixture
def gatepost_settings() -> Mapping[str, Any]:
    """What differs from the usual settings, by their names in the file (`limits.body_bytes`). Override it."""
    return {}


@pytest.fixture
def gatepost_plugins() -> Mapping[str, object]:
    """Plugin objects by name, as if installed and named in `plugins`. Override it."""
    return {}


@pytest_asyncio.fixture
async def loopback_clerk() -> AsyncIterator[LoopbackClerk]:
    """A Clerk of this test's own."""
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
    """A running server that trusts the loopback Clerk; `gatepost.make_url("/api/me")` is a URL of its."""
    usual = {"env": "test", "ops.port": 0, "database.url": gatepost_database_url, "database.pool_size": 4}
    given = {**usual, "data_folder": str(tmp_path), **loopback_clerk.settings(), **gatepost_settings}
    server = TestServer(build(Settings(environ={}, given=given), gatepost_plugins), host="127.0.0.1")
    await server.start_server(shutdown_timeout=1)
    try:
        yield server
    finally:
        await server.close()


@pytest_asyncio.fixture
async def client_as(gatepost: TestServer, loopback_clerk: LoopbackClerk) -> AsyncIterator[ClientAs]:
    """`await client_as("user_1", org_id="org_1", ...)`: a client signed in with the words of `LoopbackClerk.token`.

    `await client_as(None)` is a stranger.
    """
    sessions: list[aiohttp.ClientSession] = []

    async def sign_in(user_id: str | None = "user_1", **words: Any) -> aiohttp.ClientSession:
        headers = {} if user_id is None else {"Authorization": f"Bearer {loopback_clerk.token(user_id, **words)}"}
        jar = aiohttp.DummyCookieJar()
        sessions.append(aiohttp.ClientSession(gatepost.make_url("/"), headers=headers, cookie_jar=jar))
        return sessions[-1]

    yield sign_in
    for session in sessions:
        await session.close()
