"""The audit log: each write leaves one entry, denials are recorded, and no caller can forge, change or read others' entries."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from kits.postgres import TABLES, Server, cluster, database  # noqa: F401
from kits.webhooks import SETTINGS, deliver, sweep, user

from providers.api_key.commands import commands
from server import ApiError, CommandContext, answer, public, requires, scoped, signed_in
from server.app import TABLE
from server.commands import operator_scope
from server.database.connections import Database
from server.database.scope import DATABASE
from server.gate import audit as room
from server.gate.audit import Audit, DenialBuffer
from server.schema import safety
from server.schema.inventory import AUDITED_TABLES
from server.schema.migrate import apply, mark_in, mark_of, migrate, schema_text
from server.settings.setting import ConfigError
from server.telemetry.decisions import Decision
from tests.conftest import (
    ADMIN_A,
    ADMIN_B,
    ALICE,
    ALICE_ALONE,
    BAD_CREDENTIALS,
    BOB,
    CLERK_A,
    ROBOT_A,
    Client,
    Serve,
    TestDatabase,
    plugin,
    stub,
)

AUDIT_A, AUDIT_B = "/api/orgs/org_a/audit", "/api/orgs/org_b/audit"
FIELDS = ("action", "target", "org_id", "user_id", "actor")


@pytest.fixture
async def log(cluster: Server, database: str) -> TestDatabase:  # noqa: F811
    """A fresh database, on every version of Postgres with the long tests."""
    return TestDatabase(cluster, database)


@pytest.fixture
async def served(log: TestDatabase, serve: Serve) -> Callable[..., Any]:
    """`await served(settings, extra=...)`: a client of a server on that database."""
    async def start(settings: dict[str, Any] | None = None, extra: dict[str, object] | None = None) -> Client:
        return await serve({"database.url": log.url, **(settings or {})}, extra)

    return start


@pytest.fixture
async def client(served: Callable[..., Any]) -> Client:
    return await served()  # type: ignore[no-any-return]


async def entries(log: TestDatabase) -> list[dict[str, Any]]:
    """All entries, oldest first."""
    return await log.rows("SELECT * FROM audit_log ORDER BY created_at, id")


async def until(log: TestDatabase, number: int, seconds: float = 8) -> list[dict[str, Any]]:
    """Wait until there are this many entries, which are written in the background; returns them."""
    async with asyncio.timeout(seconds):
        while len(found := await entries(log)) < number:
            await asyncio.sleep(0.05)
    return found


@contextlib.asynccontextmanager
async def serving(log: TestDatabase, **settings: str) -> AsyncIterator[asyncpg.Connection]:
    """The serving role's connection in a transaction with these settings (`user_id="ada"`), which is rolled back at the end."""
    async with log.server.connected(log.server.serving_role, log.name) as connection:
        transaction = connection.transaction()
        await transaction.start()
        for name, value in settings.items():
            await connection.execute("SELECT set_config('gatepost.' || $1, $2, true)", name, value)
        yield connection
        await transaction.rollback()


def owner_of(log: TestDatabase) -> Any:
    return log.server.connected(log.server.owner_role, log.name)


async def refusal(connection: asyncpg.Connection, sql: str) -> str | None:
    """The name of the error that the statement raises, or None. The transaction around it stays usable."""
    try:
        async with connection.transaction():
            await connection.execute(sql)
    except asyncpg.PostgresError as error:
        return type(error).__name__
    return None


# Writes ------------------------------------------------------------------------------------------------------------------

INVOICE = {"customer": "Acme", "amount": "12.50", "currency": "EUR"}


