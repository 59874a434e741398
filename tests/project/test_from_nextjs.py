"""docs/guides/from-nextjs.md: its Python blocks are one module, loaded as a plugin, asked over HTTP with tokens of Clerk's form."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from kits.pages import blocks

from server.app import build
from server.settings.sources import Settings
from server.testing.clerk import LoopbackClerk
from tests.conftest import Client, TestDatabase

PAGE = "docs/guides/from-nextjs.md"
MODULE = "gp_from_nextjs"


@pytest.fixture
async def clerk() -> AsyncIterator[LoopbackClerk]:
    async with LoopbackClerk() as made:
        yield made


@pytest.fixture
async def client(
    clerk: LoopbackClerk, db: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    """A server with the page's module and the page's settings."""
    (tmp_path / f"{MODULE}.py").write_text("\n\n".join(block.text for block in blocks("python", page=PAGE)))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(MODULE, None)
    (toml,) = blocks("toml", page=PAGE)
    file = tmp_path / "gatepost.toml"
    file.write_text(toml.text.replace("acme_app.api", MODULE))
    given = {"env": "test", "ops.port": 0, "database.url": db.url, "database.pool_size": 2, "data_folder": str(tmp_path)}
    app = build(Settings(file=file, environ={}, given={**given, **clerk.settings()}))
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=1)
    made = Client(server, app)
    yield made
    await made.close()
    sys.modules.pop(MODULE, None)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_each_block_of_typescript_has_its_block_of_python() -> None:
    """In every section: what it is there, and then what it is here."""
    languages = [block.language for block in blocks("typescript", "python", page=PAGE)]
    assert languages.count("typescript") == 9
    assert all(languages[at + 1] == "python" for at, language in enumerate(languages) if language == "typescript")


async def test_signed_in_and_whose_rows(client: Client, clerk: LoopbackClerk, db: TestDatabase) -> None:
    for user in ("alice", "bob"):
        await db.rows("INSERT INTO data (user_id, name) VALUES ($1, $2)", user, f"of {user}")
    assert (await client.get("/api/mine")).status == 401
    got = await client.get("/api/mine", bearer(clerk.token("alice")))
    assert [row["name"] for row in got.json()] == ["of alice"]
    who = await client.get("/api/who", bearer(clerk.token("alice", org_id="org_a", org_role="org:admin")))
    assert who.json() == {"user": "alice", "org": "org_a", "role": "org:admin", "slug": None}


async def test_the_organisation_of_the_url(client: Client, clerk: LoopbackClerk, db: TestDatabase) -> None:
    for org in ("org_a", "org_b"):
        await db.rows("INSERT INTO org_data (organization_id, created_by, name) VALUES ($1, 'x', $1)", org)
    alice = bearer(clerk.token("alice", org_id="org_a"))
    got = await client.get("/api/organizations/org_a/data", alice)
    assert [row["name"] for row in got.json()] == ["org_a"]
    refused = await client.get("/api/organizations/org_b/data", alice)
    assert (refused.status, refused.json()["reason"]) == (403, "organization")
    assert (await client.get("/api/organizations/org_a/data")).status == 401


async def test_an_administrator_deletes_rows_of_their_organisation(
    client: Client, clerk: LoopbackClerk, db: TestDatabase
) -> None:
    made = await db.rows("INSERT INTO data (user_id, org_id, name) VALUES ('bob', 'org_a', 'x') RETURNING id::text")
    path = f"/api/rows/{made[0]['id']}"
    assert (await client.delete(path)).status == 401
    member = await client.delete(path, bearer(clerk.token("carol", org_id="org_a")))
    assert (member.status, member.json()["reason"]) == (403, "role")
    elsewhere = await client.delete(path, bearer(clerk.token("dave", org_id="org_b", org_role="org:admin")))
    assert elsewhere.status == 404
    done = await client.delete(path, bearer(clerk.token("anna", org_id="org_a", org_role="org:admin")))
    assert (done.status, done.json()) == (200, {"success": True})
    assert await db.count("data") == 0


async def test_a_permission(client: Client, clerk: LoopbackClerk, db: TestDatabase) -> None:
    await db.rows(
        "INSERT INTO invoices (organization_id, created_by, customer, amount, currency) VALUES ('org_a', 'x', 'Ltd', 12.5, 'EUR')"
    )
    may = bearer(clerk.token("alice", org_id="org_a", org_permissions=["org:invoices:read"]))
    not_ = bearer(clerk.token("alice", org_id="org_a"))
    assert [row["amount"] for row in (await client.get("/api/bills", may)).json()] == ["12.50"]
    refused = await client.get("/api/bills", not_)
    assert (refused.status, refused.json()) == (403, {"error": "Forbidden", "reason": "permission"})
    assert (await client.get("/api/overview", may)).json() == {"invoices": True}
    assert (await client.get("/api/overview", not_)).json() == {"invoices": False}


async def test_public_and_protected(client: Client, clerk: LoopbackClerk) -> None:
    assert (await client.get("/api/prices")).json() == {"pro": "12.00"}
    for headers, status in (
        (None, 401),
        (bearer(clerk.token("alice", sts="pending")), 401),
        (bearer(clerk.token("alice", org_id="org_a")), 403),
        (bearer(clerk.machine_token("user_1", "api_key")), 401),
        (bearer(clerk.token("anna", org_id="org_a", org_role="org:admin")), 200),
    ):
        assert (await client.post("/api/settings", headers)).status == status


async def test_machine_tokens(client: Client, clerk: LoopbackClerk) -> None:
    got = await client.get("/api/reports", bearer(clerk.machine_token("user_1", "api_key")))
    assert got.json() == {"type": "clerk_api_key", "user": "user_1"}
    assert (await client.get("/api/reports", bearer(clerk.token("alice")))).status == 200
    with_scope = clerk.machine_token("mch_1", "m2m_token", scopes=["exports:read"])
    assert (await client.get("/api/exports", bearer(with_scope))).json() == {"scopes": ["exports:read"]}
    refused = await client.get("/api/exports", bearer(clerk.machine_token("mch_1", "m2m_token", scopes=["other"])))
    assert (refused.status, refused.json()["reason"]) == (403, "scope")
    assert (await client.get("/api/exports", bearer(clerk.token("alice")))).status == 401


async def test_fresh_verification(client: Client, clerk: LoopbackClerk) -> None:
    fresh: Any = await client.post("/api/transfer", bearer(clerk.token("alice", fva=[0, 0])))
    assert fresh.json() == {"done": True}
    stale = await client.post("/api/transfer", bearer(clerk.token("alice", fva=[90, 90])))
    assert stale.status == 403
    assert stale.json()["clerk_error"]["reason"] == "reverification-error"
    assert stale.json()["clerk_error"]["metadata"] == {"reverification": "strict"}
