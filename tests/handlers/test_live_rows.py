"""The built-in streams: a caller's rows and an organisation's, as they change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kits.live import events

from tests.conftest import ADMIN_A, ALICE, ALICE_ALONE, BOB, ROBOT_A, Client, TestDatabase, stub

MINE, OURS = "/api/data/events", "/api/orgs/org_a/data/events"
CAROL = stub("carol", org_id="org_a", org_role="org:member")


async def change(stream: Any) -> tuple[str, Any]:
    """The next event that is no `resync`, with its data."""
    while (told := await stream.next())["event"] == "resync":
        assert json.loads(told["data"]) == {}
    return told["event"], json.loads(told["data"])


async def begin(client: Client, stream: Any, path: str, headers: dict[str, str]) -> None:
    """Wait until the stream hears: a row that is made for it arrives."""
    made = await client.post(path, headers, {"name": "begin"})
    assert made.status == 201
    while (told := await stream.next())["event"] == "resync" or json.loads(told["data"])["name"] != "begin":
        pass


async def test_a_users_rows_arrive_in_the_form_of_the_list(client: Client) -> None:
    async with events(client, MINE, ALICE) as stream:
        assert stream.response.headers["Content-Type"] == "text/event-stream"
        await begin(client, stream, "/api/data", ALICE)
        made = (await client.post("/api/data", ALICE, {"name": "first", "payload": {"a": [1, "ü", None]}})).json()
        assert await change(stream) == ("created", made)
        (listed, _) = (await client.get("/api/data", ALICE)).json()
        assert listed == made
        changed = (await client.patch(f"/api/data/{made['id']}", ALICE, {"name": "second"})).json()
        assert await change(stream) == ("updated", changed)
        assert (await client.delete(f"/api/data/{made['id']}", ADMIN_A)).status == 200
        assert await change(stream) == ("deleted", {"id": made["id"]})


async def test_rows_of_other_users_do_not_arrive(client: Client, db: TestDatabase) -> None:
    """Not another user's of the same organisation, and not an administrator's view of it."""
    async with events(client, MINE, ALICE) as alice, events(client, MINE, ADMIN_A) as anna:
        await begin(client, alice, "/api/data", ALICE)
        await begin(client, anna, "/api/data", ADMIN_A)
        for other in (BOB, CAROL, ADMIN_A):
            assert (await client.post("/api/data", other, {"name": "theirs"})).status == 201
        mine = (await client.post("/api/data", ALICE_ALONE, {"name": "mine, without an organisation"})).json()
        assert await change(alice) == ("created", mine)
        event, row = await change(anna)
        assert (event, row["user_id"]) == ("created", "anna")
        with pytest.raises(TimeoutError):
            await anna.next(0.5)


async def test_an_organisations_rows_arrive_for_each_of_its_members(client: Client) -> None:
    async with events(client, OURS, ALICE) as alice, events(client, OURS, ROBOT_A) as robot:
        for stream, caller in ((alice, ALICE), (robot, ROBOT_A)):
            await begin(client, stream, "/api/orgs/org_a/data", caller)
        await client.post("/api/orgs/org_b/data", BOB, {"name": "of another organisation"})
        made = (await client.post("/api/orgs/org_a/data", CAROL, {"name": "ours"})).json()
        for stream in (alice, robot):
            while (got := await change(stream))[1]["name"] == "begin":
                pass
            assert got == ("created", made)


async def test_a_client_that_reconnects_gets_a_resync(client: Client) -> None:
    async with events(client, MINE, ALICE) as stream:
        await begin(client, stream, "/api/data", ALICE)
        await client.post("/api/data", ALICE, {"name": "one"})
        first = await stream.next()
        assert first["id"] == json.loads(first["data"])["id"]
    async with events(client, MINE, {**ALICE, "Last-Event-ID": first["id"]}) as stream:
        again = await stream.next()
        assert (again["event"], json.loads(again["data"])) == ("resync", {})


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        (MINE, {}, 401, "credential-missing"), (MINE, ROBOT_A, 403, "user"), (OURS, BOB, 403, "organization"),
        (OURS, ALICE_ALONE, 403, "organization"), ("/api/orgs/org_b/data/events", ALICE, 403, "organization"),
    ],
)  # fmt: skip
async def test_a_caller_without_access_gets_no_stream(client: Client, path: str, headers: dict[str, str], status: int, reason: str) -> None:
    got = await client.get(path, headers)
    assert (got.status, got.json()["reason"]) == (status, reason)


@pytest.mark.parametrize("path", [MINE, OURS])
async def test_head_holds_nothing_open(client: Client, path: str) -> None:
    got = await client.send("HEAD", path, ALICE)
    assert (got.status, got.raw, got.headers["Content-Type"]) == (200, b"", "text/event-stream")