async def test_every_write_of_a_handler_leaves_exactly_one_entry(client: Client, log: TestDatabase) -> None:
    tried = set()

    async def write(caller: dict[str, str], method: str, template: str, wanted: tuple[str | None, ...], changed: str | None = None,
                    row_id: str = "", **how: Any) -> Any:
        before = len(await entries(log))
        got = await client.send(method, template.replace("{id}", row_id).replace("{org_id}", "org_a"), caller, **how)
        assert got.status in (200, 201, 204), (method, template, got.raw)
        new = (await entries(log))[before:]
        assert len(new) == 1, (method, template)
        assert tuple(new[0][name] for name in FIELDS) == wanted, (method, template)
        assert new[0]["request_id"] == got.headers["X-Request-Id"]
        assert new[0]["changed"] == (changed.split() if changed is not None else None)
        assert (new[0]["reason"], new[0]["provider"], new[0]["times"]) == (None, None, 1)
        row = got.json() if got.raw else {}
        assert new[0]["row_id"] == row.get("id", row_id)
        tried.add((method, template))
        return row

    row = await write(ALICE, "POST", "/api/data", ("insert", "data", "org_a", "alice", "alice"), json={"name": "a"})
    await write(ALICE_ALONE, "POST", "/api/data", ("insert", "data", None, "alice", "alice"), json={"name": "a"})
    # Whose log it is, the row says, and not what is active now.
    await write(ALICE_ALONE, "PATCH", "/api/data/{id}", ("update", "data", "org_a", "alice", "alice"), "name updated_at",
                row["id"], json={"name": "b"})
    await write(ALICE, "PATCH", "/api/data/{id}", ("update", "data", "org_a", "alice", "alice"), "updated_at",
                row["id"], json={"name": "b"})
    await write(ADMIN_A, "DELETE", "/api/data/{id}", ("delete", "data", "org_a", "anna", "anna"), row_id=row["id"])
    await write(ALICE, "POST", "/api/orgs/{org_id}/data", ("insert", "org_data", "org_a", "alice", "alice"), json={"name": "a"})
    await write(ROBOT_A, "POST", "/api/orgs/{org_id}/data", ("insert", "org_data", "org_a", None, "key:robot_a"), json={"name": "a"})
    await write(CLERK_A, "POST", "/api/invoices", ("insert", "invoices", "org_a", "alice", "alice"), json=INVOICE)
    await write(ROBOT_A, "POST", "/api/invoices", ("insert", "invoices", "org_a", None, "key:robot_a"), json=INVOICE)
    for caller, owner, user_id in ((ALICE, "user", "alice"), (ADMIN_A, "organization", "anna")):
        who = ("api_keys", "org_a", user_id, user_id)
        key = await write(caller, "POST", "/api/keys", ("insert", *who), json={"name": "k", "owner": owner})
        await write(caller, "POST", "/api/keys/{id}/rotate", ("update", *who), "hash", key["id"])
        await write(caller, "POST", "/api/keys/{id}/rotate", ("update", *who), "hash previous_expires_at previous_hash",
                    key["id"], json={"overlap_seconds": 60})
        await write(caller, "DELETE", "/api/keys/{id}", ("update", *who), "revoked_at", key["id"])
    # A user's key is the key, and its user.
    key = await write(ALICE, "POST", "/api/keys", ("insert", "api_keys", "org_a", "alice", "alice"), json={"name": "k"})
    await write({"X-API-Key": key["secret"]}, "POST", "/api/data", ("insert", "data", "org_a", "alice", f"key:{key['id']}"), json={"name": "a"})
    routes = {(row.method, row.template) for row in client.app[TABLE].rows if row.method not in ("GET", "HEAD")}
    assert tried == routes - {("POST", "/api/webhooks/clerk"), ("POST", "/api/stream-tickets")}  # a ticket opens a stream, and is no row


async def test_what_a_key_writes_bears_the_keys_name(client: Client, log: TestDatabase) -> None:
    """An organisation's managed key, which has no user."""
    made = (await client.post("/api/keys", ADMIN_A, json={"name": "k", "owner": "organization"})).json()
    got = await client.post("/api/orgs/org_a/data", {"X-API-Key": made["secret"]}, json={"name": "a"})
    assert got.json()["created_by"] == f"key:{made['id']}"
    last = (await entries(log))[-1]
    assert (last["target"], last["user_id"], last["actor"], last["org_id"]) == ("org_data", None, f"key:{made['id']}", "org_a")


async def test_a_write_that_is_rolled_back_leaves_none(served: Any, log: TestDatabase) -> None:
    seen = []

    @requires(user=True)
    async def fails(request: web.Request) -> web.Response:
        async with scoped(request) as db:
            await db.execute("INSERT INTO data (user_id, name) VALUES ('alice', 'x')")
            seen.append(await db.fetchval("SELECT count(*) FROM data"))
            raise web.HTTPConflict

    client = await served(extra={"fails": plugin(web.post("/api/fails", fails))})
    assert (await client.post("/api/fails", ALICE)).status == 409
    assert seen == [1]
    row = (await client.post("/api/data", ALICE, json={"name": "a"})).json()
    got = await client.patch(f"/api/data/{row['id']}", {**ALICE, "If-Match": '"other"'}, json={"name": "b"})
    assert got.status == 412
    assert (await client.delete(f"/api/data/{row['id']}", ADMIN_B)).status == 404
    assert [entry["action"] for entry in await entries(log)] == ["insert"]


