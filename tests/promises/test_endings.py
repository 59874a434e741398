"""Access ends at once, whatever the other side has made before: one write, in every process, within a second."""

import asyncio
import hashlib
import itertools
import time
from typing import Any

import pytest
from kits.webhooks import SETTINGS, deliver, empty, membership, organization_deleted, session, sweep, take, user, user_deleted

from server.app import SERVER_DATABASE
from server.auth import revocation_feed
from server.auth.revocation import Revocations
from server.schema.migrate import migrate
from tests.conftest import ADMIN_A, ALICE, ALICE_ALONE, Client, Serve, TestDatabase, stub

STATIC = {"X-API-Key": "gp_the-static-key-of-alice"}
STATIC_KEYS = [{"id": "of_alice", "hash": "sha256:" + hashlib.sha256(STATIC["X-API-Key"].encode()).hexdigest(), "user_id": "alice"}]
ADMIN_KEY = {"name": "k", "org_role": "org:admin"}


@pytest.fixture
async def two(serve: Serve, db: TestDatabase) -> tuple[Client, Client]:
    """Two servers on one database without anything synced, and without keys."""
    await empty(db)
    await db.rows("DELETE FROM api_keys")
    settings = {**SETTINGS, "api_key.keys": STATIC_KEYS}
    return await serve(settings), await serve(settings)


def bearer(row: Any) -> dict[str, str]:
    return {"X-API-Key": row["secret"]}


async def make(client: Client, caller: dict[str, str], **members: Any) -> Any:
    got = await client.post("/api/keys", caller, {"name": "k", **members})
    assert got.status == 201, got
    return got.json()


async def status_of(client: Client, key: dict[str, str]) -> int:
    return (await client.get("/api/me", key)).status


async def end_within_a_second(clients: tuple[Client, ...], *keys: dict[str, str]) -> None:
    deadline = time.monotonic() + 1.0
    for client in clients:
        for key in keys:
            while (got := await client.get("/api/me", key)).status != 401:
                assert time.monotonic() < deadline, got
                await asyncio.sleep(0.02)
            assert got.json()["reason"] == "key-revoked"


# Keys that keys have made ------------------------------------------------------------------------------------------------


async def chain(client: Client, db: TestDatabase) -> list[Any]:
    """A user's key, and the organisation keys below it: at most three."""
    anna = stub("anna", org_id="org_a", org_role="org:admin")
    row = await make(client, anna, org_role="org:admin")
    made = [row]
    for _ in range(3):
        made.append(await make(client, bearer(made[-1]), owner="organization", org_role="org:admin"))
    got = await client.post("/api/keys", bearer(made[-1]), {"name": "k", "owner": "organization", "org_role": "org:admin"})
    assert (got.status, got.json()) == (409, {"error": "Conflict", "reason": "key-limit"})
    return made


@pytest.mark.parametrize("how", ["revoked", "membership", "banned", "deleted"])
async def test_the_end_of_a_key_ends_all_that_it_made(two: tuple[Client, Client], db: TestDatabase, how: str) -> None:
    keys = await chain(two[0], db)
    for client in two:
        assert [await status_of(client, bearer(key)) for key in keys] == [200] * 4
    if how == "revoked":
        assert (await two[0].delete(f"/api/keys/{keys[0]['id']}", ADMIN_A)).status == 204
    else:
        event = {"membership": membership("deleted", 5, who="anna"), "banned": user("updated", 5, id="anna", banned=True),
                 "deleted": user_deleted(5, id="anna")}[how]  # fmt: skip
        assert (await deliver(two[0], event)).status == 204
    await end_within_a_second(two, *map(bearer, keys))
    await sweep(db)
    assert {row["id"] for row in await db.rows("SELECT id FROM api_keys WHERE revoked_at IS NOT NULL")} == {key["id"] for key in keys}
    assert await db.count("endings") == 0


