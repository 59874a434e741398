"""What webhooks leave behind: whose rows are seen by whom, what is revoked, what is never kept, and doing it again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from json import loads
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from kits.webhooks import (
    PATH,
    SETTINGS,
    SYNCED,
    T0,
    deliver,
    empty,
    event,
    membership,
    organization,
    organization_deleted,
    revocations,
    session,
    sweep,
    take,
    user,
    user_deleted,
)

from providers.clerk import replay_command as replay
from providers.clerk.events import normalise
from server import CommandContext
from server.commands import operator_scope
from server.schema import safety
from tests.conftest import ALICE, ALICE_ALONE, BOB, ROBOT_A, Client, Serve, TestDatabase, stub

ADA, BEN = stub("ada", org_id="org_a"), stub("ben", org_id="org_b")
DENIED = asyncpg.InsufficientPrivilegeError


@pytest.fixture
async def hooks(serve: Serve, db: TestDatabase) -> AsyncIterator[Client]:
    yield await serve(SETTINGS)
    await empty(db)


@pytest.fixture
async def serving(db: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """A connection in the serving role."""
    async with db.server.connected(db.server.serving_role, db.name) as connection:
        yield connection


TWO_TENANTS = [
    *(user("created", 0, id=name) for name in ("alice", "ada", "bob", "ben", "cy")),
    organization("created", 0, id="org_a"), organization("created", 0, id="org_b"),
    membership("created", 1, id="orgmem_1", who="alice", org="org_a", role="org:admin", born=1),
    membership("created", 2, id="orgmem_2", who="ada", org="org_a", born=2),
    membership("created", 3, id="orgmem_3", who="bob", org="org_b", born=3),
    membership("created", 4, id="orgmem_4", who="ben", org="org_b", born=4),
    membership("created", 5, id="orgmem_5", who="alice", org="org_b", born=5),
]  # fmt: skip


# Seen by -----------------------------------------------------------------------------------------------------------------


async def test_profile(hooks: Client) -> None:
    await take(hooks, user("created", 0), user("updated", 60.25, first_name="Alicia"))
    got = (await hooks.get("/api/me/profile", ALICE)).json()
    assert got == {
        "id": "alice", "external_id": None, "username": None, "first_name": "Alicia", "last_name": "A",
        "image_url": "https://img.example/1", "email": "alice@example.com", "email_verified": True,
        "public_metadata": {"plan": "gold", "token": "a public word"}, "created_at": got["created_at"], "updated_at": got["updated_at"],
    }  # fmt: skip
    assert datetime.fromisoformat(got["created_at"]) == datetime.fromtimestamp(T0, UTC)
    assert datetime.fromisoformat(got["updated_at"]) == datetime.fromtimestamp(T0 + 60.25, UTC)
    assert (await hooks.get("/api/me/profile", ALICE_ALONE)).json() == got
    assert (await hooks.get("/api/me/profile", BOB)).status == 404
    refused = await hooks.get("/api/me/profile", ROBOT_A)
    assert (refused.status, refused.json()["reason"]) == (403, "user")
    await take(hooks, user_deleted(70))
    gone = await hooks.get("/api/me/profile", ALICE)  # the gate turns the user away before there is no row to show
    assert gone.status in (401, 404)


async def test_members(hooks: Client) -> None:
    await take(hooks, *TWO_TENANTS)
    got = (await hooks.get("/api/orgs/org_a/members", ALICE)).json()
    assert [(row["user_id"], row["role"], row["first_name"]) for row in got] == [("ada", "org:member", "Ada"), ("alice", "org:admin", "Alice")]
    assert set(got[0]) == {"id", "organization_id", "user_id", "role", "permissions", "username", "first_name", "last_name", "image_url",
                           "created_at", "updated_at"}  # fmt: skip
    assert (await hooks.get("/api/orgs/org_a/members", ROBOT_A)).json() == got
    assert [row["user_id"] for row in (await hooks.get("/api/orgs/org_b/members", BOB)).json()] == ["alice", "ben", "bob"]
    for who, org in ((ALICE, "org_b"), (BOB, "org_a"), (ALICE_ALONE, "org_a")):
        refused = await hooks.get(f"/api/orgs/{org}/members", who)
        assert (refused.status, refused.json()["reason"]) == (403, "organization")
    await take(hooks, membership("deleted", 50, id="orgmem_2", who="ada", born=2), user_deleted(51, id="ben"))
    assert [row["user_id"] for row in (await hooks.get("/api/orgs/org_a/members", ALICE)).json()] == ["alice"]
    assert [row["user_id"] for row in (await hooks.get("/api/orgs/org_b/members", BOB)).json()] == ["alice", "bob"]


async def test_members_page_by_page(hooks: Client) -> None:
    """Five of one moment, two a page: all of them, once, newest first."""
    await take(hooks, *(membership("created", 0, id=f"orgmem_{n}", who=f"u{n}") for n in range(5)))
    seen, path = [], "/api/orgs/org_a/members?limit=2"
    while path:
        got = await hooks.get(path, ALICE)
        seen += [row["id"] for row in got.json()]
        path = got.headers["Link"][1:].partition(">")[0] if "Link" in got.headers else ""
    assert seen == [f"orgmem_{n}" for n in range(4, -1, -1)]
    assert (await hooks.get("/api/orgs/org_a/members?limit=0", ALICE)).status == 422


async def _seen(connection: asyncpg.Connection, user_id: str, org_id: str, admin: str = "") -> dict[str, set[str]]:
    """All that a query without a WHERE gives this caller."""
    async with connection.transaction():
        for name, value in (("user_id", user_id), ("org_id", org_id), ("admin_org_id", admin)):
            await connection.execute("SELECT set_config($1, $2, true)", f"gatepost.{name}", value)
        return {table: {row[0] for row in await connection.fetch(f"SELECT id FROM {table}")} for table in ("users", "organizations", "memberships")}


async def test_row_level_security_alone(hooks: Client, serving: asyncpg.Connection) -> None:
    await take(hooks, *TWO_TENANTS)
    a = {"users": {"alice", "ada"}, "organizations": {"org_a"}, "memberships": {"orgmem_1", "orgmem_2", "orgmem_5"}}
    b = {"users": {"alice", "bob", "ben"}, "organizations": {"org_b"}, "memberships": {"orgmem_3", "orgmem_4", "orgmem_5"}}
    assert await _seen(serving, "alice", "org_a") == a
    assert await _seen(serving, "bob", "org_b") == b
    assert await _seen(serving, "", "org_b") == b
    # Without an active organisation: oneself; not whom one meets in one's organisations.
    assert await _seen(serving, "alice", "") == {"users": {"alice"}, "organizations": set(), "memberships": {"orgmem_1", "orgmem_5"}}
    assert await _seen(serving, "alice", "", "org_a") == await _seen(serving, "alice", "")
    nothing: dict[str, set[str]] = {"users": set(), "organizations": set(), "memberships": set()}
    assert await _seen(serving, "", "") == await _seen(serving, "stranger", "org_c") == nothing
    await take(hooks, user_deleted(60, id="ada"), organization_deleted(60, id="org_b"))
    assert await _seen(serving, "ada", "org_a") == {"users": {"alice"}, "organizations": {"org_a"}, "memberships": {"orgmem_1"}}
    assert (await _seen(serving, "bob", "org_b")) == {"users": {"bob"}, "organizations": set(), "memberships": set()}


async def test_the_serving_role_only_reads(hooks: Client, serving: asyncpg.Connection) -> None:
    await take(hooks, *TWO_TENANTS)
    for table in SYNCED:
        for sql in (f"DELETE FROM {table}", f"INSERT INTO {table} DEFAULT VALUES", f"TRUNCATE {table}"):
            with pytest.raises(DENIED):
                await serving.execute(sql)
    for sql in ("UPDATE users SET banned = false", "UPDATE memberships SET role = 'org:admin'", "SELECT * FROM webhook_inbox", "SELECT * FROM revocations",
                "SELECT last_event_id FROM users", "SELECT gatepost_revoke('user', 'bob', NULL, now() + interval '1 day')",
                "SELECT gatepost_apply('m', 'user.deleted', now(), '{\"id\": \"bob\"}', now())",
                "SELECT gatepost_apply_membership('m', 'x', now(), '{}', now())"):  # fmt: skip
        with pytest.raises(DENIED):
            await serving.execute(sql)
    assert await safety.problems(serving) == []


async def test_no_other_role_can_call_the_functions(db: TestDatabase) -> None:
    """Neither PUBLIC's nor the owner's; and the owner sees no row."""
    guest = await db.server.create_role("guest_sync")
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(f'GRANT CONNECT ON DATABASE "{db.name}" TO "{guest}"')
    for role in (guest, db.server.owner_role):
        async with db.server.connected(role, db.name) as connection:
            for call in ("apply_clerk_event('m', 'x', now(), '{}', '1 day', '1 day')", "revocations_since('0')", "revocations_page('0', '', '', 1)", "sweep_ended(1)", "prune_sync()", "prune_idempotency(1)",
                         "replay_clerk_events(now(), '', 1, '1 day')"):  # fmt: skip
                with pytest.raises(DENIED):
                    await connection.execute(f"SELECT * FROM {call}")
    async with db.server.connected(db.server.owner_role, db.name) as owner:
        assert [await owner.fetchval(f"SELECT count(*) FROM {table}") for table in SYNCED] == [0] * len(SYNCED)


# Kept --------------------------------------------------------------------------------------------------------------------

SECRETS = [
    user("created", 0), organization("created", 0), membership("created", 0), session("created", 0), session("ended", 1),
    event("email.created", 0, id="ema_1", body="Your code is hunter2", to_email_address="hunter2@example.com", data={"otp_code": "hunter2"}),
    event("sms.created", 0, id="sms_1", message="hunter2", user_id="alice"),
    event("invitation.created", 0, id="inv_1", url="https://x.example/?ticket=hunter2", email_address="hunter2@example.com"),
    event("subscription.created", 0, id="sub_1", payer={"id": "p", "private_metadata": {"n": "hunter2"}, "api_secret": "hunter2"}, tokens=["hunter2"]),
    event("user.created", 0, id="bad id", private_metadata={"n": "hunter2"}, first_name="hunter2"),
]  # fmt: skip


async def test_nothing_private_is_kept(hooks: Client, db: TestDatabase) -> None:
    await take(hooks, *SECRETS)
    for table in SYNCED:
        text = str(await db.rows(f"SELECT t::text AS row FROM {table} AS t"))
        for word in ("hunter2", "private_metadata", "unsafe_metadata", "203.0.113.5", "hidden-agent", "old-alice@example.com"):
            assert word not in text, (table, word)
    assert await db.count("webhook_inbox") == len(SECRETS)


async def test_unknown_events_are_kept_for_a_month(hooks: Client, db: TestDatabase) -> None:
    await take(hooks, event("subscription.active", 7, id="sub_1", payer={"plan": "gold"}))
    [row] = await db.rows("SELECT * FROM webhook_inbox")
    assert (row["provider"], row["type"], row["payload"]) == ("clerk", "subscription.active", '{"data": {"id": "sub_1", "payer": {"plan": "gold"}}}')
    assert row["event_at"] == datetime.fromtimestamp(T0 + 7, UTC)
    assert row["expires_at"] - row["received_at"] == timedelta(days=30)


async def test_a_deleted_user_leaves_nothing_but_a_tombstone(hooks: Client, db: TestDatabase) -> None:
    await take(hooks, user("created", 0), user_deleted(9), user("updated", 20, first_name="Back"))
    [row] = await db.rows("SELECT * FROM users")
    assert {name: value for name, value in row.items() if value not in (None, False, "{}")} == {
        "id": "alice", "deleted_at": datetime.fromtimestamp(T0 + 9, UTC)}  # fmt: skip


def test_times_in_seconds_and_milliseconds() -> None:
    for said in (T0, T0 * 1000):
        told = normalise({**user("updated", 0), "timestamp": said}, T0 + 10)
        assert told.at == datetime.fromtimestamp(T0, UTC)
    assert normalise({**user("updated", 0), "timestamp": T0 * 5000}, T0).at == datetime.fromtimestamp(T0 + 300, UTC)


# Revoked -----------------------------------------------------------------------------------------------------------------

ALICE_IN_A = ("membership", "alice org_a")
REVOKED: dict[str, tuple[list[dict[str, Any]], dict[tuple[str, str], float | None]]] = {
    "session ended": ([session("ended", 5)], {("session", "sess_1"): None}),
    "session removed": ([session("removed", 5)], {("session", "sess_1"): None}),
    "session revoked": ([session("revoked", 5)], {("session", "sess_1"): None}),
    "session created": ([session("created", 5), session("pending", 6)], {}),
    "user created and changed": ([user("created", 0), user("updated", 5, first_name="X")], {}),
    "user banned": ([user("created", 0), user("updated", 5, banned=True)], {("user", "alice"): 5}),
    "user locked": ([user("created", 0), user("updated", 5, locked=True)], {("user", "alice"): 5}),
    "user deprovisioned": ([user("updated", 5, deprovisioned=True)], {("user", "alice"): 5}),
    "banned twice": ([user("updated", 9, banned=True), user("updated", 5, banned=True)], {("user", "alice"): 9}),
    "ban lifted": ([user("updated", 5, banned=True), user("updated", 9)], {("user", "alice"): 5}),
    "user deleted": ([user_deleted(5)], {("user", "alice"): None}),
    "deleted, then a late ban": ([user_deleted(5), user("updated", 4, banned=True)], {("user", "alice"): None}),
    "member": ([membership("created", 0)], {}),
    "role changed": ([membership("created", 0), membership("updated", 5, role="org:admin")], {ALICE_IN_A: 5}),
    "permissions changed": ([membership("created", 0), membership("updated", 5, permissions=["org:x:y"])], {ALICE_IN_A: 5}),
    "something else changed": ([membership("created", 0), membership("updated", 5)], {}),
    "changed before it was known": ([membership("updated", 5), membership("created", 0)], {ALICE_IN_A: 5}),
    "an old change, late": ([membership("updated", 9), membership("updated", 5, role="org:admin")], {ALICE_IN_A: 9}),
    "member removed": ([membership("created", 0), membership("deleted", 5)], {ALICE_IN_A: 5}),
    "removed, never known": ([membership("deleted", 5)], {ALICE_IN_A: 5}),
    "organisation deleted": ([organization_deleted(5)], {("organization", "org_a"): None}),
    "organisation changed": ([organization("created", 0), organization("updated", 5)], {}),
    "role of the instance changed": ([event("role.updated", 5, id="role_1", key="org:billing")], {("role", "org:billing"): 5}),
    "role deleted, short": ([event("role.deleted", 5, id="role_1", key="billing")], {("role", "org:billing"): 5}),
    "role created": ([event("role.created", 5, id="role_1", key="org:billing")], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REVOKED)
async def test_revoked(hooks: Client, db: TestDatabase, serving: asyncpg.Connection, name: str) -> None:
    """What is revoked and for how long; the feed reads it, and is notified at once."""
    told: list[str] = []
    await serving.add_listener("gatepost_revocations", lambda *said: told.append(said[3]))
    events, wanted = REVOKED[name]
    await take(hooks, *events)
    assert {key: before and round(before) for key, before in (await revocations(db)).items()} == wanted
    for row in await db.rows("SELECT expires_at - created_at AS life FROM revocations WHERE kind <> 'keys'"):
        assert timedelta(seconds=86_400) < row["life"] < timedelta(seconds=86_400 + 120)
    live = await serving.fetch("SELECT kind, subject, issued_before FROM revocations_since('0')")
    assert {(row["kind"], row["subject"]) for row in live if row["kind"] != "keys"} == set(wanted)
    await asyncio.sleep(0.05)
    assert bool(told) == bool(live)


async def test_keys_end_with_their_owners(hooks: Client, db: TestDatabase) -> None:
    keys = (("alice_a", "alice", "org_a"), ("alice_b", "alice", "org_b"), ("alice", "alice", None), ("bob_a", "bob", "org_a"), ("robot_a", None, "org_a"))

    async def ended(*events: dict[str, Any]) -> set[str]:
        await empty(db)
        await db.rows("DELETE FROM api_keys")
        for id, user_id, org_id in keys:
            await db.rows("INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by) VALUES ($1, $2, 'k', $3, $4, 'x')",
                          id, hashlib.sha256(id.encode()).digest(), user_id, org_id)  # fmt: skip
        await take(hooks, *events)
        looked_up = {id for id, *_ in keys for row in await db.rows("SELECT * FROM key_by_hash(sha256($1))", id.encode()) if row["ended"]}
        await sweep(db)
        swept = {row["id"] for row in await db.rows("SELECT id FROM api_keys WHERE revoked_at IS NOT NULL")}
        assert swept == looked_up  # at once, and when it is tidied up
        return swept

    assert await ended(user_deleted(5)) == await ended(user("updated", 5, banned=True)) == {"alice_a", "alice_b", "alice"}
    assert await ended(organization_deleted(5)) == {"alice_a", "bob_a", "robot_a"}
    assert await ended(membership("deleted", 5)) == {"alice_a"}
    for harmless in ([user("updated", 5, locked=True)], [membership("created", 0), membership("updated", 5, role="org:admin")], [session("ended", 5)],
                     [user("updated", 9), user("updated", 5, banned=True)],
                     [membership("created", 20, id="orgmem_2", born=20), membership("deleted", 5)]):  # fmt: skip
        assert await ended(*harmless) == set(), harmless


# Again -------------------------------------------------------------------------------------------------------------------


async def test_prune(hooks: Client, db: TestDatabase, serving: asyncpg.Connection) -> None:
    await take(hooks, user("created", 0), user("updated", 5, banned=True), session("ended", 6))
    assert await serving.fetchval("SELECT prune_sync()") == 0
    await db.rows("UPDATE webhook_inbox SET expires_at = now() WHERE type = 'user.created'")
    await db.rows("UPDATE revocations SET expires_at = now() WHERE kind = 'user'")
    assert {row["kind"] for row in await serving.fetch("SELECT kind FROM revocations_since('0')")} == {"session", "keys"}
    assert await serving.fetchval("SELECT prune_sync()") == 2
    assert [await db.count(table) for table in ("webhook_inbox", "revocations", "users")] == [2, 2, 1]


async def _replay(db: TestDatabase, *, json: bool = False) -> int:
    @contextlib.asynccontextmanager
    async def database() -> AsyncIterator[asyncpg.Connection]:
        async with db.server.connected(db.server.serving_role, db.name) as connection:
            yield connection

    return await replay.run(argparse.Namespace(json=json), CommandContext("test", Path("."), {"max_token_seconds": 60.0}, database, operator_scope))


async def test_replay(hooks: Client, db: TestDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After tables were lost or spoilt everything is there again; beside a running server, in several bites."""
    monkeypatch.setattr(replay, "_AT_A_TIME", 3)
    life = [*TWO_TENANTS, event("brand.new", 1), membership("updated", 7, role="org:owner"), user_deleted(9, id="cy")]
    await take(hooks, *reversed(life))
    tables = ("users", "organizations", "memberships")
    before = [await db.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    await db.rows("DELETE FROM memberships")
    await db.rows("DELETE FROM users WHERE id <> 'bob'")
    await db.rows("UPDATE users SET first_name = 'Spoilt'")
    assert await _replay(db) == 0
    assert [await db.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables] == before
    said = capsys.readouterr()
    assert said.out == f"applied: {len(life) - 1}, stale: 0, stored: 1, failed: 0\n"
    assert [line.split(",")[0] for line in said.err.splitlines()] == [
        f"replay: {min(number, len(life))} events" for number in range(3, len(life) + 3, 3)
    ]
    assert await _replay(db, json=True) == 0
    assert set(loads(capsys.readouterr().out)) == {"applied", "stale", "stored", "failed"}


async def test_replay_revokes_nothing_that_has_run_out(hooks: Client, db: TestDatabase) -> None:
    """And ends no key that was made after the ban was lifted."""
    await take(hooks, user("updated", 5, banned=True), user("updated", 9), session("ended", 5))
    await db.rows("DELETE FROM revocations")
    await db.rows("INSERT INTO api_keys (id, hash, name, user_id, created_by) VALUES ('k', sha256('k'), 'k', 'alice', 'x')")
    await db.rows("UPDATE webhook_inbox SET received_at = now() - interval '1 hour'")
    assert await _replay(db) == 0
    assert await db.count("revocations") == 0
    assert await db.rows("SELECT 1 FROM api_keys WHERE revoked_at IS NULL")


async def test_replay_says_what_failed(hooks: Client, db: TestDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    await take(hooks, user("created", 0), organization("created", 1), session("ended", 2))
    await db.rows("UPDATE webhook_inbox SET payload = payload || '{\"updated_at\": \"never\"}' WHERE type = 'organization.created'")
    assert await _replay(db) == 1
    assert capsys.readouterr().out == "applied: 2, stale: 0, stored: 0, failed: 1\n"


async def test_an_id_is_remembered_for_an_hour_at_least(db: TestDatabase, serving: asyncpg.Connection) -> None:
    """A shorter time would allow replays."""
    apply = "SELECT apply_clerk_event('msg_1', 'x', now(), '{}', '0', '1 day')"
    assert [await serving.fetchval(apply), await serving.fetchval("SELECT prune_sync()"), await serving.fetchval(apply)] == ["stored", 0, "repeated"]
    await empty(db)


async def test_other_methods(hooks: Client) -> None:
    assert (await hooks.get(PATH, ADA)).status == 405
    assert (await deliver(hooks, user("created", 0))).status == 204
    assert (await hooks.get("/api/me/profile", BEN)).status == 404
