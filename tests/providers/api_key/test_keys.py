"""API keys over HTTP, on a real Postgres: who may make, see, rotate and revoke which, and what a key is then worth."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from providers.api_key import lookup as managed
from providers.api_key import throttle, usage
from providers.api_key.key_format import make, parse
from server import answer, requires, scoped
from server.plugins.providers import PROVIDERS
from tests.conftest import (
    ADMIN_A,
    ADMIN_B,
    ALICE,
    ALICE_ALONE,
    BOB,
    CLERK_A,
    CREATE,
    KEYS,
    READ,
    ROBOT_A,
    Client,
    Got,
    Serve,
    TestDatabase,
    plugin,
    stub,
)

SCOPES = {"api_key.scopes": ["read", "write"]}
PARTS = {"id", "name", "owner", "user_id", "org_id", "org_role", "org_permissions", "scopes", "created_by", "created_by_key",
         "created_at", "expires_at", "previous_expires_at", "last_used_at"}  # fmt: skip
UNKNOWN = {"error": "Unauthorized", "reason": "credential-rejected"}


@pytest.fixture
async def keys(serve: Serve) -> Client:
    """A server that lets sessions give two scopes."""
    return await serve(SCOPES)


def bearer(key: Any) -> dict[str, str]:
    return {"X-API-Key": key["secret"]} if isinstance(key, dict) else {"X-API-Key": key}


async def new(client: Client, caller: dict[str, str], **more: Any) -> dict[str, Any]:
    """A key that must be made."""
    got = await client.post("/api/keys", caller, {"name": "k", **more})
    assert got.status == 201, got
    return dict(got.json())


async def me(client: Client, key: Any) -> Any:
    got = await client.get("/api/me", bearer(key))
    assert got.status == 200, got
    return got.json()


async def until(client: Client, key: Any, wanted: str | int, seconds: float = 1.0) -> None:
    """Within a second the key must be answered like this."""
    end = time.monotonic() + seconds
    while True:
        got = await client.get("/api/me", bearer(key))
        if wanted in (got.status, got.json().get("reason")):
            return
        assert time.monotonic() < end, (wanted, got)
        await asyncio.sleep(0.02)


def refused(got: Got, status: int, reason: str) -> None:
    words = {401: "Unauthorized", 403: "Forbidden"}
    assert (got.status, got.json()) == (status, {"error": words[status], "reason": reason})


def bad(got: Got) -> set[str]:
    assert (got.status, got.json()["error"]) == (422, "Unprocessable Content")
    return {one["field"].split(".")[0] for one in got.json()["fields"]}


def counted(client: Client) -> list[str]:
    """The functions that the provider of this server calls from now on."""
    house = next(one.provider for one in client.app[PROVIDERS] if one.name == "api_key")._managed._house
    asked, call = [], house._call

    async def counting(function: str, *args: Any) -> Any:
        asked.append(function)
        return await call(function, *args)

    house._call = counting
    return asked


# Making ----------------------------------------------------------------------------------------------------------------


async def test_a_users_key(keys: Client, db: TestDatabase) -> None:
    got = await keys.post("/api/keys", CLERK_A, {"name": "mine", "org_role": "org:member", "org_permissions": [READ], "scopes": ["read"]})
    assert got.status == 201
    assert got.headers["Cache-Control"] == "no-store"
    row = got.json()
    assert set(row) == PARTS | {"secret"}
    shown = parse(row["secret"])
    assert shown is not None
    assert (shown.id, shown.env) == (row["id"], "test")
    assert {name: row[name] for name in ("name", "owner", "user_id", "org_id", "org_role", "org_permissions", "scopes", "created_by", "expires_at")} == {
        "name": "mine", "owner": "user", "user_id": "alice", "org_id": "org_a", "org_role": "org:member", "org_permissions": [READ],
        "scopes": ["read"], "created_by": "alice", "expires_at": None}  # fmt: skip
    assert await me(keys, row) == {
        "provider": "api_key", "token_type": "api_key", "user_id": "alice", "impersonator": None, "session_id": None,
        "org_id": "org_a", "org_slug": None,
        "org_role": "org:member", "org_permissions": [READ], "scopes": ["read"], "claims": None}  # fmt: skip
    assert (await keys.get("/api/me", {"Authorization": f"Bearer {row['secret']}"})).status == 200
    assert (await keys.get("/api/invoices", bearer(row))).status == 200
    refused(await keys.post("/api/invoices", bearer(row), {"customer": "x", "amount": "1", "currency": "EUR"}), 403, "permission")
    stored = (await db.rows("SELECT * FROM api_keys"))[0]
    assert stored["hash"] == hashlib.sha256(row["secret"].encode()).digest()
    assert row["secret"][25:] not in repr(stored)


async def test_an_organisations_key(keys: Client) -> None:
    row = await new(keys, ADMIN_A, owner="organization", org_role="admin")
    assert (row["owner"], row["user_id"], row["org_id"], row["org_role"], row["created_by"]) == ("organization", None, "org_a", "org:admin", "anna")
    assert (await me(keys, row))["org_role"] == "org:admin"
    refused(await keys.get("/api/data", bearer(row)), 403, "user")
    made = await keys.post("/api/orgs/org_a/data", bearer(row), {"name": "x"})
    assert (made.status, made.json()["created_by"]) == (201, f"key:{row['id']}")
    refused(await keys.get("/api/orgs/org_b/data", bearer(row)), 403, "organization")


async def test_without_an_organisation_and_without_rights(keys: Client) -> None:
    row = await new(keys, ALICE_ALONE)
    assert (row["org_id"], row["org_role"], row["org_permissions"], row["scopes"]) == (None, None, [], [])
    assert (await me(keys, row))["user_id"] == "alice"
    row = await new(keys, ADMIN_A)
    assert (await me(keys, row))["org_role"] is None  # nothing is given that was not asked for
    refused(await keys.delete("/api/data/x", bearer(row)), 403, "role")


ESCALATIONS = [
    (ALICE, {"org_role": "org:admin"}, "role"),
    (ALICE, {"org_role": "org:member2"}, "role"),
    (ADMIN_A, {"org_role": "org:member"}, "role"),
    (ALICE_ALONE, {"org_role": "org:member"}, "role"),
    (CLERK_A, {"org_permissions": [READ, "org:invoices:delete"]}, "permission"),
    (ADMIN_A, {"org_permissions": [READ]}, "permission"),
    (ALICE_ALONE, {"org_permissions": [READ]}, "permission"),
    (stub("alice", org_permissions=READ), {"org_permissions": [READ]}, "permission"),
    (ALICE, {"scopes": ["read", "admin"]}, "scope"),
    (ALICE, {"owner": "organization"}, "role"),
    (ALICE_ALONE, {"owner": "organization"}, "role"),
    (stub("anna", org_id="org_a", org_role="org:Admin"), {"owner": "organization"}, "role"),
    (stub("anna", org_role="org:admin"), {"owner": "organization"}, "role"),
    (ROBOT_A, {}, "user"),
    (ROBOT_A, {"owner": "organization", "scopes": ["read"]}, "scope"),
    (ROBOT_A, {"owner": "organization", "org_permissions": ["org:other"]}, "permission"),
]


@pytest.mark.parametrize(("caller", "wanted", "reason"), ESCALATIONS)
async def test_no_key_beyond_its_maker(keys: Client, db: TestDatabase, caller: dict[str, str], wanted: dict[str, Any], reason: str) -> None:
    refused(await keys.post("/api/keys", caller, {"name": "k", **wanted}), 403, reason)
    assert await db.count("api_keys") == 0


async def test_without_a_list_sessions_give_no_scope(client: Client) -> None:
    refused(await client.post("/api/keys", ALICE, {"name": "k", "scopes": ["read"]}), 403, "scope")
    assert (await new(client, ALICE))["scopes"] == []


BAD = [
    ({}, {"name"}),
    ({"name": ""}, {"name"}),
    ({"name": "x" * 201}, {"name"}),
    ({"name": 5, "owner": "team", "scopes": "read", "org_role": "", "org_permissions": [5], "expires_at": "soon"},
     {"name", "owner", "scopes", "org_role", "org_permissions", "expires_at"}),
    ({"name": "k", "id": "x", "hash": "y", "user_id": "bob", "org_id": "org_b", "created_by": "bob", "secret": "gp_"},
     {"id", "hash", "user_id", "org_id", "created_by", "secret"}),
    ({"name": "k", "org_role": "org:"}, {"org_role"}),
    ({"name": "k", "org_role": None, "scopes": None}, {"scopes"}),
    ({"name": "k", "scopes": ["two words", ""]}, {"scopes"}),
    ({"name": "k", "scopes": ["x"] * 101}, {"scopes"}),
    ({"name": "k", "org_permissions": ["a,b"]}, {"org_permissions"}),
    ({"name": "n\x00l"}, {"name"}),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "fields"), BAD, ids=range(len(BAD)))
async def test_every_bad_field_is_listed(keys: Client, sent: dict[str, Any], fields: set[str]) -> None:
    assert bad(await keys.post("/api/keys", ALICE, sent)) == fields


@pytest.mark.parametrize("time", ["2020-01-01T00:00:00Z", "2999-01-01", "2999-01-01T00:00:00", 32503680000, "32503680000", "", "infinity"])
async def test_times_that_no_key_can_end_at(keys: Client, time: Any) -> None:
    assert bad(await keys.post("/api/keys", ALICE, {"name": "k", "expires_at": time})) == {"expires_at"}


async def test_a_key_expires(keys: Client) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    row = await new(keys, ALICE, expires_at=soon.isoformat())
    assert datetime.fromisoformat(row["expires_at"]) == soon
    await me(keys, row)
    await until(keys, row, "key-expired", 2)
    assert (await keys.post(f"/api/keys/{row['id']}/rotate", ALICE, {})).status == 409
    assert (await keys.delete(f"/api/keys/{row['id']}", ALICE)).status == 204


# Keys that make keys ---------------------------------------------------------------------------------------------------


async def test_a_key_makes_keys_within_its_own_rights(keys: Client) -> None:
    maker = await new(keys, CLERK_A, org_role="org:member", org_permissions=[READ], scopes=["read"])
    child = await new(keys, bearer(maker), org_role="org:member", org_permissions=[READ], scopes=["read"])
    assert (child["created_by"], child["created_by_key"], child["org_id"]) == ("alice", maker["id"], "org_a")
    await me(keys, child)
    for wanted, reason in (({"org_permissions": [CREATE]}, "permission"), ({"scopes": ["write"]}, "scope"), ({"org_role": "org:admin"}, "role")):
        refused(await keys.post("/api/keys", bearer(maker), {"name": "k", **wanted}), 403, reason)
    bare = await new(keys, bearer(maker))
    refused(await keys.post("/api/keys", bearer(bare), {"name": "k", "org_role": "org:member"}), 403, "role")
    refused(await keys.post(f"/api/keys/{maker['id']}/rotate", bearer(bare), {}), 403, "role")  # nor takes over a stronger one


async def test_a_key_made_by_a_key_never_outlives_it(keys: Client) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    maker, other = await new(keys, ALICE, expires_at=ends.isoformat()), await new(keys, ALICE)
    assert datetime.fromisoformat((await new(keys, bearer(maker)))["expires_at"]) == ends
    sooner = (ends - timedelta(minutes=1)).isoformat()
    assert datetime.fromisoformat((await new(keys, bearer(maker), expires_at=sooner))["expires_at"]) == datetime.fromisoformat(sooner)
    later = (ends + timedelta(seconds=1)).isoformat()
    assert bad(await keys.post("/api/keys", bearer(maker), {"name": "k", "expires_at": later})) == {"expires_at"}
    refused(await keys.post(f"/api/keys/{other['id']}/rotate", bearer(maker), {}), 403, "scope")
    assert (await keys.post(f"/api/keys/{maker['id']}/rotate", bearer(maker), {})).status == 200


async def test_revoking_a_key_revokes_what_it_has_made(keys: Client) -> None:
    maker = await new(keys, ALICE)
    child = await new(keys, bearer(maker))
    grandchild, sibling = await new(keys, bearer(child)), await new(keys, ALICE)
    for row in (maker, child, grandchild, sibling):
        await me(keys, row)
    assert (await keys.delete(f"/api/keys/{maker['id']}", ALICE)).status == 204
    for row in (maker, child, grandchild):
        await until(keys, row, "key-revoked")
    await me(keys, sibling)


async def test_a_key_made_by_a_static_one_ends_with_it(serve: Serve) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=60)
    robot = {**KEYS[0], "expires_at": ends.isoformat()}
    first, second = await serve({"api_key.keys": [robot]}), await serve({"api_key.keys": []})
    row = await new(first, ROBOT_A, owner="organization")
    assert (row["created_by"], row["created_by_key"]) == ("key:robot_a", "static:robot_a")
    assert datetime.fromisoformat(row["expires_at"]) == ends
    await me(first, row)
    refused(await second.get("/api/me", bearer(row)), 401, "key-revoked")


# Seeing ----------------------------------------------------------------------------------------------------------------


async def test_lists(keys: Client) -> None:
    """Own ones in every organisation; the organisation's for its administrator; never another user's, never a secret."""
    alices = [await new(keys, caller, name=f"a{n}") for n, caller in enumerate((ALICE, ALICE_ALONE, stub("alice", org_id="org_b")))]
    await new(keys, BOB, name="b")
    orgs = {org: await new(keys, admin, name=org, owner="organization", org_role="org:admin") for org, admin in (("org_a", ADMIN_A), ("org_b", ADMIN_B))}
    await new(keys, ADMIN_A, name="anna")

    async def names(caller: dict[str, str]) -> list[str]:
        got = await keys.get("/api/keys", caller)
        assert (got.status, "gp_" in got.raw.decode(), b"hash" in got.raw) == (200, False, False)
        assert all(set(row) == PARTS for row in got.json())
        return [row["name"] for row in got.json()]

    assert await names(ALICE) == await names(ALICE_ALONE) == await names(bearer(alices[1])) == ["a2", "a1", "a0"]
    assert await names(BOB) == ["b"]
    assert await names(ADMIN_A) == ["anna", "org_a"]
    assert await names(ADMIN_B) == ["org_b"]
    assert await names(ROBOT_A) == await names(bearer(orgs["org_a"])) == ["org_a"]
    powerless = await new(keys, ADMIN_A, owner="organization")
    for got in (await keys.get("/api/keys", bearer(powerless)), await keys.post("/api/keys", bearer(powerless), {"name": "k"})):
        refused(got, 403, "user")


async def test_pages(keys: Client) -> None:
    made = [(await new(keys, ALICE, name=str(n)))["id"] for n in range(5)]
    seen, path = [], "/api/keys?limit=2"
    while path:
        got = await keys.get(path, ALICE)
        seen += [row["id"] for row in got.json()]
        path = got.headers.get("Link", "").partition(">")[0].lstrip("<")
    assert seen == made[::-1]
    assert bad(await keys.get("/api/keys?limit=0&cursor=x", ALICE)) == {"limit", "cursor"}


# Revoking --------------------------------------------------------------------------------------------------------------


async def test_who_may_revoke(keys: Client, db: TestDatabase) -> None:
    mine, orgs = await new(keys, ALICE), await new(keys, ADMIN_A, owner="organization")
    for caller in (BOB, ADMIN_A, ADMIN_B, ROBOT_A):
        for method, path in (("DELETE", f"/api/keys/{mine['id']}"), ("POST", f"/api/keys/{mine['id']}/rotate")):
            got = await keys.send(method, path, caller, **({"json": {}} if method == "POST" else {}))
            assert (got.status, got.json()) == (404, {"error": "Not Found"})
    for caller in (ALICE, BOB, ADMIN_B, stub("anna", org_id="org_a", org_role="org:member"), stub("anna")):
        assert (await keys.delete(f"/api/keys/{orgs['id']}", caller)).raw == b'{"error": "Not Found"}'
    assert (await keys.delete("/api/keys/nothing", ALICE)).status == 404
    for row, caller in ((mine, ALICE), (orgs, ADMIN_A)):
        await me(keys, row)
        got = await keys.delete(f"/api/keys/{row['id']}", caller)
        assert (got.status, got.raw) == (204, b"")
        await until(keys, row, "key-revoked")
        assert (await keys.delete(f"/api/keys/{row['id']}", caller)).status == 204
        assert (await keys.post(f"/api/keys/{row['id']}/rotate", caller, {})).status == 404
        assert (await keys.get("/api/keys", caller)).json() == []
    assert await db.count("api_keys") == 2  # they are kept, for whoever asks who had them


async def test_a_key_revokes_itself(keys: Client) -> None:
    row = await new(keys, ALICE)
    assert (await keys.delete(f"/api/keys/{row['id']}", bearer(row))).status == 204
    await until(keys, row, "key-revoked")


async def test_every_worker_knows_within_a_second(serve: Serve) -> None:
    first, second = await serve(), await serve()
    row = await new(first, ALICE)
    asked = counted(second)
    for _ in range(3):
        await me(second, row)
    assert asked == ["key_by_hash"]
    assert (await first.delete(f"/api/keys/{row['id']}", ALICE)).status == 204
    await until(second, row, "key-revoked")
    for _ in range(3):
        refused(await second.get("/api/me", bearer(row)), 401, "key-revoked")
    assert asked == ["key_by_hash"] * 2  # looked up again when the feed told it, and never again: what has ended stays so


# Rotating --------------------------------------------------------------------------------------------------------------


async def test_rotation_without_overlap(serve: Serve) -> None:
    first, second = await serve(), await serve()
    row = await new(first, CLERK_A, org_permissions=[READ], org_role="org:member")
    for client in (first, second):
        await me(client, row)
    for sent in ({"json": {}}, {"data": b""}):
        got = await first.send("POST", f"/api/keys/{row['id']}/rotate", CLERK_A, **sent)
        assert got.status == 200, got
        turned = got.json()
        assert {name: turned[name] for name in PARTS} == {**{name: row[name] for name in PARTS}, "last_used_at": turned["last_used_at"]}
        assert turned["secret"] != row["secret"]
        for client in (first, second):
            await until(client, row, "credential-rejected")
            assert (await me(client, turned))["org_permissions"] == [READ]
        row = turned


async def test_rotation_with_overlap(serve: Serve) -> None:
    """Both work, until the overlap ends: then the old one ends everywhere, however it is remembered."""
    first, second = await serve(), await serve()
    row = await new(first, ALICE)
    for client in (first, second):
        await me(client, row)
    turned = (await first.post(f"/api/keys/{row['id']}/rotate", ALICE, {"overlap_seconds": 2})).json()
    end = datetime.fromisoformat(turned["previous_expires_at"]).timestamp()
    while time.time() < end - 0.3:
        for client in (first, second):
            await me(client, row)
            await me(client, turned)
        await asyncio.sleep(0.1)
    await asyncio.sleep(max(end - time.time(), 0))
    for client in (first, second):
        await until(client, row, "credential-rejected")
        await me(client, turned)


async def test_a_second_rotation_ends_the_first_overlap(keys: Client) -> None:
    row = await new(keys, ALICE)
    once = (await keys.post(f"/api/keys/{row['id']}/rotate", ALICE, {"overlap_seconds": 600})).json()
    twice = (await keys.post(f"/api/keys/{row['id']}/rotate", ALICE, {"overlap_seconds": 600})).json()
    await until(keys, row, "credential-rejected")
    await me(keys, once)
    await me(keys, twice)
    assert (await keys.delete(f"/api/keys/{row['id']}", ALICE)).status == 204
    for each in (once, twice):
        await until(keys, each, "key-revoked")


@pytest.mark.parametrize("sent", [{"overlap_seconds": value} for value in (-1, 604_801, 1.5, "60", True, None)] + [{"overlap": 1}, {"secret": "x"}])
async def test_rotations_that_are_none(keys: Client, sent: dict[str, Any]) -> None:
    row = await new(keys, ALICE)
    assert bad(await keys.post(f"/api/keys/{row['id']}/rotate", ALICE, sent)) == set(sent)


async def test_no_caller_rotates_a_key_beyond_their_rights(keys: Client) -> None:
    """A new secret is a new key: what the caller has now counts, not what they had when it was made."""
    admin = stub("anna", org_id="org_a", org_role="org:admin", org_permissions=READ)
    row = await new(keys, admin, org_role="org:admin", org_permissions=[READ], scopes=["read"])
    orgs = await new(keys, admin, owner="organization", org_permissions=[READ])
    refusals = [
        (stub("anna"), "organization"),
        (stub("anna", org_id="org_b", org_role="org:admin", org_permissions=READ), "organization"),
        (stub("anna", org_id="org_a", org_role="org:member", org_permissions=READ), "role"),
        (ADMIN_A, "permission"),
    ]
    for caller, reason in refusals:
        refused(await keys.post(f"/api/keys/{row['id']}/rotate", caller, {}), 403, reason)
    refused(await keys.post(f"/api/keys/{orgs['id']}/rotate", ADMIN_A, {}), 403, "permission")
    unscoped = await new(keys, admin, org_role="org:admin", org_permissions=[READ])
    refused(await keys.post(f"/api/keys/{row['id']}/rotate", bearer(unscoped), {}), 403, "scope")
    await me(keys, row)
    for each in (row, orgs):
        assert (await keys.post(f"/api/keys/{each['id']}/rotate", admin, {})).status == 200


# What is known of the owner --------------------------------------------------------------------------------------------

MEMBER = """INSERT INTO memberships (organization_id, user_id, id, role, permissions, created_at, deleted_at)
            VALUES ('org_a', 'alice', 'm', $1, $2, now(), $3)"""


async def test_rights_are_the_stored_ones_and_the_recorded_ones(serve: Serve, db: TestDatabase) -> None:
    first, second = await serve(), await serve()
    row = await new(first, CLERK_A, org_role="org:member", org_permissions=[READ, CREATE])

    async def rights(*wanted: Any) -> None:
        end = time.monotonic() + 1
        for client in (first, second):
            while ((got := await me(client, row))["org_role"], got["org_permissions"]) != wanted:
                assert time.monotonic() < end, got
                await asyncio.sleep(0.02)

    await rights("org:member", [READ, CREATE])  # nothing is recorded
    await db.rows(MEMBER, "org:member", [READ, "org:other"], None)
    await rights("org:member", [READ])
    await db.rows("UPDATE memberships SET role = 'org:viewer', permissions = '{}'")
    await rights(None, [])
    await db.rows("UPDATE memberships SET role = 'member', permissions = $1", [CREATE])
    await rights("org:member", [CREATE])
    await db.rows("UPDATE memberships SET role = NULL")
    await rights(None, [CREATE])


@pytest.mark.parametrize("sql", [
    "INSERT INTO users (id, banned) VALUES ('alice', true)", "INSERT INTO users (id, deleted_at) VALUES ('alice', now())",
    "INSERT INTO organizations (id, deleted_at) VALUES ('org_a', now())",
    "INSERT INTO memberships (organization_id, user_id, id, created_at, deleted_at) VALUES ('org_a', 'alice', 'm', now(), now())",
])  # fmt: skip
async def test_a_tombstone_or_a_ban_ends_the_key(keys: Client, db: TestDatabase, sql: str) -> None:
    row, other = await new(keys, ALICE), await new(keys, BOB)
    await db.rows(sql)
    refused(await keys.get("/api/me", bearer(row)), 401, "key-revoked")
    await me(keys, other)


async def test_what_is_no_end_of_a_key(keys: Client, db: TestDatabase) -> None:
    """A lock and a sign-out are for sessions; so is a changed role, which the key's rights follow by themselves."""
    row = await new(keys, ALICE, org_role="org:member")
    await db.rows("INSERT INTO users (id, locked) VALUES ('alice', true)")
    await db.rows("INSERT INTO revocations (kind, subject, issued_before, expires_at) SELECT kind, subject, now() + '1 hour', now() + '1 hour'"
                  " FROM (VALUES ('user', 'alice'), ('membership', 'alice org_a'), ('role', 'org:member')) AS r (kind, subject)")  # fmt: skip
    await asyncio.sleep(0.8)
    refused(await keys.get("/api/me", ALICE), 401, "session-revoked")
    await me(keys, row)