async def test_a_demotion_reaches_the_keys_below(two: tuple[Client, Client], db: TestDatabase) -> None:
    assert (await deliver(two[0], membership("created", 0, who="anna", role="org:admin"))).status == 204
    keys = await chain(two[0], db)
    assert (await deliver(two[0], membership("updated", 5, who="anna", role="org:member"))).status == 204
    deadline = time.monotonic() + 1.0
    for client in two:
        for key in keys:
            while (await client.get("/api/me", bearer(key))).json()["org_role"] is not None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)


async def test_work_does_not_grow_with_what_hangs_below(two: tuple[Client, Client], db: TestDatabase) -> None:
    """20,000 keys of a user and 2,000 below one of them, more than the API lets anybody make: an end is still one write."""
    await db.rows("INSERT INTO api_keys (id, hash, name, user_id, created_by) SELECT 'k' || n, sha256(convert_to('k' || n, 'UTF8')), 'k', 'alice', 'alice'"
                  " FROM generate_series(1, 20000) AS n")  # fmt: skip
    await db.rows("INSERT INTO api_keys (id, hash, name, user_id, created_by, created_by_key) SELECT 'c' || n, sha256(convert_to('c' || n, 'UTF8')), 'k',"
                  " 'alice', 'key:k1', 'k1' FROM generate_series(1, 2000) AS n")  # fmt: skip
    written = "SELECT n_tup_upd + n_tup_ins AS n FROM pg_stat_xact_user_tables WHERE relname = 'api_keys'"
    async with db.server.as_admin(db.name) as admin, admin.transaction():
        await admin.execute("UPDATE api_keys SET revoked_at = now() WHERE id = 'k1'")
        assert await admin.fetchval(written) == 1
    assert (await deliver(two[0], user("updated", 5, id="alice", banned=True))).status == 204
    for row in await db.rows("SELECT h.ended FROM generate_series(1, 20000, 997) AS n, key_by_hash(sha256(convert_to('k' || n, 'UTF8'))) AS h"):
        assert row["ended"]
    assert await db.count("revocations") <= 3
    await sweep(db)
    assert await db.rows("SELECT FROM api_keys WHERE revoked_at IS NULL") == []


async def test_a_secret_ends_with_the_key_that_rotated_it(two: tuple[Client, Client]) -> None:
    """A stolen key rotates its owner's other key, with a week of overlap so that it goes unnoticed."""
    stolen, other = await make(two[0], ALICE), await make(two[0], ALICE)
    got = await two[0].post(f"/api/keys/{other['id']}/rotate", bearer(stolen), {"overlap_seconds": 7 * 86_400})
    assert got.status == 200
    theirs = bearer(got.json())
    below = await make(two[0], theirs)
    for client in two:
        assert [await status_of(client, key) for key in (theirs, bearer(other), bearer(below))] == [200] * 3
    assert (await two[0].delete(f"/api/keys/{stolen['id']}", ALICE)).status == 204
    await end_within_a_second(two, bearer(stolen), theirs, bearer(below))
    assert await status_of(two[1], bearer(other)) == 200  # its owner's own secret
    again = await two[0].post(f"/api/keys/{other['id']}/rotate", ALICE)
    assert await status_of(two[0], bearer(again.json())) == 200


async def test_a_key_that_rotates_itself_goes_on(two: tuple[Client, Client]) -> None:
    row = await make(two[0], ALICE)
    for _ in range(5):
        got = await two[0].post(f"/api/keys/{row['id']}/rotate", bearer(row))
        assert got.status == 200, got
        row = got.json()
        assert await status_of(two[0], bearer(row)) == 200


