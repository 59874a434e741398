"""The page of a larger resource is true: its plugin is served with its tables, and everything it promises is tried."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest
from kits.pages import blocks

from server.plugins.services import SERVICES
from tests.conftest import Client, Serve, TestDatabase, stub

PAGE = "docs/guides/projects.md"
NORTH, SOUTH = "/api/orgs/north/projects", "/api/orgs/south/projects"
ALICE, CAROL = stub("alice", org_id="north"), stub("carol", org_id="south")


@pytest.fixture
async def tables(db: TestDatabase) -> AsyncIterator[None]:
    (sql,) = [block.text for block in blocks("sql", page=PAGE)]
    server = db.server
    async with server.connected(server.owner_role, db.name) as owner:
        for _ in range(2):  # it can be run again
            async with owner.transaction():
                await owner.execute(sql.replace("gatepost_app", server.serving_role))
        try:
            yield
        finally:
            for table in ("projects", "project_counts", "nightly"):
                await owner.execute(f"SELECT gatepost_public_rows('{table}', NULL)")
                await owner.execute(f"DROP TABLE {table}")


@pytest.fixture
async def client(serve: Serve, tables: None, monkeypatch: pytest.MonkeyPatch) -> Client:
    (text,) = [block.text for block in blocks("python", page=PAGE)]
    module = ModuleType("gp_projects_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, "projects.py", "exec", dont_inherit=True), module.__dict__)
    settings = {"public_routes": ["/shared/:token", "/api/health"], "api_key.scopes": ["projects:export"]}
    return await serve(settings, extra={"projects": module})


async def made(client: Client, name: str, base: str = NORTH, caller: Any = ALICE) -> str:
    got = await client.post(base, caller, {"name": name})
    assert got.status == 201, got.raw
    return str(got.headers["Location"])


async def test_names_states_and_partial_updates(client: Client) -> None:
    path = await made(client, "one")
    got = await client.post(NORTH, ALICE, {"name": "one"})
    assert (got.status, got.json()["reason"], got.json()["fields"][0]["field"]) == (409, "name-taken", "name")
    await made(client, "one", SOUTH, CAROL)
    await made(client, "two")
    assert (await client.patch(path, ALICE, {"name": "two"})).json()["reason"] == "name-taken"
    tag = (await client.get(path, ALICE)).headers["ETag"]
    got = await client.patch(path, ALICE, {"status": "done"})
    assert (got.status, got.json()["detail"]) == (409, "A project that is draft cannot become done.")
    got = await client.patch(path, {**ALICE, "If-Match": tag}, {"status": "active", "due_on": "2027-01-31"})
    assert (got.status, got.json()["status"], got.json()["due_on"], got.json()["name"]) == (200, "active", "2027-01-31", "one")
    assert (await client.patch(path, {**ALICE, "If-Match": tag}, {})).status == 412
    assert (await client.patch(path, {**ALICE, "If-Match": got.headers["ETag"]}, {"due_on": None})).json()["due_on"] is None
    assert (await client.patch(path, ALICE, {"name": None})).status == 422
    assert (await client.get(path.replace("north", "south"), CAROL)).status == 404


async def test_each_item_of_a_bulk_insert_has_its_result(client: Client) -> None:
    await made(client, "taken")
    items = [{"name": "a"}, {"name": "taken"}, {"name": ""}, {"name": "b", "x": 1}, {"name": "c", "due_on": "2027-01-31"}]
    got = await client.post(f"{NORTH}/bulk", ALICE, items)
    assert [one["status"] for one in got.json()] == [201, 409, 422, 422, 201], got.raw
    assert [one["field"] for one in got.json()[2]["fields"] + got.json()[3]["fields"]] == ["name", "x"]
    assert (await client.post(f"{NORTH}/bulk", ALICE, [{"name": str(n)} for n in range(101)])).status == 422


async def test_a_share_link_shows_one_row_and_no_other(client: Client, db: TestDatabase) -> None:
    path, _ = await made(client, "shown"), await made(client, "hidden")
    link = (await client.post(f"{path}/share", ALICE)).json()["path"]
    for reader, is_own in ((None, False), (CAROL, False), (ALICE, True)):
        assert (await client.get(link, reader)).json() == {"name": "shown", "status": "draft", "is_own": is_own}
    assert (await client.get("/shared/guess")).status == 404
    assert (await client.get(path.replace("north", "south"), CAROL)).status == 404
    assert (await client.post(f"{path}/share", ALICE)).status == 201
    assert (await client.get(link)).status == 404  # replaced


async def test_the_export_is_for_keys_with_the_scope(client: Client) -> None:
    await made(client, "one", SOUTH, CAROL)
    refused = await client.get("/api/orgs/north/export", ALICE)
    assert refused.status in (401, 403), refused.raw
    statuses = []
    for scopes in (["projects:export"], []):
        key = await client.post("/api/keys", ALICE, {"name": "export", "scopes": scopes})
        assert key.status == 201, key.raw
        got = await client.get("/api/orgs/north/export", {"X-API-Key": key.json()["secret"]})
        statuses.append((got.status, got.json() if got.status == 200 else got.json()["reason"]))
    assert statuses == [(200, []), (403, "scope")]


async def test_the_job_works_for_every_organisation(client: Client, db: TestDatabase) -> None:
    await made(client, "one")
    await made(client, "two")
    await made(client, "one", SOUTH, CAROL)
    job: Any = client.app[SERVICES].get("nightly")
    await job.run()
    await job.run()
    rows = await db.rows("SELECT organization_id, total FROM project_counts ORDER BY 1")
    assert rows == [{"organization_id": "north", "total": 2}, {"organization_id": "south", "total": 1}]
    async with job.house.scoped(org_id="north", actor="job:nightly") as scope:
        assert [row["organization_id"] for row in await scope.fetch("SELECT organization_id FROM nightly")] == ["north"]