# What a key is asked -----------------------------------------------------------------------------------------------------


async def test_one_query_then_none(keys: Client) -> None:
    row, asked = await new(keys, ALICE), counted(keys)
    await me(keys, row)
    assert asked == ["key_by_hash"]
    for _ in range(20):
        await me(keys, row)
    assert asked == ["key_by_hash"]


async def test_many_at_once_share_one_query(keys: Client) -> None:
    row, asked = await new(keys, ALICE), counted(keys)
    await asyncio.gather(*(me(keys, row) for _ in range(30)))
    assert asked == ["key_by_hash"]


def lookalikes(text: str) -> list[str]:
    return [text[:-1] + ("0" if text[-1] != "0" else "1"), text[:30] + ("x" if text[30] != "x" else "y") + text[31:], text[:-1],
            text.replace("_test_", "_live_"), text.swapcase(), text + "0", text[:40] + ".e30." + text[45:], "gp_" + "a" * 600,
            "gp_test_" + "x" * 5000]  # fmt: skip


async def test_what_is_no_key_costs_no_query_and_is_answered_alike(keys: Client) -> None:
    row, asked = await new(keys, ALICE), counted(keys)
    for text in lookalikes(row["secret"]):
        for headers in ({"X-API-Key": text}, {"Authorization": f"Bearer {text}"}):
            got = await keys.get("/api/me", headers)
            assert (got.status, got.json()) == (401, UNKNOWN), text
    assert asked == []
    unknown = await keys.get("/api/me", bearer(make("test").text))
    assert (unknown.status, unknown.json(), asked) == (401, UNKNOWN, ["key_by_hash"])
    assert {*unknown.headers} == {*got.headers}
    # The right id with another secret is as unknown as any.
    refused(await keys.get("/api/me", bearer(make("test", row["id"]).text)), 401, "credential-rejected")
    for path in (f"/api/me?key={row['secret']}", f"/api/me?X-API-Key={row['secret']}"):
        refused(await keys.get(path), 401, "credential-missing")
    refused(await keys.get("/api/me", {"Cookie": f"__session={row['secret']}"}), 401, "credential-missing")
    refused(await keys.get("/api/me", {"Authorization": f"Basic {row['secret']}"}), 401, "credential-rejected")


