"""`explain` with a caller, a token and a row: what each lock says, as the server says it; nothing is written."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from kits import ROOT

from tests.conftest import ALICE, BOB, Client, url_of

STUB = "GATEPOST_PROVIDERS"


async def explained(db: Any, folder: Path, *words: str, status: int = 0, owner: bool = True, **more: str) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEPOST_", "DATABASE_", "CLERK_"))}
    given = {"GATEPOST_ENV": "test", "DATABASE_URL": db.url, "PYTHONPATH": str(ROOT), "GATEPOST_PROVIDERS": "clerk,api_key", **more}
    if owner:
        given["DATABASE_OWNER_URL"] = url_of(db.server, db.server.owner_role, db.name)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "explain", *words, "--json", cwd=folder, env=kept | given,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == status, err.decode()
    assert "Traceback" not in err.decode()
    return json.loads(out) if status == 0 else err.decode()


@pytest.mark.parametrize(("words", "status", "reason"), [
    (("GET", "/api/data"), 401, "credential-missing"),
    (("GET", "/api/data", "--user", "alice"), 200, None),
    (("GET", "/api/data", "--org", "north"), 403, "user"),
    (("GET", "/api/orgs/north/data", "--user", "alice", "--org", "north"), 200, None),
    (("GET", "/api/orgs/south/data", "--user", "alice", "--org", "north"), 403, "organization"),
    (("GET", "/api/orgs/north/audit", "--user", "alice", "--org", "north", "--role", "org:member"), 403, "role"),
    (("GET", "/api/orgs/north/audit", "--user", "alice", "--org", "north", "--role", "admin"), 200, None),
    (("GET", "/api/invoices", "--user", "alice", "--org", "north", "--permission", "org:invoices:read"), 200, None),
    (("GET", "/api/data", "--user", "alice", "--token-type", "m2m_token"), 401, "token-type"),
    (("GET", "/api/health"), 200, None),
    (("GET", "/api/nowhere", "--user", "alice"), 404, None),
    (("PUT", "/api/data", "--user", "alice"), 405, None),
    (("GET", "/api/data/%2e%2e/x", "--user", "alice"), 400, None),
])  # fmt: skip
async def test_what_a_described_caller_gets(words: tuple[str, ...], status: int, reason: str | None, tmp_path: Path, db: Any) -> None:
    told = await explained(db, tmp_path, *words, DATABASE_URL="", owner=False)
    assert (told["status"], told["reason"]) == (status, reason)
    assert told["lock"] == (None if status == 200 else "gate")


@pytest.mark.parametrize("strip", ["false", "true"])
async def test_below_a_path_both_spellings_are_explained(strip: str, tmp_path: Path, db: Any) -> None:
    below = {"GATEPOST_PATH_PREFIX": "/gatepost", "GATEPOST_STRIP_PATH_PREFIX": strip, "GATEPOST_PROVIDERS": "stub"}
    for target in ("/gatepost/api/me", "/api/me"):
        told = await explained(db, tmp_path, "GET", target, **below)
        assert (told["route"], told["status"], told["reason"]) == ("GET /api/me", 401, "credential-missing")


@pytest.mark.parametrize(("words", "said"), [
    (("GET", "/api/data", "--role", "org:admin"), "a role needs an organisation"),
    (("GET", "/api/data", "--org", "o", "--token-type", "session_token"), "a session_token has a user"),
    (("GET", "/api/data", "--user", "u", "--token", "x"), "--token already identifies the caller"),
    (("GET", "/api/data", "--user", "u", "--feature", "sso"), "a feature begins with o: or u:"),
])  # fmt: skip
async def test_a_caller_who_cannot_be_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path, db: Any) -> None:
    error = await explained(db, tmp_path, *words, status=2)
    assert said in error
    assert error.count("\n") == 1


async def test_a_row_and_the_policies_that_show_or_hide_it(client: Client, db: Any, tmp_path: Path) -> None:
    mine = (await client.post("/api/data", ALICE, {"name": "mine"})).json()["id"]
    before = await db.rows("SELECT * FROM audit_log")
    shown = await explained(db, tmp_path, "GET", f"/api/data/{mine}", "--user", "alice", "--row", "data", mine)
    assert (shown["status"], shown["lock"]) == (200, None)
    assert shown["row"]["visible"] is True
    assert shown["row"]["policies"] == {"own_select": True, "admin_select": False}
    hidden = await explained(db, tmp_path, "GET", f"/api/data/{mine}", "--user", "bob", "--row", "data", mine)
    assert (hidden["status"], hidden["reason"], hidden["lock"]) == (404, None, "row-level security")
    assert hidden["row"]["visible"] is False
    assert hidden["row"]["exists"] is True
    assert hidden["row"]["policies"] == {"own_select": False, "admin_select": False}
    # Without the owner nothing is known of a row that is hidden.
    alone = await explained(db, tmp_path, "GET", f"/api/data/{mine}", "--user", "bob", "--row", "data", mine, owner=False)
    assert (alone["row"]["visible"], alone["row"]["exists"], alone["row"]["policies"]) == (False, None, {})
    assert "DATABASE_OWNER_URL" in alone["row"]["why"]
    none = await explained(db, tmp_path, "GET", "/api/data", "--user", "alice", "--row", "data", "00000000-0000-0000-0000-000000000000")
    assert (none["row"]["exists"], none["row"]["why"]) == (False, "there is no such row")
    # What a handler says is the same, and nothing was changed by asking.
    assert (await client.get(f"/api/data/{mine}", ALICE)).status == 200
    assert (await client.get(f"/api/data/{mine}", BOB)).status == 404
    assert await db.rows("SELECT * FROM audit_log") == before
    async with db.server.as_admin(db.name) as admin:
        assert await admin.fetchval("SELECT relforcerowsecurity FROM pg_class WHERE oid = 'public.data'::regclass") is True


@pytest.mark.parametrize(("row", "said"), [
    (("data", "nope"), "'nope' is not the id of a row of public.data (uuid)"),
    (("nowhere", "1"), "no table is named 'nowhere'"),
    (("data; DROP TABLE data", "1"), "no table is named"),
])  # fmt: skip
async def test_a_row_that_cannot_be_is_one_line(row: tuple[str, str], said: str, db: Any, tmp_path: Path) -> None:
    error = await explained(db, tmp_path, "GET", "/api/data", "--user", "alice", "--row", *row, status=2)
    assert said in error
    assert error.count("\n") == 1


async def test_a_restrictive_policy_that_asks_another_table_is_named(db: Any, tmp_path: Path) -> None:
    """The expression is evaluated as the serving role: the other table's policies hold there too."""
    owner = await asyncpg.connect(**db.server.connect_args(db.server.owner_role, db.name))
    try:
        await owner.execute("""
            CREATE TABLE guests (id int PRIMARY KEY DEFAULT 1, "user_id" text NOT NULL);
            CREATE TABLE notes (id bigint PRIMARY KEY DEFAULT 7, "user_id" text NOT NULL, "Odd ""name" text DEFAULT 'x');
            SELECT gatepost_tenant('guests', "user" => 'user_id'); SELECT gatepost_tenant('notes', "user" => 'user_id');
            CREATE POLICY guests_only ON notes AS RESTRICTIVE FOR SELECT TO gatepost_app
                USING (EXISTS (SELECT FROM guests WHERE guests.user_id = notes.user_id));
            ALTER TABLE notes NO FORCE ROW LEVEL SECURITY; INSERT INTO notes VALUES (7, 'alice'), (8, 'bob'); ALTER TABLE notes FORCE ROW LEVEL SECURITY;
            ALTER TABLE guests NO FORCE ROW LEVEL SECURITY; INSERT INTO guests VALUES (1, 'bob'); ALTER TABLE guests FORCE ROW LEVEL SECURITY;
        """)  # fmt: skip
        told = await explained(db, tmp_path, "GET", "/api/data", "--user", "alice", "--row", "notes", "7")
        assert told["row"]["visible"] is False
        assert told["row"]["policies"]["guests_only"] is False
        assert told["row"]["why"] == "hidden by the restrictive policy guests_only"
        told = await explained(db, tmp_path, "GET", "/api/data", "--user", "bob", "--row", "notes", "8")
        assert told["row"]["visible"] is True
        assert set(told["row"]["policies"].values()) == {True}
    finally:
        await owner.execute("DROP TABLE IF EXISTS notes, guests")
        await owner.close()