async def test_a_post_that_is_sent_again_is_noted_once(client: Client, log: TestDatabase) -> None:
    """The handler's block joins the request's transaction, and its writer is that transaction's."""
    sent = {**ALICE, "Idempotency-Key": "k1"}
    first, again = [await client.post("/api/data", sent, json={"name": "a"}) for _ in range(2)]
    assert (first.status, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert [(*(entry[name] for name in FIELDS), entry["request_id"]) for entry in await entries(log)] == [
        ("insert", "data", "org_a", "alice", "alice", first.headers["X-Request-Id"])]


async def test_several_rows_in_one_transaction_keep_their_order(log: TestDatabase) -> None:
    async with log.server.connected(log.server.serving_role, log.name) as connection, connection.transaction():
        await connection.execute("SELECT set_config('gatepost.user_id', 'ada', true), set_config('gatepost.request_id', 'r', true),"
                                 " set_config('gatepost.actor', 'ada', true)")
        ids = [await connection.fetchval("INSERT INTO data (user_id, name) VALUES ('ada', 'x') RETURNING id::text") for _ in range(20)]
        await connection.execute("UPDATE data SET name = 'y'")
    found = await entries(log)
    assert [entry["row_id"] for entry in found[:20]] == ids
    assert {entry["row_id"] for entry in found[20:]} == set(ids)
    assert {entry["id"].version for entry in found} == {7}
    assert [entry["id"] for entry in found] == sorted((entry["id"] for entry in found), key=lambda uuid: uuid.int >> 80)


async def test_the_settings_count_within_their_transaction_alone(served: Any, log: TestDatabase) -> None:
    """On one connection, the writer of an earlier transaction is not recorded for a later one."""
    client = await served({"database.pool_size": 1})
    await client.post("/api/data", ALICE, json={"name": "a"})
    async with client.app[DATABASE].connection() as connection:
        assert await connection.fetch("SELECT current_setting('gatepost.actor', true), current_setting('gatepost.request_id', true)") == [("", "")]


# Outside of requests -------------------------------------------------------------------------------------------------------

async def test_who_it_was_where_there_is_no_caller(served: Any, log: TestDatabase) -> None:
    """Clerk's webhook ends keys as `system`, a superuser is `operator`, a client on a public route `anonymous`."""
    async with owner_of(log) as owner:
        await apply(owner, "CREATE TABLE letters (id int PRIMARY KEY, text text); SELECT gatepost_audit('letters');"
                           f'GRANT INSERT ON letters TO "{log.server.serving_role}"')

    @public
    async def write_letter(request: web.Request) -> web.Response:
        async with scoped(request) as db:
            await db.execute("INSERT INTO letters VALUES (7, 'dear all')")
        return answer({})

    client = await served({**SETTINGS, "providers": ["stub"], "public_routes": ["/api/webhooks(.*)", "/api/letters"]},
                          {"letters": plugin(web.post("/api/letters", write_letter))})
    await log.rows("INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by) VALUES ('k1', sha256('k'), 'k', 'alice', 'org_a', 'alice')")
    told = await deliver(client, user("updated", 5, banned=True))
    assert told.status == 204
    await sweep(log)
    got = await client.post("/api/letters")
    assert got.status == 200
    found = [tuple(entry[name] for name in (*FIELDS, "row_id", "request_id")) for entry in await entries(log)]
    assert found == [("insert", "api_keys", "org_a", None, "operator", "k1", None), ("update", "api_keys", "org_a", None, "system", "k1", None),
                     ("insert", "letters", None, None, "anonymous", "7", got.headers["X-Request-Id"])]


async def test_a_key_that_takes_others_with_it(client: Client, log: TestDatabase) -> None:
    """The request revokes one key; the system later revokes the keys that depend on it."""
    made = (await client.post("/api/keys", ALICE, json={"name": "k"})).json()
    await log.rows("INSERT INTO api_keys (id, hash, name, user_id, created_by, created_by_key) VALUES ('k2', sha256('2'), 'k', 'alice', 'alice', $1)",
                   made["id"])
    got = await client.delete(f"/api/keys/{made['id']}", ALICE)
    await sweep(log)
    found = (await entries(log))[2:]
    assert {(entry["row_id"], entry["actor"], entry["request_id"]) for entry in found} == {
        (made["id"], "alice", got.headers["X-Request-Id"]), ("k2", "system", None)}


async def test_the_operators_command_is_the_operator(log: TestDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    """The command sets the scope of the keys' owner, but is not recorded as that user."""
    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[asyncpg.Connection]:
        async with log.server.connected(log.server.serving_role, log.name) as connection:
            yield connection

    parser, command = argparse.ArgumentParser(), commands()["keys"]
    command.arguments(parser)
    for words in (["create", "--user", "alice", "--org", "org_a", "--name", "k"], ["rotate", "--user", "alice"], ["revoke", "--user", "alice"]):
        if words[0] != "create":
            words.insert(1, (await log.rows("SELECT id FROM api_keys"))[0]["id"])
        await command.run(parser.parse_args(words), CommandContext("test", Path("."), {"keys": (), "scopes": ()}, connect, operator_scope))
    assert [tuple(entry[name] for name in (*FIELDS, "request_id")) for entry in await entries(log)] == [
        (action, "api_keys", "org_a", None, "operator", None) for action in ("insert", "update", "update")]


async def test_last_use_of_a_key_leaves_no_entry(log: TestDatabase) -> None:
    await log.rows("INSERT INTO api_keys (id, hash, name, user_id, created_by) VALUES ('k1', sha256('k'), 'k', 'alice', 'alice')")
    async with log.server.connected(log.server.serving_role, log.name) as connection:
        assert await connection.fetchval("SELECT touch_keys(ARRAY['k1'], ARRAY[now()])") == 1
    assert len(await entries(log)) == 1
    # And that is the only column left out.
    watched = await log.rows("SELECT attname::text AS name FROM pg_trigger, unnest(tgattr) AS n JOIN pg_attribute ON attnum = n"
                             " AND attrelid = 'api_keys'::regclass WHERE tgrelid = 'api_keys'::regclass AND tgname = 'audited'")
    columns = await log.rows("SELECT column_name::text AS name FROM information_schema.columns WHERE table_name = 'api_keys'")
    assert {row["name"] for row in columns} - {row["name"] for row in watched} == {"last_used_at"}


async def test_no_value_of_a_column_is_kept(served: Any, log: TestDatabase) -> None:
    """The canary is put wherever a client, an operator or a key can write, and must not be in the log."""
    canary = "canary" + secrets.token_hex(8)
    client = await served({"api_key.scopes": [canary]})
    row = (await client.post("/api/data", ALICE, json={"name": canary, "payload": {canary: canary}})).json()
    await client.patch(f"/api/data/{row['id']}", ALICE, json={"name": canary + "2", "payload": {"x": [canary]}})
    await client.delete(f"/api/data/{row['id']}", ADMIN_A)
    await client.post("/api/orgs/org_a/data", ALICE, json={"name": canary, "payload": {canary: canary}})
    await client.post("/api/invoices", CLERK_A, json={**INVOICE, "customer": canary, "memo": canary})
    key = (await client.post("/api/keys", ALICE, json={"name": canary, "scopes": [canary]})).json()
    key2 = (await client.post(f"/api/keys/{key['id']}/rotate", ALICE, json={"overlap_seconds": 60})).json()
    await client.get(f"/api/invoices?{canary}={canary}", {**ALICE, "User-Agent": canary, "Cookie": canary})
    await client.delete(f"/api/data/{canary}", {**ALICE, "X-Canary": canary})
    found = await until(log, 9)
    assert len(found) == 9
    text = json.dumps(found, default=str)
    hidden = [canary, key["secret"], key2["secret"], key["secret"].split("_")[-1]]
    hidden += [hashlib.sha256(one["secret"].encode()).hexdigest() for one in (key, key2)]
    assert [word for word in hidden if word in text] == []
    assert key["id"] in text
    assert (await log.rows("SELECT encode(hash, 'hex') AS h FROM api_keys"))[0]["h"] not in text


# Reading -----------------------------------------------------------------------------------------------------------------

async def test_an_administrator_reads_the_organisations_entries_and_no_others(client: Client, log: TestDatabase) -> None:
    for caller in (ALICE, ALICE_ALONE, BOB, ROBOT_A):
        for path in ("/api/data", "/api/orgs/org_a/data", "/api/orgs/org_b/data"):
            await client.post(path, caller, json={"name": "x"})
    a, b = await client.get(AUDIT_A, ADMIN_A), await client.get(AUDIT_B, ADMIN_B)
    assert a.status == b.status == 200
    writes = [[entry for entry in got.json() if entry["action"] == "insert"] for got in (a, b)]
    assert [(e["target"], e["actor"]) for e in writes[0]] == [("org_data", "key:robot_a"), ("org_data", "alice"), ("data", "alice")]
    assert [(e["target"], e["actor"]) for e in writes[1]] == [("org_data", "bob"), ("data", "bob")]
    assert {e["org_id"] for e in a.json()} == {"org_a"}
    assert set(a.json()[0]) == {"id", "created_at", "org_id", "user_id", "actor", "impersonator", "provider", "action", "target", "row_id",
                                "changed", "reason", "times", "request_id"}
    assert (await client.get(AUDIT_A, ROBOT_A)).status == 200                        # an organisation's key with that role
    for path, caller, reason in ((AUDIT_A, ALICE, "role"), (AUDIT_A, ADMIN_B, "organization"), (AUDIT_B, ADMIN_A, "organization"),
                                 (AUDIT_A, stub("anna", org_role="org:admin"), "organization")):
        got = await client.get(path, caller)
        assert (got.status, got.json()["reason"]) == (403, reason)
    assert (await client.get(AUDIT_A)).status == 401


async def test_a_page_at_a_time_the_newest_first(client: Client, log: TestDatabase) -> None:
    for number in range(7):
        await client.post("/api/orgs/org_a/data", ALICE, json={"name": str(number)})
    whole = (await client.get(AUDIT_A, ADMIN_A)).json()
    assert len(whole) == 7
    assert [entry["id"] for entry in whole] == [str(entry["id"]) for entry in reversed(await entries(log))]
    path, pages = f"{AUDIT_A}?limit=3", []
    while path:
        got = await client.get(path, ADMIN_A)
        pages.append(got.json())
        path = got.headers["Link"].partition("<")[2].partition(">")[0] if "Link" in got.headers else ""
    assert [len(each) for each in pages] == [3, 3, 1]
    assert [entry for each in pages for entry in each] == whole
    assert (await client.get(f"{AUDIT_A}?limit=0", ADMIN_A)).status == 422
    plan = "\n".join(row["QUERY PLAN"] for row in await log.rows(
        "EXPLAIN SELECT * FROM audit_log WHERE org_id = 'org_a' AND (created_at, id) < (now(), gen_random_uuid())"
        " ORDER BY created_at DESC, id DESC LIMIT 50"))
    assert "Sort" not in plan


async def test_a_forgotten_where_shows_the_organisations_entries_alone(log: TestDatabase) -> None:
    await log.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'x', 'x'), ('blue', 'x', 'x')")
    await log.rows("INSERT INTO data (user_id, name) VALUES ('ada', 'x')")
    for settings, seen in (({}, set()), ({"admin_org_id": "red"}, {"red"}), ({"admin_org_id": ""}, set()),
                           ({"user_id": "ada", "org_id": "red"}, set()), ({"user_id": "x", "org_id": "red", "admin_org_id": "blue"}, {"blue"})):
        async with serving(log, **settings) as connection:
            assert {row["org_id"] for row in await connection.fetch("SELECT * FROM audit_log")} == seen


# Forging, changing, deleting ---------------------------------------------------------------------------------------------------

WRITES = (
    "INSERT INTO audit_log (org_id, actor, action, target) VALUES ('red', 'x', 'insert', 'data')", "INSERT INTO audit_log DEFAULT VALUES",
    "UPDATE audit_log SET actor = 'nobody'", "UPDATE audit_log SET actor = 'nobody' WHERE false", "DELETE FROM audit_log",
    "DELETE FROM audit_log WHERE false", "TRUNCATE audit_log", "COPY audit_log (actor, action, target) FROM PROGRAM 'echo x'",
)


async def test_the_serving_role_cannot_forge_change_or_delete(log: TestDatabase) -> None:
    await log.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'x', 'x')")
    async with serving(log, user_id="x", org_id="red", admin_org_id="red") as connection:
        for sql in (*WRITES, "MERGE INTO audit_log AS l USING (SELECT 1) AS x ON true WHEN MATCHED THEN DELETE",
                    "SELECT id FROM audit_log FOR UPDATE", "LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE",
                    "ALTER TABLE audit_log DISABLE TRIGGER ALL", "ALTER TABLE data DISABLE TRIGGER audited", "DROP TRIGGER audited ON data",
                    "DROP TABLE audit_log", "SET ROLE gatepost_audit", "SET session_replication_role = replica",
                    "SELECT gatepost_audit('data')", "SELECT gatepost_audited()", "SELECT gatepost_append_only()",
                    "CREATE TRIGGER mine AFTER INSERT ON data FOR EACH ROW EXECUTE FUNCTION gatepost_audited('user_id', 'id')"):
            assert await refusal(connection, sql) in ("InsufficientPrivilegeError", "FeatureNotSupportedError"), sql
    assert len(await entries(log)) == 1
    assert (await entries(log))[0]["actor"] == "operator"