async def test_an_unknown_key_is_remembered_as_such(keys: Client) -> None:
    text, asked = make("test").text, counted(keys)
    for _ in range(10):
        refused(await keys.get("/api/me", bearer(text)), 401, "credential-rejected")
    assert asked == ["key_by_hash"]


@pytest.mark.long
async def test_whoever_tries_keys_is_slowed_and_the_owner_is_not(keys: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    known, never_seen = await new(keys, ALICE), await new(keys, ALICE)
    await me(keys, known)
    book = next(one.provider for one in keys.app[PROVIDERS] if one.name == "api_key")._managed
    asked, begun = counted(keys), time.monotonic()
    for number in range(3):
        got = await asyncio.gather(*(keys.get("/api/me", bearer(make("test").text)) for _ in range(throttle.ALLOWANCE * 2)))
        assert {one.status for one in got} == {401}
        assert len(asked) == throttle.ALLOWANCE * 2 * (number + 1)
    assert time.monotonic() - begun > 2.5
    monkeypatch.setattr(throttle, "LONGEST_WAIT", 3.0)
    book._throttle._put("127.0.0.1", throttle.ALLOWANCE + 3 * throttle.PER_SECOND)
    # One that has worked here does not wait, even when it is to be looked up again; a static one asks nobody.
    book._known.clear()
    begun = time.monotonic()
    await me(keys, known)
    assert asked[-1] == "key_by_hash"
    assert (await keys.get("/api/me", ROBOT_A)).status == 200
    assert time.monotonic() - begun < 2
    # And one that was never seen here gets in late.
    begun = time.monotonic()
    await me(keys, never_seen)
    assert 0.5 < time.monotonic() - begun < 4.5


def test_debts_run_out_and_are_paid_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(throttle, "_MOST", 3)
    book = throttle.Throttle(lambda: now)
    assert {book.charge("a") for _ in range(throttle.ALLOWANCE)} == {0.0}
    book.pay_back("a")
    assert [round(book.charge("a"), 6) for _ in range(3)] == [0.0, 0.1, 0.2]
    assert max(book.charge("a") for _ in range(1000)) == throttle.LONGEST_WAIT
    assert book.charge("b") == 0
    now += 100
    assert book._debt("a") == 0
    for name in "cdefg":
        book.charge(name)
    assert list(book._debts) == ["e", "f", "g"]


async def test_unknown_credentials_take_few_connections() -> None:
    book, inside, most = throttle.Throttle(), 0, 0

    async def look() -> None:
        nonlocal inside, most
        async with book.turn("a"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(look() for _ in range(15)))
    assert most == throttle.AT_ONCE


async def test_the_memory_is_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed, "MOST", 3)
    keys = await serve()
    for _ in range(6):
        await me(keys, await new(keys, ALICE))
        await keys.get("/api/me", bearer(make("test").text))
    provider = next(one.provider for one in keys.app[PROVIDERS] if one.name == "api_key")._managed
    assert [len(each) for each in (provider._known, provider._unknown, provider._worked)] == [3, 3, 3]
    assert len(provider._flight) == 0


