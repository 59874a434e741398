import json
from pathlib import Path

import pytest

pytest_plugins = ["server.testing"]
MILK = {"title": "Buy milk"}


@pytest.fixture(scope="session")
def gatepost_schema():
    folder = Path(__file__).parent.parent
    return [folder / "schema.sql", folder / "live.sql"]


@pytest.fixture
def gatepost_settings():
    return {"plugins": ["module:todo_app.api", "module:todo_app.live"]}


async def test_organisations_do_not_see_each_other(client_as):
    alice, bob = await client_as("alice", org_id="north"), await client_as("bob", org_id="south")
    async with alice.post("/api/orgs/north/todos", json=MILK) as got:
        assert got.status == 201
        made = await got.json()
    async with alice.get("/api/orgs/north/todos") as got:
        assert await got.json() == [made]
    async with bob.get("/api/orgs/south/todos") as got:
        assert await got.json() == []
    async with bob.get("/api/orgs/north/todos") as got:
        assert got.status == 403
    async with bob.patch(f"/api/orgs/south/todos/{made['id']}", json={"done": True}) as got:
        assert got.status == 404


async def test_ticked_off_by_members_deleted_by_administrators(client_as):
    carol = await client_as("carol", org_id="east")
    admin = await client_as("anna", org_id="east", org_role="org:admin")
    async with carol.post("/api/orgs/east/todos", json=MILK) as got:
        todo = f"/api/orgs/east/todos/{(await got.json())['id']}"
    async with carol.patch(todo, json={"done": True}) as got:
        assert (got.status, (await got.json())["done"]) == (200, True)
    async with carol.delete(todo) as got:
        assert got.status == 403
    async with admin.delete(todo) as got:
        assert got.status == 200
    async with admin.delete(todo) as got:
        assert got.status == 404


async def test_members_see_changes_as_they_happen(client_as):
    alice, bob = await client_as("alice", org_id="west"), await client_as("bob", org_id="west")
    async with alice.get("/api/orgs/west/todos/events") as stream:
        async with bob.post("/api/orgs/west/todos", json=MILK) as got:
            made = await got.json()
        event, data = (await stream.content.readuntil(b"\n\n")).decode().splitlines()[:2]
        assert (event, json.loads(data.removeprefix("data: "))) == ("event: created", made)


@pytest.mark.parametrize("sent", [{}, {"title": ""}, {"title": "x", "created_by": "bob"}])
async def test_bad_todos(client_as, sent):
    alice = await client_as("alice", org_id="north")
    async with alice.post("/api/orgs/north/todos", json=sent) as got:
        assert got.status == 422


async def test_strangers(client_as):
    stranger = await client_as(None)
    async with stranger.get("/api/orgs/north/todos") as got:
        assert got.status == 401