async def test_not_even_the_owner_or_a_superuser_changes_an_entry(log: TestDatabase) -> None:
    await log.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'x', 'x')")
    async with owner_of(log) as owner:
        for sql in WRITES:
            assert await refusal(owner, sql) is not None, sql
        for settings in ("SELECT 1", "SELECT set_config('gatepost.admin_org_id', 'red', false)"):
            await owner.execute(settings)
            assert await owner.fetch("SELECT * FROM audit_log") == []
    async with log.server.as_admin(log.name) as admin:
        for sql in WRITES[2:7]:
            assert await refusal(admin, sql) == "InsufficientPrivilegeError", sql
    assert len(await entries(log)) == 1


async def test_the_owner_cannot_be_the_helper(log: TestDatabase) -> None:
    async with owner_of(log) as owner:
        assert not await owner.fetchval("SELECT pg_has_role('gatepost_audit', 'USAGE')")
        for call in ("audit_prune(7, 10)", "audit_denied('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')"):
            assert await refusal(owner, f"SELECT {call}") == "InsufficientPrivilegeError"
    rows = await log.rows("SELECT rolname, rolcanlogin, rolinherit, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = 'gatepost_audit'")
    assert rows == [{"rolname": "gatepost_audit", "rolcanlogin": False, "rolinherit": False, "rolsuper": False, "rolbypassrls": False}]
    may = await log.rows("SELECT relname, privilege FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS privilege"
                         " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND has_table_privilege('gatepost_audit', pg_class.oid, privilege)")
    assert {(row["relname"], row["privilege"]) for row in may} == {("audit_log", word) for word in ("SELECT", "INSERT", "DELETE")}


