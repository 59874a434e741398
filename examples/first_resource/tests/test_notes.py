from pathlib import Path

import pytest

pytest_plugins = ["server.testing"]
pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="session")
def gatepost_schema():
    return [(Path(__file__).parent.parent / "schema.sql").read_text("utf-8")]


@pytest.fixture
def gatepost_settings():
    return {"plugins": ["module:acme_app.hello", "module:acme_app.api"]}


async def test_everybody_has_their_own(client_as):
    alice, bob = await client_as("user_alice"), await client_as("user_bob")
    async with alice.post("/api/notes", json={"text": "Buy milk"}) as got:
        assert got.status == 201
        made = await got.json()
    async with alice.get("/api/notes") as got:
        assert await got.json() == [made]
    async with alice.get(f"/api/notes/{made['id']}") as got:
        assert await got.json() == made
    async with bob.get("/api/notes") as got:
        assert await got.json() == []
    async with bob.get(f"/api/notes/{made['id']}") as got:
        assert got.status == 404


@pytest.mark.parametrize("sent", [{}, {"text": ""}, {"text": "x", "user_id": "user_bob"}])
async def test_bad_notes(client_as, sent):
    alice = await client_as("user_alice")
    async with alice.post("/api/notes", json=sent) as got:
        assert got.status == 422


async def test_strangers(client_as):
    stranger = await client_as(None)
    async with stranger.get("/api/notes") as got:
        assert got.status == 401


async def test_hello(client_as):
    alice = await client_as("user_alice")
    async with alice.get("/api/hello") as got:
        assert await got.json() == {"hello": "user_alice"}