async def test_keys_from_before_depend_on_what_made_them(two: tuple[Client, Client], db: TestDatabase) -> None:
    """A schema in which nothing of the kind was stored; chains had no bound then."""
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("ALTER TABLE api_keys DISABLE TRIGGER lineage")
        await admin.execute("INSERT INTO api_keys (id, hash, name, user_id, created_by, created_by_key) SELECT 'k' || n, sha256(convert_to('k' || n, 'UTF8')), 'k',"
                            " 'alice', 'alice', CASE WHEN n = 0 THEN 'static:of_alice' ELSE 'k' || (n - 1) END FROM generate_series(0, 30) AS n")  # fmt: skip
        await admin.execute("ALTER TABLE api_keys ENABLE TRIGGER lineage")
    async with db.server.connected(db.server.owner_role, db.name) as owner:
        await migrate(owner, serving_role=db.server.serving_role)
    rows = {row["id"]: row for row in await db.rows("SELECT id, depends_on, depth, revoked_at FROM api_keys")}
    assert rows["k0"]["depends_on"] == ["static:of_alice"]
    assert rows["k2"]["depends_on"] == ["k1", "k0", "static:of_alice"]
    assert [rows[f"k{n}"]["revoked_at"] is not None for n in (0, 2, 11, 12, 30)] == [False, False, False, True, True]
    await db.rows("UPDATE api_keys SET revoked_at = now() WHERE id = 'k0'")
    [found] = await db.rows("SELECT * FROM key_by_hash(sha256(convert_to('k9', 'UTF8')))")
    assert found["ended"]


# Keys of the settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["banned", "deleted"])
async def test_a_static_key_is_held_against_the_state_of_its_owner(two: tuple[Client, Client], serve: Serve, db: TestDatabase, how: str) -> None:
    """Also when the revocation has run out, and by a server that starts afterwards."""
    below = await make(two[0], STATIC)
    assert [await status_of(client, key) for client in two for key in (STATIC, bearer(below))] == [200] * 4
    event = user("updated", 5, banned=True) if how == "banned" else user_deleted(5)
    assert (await deliver(two[0], event)).status == 204
    await end_within_a_second(two, STATIC, bearer(below))
    await db.rows("DELETE FROM revocations")
    later = await serve({"api_key.keys": STATIC_KEYS})
    assert [await status_of(later, key) for key in (STATIC, bearer(below))] == [401, 401]


async def test_a_static_key_and_what_it_made_have_the_rights_of_the_recorded_membership(serve: Serve, db: TestDatabase) -> None:
    """Also when the revocation has run out, and by a server that starts afterwards; a promotion gives them back."""
    await empty(db)
    await db.rows("DELETE FROM api_keys")
    rights = {"org_id": "org_a", "org_role": "org:admin", "org_permissions": ["org:invoices:read", "org:invoices:create"]}
    settings = {**SETTINGS, "api_key.keys": [{**STATIC_KEYS[0], **rights}]}
    client = await serve(settings)
    below = bearer(await make(client, STATIC, owner="organization", org_role="org:admin", org_permissions=["org:invoices:read"]))
    assert (await client.get("/api/orgs/org_a/audit", STATIC)).status == 200  # nothing is recorded: the stored rights apply
    assert (await deliver(client, membership("created", 0, role="org:admin"))).status == 204
    assert (await deliver(client, membership("updated", 5, role="org:member"))).status == 204
    await db.rows("DELETE FROM revocations")
    later = await serve(settings)
    for key, permissions in ((STATIC, ["org:invoices:read"]), (below, ["org:invoices:read"])):
        assert (await later.get("/api/orgs/org_a/audit", key)).status == 403
        got = (await later.get("/api/me", key)).json()
        assert (got["org_role"], got["org_permissions"]) == (None, permissions)
    assert (await later.get("/api/orgs/org_a/data", STATIC)).status == 200
    assert (await deliver(later, membership("updated", 9, role="org:admin"))).status == 204
    await db.rows("DELETE FROM revocations")
    again = await serve(settings)
    assert [(await again.get("/api/orgs/org_a/audit", key)).status for key in (STATIC, below)] == [200, 200]


async def test_a_static_key_of_a_deleted_organisation(serve: Serve, db: TestDatabase) -> None:
    await empty(db)
    keys = [{**STATIC_KEYS[0], "org_id": "org_a"}]
    client = await serve({**SETTINGS, "api_key.keys": keys})
    assert await status_of(client, STATIC) == 200
    assert (await deliver(client, organization_deleted(5))).status == 204
    await end_within_a_second((client,), STATIC)