# Denials -----------------------------------------------------------------------------------------------------------------

async def test_denials_of_known_callers_are_recorded_and_those_of_unknown_ones_are_not(client: Client, log: TestDatabase) -> None:
    first = await client.delete(f"/api/data/{'0' * 8}-0000-4000-8000-{'0' * 12}", ALICE)
    assert first.status == 403
    assert (await client.get("/api/orgs/org_b/data", ROBOT_A)).status == 403
    assert (await client.get("/api/nothing", ALICE)).status == 404
    for bad in ({}, *BAD_CREDENTIALS.values()):
        assert (await client.get("/api/data", bad)).status in (400, 401)
    found = await until(log, 2)
    await asyncio.sleep(1.5)
    assert len(await entries(log)) == 2
    by_actor = {entry["actor"]: entry for entry in found}
    wanted = {"action": "denied", "org_id": "org_a", "row_id": None, "changed": None, "times": 1}
    for actor, more in (("alice", {"user_id": "alice", "provider": "stub", "target": "DELETE /api/data/{id}", "reason": "role",
                                   "request_id": first.headers["X-Request-Id"]}),
                        ("key:robot_a", {"user_id": None, "provider": "api_key", "target": "GET /api/orgs/{org_id}/data", "reason": "organization"})):
        assert by_actor[actor].items() >= {**wanted, **more}.items()
    # The administrator sees them.
    assert {entry["action"] for entry in (await client.get(AUDIT_A, ADMIN_A)).json()} == {"denied"}
    assert (await client.get(AUDIT_B, ADMIN_B)).json() == []


async def test_a_revoked_session_leaves_no_entry(client: Client, log: TestDatabase) -> None:
    """401 session-revoked leaves no entry, although the session's owner is known."""
    await log.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('user', 'alice', now() + interval '1 hour')")
    await log.rows("NOTIFY gatepost_revocations")
    async with asyncio.timeout(5):
        while (got := await client.delete("/api/data/x", ALICE)).status != 401:
            await asyncio.sleep(0.05)
    assert got.json()["reason"] == "session-revoked"
    for _ in range(5):
        await client.delete("/api/data/x", ALICE)
    await client.delete("/api/data/x", BOB)
    async with asyncio.timeout(5):
        while not any(entry["actor"] == "bob" for entry in await entries(log)):
            await asyncio.sleep(0.05)
    assert not [entry for entry in await entries(log) if entry["reason"] != "role"]