async def test_with_a_stale_feed_a_managed_key_is_a_503_known_or_not(keys: Client) -> None:
    row, another = await new(keys, ALICE), await new(keys, ALICE)
    await me(keys, row)
    house = next(one.provider for one in keys.app[PROVIDERS] if one.name == "api_key")._managed._house
    house._revocations._max_staleness = -1.0
    for one in (row, another):
        got = await keys.get("/api/me", bearer(one))
        assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})


async def test_without_the_database_it_is_a_503(keys: Client) -> None:
    row, asked = await new(keys, ALICE), counted(keys)
    await me(keys, row)
    house = next(one.provider for one in keys.app[PROVIDERS] if one.name == "api_key")._managed._house

    async def down(*_: Any) -> Any:
        raise ConnectionError("secret-host")

    house._call = down
    await me(keys, row)  # remembered
    got = await keys.get("/api/me", bearer(make("test").text))
    assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})
    assert asked == ["key_by_hash"]


async def test_a_client_that_hangs_up_cancels_no_other_lookup(keys: Client) -> None:
    row = await new(keys, ALICE)
    provider = next(one.provider for one in keys.app[PROVIDERS] if one.name == "api_key")
    gate, call = asyncio.Event(), provider._managed._house._call

    async def slow(function: str, *args: Any) -> Any:
        await gate.wait()
        return await call(function, *args)

    provider._managed._house._call = slow
    impatient = asyncio.create_task(keys.get("/api/me", bearer(row)))
    patient = asyncio.create_task(keys.get("/api/me", bearer(row)))
    await asyncio.sleep(0.1)
    impatient.cancel()
    await asyncio.sleep(0.1)
    gate.set()
    assert (await patient).status == 200


