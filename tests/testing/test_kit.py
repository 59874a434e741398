"""The test kit's database: a product's own schema runs in it just as `migrate --schema` runs it."""

from __future__ import annotations

from typing import Any

import pytest

from server.schema.migrate import migrate
from tests.conftest import url_of
from tests.schema.test_migrate_command import OWN

pytest_plugins = ["pytester"]

CONFTEST = f"""
import pytest

pytest_plugins = ["server.testing"]


@pytest.fixture(scope="session")
def gatepost_schema():
    return [{OWN!r}, "DO $$ BEGIN ASSERT current_setting('row_security') = 'off'; END $$"]
"""
TESTS = """
from server.database.direct import direct_connection


async def test_it_is_granted_to_the_role_that_serves(gatepost_database_url):
    async with direct_connection({"dsn": gatepost_database_url}) as connection:
        assert await connection.fetchval("SELECT has_table_privilege('notes', 'SELECT')")
"""


READER = """
import pytest
from aiohttp import web

from server import answer, caller_of, hookimpl, limited, public

routes = web.RouteTableDef()


@routes.get("/articles")
@public(optional=True)
@limited(rate="2/day")
async def articles(request):
    reader = caller_of(request)
    return answer({"reader": reader and reader.user_id})


class Acme:
    @hookimpl
    def register_handlers(self):
        return routes


@pytest.fixture
def gatepost_plugins():
    return {"acme": Acme()}


@pytest.fixture
def gatepost_settings():
    return {"public_routes": ["/articles"]}


async def test_a_reader_and_a_visitor(client_as):
    for user in ("user_alice", None, "user_bob"):
        client = await client_as(user)
        for status in (200, 200, 429):
            async with client.get("/articles") as got:
                assert got.status == status
                assert status == 429 or (await got.json()) == {"reader": user}
    async with (await client_as("user_carol", sts="pending")).get("/articles") as got:
        assert (got.status, (await got.json())["reason"]) == (401, "session-pending")
"""


KEYS = """
async def test_a_callers_own_key(client_as):
    alice, stranger = await client_as("alice"), await client_as(None)
    async with alice.post("/api/keys", json={"name": "mine"}) as got:
        secret = (await got.json())["secret"]
    async with stranger.get("/api/me", headers={"X-API-Key": secret}) as got:
        assert got.status == 200
"""
UNKNOWN = """
import pytest


@pytest.fixture
def gatepost_settings():
    return {"limits": {"body_bytes": 1000}}


async def test_nothing(client_as):
    pass
"""


def _passes(pytester: pytest.Pytester, tests: str = TESTS) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(tests)
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "asyncio_mode=auto").assert_outcomes(passed=1)


@pytest.fixture
async def named(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TEST_DATABASE_URL and its owner's, of a database that is migrated."""
    name = await postgres.create_database("gp_kit")
    async with postgres.as_admin(name) as admin:
        await migrate(admin, serving_role=postgres.serving_role)
    monkeypatch.setenv("TEST_DATABASE_URL", url_of(postgres, postgres.serving_role, name))
    monkeypatch.setenv("TEST_DATABASE_OWNER_URL", url_of(postgres, postgres.admin, name))
    yield
    await postgres.drop_database(name)


@pytest.mark.usefixtures("named")
async def test_own_tables_on_a_database_that_is_named(pytester: pytest.Pytester) -> None:
    _passes(pytester)


@pytest.mark.usefixtures("named")
async def test_an_optional_caller_and_the_limit_of_a_route(pytester: pytest.Pytester) -> None:
    _passes(pytester, READER)


@pytest.mark.usefixtures("named")
async def test_api_keys_are_taken_as_by_a_server_with_its_defaults(pytester: pytest.Pytester) -> None:
    _passes(pytester, KEYS)


@pytest.mark.usefixtures("named")
async def test_settings_that_nothing_declares_are_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(UNKNOWN)
    run = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "asyncio_mode=auto")
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["*gatepost_settings: 'limits' is declared neither by the server nor by a loaded plugin*"])


@pytest.mark.long
def test_own_tables_on_the_embedded_postgres(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_DATABASE_URL", raising=False)
    _passes(pytester)