async def test_what_a_handler_denies_is_noted_too(served: Any, log: TestDatabase) -> None:
    """The handler's own 403, one of aiohttp's exceptions, an error of the product's, and a row that Postgres refuses."""
    @signed_in
    async def answers(request: web.Request) -> web.Response:
        return answer({"error": "Forbidden"}, 403)

    @signed_in
    async def raises(request: web.Request) -> web.Response:
        raise web.HTTPForbidden

    class NotYours(ApiError):
        status = 403

    @signed_in
    async def refuses(request: web.Request) -> web.Response:
        raise NotYours("not-yours")

    @signed_in
    async def writes(request: web.Request) -> web.Response:
        async with scoped(request) as db:
            await db.execute("INSERT INTO org_data (organization_id, created_by, name) VALUES ('org_b', 'alice', 'x')")
        return answer({})

    handlers = (answers, raises, refuses, writes)
    client = await served(extra={"odd": plugin(*(web.post(f"/api/{handler.__name__}", handler) for handler in handlers))})
    for path in ("answers", "raises", "refuses", "writes"):
        assert (await client.post(f"/api/{path}", ALICE)).status == 403
    assert (await client.post("/api/keys", ALICE, json={"name": "k", "owner": "organization"})).status == 403
    found = {entry["target"]: (entry["reason"], entry["actor"]) for entry in await until(log, 5)}
    assert found == {"POST /api/answers": ("handler", "alice"), "POST /api/raises": ("handler", "alice"),
                     "POST /api/refuses": ("handler", "alice"),
                     "POST /api/writes": ("organization", "alice"), "POST /api/keys": ("role", "alice")}


async def test_many_denials_alike_are_one_entry_that_says_how_many(client: Client, log: TestDatabase) -> None:
    got = [await client.get("/api/invoices", ALICE) for _ in range(30)]
    assert {each.status for each in got} == {403}
    async with asyncio.timeout(8):
        while sum(entry["times"] for entry in await entries(log)) < 30:
            await asyncio.sleep(0.05)
    found = await entries(log)
    assert sum(entry["times"] for entry in found) == 30
    assert len(found) < 10
    assert {entry["request_id"] for entry in found} <= {each.headers["X-Request-Id"] for each in got}
    assert found[0]["request_id"] == got[0].headers["X-Request-Id"]


async def test_denials_can_be_switched_off_and_writes_cannot(served: Any, log: TestDatabase) -> None:
    client = await served({"audit.denials": False})
    assert (await client.get("/api/invoices", ALICE)).status == 403
    await client.post("/api/data", ALICE, json={"name": "x"})
    await client.server.close()
    assert [entry["action"] for entry in await entries(log)] == ["insert"]


async def test_what_waits_is_written_at_shutdown(client: Client, log: TestDatabase) -> None:
    assert (await client.get("/api/invoices", ALICE)).status == 403
    await client.server.close()
    assert [entry["target"] for entry in await entries(log)] == ["GET /api/invoices"]


def decision(number: int, **more: Any) -> Decision:
    fields = {"request_id": f"r{number}", "method": "GET", "route": "/x", "provider": "stub", "user_id": f"u{number}", "org_id": None,
              "outcome": "forbidden", "reason": "role", "detail": "", "seconds": 0.0, "actor": f"u{number}", **more}
    return Decision(**fields)


@pytest.fixture
async def base(log: TestDatabase) -> AsyncIterator[Database]:
    """An open Database, as the server has one."""
    base = Database(size=2, acquire_seconds=1, statement_seconds=5, pooled=False)
    await base.open({"dsn": log.url})
    yield base
    await base.close()