# Bounds ------------------------------------------------------------------------------------------------------------------


async def test_an_owner_has_a_bounded_number_of_live_keys(serve: Serve, db: TestDatabase) -> None:
    await db.rows("DELETE FROM api_keys")
    client = await serve({"api_key.max_per_user": 3, "api_key.max_per_organization": 2})
    got = await asyncio.gather(*(client.post("/api/keys", ALICE_ALONE, {"name": "k"}) for _ in range(8)))
    assert sorted(one.status for one in got) == [201] * 3 + [409] * 5
    assert {one.json().get("reason") for one in got} == {None, "key-limit"}
    assert (await client.post("/api/keys", stub("ben"), {"name": "k"})).status == 201
    for _ in range(2):
        await make(client, ADMIN_A, owner="organization")
    assert (await client.post("/api/keys", ADMIN_A, {"name": "k", "owner": "organization"})).status == 409
    assert (await client.delete(f"/api/keys/{next(one for one in got if one.status == 201).json()['id']}", ALICE_ALONE)).status == 204
    await make(client, ALICE_ALONE)


async def test_what_a_tenant_does_leaves_a_bounded_number_of_revocations(two: tuple[Client, Client], db: TestDatabase) -> None:
    for _ in range(30):
        row = await make(two[0], ALICE)
        assert (await two[0].post(f"/api/keys/{row['id']}/rotate", ALICE)).status == 200
        assert (await two[0].delete(f"/api/keys/{row['id']}", ALICE)).status == 204
    assert await db.count("revocations") == 1
    for number in range(120):
        assert (await deliver(two[0], session("ended", number, id=f"sess_{number}"))).status == 204
    rows = await db.rows("SELECT kind, count(*) AS n FROM revocations GROUP BY kind")
    assert {row["kind"]: row["n"] for row in rows} == {"keys": 1, "user": 1, "session": 120 - 2 * 51}


async def test_the_end_of_a_key_is_not_lost_among_the_changes_of_memberships(two: tuple[Client, Client], db: TestDatabase) -> None:
    """One row stands for those of many memberships. It is about the organisation: a key of the user alone is not in it."""
    mine = bearer(row := await make(two[0], ALICE_ALONE))
    await take(two[0], membership("created", 1))
    assert (await two[0].delete(f"/api/keys/{row['id']}", ALICE_ALONE)).status == 204
    fill = "INSERT INTO revocations (kind, subject, expires_at, owner) SELECT 'keys', 'user:' || n, now() + interval '1 hour', 'org_a'"
    await db.rows(f"{fill} FROM generate_series(1, 500) AS n")
    await take(two[0], membership("created", 2, id="orgmem_2", who="ben"))
    kept = {row["subject"] for row in await db.rows("SELECT subject FROM revocations WHERE kind = 'keys'")}
    assert kept == {"user:alice", "organization:org_a"}
    await end_within_a_second(two, mine)


async def test_one_row_for_many_lasts_as_long_as_they_did(two: tuple[Client, Client], db: TestDatabase) -> None:
    fill = "INSERT INTO revocations (kind, subject, issued_before, expires_at, owner) SELECT 'membership', n || ' org_a',"
    await db.rows(f"{fill} now() + interval '3 seconds', now() + interval '9 days', 'org_a' FROM generate_series(1, 500) AS n")
    await take(two[0], membership("deleted", 5))
    [row] = await db.rows("SELECT kind, issued_before > now() AS ahead, expires_at > now() + interval '8 days' AS long FROM revocations"
                          " WHERE kind IN ('membership', 'organization')")  # fmt: skip
    assert (row["kind"], row["ahead"], row["long"]) == ("organization", True, True)


def test_more_entries_than_can_be_held_refuse_what_is_older() -> None:
    class Moment:
        def timestamp(self) -> float:
            return 9e9

    known = Revocations(max_staleness=10, clock=lambda: 0.0, most=100)
    known.add([{"kind": "session", "subject": f"s{n}", "issued_before": None, "expires_at": Moment()} for n in range(101)], 0.0, 500.0)
    assert len(known) == 50
    assert known.revoked("user", "anybody", 500.0)
    assert not known.revoked("user", "anybody", 500.1)


