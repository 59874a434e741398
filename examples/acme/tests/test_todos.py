"""The to-do lists, for callers of Acme's and of Clerk's."""

from __future__ import annotations

import pytest
from conftest import ALICE, BOB

NORTH, SOUTH = "/api/orgs/acme:north/todos", "/api/orgs/acme:south/todos"


def bearer(token):
    return {"headers": {"Authorization": f"Bearer {token}"}}


async def test_two_organisations(client_as):
    client = await client_as(None)
    async with client.post(NORTH, json={"title": "Buy milk"}, **bearer(ALICE)) as got:
        assert got.status == 201
        made = await got.json()
    assert (made["created_by"], made["completed_at"]) == ("acme:alice", None)
    async with client.get(SOUTH, **bearer(BOB)) as got:
        assert (got.status, await got.json()) == (200, [])
    async with client.get(NORTH, **bearer(BOB)) as got:
        assert got.status == 403
    async with client.post(f"{SOUTH}/{made['id']}/complete", **bearer(BOB)) as got:
        assert got.status == 404
    async with client.post(f"{NORTH}/{made['id']}/complete", **bearer(ALICE)) as got:
        assert (got.status, (await got.json())["completed_at"] is None) == (200, False)


async def test_callers_of_another_provider(client_as):
    carol = await client_as("user_carol", org_id="org_c")
    for title in ("one", "two", "three"):
        async with carol.post("/api/orgs/org_c/todos", json={"title": title}) as got:
            assert got.status == 201
    async with carol.get("/api/orgs/org_c/todos?limit=2") as got:
        assert [row["title"] for row in await got.json()] == ["three", "two"]
        following = got.links["next"]["url"]
    async with carol.get(following) as got:
        assert [row["title"] for row in await got.json()] == ["one"]


@pytest.mark.parametrize("sent", [{}, {"title": ""}, {"title": "x" * 201}, {"title": 1}, {"title": "a", "created_by": "b"}])
async def test_bad_bodies(client_as, sent):
    dave = await client_as("user_dave", org_id="org_d")
    async with dave.post("/api/orgs/org_d/todos", json=sent) as got:
        assert got.status == 422


async def test_what_is_no_id_names_nothing(client_as):
    dave = await client_as("user_dave", org_id="org_d")
    async with dave.post("/api/orgs/org_d/todos/7/complete") as got:
        assert got.status == 404