@pytest.mark.long
async def test_a_hundred_thousand_keys_cost_no_more_than_ten(keys: Client, db: TestDatabase) -> None:
    await db.rows("INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by) SELECT 'k' || n, sha256(n::text::bytea), 'k', 'user' || n, 'org', 'x'"
                  " FROM generate_series(1, 100000) AS n")  # fmt: skip
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("ANALYZE api_keys")
        body = await admin.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'key_by_hash'")
        plan = await admin.fetch("EXPLAIN " + body.replace("wanted", "sha256('500')"))
        said = "\n".join(row[0] for row in plan)
        assert "api_keys_hash_key" in said
        assert "api_keys_previous_hash_key" in said
        assert "Seq Scan on api_keys" not in said
    row, asked = await new(keys, ALICE), counted(keys)
    await me(keys, row)
    assert asked == ["key_by_hash"]
    await db.rows("DELETE FROM api_keys")
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("VACUUM ANALYZE api_keys")


# Beside the keys -----------------------------------------------------------------------------------------------------------


async def test_only_sessions_and_keys_handle_keys(serve: Serve) -> None:
    from server import CredentialRejected, Identity, hookimpl

    class Issuer:
        async def authenticate(self, request: Any) -> Identity | None:
            if request.headers.get("Authorization") != "Bearer other":
                raise CredentialRejected
            return Identity(provider="issuer", token_type="access_token", user_id="alice", org_id="org_a", org_role="org:admin")

    made = plugin()
    made.register_providers = hookimpl(lambda: {"issuer": lambda settings: Issuer()}, specname="register_providers")  # type: ignore[attr-defined]
    client = await serve({"providers": ["issuer"]}, extra={"issuer": made})
    for method, path in (("GET", "/api/keys"), ("POST", "/api/keys"), ("DELETE", "/api/keys/x"), ("POST", "/api/keys/x/rotate")):
        refused(await client.send(method, path, {"Authorization": "Bearer other"}), 401, "token-type")


