"""Tokens of clients that act for themselves (client credentials): no users, unless the operator says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits import oidc as oidc_kit
from kits.oidc import AUDIENCE, DROP, Issuer

from server import answer, identity_of, requires, signed_in
from server.auth.caller import caller_key
from tests.conftest import Client, Serve, TestDatabase, plugin


@signed_in
async def shown(request: web.Request) -> web.Response:
    caller = identity_of(request)
    return answer({"user_id": caller.user_id, "key_id": caller.key_id, "caller": caller_key(caller), "audited": caller.audited_as})


@requires(user=True)
async def users(request: web.Request) -> web.Response:
    return answer({"user_id": identity_of(request).user_id})


ROUTES = plugin(web.get("/api/shown", shown), web.get("/api/users", users))


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


async def served(serve: Serve, issuer: Issuer, **members: Any) -> Client:
    table = {"issuer": issuer.url, "audience": AUDIENCE, "namespace": "acme", **members}
    return await serve({"providers": ["oidc", "api_key"], "oidc.issuers": [table]}, extra={"acme": ROUTES})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# name: (claims, user when clients = "refuse", user when clients = "accept")
CLAIMS: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "a user's": ({}, "alice", "alice"),
    "a user's, with azp": ({"azp": "app", "client_id": DROP}, "alice", "alice"),
    "a user's without a client": ({"client_id": DROP}, "alice", "alice"),
    "sub is client_id": ({"sub": "app"}, None, "app"),
    "sub is azp": ({"sub": "app", "client_id": DROP, "azp": "app"}, None, "app"),
    "sub is azp, client_id is another": ({"sub": "app", "client_id": "other", "azp": "app"}, None, "app"),
    "nearly the client": ({"sub": "App"}, "App", "App"),
    "client_id is a list": ({"sub": "app", "client_id": ["app"]}, "app", "app"),
    "Keycloak's service account has a sub of its own": ({"sub": "5c1e", "azp": "app"}, "5c1e", "5c1e"),
    "and a name by which it is known": ({"sub": "5c1e", "azp": "App", "preferred_username": "service-account-app"}, None, "5c1e"),
    "a user with the name of another account": ({"client_id": DROP, "azp": "spa", "preferred_username": "service-account-app"}, "alice", "alice"),
    "Okta's cid": ({"sub": "0oa1", "cid": "0oa1", "client_id": DROP}, None, "0oa1"),
    "Okta's cid of a user": ({"cid": "0oa1", "client_id": DROP}, "alice", "alice"),
    "Auth0's sub": ({"sub": "c1@clients", "azp": "c1", "client_id": DROP}, None, "c1@clients"),
    "Auth0's sub of another client": ({"sub": "c2@clients", "azp": "c1"}, "c2@clients", "c2@clients"),
    "Auth0's gty": ({"sub": "c1@clients", "gty": "client-credentials", "client_id": DROP}, None, "c1@clients"),
    "Auth0's gty of a user": ({"gty": "password"}, "alice", "alice"),
    "Entra ID's idtyp": ({"sub": "o1", "oid": "o1", "tid": "t", "idtyp": "app", "azp": "app"}, None, "o1"),
    "Entra ID without idtyp": ({"sub": "o1", "oid": "o1", "tid": "t", "roles": ["r"], "azp": "app"}, None, "o1"),
    "Entra ID's user": ({"oid": "o1", "tid": "t", "scp": "s", "idtyp": "user"}, "alice", "alice"),
    "Azure AD B2C's user, whose sub is the oid": ({"sub": "o1", "oid": "o1", "tid": "t", "scp": "s"}, "o1", "o1"),
}


@pytest.mark.parametrize("what", CLAIMS)
@pytest.mark.parametrize("clients", ["refuse", "accept", None])
async def test_who_is_a_user(serve: Serve, issuer: Issuer, what: str, clients: str | None) -> None:
    client = await served(serve, issuer, **({} if clients is None else {"clients": clients}))
    claims, refused, accepted = CLAIMS[what]
    user = accepted if clients == "accept" else refused
    token = bearer(issuer.token(**claims))
    said = (await client.get("/api/me", token)).json()
    assert said["user_id"] == (f"acme|{user}" if user else None)
    assert said["claims"]["sub"] == claims.get("sub", "alice")
    got = await client.get("/api/users", token)
    assert (got.status, got.json().get("reason")) == ((200, None) if user else (403, "user"))
    assert (await client.get("/api/data", token)).status == (200 if user else 403)
    assert (await client.post("/api/keys", token, {"name": "x"})).status == 401  # sessions and keys alone make keys


async def test_a_jwt_without_a_subject_is_refused(serve: Serve, issuer: Issuer) -> None:
    """RFC 9068 2.2 demands it. Only an opaque token may have none."""
    client = await served(serve, issuer)
    for members in ({"sub": DROP}, {"sub": None}, {"sub": ""}, {"sub": DROP, "client_id": DROP}):
        got = await client.get("/api/me", bearer(issuer.token(**members)))
        assert (got.status, got.json()["reason"]) == (401, "token-claims")


async def test_a_client_is_a_caller_of_its_own(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, issuer)
    tokens = [issuer.token(sub=name, client_id=name) for name in ("robot", "other")]
    one, other = [(await client.get("/api/shown", bearer(token))).json() for token in tokens]
    assert one == {"user_id": None, "key_id": "client:acme|robot", "caller": "key/oidc/client:acme|robot", "audited": "key:client:acme|robot"}
    assert one["caller"] != other["caller"]


async def test_a_client_is_revoked_like_a_user(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    """`python -m server revoke --user robot --issuer ISSUER` records the id with the namespace."""
    client = await served(serve, issuer)
    robot, other = (bearer(issuer.token(sub=name, client_id=name)) for name in ("robot", "other"))
    assert (await client.get("/api/me", robot)).status == 200
    await db.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ('user', 'acme|robot', now() + interval '1 hour')")
    await asyncio.sleep(1)
    got = await client.get("/api/me", robot)
    assert (got.status, got.json()["reason"]) == (401, "session-revoked")
    assert (await client.get("/api/me", other)).status == 200


@pytest.mark.parametrize("name", ["a\nb", "a" * 256, "a" * 250])
async def test_an_odd_client_is_refused(serve: Serve, issuer: Issuer, name: str) -> None:
    client = await served(serve, issuer)
    got = await client.get("/api/me", bearer(issuer.token(sub=name, client_id=name)))
    assert (got.status, got.json()["reason"]) == (401, "token-claims")


async def test_a_client_signs_as_itself_in_its_organisation(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    """Like an organisation's key: it sees the organisation's rows, and no user's."""
    claims = {"org_id": "org", "org_role": "role"}
    client = await served(serve, issuer, claims=claims)
    robot = bearer(issuer.token(sub="robot", client_id="robot", org="north", role="member"))
    made = await client.post("/api/orgs/acme%7Cnorth/data", robot, {"name": "one"})
    assert made.status == 201, made.raw
    assert (made.json()["created_by"], made.json()["organization_id"]) == ("key:client:acme|robot", "acme|north")
    assert (await client.get("/api/orgs/acme%7Csouth/data", robot)).status == 403
    assert [row["actor"] for row in await db.rows("SELECT actor FROM audit_log")] == ["key:client:acme|robot"]