async def test_a_real_credential_is_asked_of_the_real_providers(client: Client, db: Any, tmp_path: Path) -> None:
    made = (await client.post("/api/keys", ALICE, {"name": "k"})).json()
    told = await explained(db, tmp_path, "GET", "/api/data", "--token", made["secret"])
    assert (told["status"], told["reason"], told["lock"]) == (200, None, None)
    mine = (await client.post("/api/data", ALICE, {"name": "mine"})).json()["id"]
    told = await explained(db, tmp_path, "GET", f"/api/data/{mine}", "--token", made["secret"], "--row", "data", mine)
    assert told["row"]["visible"] is True
    count = await db.count("data")
    assert (await explained(db, tmp_path, "POST", "/api/data", "--token", made["secret"]))["status"] == 200
    below = {"GATEPOST_PATH_PREFIX": "/gatepost", "GATEPOST_STRIP_PATH_PREFIX": "true"}
    assert (await explained(db, tmp_path, "GET", "/gatepost/api/data", "--token", made["secret"], **below))["status"] == 200
    assert await db.count("data") == count, "a handler ran"
    assert (await client.delete(f"/api/keys/{made['id']}", ALICE)).status == 204
    told = await explained(db, tmp_path, "GET", "/api/data", "--token", made["secret"])
    assert (told["status"], told["lock"]) == (401, "gate")
    assert made["secret"] not in json.dumps(told)
    told = await explained(db, tmp_path, "GET", "/api/data", "--token", "x.y.z")
    assert (told["status"], told["reason"]) == (401, "credential-rejected")