# The feed ----------------------------------------------------------------------------------------------------------------


async def test_a_revocation_that_commits_late_is_not_lost(two: tuple[Client, Client], db: TestDatabase) -> None:
    """Its transaction began before others that were read long ago."""
    insert = "INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', $1, now() + interval '1 hour')"
    known = two[0].app[SERVER_DATABASE].revocations

    async def knows(subject: str) -> None:
        deadline = time.monotonic() + 1.0
        while not known.revoked("session", subject, None):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async with db.server.as_admin(db.name) as late:
        transaction = late.transaction()
        await transaction.start()
        await late.execute(insert, "late")
        for number in range(3):
            await db.rows(insert, f"early {number}")
            await knows(f"early {number}")
        assert not known.revoked("session", "late", None)
        await transaction.commit()
    await knows("late")


async def test_hints_do_not_multiply_the_readings(two: tuple[Client, Client], db: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = two[0].app[SERVER_DATABASE]._feed
    read, begun = feed._read, time.monotonic()
    moments: list[float] = []

    async def counting(connection: Any) -> None:
        moments.append(time.monotonic())
        await read(connection)

    monkeypatch.setattr(feed, "_read", counting)
    async with db.server.as_admin(db.name) as admin:
        while time.monotonic() < begun + 1.5:
            await admin.execute("NOTIFY gatepost_revocations")
            await asyncio.sleep(0.001)
    assert len(moments) > 3
    assert min(later - earlier for earlier, later in itertools.pairwise(moments)) >= revocation_feed.SHORTEST_SECONDS * 0.9


async def test_a_tenant_that_made_all_it_could_is_ended_within_a_second(two: tuple[Client, Client], db: TestDatabase) -> None:
    """Keys to the limit in chains, rows, stored answers, audit entries and sign-outs; then a ban, while another tenant works."""
    mallory = stub("mallory", org_id="org_a", org_role="org:admin")
    first = await make(two[0], mallory, org_role="org:admin")
    keys = [first, *[await make(two[0], bearer(first), org_role="org:admin") for _ in range(49)]]
    keys += [await make(two[0], bearer(keys[1]), org_role="org:admin") for _ in range(50)]
    assert (await two[0].post("/api/keys", mallory, {"name": "k"})).status == 409
    below = [await make(two[0], bearer(keys[-1]), owner="organization") for _ in range(5)]
    await db.rows("INSERT INTO data (user_id, org_id, name) SELECT 'mallory', 'org_a', 'x' || n FROM generate_series(1, 20000) AS n")
    await db.rows("INSERT INTO idempotency_keys (hash, fingerprint, user_id, status, body, expires_at)"
                  " SELECT sha256(convert_to('m' || n, 'UTF8')), sha256('x'), 'mallory', 200, '', now() + interval '1 day'"
                  " FROM generate_series(1, 20000) AS n")  # fmt: skip
    for number in range(60):
        assert (await deliver(two[0], session("ended", number / 10, id=f"sess_m{number}", user_id="mallory"))).status == 204
    honest: list[int] = []
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            honest.append((await two[1].get("/api/data", stub("bob"))).status)
            honest.append((await two[0].post("/api/data", stub("bob"), {"name": "mine"})).status)

    working = asyncio.create_task(work())
    assert (await deliver(two[0], user("updated", 100, id="mallory", banned=True))).status == 204
    began = time.monotonic()
    for client in two:
        for caller in (mallory, *map(bearer, keys[::10]), bearer(below[-1])):
            while (got := await client.get("/api/me", caller)).status != 401:
                assert time.monotonic() < began + 1.0, got
                await asyncio.sleep(0.02)
    await sweep(db)
    stop.set()
    await working
    assert set(honest) <= {200, 201}
    assert await db.rows("SELECT FROM api_keys WHERE revoked_at IS NULL AND user_id = 'mallory'") == []