async def test_the_way_in_as_administrator_asks_for_the_role_itself(serve: Serve) -> None:
    from aiohttp import web

    routes = web.RouteTableDef()

    @routes.get("/as-admin")
    @requires(user=True)
    async def as_admin(request: web.Request) -> web.Response:
        async with scoped(request, admin=True) as db:
            return answer(json.dumps([row["name"] for row in await db.fetch("SELECT name FROM data")]))

    client = await serve(extra={"odd": plugin(*routes)})
    assert (await client.post("/api/data", ALICE, {"name": "hers"})).status == 201
    assert (await client.get("/as-admin", ADMIN_A)).json() == ["hers"]
    for caller in (ALICE, ALICE_ALONE, BOB, stub("anna", org_role="org:admin")):
        refused(await client.get("/as-admin", caller), 403, "role")


async def test_last_used_at_is_written_without_a_write_per_request(keys: Client, db: TestDatabase) -> None:
    row, asked = await new(keys, ALICE), counted(keys)
    provider = next(one.provider for one in keys.app[PROVIDERS] if one.name == "api_key")
    for _ in range(50):
        await me(keys, row)
    assert asked == ["key_by_hash"]
    notes = provider._usage
    notes._query = provider._managed._house.query
    await notes.flush()
    await notes.flush()
    listed = (await keys.get("/api/keys", ALICE)).json()[0]
    assert abs(datetime.fromisoformat(listed["last_used_at"]).timestamp() - time.time()) < 30
    assert asked.count("touch_keys") == 1
    await me(keys, row)
    assert notes._pending == {}  # not again within the minute
    # Nor by another worker: the database does not take it.
    async with db.server.connected(db.server.serving_role, db.name) as worker:
        touch = "SELECT touch_keys($1, $2)"
        now = datetime.now(UTC)
        assert await worker.fetchval(touch, [row["id"], row["id"], "unknown"], [now] * 3) == 0
        assert await worker.fetchval(touch, [row["id"]], [now + timedelta(seconds=90)]) == 0  # no clock runs ahead of the database's
        await db.rows("UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
        assert await worker.fetchval(touch, [row["id"]], [now]) == 1


async def test_a_note_is_written_in_the_background_and_at_the_end(serve: Serve, db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "FLUSH_SECONDS", 0.1)
    client = await serve()
    row = await new(client, ALICE)
    await me(client, row)
    end = time.monotonic() + 3
    while not await db.rows("SELECT 1 FROM api_keys WHERE last_used_at IS NOT NULL"):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    monkeypatch.setattr(usage, "FLUSH_SECONDS", 60)
    other = await serve()
    row = await new(other, BOB)
    await me(other, row)
    await other.server.close()
    assert await db.rows("SELECT 1 FROM api_keys WHERE user_id = 'bob' AND last_used_at IS NOT NULL")


async def test_a_read_only_database_still_authenticates(serve: Serve, db: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """As where a provider makes a full database read-only under a running server (a start is refused then)."""
    row = await new(await serve(), ALICE)
    role = db.server.serving_role
    async with db.server.as_admin(db.name) as admin:
        client = await serve()
        try:
            await admin.execute(f'ALTER ROLE "{role}" IN DATABASE "{db.name}" SET default_transaction_read_only = on')
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename = $2", db.name, role)
            async with asyncio.timeout(10):  # until lost connections have been replaced
                while (await client.get("/api/me", bearer(row))).status == 503:
                    await asyncio.sleep(0.05)
            await me(client, row)
            provider = next(one.provider for one in client.app[PROVIDERS] if one.name == "api_key")
            with caplog.at_level(logging.WARNING):
                await provider._usage.flush()
            assert "not written" in caplog.text
            await me(client, row)
            assert (await client.post("/api/keys", ALICE, {"name": "k"})).status == 503
        finally:
            await admin.execute(f'ALTER ROLE "{role}" IN DATABASE "{db.name}" RESET default_transaction_read_only')


async def test_no_secret_is_logged_or_answered(keys: Client, db: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    row = await new(keys, ALICE)
    await me(keys, row)
    await keys.delete(f"/api/keys/{row['id']}", ALICE)
    await until(keys, row, "key-revoked")
    got = await keys.get("/api/keys", bearer(row))
    assert row["secret"][25:68] not in caplog.text + str([record.__dict__ for record in caplog.records]) + got.raw.decode()
    for table in ("api_keys", "revocations"):
        assert row["secret"][25:68] not in str(await db.rows(f"SELECT * FROM {table}"))


# The tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["SELECT gatepost_key_told()", "SELECT gatepost_membership_told()", "SELECT gatepost_revoke('key', 'k', NULL, now())",
                                 "INSERT INTO revocations (kind, subject, expires_at) VALUES ('key', 'k', now())", "SELECT * FROM revocations"])  # fmt: skip
async def test_the_serving_role_cannot_speak_for_the_triggers(db: TestDatabase, sql: str) -> None:
    async with db.server.connected(db.server.serving_role, db.name) as serving:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await serving.execute(sql)


async def test_the_helper_reads_no_more_than_it_needs(db: TestDatabase) -> None:
    wanted: dict[str, Callable[[str], bool]] = {
        "users": {"id", "banned", "deleted_at", "keys_ended_at", "disabled_at", "enabled_at"}.__contains__,
        "organizations": {"id", "deleted_at"}.__contains__,
        "memberships": {"organization_id", "user_id", "role", "permissions", "deleted_at", "keys_ended_at"}.__contains__,
        "api_keys": lambda column: column not in ("name", "created_by", "rotated_by_key"), "data": lambda _: False, "org_data": lambda _: False,
        "invoices": lambda _: False, "revocations": lambda _: False, "webhook_inbox": lambda _: False}  # fmt: skip
    rows = await db.rows("SELECT table_name, column_name, has_column_privilege('gatepost_auth', table_schema || '.' || table_name, column_name, 'SELECT') AS may"
                         " FROM information_schema.columns WHERE table_schema = 'public'")  # fmt: skip
    for row in rows:
        if row["table_name"] in wanted:
            assert row["may"] is wanted[row["table_name"]](row["column_name"]), row