async def test_the_queue_is_bounded_and_says_what_it_lost(base: Database, log: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gatepost")
    denials = DenialBuffer(base.call, most=10, clock=lambda: 0.0)
    for number in range(25):
        denials(decision(number))
        denials(decision(0))
    assert len(denials) == 10
    said = [record.fields for record in caplog.records if "not recorded" in record.getMessage()]  # type: ignore[attr-defined]
    assert said == [{"count": 1}]                                    # and then no more for a minute
    await denials.write()
    assert len(denials) == 0
    denials.log_lost()
    assert [record.fields for record in caplog.records][1:] == [{"count": 14}]  # type: ignore[attr-defined]
    assert sorted((entry["actor"], entry["times"]) for entry in await entries(log)) == sorted(
        [("u0", 26), *((f"u{number}", 1) for number in range(1, 10))])
    assert room.MOST_WAITING == 10_000


async def test_more_than_one_batch(base: Database, log: TestDatabase) -> None:
    denials = DenialBuffer(base.call)
    for number in range(room.BATCH * 2 + 1):
        denials(decision(number))
    await denials.write()
    assert {entry["actor"] for entry in await entries(log)} == {f"u{number}" for number in range(room.BATCH * 2 + 1)}


async def test_a_batch_that_postgres_refuses_is_dropped_and_said(base: Database, log: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    denials = DenialBuffer(base.call)
    denials(decision(1, actor="a\x00canary"))
    await denials.write()
    assert len(denials) == 0
    assert "not recorded" in caplog.text
    assert "canary" not in caplog.text
    denials(decision(2))
    await denials.write()
    assert [entry["actor"] for entry in await entries(log)] == ["u2"]


async def test_an_outage_keeps_denials_and_delays_no_request(served: Any, log: TestDatabase) -> None:
    client = await served()
    async with log.server.as_admin() as admin:
        await admin.execute(f'ALTER DATABASE "{log.name}" ALLOW_CONNECTIONS false')
        await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", log.name)
        started = asyncio.get_running_loop().time()
        for _ in range(3):
            assert (await client.get("/api/invoices", ALICE)).status == 403
        assert asyncio.get_running_loop().time() - started < 1
        await asyncio.sleep(1.5)                                     # at least one attempt fails
        await admin.execute(f'ALTER DATABASE "{log.name}" ALLOW_CONNECTIONS true')
    assert sum(entry["times"] for entry in await until(log, 1, 15)) == 3


async def test_a_shutdown_without_a_database_is_not_held_up(client: Client, log: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    async with log.server.as_admin() as admin:
        await admin.execute(f'ALTER DATABASE "{log.name}" ALLOW_CONNECTIONS false')
        await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", log.name)
    assert (await client.get("/api/invoices", ALICE)).status == 403
    started = asyncio.get_running_loop().time()
    await client.server.close()
    assert asyncio.get_running_loop().time() - started < 4           # two seconds for the log, and the server's own
    assert "not recorded" in caplog.text


async def test_a_moment_cannot_be_made_up(base: Database, log: TestDatabase) -> None:
    now = (await log.rows("SELECT now() AS now, now() - interval '1 hour' AS hour, now() + interval '1 day' AS late, '-infinity'::timestamptz AS never"))[0]
    one: list[list[Any]] = [[None], ["u"], ["u"], [None], ["p"], ["t"], ["role"], [1], ["r"]]
    for moment in (now["hour"], now["late"], now["never"]):
        await base.call("audit_denied", [moment], *one)
    times = await log.rows("SELECT created_at - $1 AS later FROM audit_log ORDER BY created_at", now["now"])
    assert [round(row["later"].total_seconds() / 60) for row in times] == [-24 * 60, -60, 0]


# Retention -----------------------------------------------------------------------------------------------------------------

# An entry a day for thirty days, with ids of their times.
AGED = """INSERT INTO audit_log (id, created_at, actor, action, target)
          SELECT encode(overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send((extract(epoch FROM at) * 1000)::bigint) FROM 3)
                        FROM 1 FOR 6), 'hex')::uuid, at, 'x', 'insert', 'data'
            FROM (SELECT now() - make_interval(days => n) AS at FROM generate_series(1, 30) AS n) AS days"""


@pytest.mark.parametrize(("days", "kept"), [(0, 30), (7, 6), (20, 19), (400, 30)])
async def test_old_entries_are_forgotten(base: Database, log: TestDatabase, days: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PRUNE_BATCH", 4)                      # several steps
    await log.rows(AGED)
    assert await Audit(base.call, denials=True, retention_days=days).prune() == 30 - kept
    left = await log.rows("SELECT created_at < now() - make_interval(days => $1) AS old FROM audit_log", days or 10_000)
    assert [row["old"] for row in left] == [False] * kept


async def test_many_old_entries_take_few_batches(base: Database, log: TestDatabase) -> None:
    """Each batch passes the index entries of those that were deleted before it: small ones cost more, the more there are."""
    calls = []

    async def call(function: str, *args: Any) -> Any:
        calls.append(function)
        return await base.call(function, *args)

    await log.rows(AGED.replace("generate_series(1, 30) AS n", "generate_series(401, 412) AS n, generate_series(1, 1000)"))
    assert await Audit(call, denials=True, retention_days=400).prune() == 12_000
    assert calls == ["audit_prune"] * 2
    assert await entries(log) == []


async def test_a_running_server_forgets(served: Any, log: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PRUNE_SECONDS", 0.1)
    await log.rows(AGED)
    await served({"audit.retention_days": 10})
    async with asyncio.timeout(8):
        while len(await entries(log)) > 9:
            await asyncio.sleep(0.05)
    assert len(await entries(log)) == 9


async def test_the_last_week_is_kept_for_any_argument(base: Database, log: TestDatabase) -> None:
    await log.rows(AGED)
    for days in (7, 1, 0, -100_000):
        await base.call("audit_prune", days, 1000)
        assert len(await entries(log)) == 6
    assert await base.call("audit_prune", None, None) == [{"audit_prune": None}]
    assert len(await entries(log)) == 6


async def test_one_prunes_at_a_time(base: Database, log: TestDatabase) -> None:
    await log.rows(AGED)
    async with log.server.as_admin(log.name) as admin, admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock(4716, 3)")
        assert await base.call("audit_prune", 7, 1000) == [{"audit_prune": 0}]
    assert await base.call("audit_prune", 7, 1000) == [{"audit_prune": 24}]


@pytest.mark.parametrize("days", [-1, 1, 6, 100_001])
def test_retentions_that_are_none(make_app: Any, days: int) -> None:
    with pytest.raises(ConfigError, match=r"^audit\.retention_days: "):
        make_app({"audit.retention_days": days})


def test_a_plugin_cannot_share_the_table_of_the_settings(make_app: Any) -> None:
    with pytest.raises(ConfigError, match="share a table"):
        make_app(extra={"audit": plugin()})


# Tables of one's own -------------------------------------------------------------------------------------------------------

NOTES = """
CREATE TABLE IF NOT EXISTS "My notes" (key text PRIMARY KEY, "Org" text, text text, seen int);
SELECT gatepost_audit('"My notes"', 'Org', 'key', '{seen}');
CREATE SCHEMA IF NOT EXISTS other;
CREATE TABLE IF NOT EXISTS other.plain (n int, org_id text);
SELECT gatepost_audit('other.plain', 'org_id', NULL);
"""


async def test_a_products_own_tables(log: TestDatabase) -> None:
    async with owner_of(log) as owner:
        for _ in range(2):
            await apply(owner, NOTES, serving_role=log.server.serving_role)
        await owner.execute("""INSERT INTO "My notes" VALUES ('k', 'red', 'x', 0); UPDATE "My notes" SET seen = 1; UPDATE "My notes" SET text = 'y', seen = 2;
                               UPDATE "My notes" SET "Org" = NULL; DELETE FROM "My notes"; INSERT INTO other.plain VALUES (1, ''), (2, 'blue')""")
    assert [(e["action"], e["target"], e["org_id"], e["row_id"], e["changed"], e["actor"]) for e in await entries(log)] == [
        ("insert", "My notes", "red", "k", None, "operator"), ("update", "My notes", "red", "k", ["seen", "text"], "operator"),
        ("update", "My notes", "red", "k", ["Org"], "operator"), ("delete", "My notes", None, "k", None, "operator"),
        ("insert", "other.plain", None, None, None, "operator"), ("insert", "other.plain", "blue", None, None, "operator")]
    async with log.server.connected(log.server.serving_role, log.name) as connection:
        assert await safety.problems(connection) == []


@pytest.mark.parametrize(("call", "said"), [
    ("gatepost_audit('data', 'organisation')", "has no column organisation"), ("gatepost_audit('data', 'org_id', 'key')", "has no column key"),
    ("gatepost_audit('data', 'org_id', ignored => '{nmae}')", "has no column nmae"), ("gatepost_audit('audit_log', 'org_id')", "its own writes"),
    ("gatepost_audit('nothing')", "does not exist"),
])
async def test_mistakes_of_a_products_schema(log: TestDatabase, call: str, said: str) -> None:
    async with owner_of(log) as owner:
        with pytest.raises(asyncpg.PostgresError, match=said):
            await apply(owner, f"SELECT {call}")


# Migrating -----------------------------------------------------------------------------------------------------------------

BEFORE = """
DROP FUNCTION gatepost_audited() CASCADE; DROP TABLE audit_log; DROP FUNCTION gatepost_append_only(), gatepost_audit(regclass, text, text, text[]),
    audit_prune(integer, integer),
    audit_denied(timestamptz[], text[], text[], text[], text[], text[], text[], text[], integer[], text[]);
REVOKE ALL ON SCHEMA public FROM gatepost_audit;
INSERT INTO gatepost_meta (checksum) VALUES ('older');
"""


async def test_a_database_of_before_gets_its_log(log: TestDatabase) -> None:
    """Existing rows get no entry; writes after the migration do."""
    await log.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'x', 'x')")
    async with log.server.as_admin(log.name) as admin:
        await admin.execute(BEFORE)
    async with log.server.connected(log.server.serving_role, log.name) as connection:
        assert any("migrate" in said for said in await safety.problems(connection))
    for _ in range(2):
        async with owner_of(log) as owner:
            await migrate(owner, serving_role=log.server.serving_role)
            assert await mark_in(owner) == mark_of(schema_text())
    async with log.server.connected(log.server.serving_role, log.name) as connection:
        assert await safety.problems(connection) == []
    assert await entries(log) == []
    await log.rows("UPDATE org_data SET name = 'y'")
    assert [(entry["action"], entry["org_id"]) for entry in await entries(log)] == [("update", "red")]


OLDER = """
ALTER TABLE audit_log DROP COLUMN impersonator;
DROP FUNCTION audit_denied(timestamptz[], text[], text[], text[], text[], text[], text[], text[], integer[], text[]);
CREATE FUNCTION audit_denied(moments timestamptz[], orgs text[], users text[], actors text[], providers text[], targets text[],
    reasons text[], counts integer[], requests text[]) RETURNS bigint LANGUAGE sql STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET row_security = on AS 'SELECT 0::bigint';
ALTER FUNCTION audit_denied(timestamptz[], text[], text[], text[], text[], text[], text[], integer[], text[]) OWNER TO gatepost_audit;
INSERT INTO gatepost_meta (generation, revision, checksum) SELECT generation, revision, 'older' FROM gatepost_meta ORDER BY id DESC LIMIT 1;
"""


async def test_a_log_of_before_the_impersonators(log: TestDatabase) -> None:
    """Its entries stay, and the older function is dropped, because the checks would refuse it as unlisted."""
    await log.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'x', 'x')")
    before = await entries(log)
    async with log.server.as_admin(log.name) as admin:
        await admin.execute(OLDER)
    for _ in range(2):
        async with owner_of(log) as owner:
            await migrate(owner, serving_role=log.server.serving_role)
    async with log.server.connected(log.server.serving_role, log.name) as connection:
        assert await safety.problems(connection) == []
    assert await entries(log) == before
    assert before[0]["impersonator"] is None
    assert [row["pronargs"] for row in await log.rows("SELECT pronargs FROM pg_proc WHERE proname = 'audit_denied'")] == [10]


async def test_entries_survive_a_migration(log: TestDatabase) -> None:
    await log.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ('red', 'x', 'x')")
    before = await entries(log)
    async with owner_of(log) as owner:
        await migrate(owner, serving_role=log.server.serving_role)
    assert await entries(log) == before != []


def test_every_table_that_a_tenant_writes_is_audited() -> None:
    """The lists in the schema, in the safety check and in the tests are the same."""
    text = schema_text()
    for table in TABLES:
        assert f"gatepost_audit('{table}', " in text
        assert table in AUDITED_TABLES
