"""The promise: another provider is one line of the configuration file, and no handler knows of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from kits import oidc as oidc_kit
from kits import tokens

from server.app import build
from server.settings.sources import Settings
from tests.conftest import CREATE, READ, Client, TestDatabase

KEY = "gp_alices-own-key-0123456789"
PERMISSIONS = [READ, CREATE]
# Everything but the line `providers`: no provider minds the tables of the others.
FILE = """
providers = ["{provider}"]
env = "test"

[ops]
port = 0

[clerk]
publishable_key = "{publishable_key}"
jwt_key = '''
{pem}'''

[[oidc.issuers]]
issuer = "{issuer}"
audience = "{audience}"
claims = {{ org_id = "org", org_role = "role", org_permissions = "permissions" }}

[[api_key.keys]]
id = "alice"
hash = "sha256:{hash}"
user_id = "alice"
org_id = "org_a"
org_role = "org:member"
org_permissions = {permissions}
"""
Header = dict[str, str]


@pytest.fixture
async def issuer() -> AsyncIterator[oidc_kit.Issuer]:
    async with oidc_kit.serve() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path, issuer: oidc_kit.Issuer) -> Path:
    """The configuration file, with Clerk in it."""
    path = tmp_path / "gatepost.toml"
    text = FILE.format(
        provider="clerk",
        publishable_key=tokens.PUBLISHABLE_KEY,
        pem=tokens.pem(tokens.rsa_key()),
        issuer=issuer.url,
        audience=oidc_kit.AUDIENCE,
        hash=hashlib.sha256(KEY.encode()).hexdigest(),
        permissions=json.dumps(PERMISSIONS),
    )
    path.write_text(text)
    return path


def swap(file: Path, provider: str) -> None:
    """Change the one line."""
    lines = file.read_text().splitlines()
    at = [number for number, line in enumerate(lines) if line.startswith("providers = ")]
    assert len(at) == 1
    lines[at[0]] = f'providers = ["{provider}"]'
    file.write_text("\n".join(lines) + "\n")


def callers(issuer: oidc_kit.Issuer) -> dict[str, Header]:
    """Alice of org_a with her permissions, by every provider."""
    org = {"org_id": "org_a", "org_role": "org:member", "org_permissions": PERMISSIONS}
    clerk = tokens.encode(tokens.claims(sub="alice", **org))
    token = issuer.token(sub="alice", org="org_a", role="member", permissions=["invoices:read", "invoices:create"])
    return {
        "clerk": {"Authorization": f"Bearer {clerk}"},
        "oidc": {"Authorization": f"Bearer {token}"},
        "api_key": {"X-API-Key": KEY},
    }


@asynccontextmanager
async def served(file: Path, db: TestDatabase) -> AsyncIterator[Client]:
    app = build(Settings(file=file, environ={"DATABASE_URL": db.url}, given={"data_folder": str(file.parent / "own")}))
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=1)
    client = Client(server, app)
    try:
        yield client
    finally:
        await client.close()


async def scenario(client: Client, caller: Header, provider: str) -> None:
    """What Alice does on every day of the week, with every provider that can authenticate her."""
    me = (await client.get("/api/me", caller)).json()
    assert {name: me[name] for name in ("provider", "user_id", "org_id", "org_role", "org_permissions")} == {
        "provider": provider, "user_id": "alice", "org_id": "org_a", "org_role": "org:member", "org_permissions": PERMISSIONS,
    }  # fmt: skip
    for path in ("/api/data", "/api/orgs/org_a/data"):
        made = await client.post(path, caller, {"name": f"by {provider}"})
        assert made.status == 201
        assert f"by {provider}" in [row["name"] for row in (await client.get(path, caller)).json()]
    invoice = await client.post("/api/invoices", caller, {"customer": provider, "amount": "1.00", "currency": "EUR"})
    assert invoice.status == 201
    assert (await client.get(f"/api/invoices/{invoice.json()['id']}", caller)).json()["created_by"] == "alice"
    foreign = await client.get("/api/orgs/org_b/data", caller)
    assert (foreign.status, foreign.json()["reason"]) == (403, "organization")
    assert (await client.get("/api/me")).status == 401


async def test_the_same_scenario_over_each(file: Path, issuer: oidc_kit.Issuer, db: TestDatabase) -> None:
    """And what was made under one provider is there under the next: the rows know users, not providers."""
    who = callers(issuer)
    before: list[str] = []
    for provider in ("clerk", "oidc", "api_key"):
        swap(file, provider)
        async with served(file, db) as client:
            await scenario(client, who[provider], provider)
            rows = (await client.get("/api/data", who[provider])).json()
            before.append(f"by {provider}")
            assert sorted(row["name"] for row in rows) == sorted(before)
            for other, header in who.items():
                assert (await client.get("/api/me", header)).status == (200 if other == provider else 401)


@pytest.mark.parametrize("weaken", ["clerk", "oidc"])
async def test_without_the_permission_it_is_403_over_each(
    file: Path, issuer: oidc_kit.Issuer, db: TestDatabase, weaken: str
) -> None:
    weak: dict[str, Callable[[], str]] = {
        "clerk": lambda: tokens.encode(tokens.claims(sub="alice", org_id="org_a", org_role="org:member")),
        "oidc": lambda: issuer.token(sub="alice", org="org_a", role="member", scope="invoices:read"),
    }
    swap(file, weaken)
    async with served(file, db) as client:
        got = await client.get("/api/invoices", {"Authorization": f"Bearer {weak[weaken]()}"})
        assert (got.status, got.json()["reason"]) == (403, "permission")


async def test_without_the_permission_a_key_is_403(file: Path, db: TestDatabase) -> None:
    file.write_text(file.read_text().replace(json.dumps(PERMISSIONS), "[]"))
    swap(file, "api_key")
    async with served(file, db) as client:
        got = await client.get("/api/invoices", {"X-API-Key": KEY})
        assert (got.status, got.json()["reason"]) == (403, "permission")
