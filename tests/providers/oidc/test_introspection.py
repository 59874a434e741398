"""Opaque tokens by RFC 7662: real ones of npm oidc-provider, and issuers on loopback that answer badly. A real server in front."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port
from kits import oidc as oidc_kit
from kits.dpop import Holder
from kits.oidc import AUDIENCE, DROP, Issuer, key
from kits.oidc_provider import RESOURCE, SECRETS, oidc_provider

from providers.oidc import introspection as introspection_room
from providers.oidc import settings as oidc_settings
from server import answer, identity_of, requires, signed_in
from server.settings.setting import ConfigError
from tests.conftest import Client, Got, MakeApp, Serve, TestDatabase, plugin

SECRET = "canary: %+&=/~"
OPAQUE = "opaque-token-1"


@signed_in
async def shown(request: web.Request) -> web.Response:
    """What is not in /api/me."""
    caller = identity_of(request)
    return answer({"key_id": caller.key_id, "expires_at": caller.expires_at, "issued_at": caller.issued_at})


@requires(user=True)
async def users(request: web.Request) -> web.Response:
    return answer({"user_id": identity_of(request).user_id})


@requires(scopes=["todos:write"])
async def writes(request: web.Request) -> web.Response:
    return answer({})


@requires(accepts=["api_key"])
async def keys_only(request: web.Request) -> web.Response:
    return answer({})


ROUTES = plugin(
    web.get("/api/shown", shown), web.get("/api/users", users), web.get("/api/writes", writes), web.get("/api/keys-only", keys_only)
)


def table(issuer: Issuer | str, **members: Any) -> dict[str, Any]:
    url = issuer if isinstance(issuer, str) else issuer.url
    introspection = {"client_id": "api", "client_secret": SECRET, **members.pop("introspection", {})}
    return {"issuer": url, "audience": AUDIENCE, "introspection": introspection, **members}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


@pytest.fixture
async def client(serve: Serve, issuer: Issuer) -> Client:
    return await served(serve, table(issuer))


async def served(serve: Serve, *tables: dict[str, Any], **settings: Any) -> Client:
    return await serve({"providers": ["oidc", "api_key"], "oidc.issuers": list(tables), **settings}, extra={"acme": ROUTES})


async def me(client: Client, token: str) -> Got:
    return await client.get("/api/me", bearer(token))


def reason(got: Got) -> tuple[int, str | None]:
    return got.status, got.json().get("reason")


# A certified provider --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def real(serve: Serve, **members: Any) -> AsyncIterator[tuple[Any, Client]]:
    async with oidc_provider() as provider:
        introspection = {"client_id": "api", "client_secret": SECRETS["api"], **members.pop("introspection", {})}
        given = {"issuer": provider.issuer, "audience": RESOURCE, "introspection": introspection, **members}
        yield provider, await served(serve, given)


async def test_an_opaque_token_of_oidc_provider(serve: Serve) -> None:
    async with real(serve) as (provider, client):
        token = await provider.user_token("alice", client="opaque", scope="todos:read")
        said = (await me(client, token)).json()
        assert said["user_id"] == "alice"
        assert (said["provider"], said["token_type"], said["claims"], said["scopes"]) == ("oidc", "access_token", None, ["todos:read"])
        assert (await client.get("/api/users", bearer(token))).json() == {"user_id": "alice"}
        ends = (await client.get("/api/shown", bearer(token))).json()
        assert 295 < ends["expires_at"] - time.time() <= 306
        assert (await client.get("/api/writes", bearer(token))).status == 403
        wide = await provider.user_token("bob", client="opaque", scope="todos:read todos:write")
        assert (await client.get("/api/writes", bearer(wide))).status == 200
        # A JWT of the same provider is verified here.
        assert (await me(client, await provider.user_token("alice"))).json()["claims"]["sub"] == "alice"
        # Revoked at the provider: refused at the next request.
        await provider.revoke(token, "opaque")
        assert reason(await me(client, token)) == (401, "credential-rejected")
        assert (await me(client, wide)).status == 200


async def test_a_token_for_another_api_and_a_refresh_token(serve: Serve) -> None:
    async with real(serve) as (provider, client):
        other = await provider.user_token("alice", client="opaque", resource="https://other.example")
        assert reason(await me(client, other)) == (401, "token-audience")
        tokens = await provider.user_tokens("alice", client="opaque", scope="offline_access todos:read")
        assert (await me(client, tokens["access_token"])).status == 200
        if "refresh_token" in tokens:
            assert (await me(client, tokens["refresh_token"])).status == 401
        assert (await me(client, tokens["id_token"])).status == 401


async def test_a_clients_own_token_is_no_user(serve: Serve) -> None:
    """Client credentials, as JWT (`sub` is the client) and opaque (no `sub`)."""
    for clients in ("refuse", "accept"):
        async with real(serve, clients=clients, namespace="acme") as (provider, client):
            for name in ("service", "opaque-service"):
                token = await provider.client_token(client=name, scope="todos:write")
                said = (await me(client, token)).json()
                accepted = clients == "accept"
                assert said["user_id"] == (f"acme|{name}" if accepted else None)
                assert said["scopes"] == ["todos:write"]
                got = await client.get("/api/users", bearer(token))
                assert (got.status, got.json().get("reason")) == ((200, None) if accepted else (403, "user"))
                assert (await client.get("/api/writes", bearer(token))).status == 200
                key_id = (await client.get("/api/shown", bearer(token))).json()["key_id"]
                assert key_id == (None if accepted else f"client:acme|{name}")
            # A user's token that this client got is a user's.
            assert (await me(client, await provider.user_token("alice"))).json()["user_id"] == "acme|alice"


async def test_the_wrong_secret_is_an_outage_and_says_so(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with real(serve, introspection={"client_secret": "canary-wrong"}) as (provider, client):
        got = await me(client, await provider.user_token("alice", client="opaque"))
        assert got.status == 503
        assert "introspection.client_id and its secret right?" in str([record.__dict__ for record in caplog.records])


# How it asks -----------------------------------------------------------------------------------------------------------


async def test_the_introspection_request(client: Client, issuer: Issuer) -> None:
    issuer.opaque(OPAQUE)
    assert (await me(client, OPAQUE)).status == 200
    ((token, headers),) = issuer.asked
    assert token == OPAQUE
    scheme, _, pair = headers["Authorization"].partition(" ")
    assert (scheme, headers["Content-Type"]) == ("Basic", "application/x-www-form-urlencoded")
    name, _, secret = base64.b64decode(pair).decode().partition(":")
    assert (unquote_plus(name), unquote_plus(secret)) == ("api", SECRET)  # RFC 6749 2.3.1
    assert ":" not in secret


@pytest.mark.parametrize("where", ["client_secret_file", "client_secret_env"])
async def test_the_secret_comes_from_a_file_or_a_variable(
    serve: Serve, issuer: Issuer, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("ACME_SECRET", f" {SECRET}\n")
    given = {"client_id": "api", where: str(tmp_path / "secret") if where.endswith("file") else "ACME_SECRET"}
    client = await served(serve, {**table(issuer), "introspection": given})
    issuer.opaque(OPAQUE)
    assert (await me(client, OPAQUE)).status == 200
    assert unquote_plus(base64.b64decode(issuer.asked[0][1]["Authorization"][6:]).decode().partition(":")[2]) == SECRET


async def test_simultaneous_requests_share_one_call(client: Client, issuer: Issuer) -> None:
    issuer.opaque(OPAQUE)

    async def slowly(request: web.Request, token: str) -> Any:
        await asyncio.sleep(0.3)
        return issuer.about(request, token)

    issuer.introspect = slowly
    got = await asyncio.gather(*(me(client, OPAQUE) for _ in range(10)))
    assert {one.status for one in got} == {200}
    assert len(issuer.asked) == 1
    assert (await me(client, OPAQUE)).status == 200
    assert len(issuer.asked) == 2  # nothing is kept: cache_seconds is 0


async def test_an_answer_is_used_again_for_cache_seconds(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, table(issuer, introspection={"cache_seconds": 1}))
    issuer.opaque(OPAQUE)
    for _ in range(5):
        assert (await me(client, OPAQUE)).status == 200
    assert len(issuer.asked) == 1
    issuer.tokens.clear()
    assert (await me(client, OPAQUE)).status == 200
    await asyncio.sleep(1.1)
    assert (await me(client, OPAQUE)).status == 401


async def test_an_answer_is_never_used_past_exp(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, table(issuer, introspection={"cache_seconds": 3600}))
    issuer.opaque(OPAQUE, exp=int(time.time()) + 2)
    assert (await me(client, OPAQUE)).status == 200
    await asyncio.sleep(2.1)
    issuer.opaque(OPAQUE, exp=int(time.time()) - 60)
    assert reason(await me(client, OPAQUE)) == (401, "token-expired")
    assert len(issuer.asked) == 2


async def test_a_bad_token_is_asked_about_once_in_five_seconds(client: Client, issuer: Issuer) -> None:
    for _ in range(4):
        assert reason(await me(client, "nothing")) == (401, "credential-rejected")
    assert len(issuer.asked) == 1


async def test_a_revocation_here_ends_an_opaque_token(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    """Of the user and of the session, for answers that are kept as well."""
    client = await served(serve, table(issuer, introspection={"cache_seconds": 60}, namespace="acme"))
    issuer.opaque("one")
    issuer.opaque("two", sub="bob", sid="session-2")
    issuer.opaque("three", sub="carol")
    for token in ("one", "two", "three"):
        assert (await me(client, token)).status == 200
    insert = "INSERT INTO revocations (kind, subject, expires_at) VALUES ($1, $2, now() + interval '1 hour')"
    await db.rows(insert, "user", "acme|alice")
    await db.rows(insert, "session", "acme|session-2")
    await asyncio.sleep(1)
    assert reason(await me(client, "one")) == (401, "session-revoked")
    assert reason(await me(client, "two")) == (401, "session-revoked")
    assert (await me(client, "three")).status == 200


# What is never sent ----------------------------------------------------------------------------------------------------

UNSENT = {
    "an API key": "gp_test_abc_def", "Clerk's key": "ak_123", "Clerk's M2M token": "mt_123", "Clerk's OAuth token": "oat_123",
    "a ticket for a live answer": f"st_{secrets.token_urlsafe(32)}",
    "an unsigned JWT": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.", "a JWE": "eyJhbGciOiJkaXIifQ..aaaa.bbbb.cccc",
    "two segments": "eyJhbGciOiJSUzI1NiJ9.e30", "another issuer's JWT": oidc_kit.sign({"alg": "RS256"}, '{"iss":"https://b.example"}', key("RS256")),
    "no token68": "a{b}c", "a space": "a b", "too long": "a" * 4097, "quotes": 'a"b', "a colon": "a:b", "percent": "a%20b",
}  # fmt: skip


@pytest.mark.parametrize("what", UNSENT)
async def test_no_issuer_sees_what_is_not_its_own(client: Client, issuer: Issuer, what: str) -> None:
    assert reason(await me(client, UNSENT[what])) == (401, "credential-rejected")
    assert issuer.asked == []


async def test_a_token_that_begins_like_a_ticket_and_is_none_may_be_the_issuers(client: Client, issuer: Issuer) -> None:
    issuer.opaque(token := "st_" + 44 * "x")
    assert (await me(client, token)).status == 200


async def test_a_jwt_of_the_issuer_is_verified_here(client: Client, issuer: Issuer) -> None:
    assert (await me(client, issuer.token())).status == 200
    assert reason(await me(client, issuer.token(aud="https://other.example"))) == (401, "token-audience")
    assert reason(await me(client, issuer.token(signer=key("RS256", "forged")))) == (401, "credential-rejected")
    assert issuer.asked == []


async def test_a_token_is_read_in_authorization_alone(client: Client, issuer: Issuer) -> None:
    issuer.opaque(OPAQUE)
    for got in (
        await client.get(f"/api/me?access_token={OPAQUE}"),
        await client.get("/api/me", {"Cookie": f"access_token={OPAQUE}; __session={OPAQUE}"}),
        await client.get("/api/me", {"X-API-Key": OPAQUE}),
        await client.get("/api/me", {"Authorization": f"Token {OPAQUE}"}),
        await client.get("/api/me", {"Authorization": f"Basic {OPAQUE}"}),
        await client.get("/api/me", {"Authorization": OPAQUE}),
        await client.post("/api/data", data={"access_token": OPAQUE}),
    ):
        assert got.status == 401
    assert issuer.asked == []
    two = await client.get("/api/me", {**bearer(OPAQUE), "X-API-Key": "gp_x"})
    assert two.status == 400
    assert issuer.asked == []


async def test_a_route_without_access_tokens_causes_no_call(client: Client, issuer: Issuer) -> None:
    issuer.opaque(OPAQUE)
    assert (await client.get("/api/keys-only", bearer(OPAQUE))).status == 401
    assert issuer.asked == []
    await client.get("/api/health", bearer(OPAQUE))  # a public route reads no credential
    assert issuer.asked == []


# What an issuer may answer ---------------------------------------------------------------------------------------------

NOW = time.time()
ANSWERS: dict[str, tuple[dict[str, Any], tuple[int, str | None]]] = {
    "the usual": ({}, (200, None)),
    "without times": ({"exp": DROP, "iat": DROP}, (200, None)),
    "null counts as missing": ({"exp": None, "nbf": None, "cnf": None, "token_type": None, "iss": None, "act": None}, (200, None)),
    "without iss": ({"iss": DROP}, (200, None)),
    "a list of audiences": ({"aud": ["https://other.example", AUDIENCE]}, (200, None)),
    "token_type in other letters": ({"token_type": "bEARER"}, (200, None)),
    "token_type is the kind of token": ({"token_type": "access_token"}, (200, None)),
    "scope as a list": ({"scope": ["a", "b"]}, (200, None)),
    "active is a text": ({"active": "true"}, (401, "credential-rejected")),
    "active is 1": ({"active": 1}, (401, "credential-rejected")),
    "active is missing": ({"active": DROP}, (401, "credential-rejected")),
    "active is null": ({"active": None}, (401, "credential-rejected")),
    "active is a list": ({"active": [True]}, (401, "credential-rejected")),
    "no aud": ({"aud": DROP}, (401, "token-audience")),
    "aud is null": ({"aud": None}, (401, "token-audience")),
    "a foreign aud": ({"aud": "https://other.example"}, (401, "token-audience")),
    "aud is nearly ours": ({"aud": AUDIENCE + "/"}, (401, "token-audience")),
    "aud is an object": ({"aud": {AUDIENCE: True}}, (401, "token-audience")),
    "aud has a number": ({"aud": [AUDIENCE, 1]}, (401, "token-audience")),
    "another iss": ({"iss": "https://b.example"}, (401, "token-issuer")),
    "iss is a list": ({"iss": ["https://b.example"]}, (401, "token-issuer")),
    "exp is past": ({"exp": NOW - 600}, (401, "token-expired")),
    "exp is a text": ({"exp": str(int(NOW + 300))}, (401, "token-claims")),
    "exp is true": ({"exp": True}, (401, "token-claims")),
    "exp is far too large": ({"exp": 1e300}, (401, "token-claims")),
    "it lives too long": ({"exp": NOW + 10**8}, (401, "token-claims")),
    "nbf is to come": ({"nbf": NOW + 3000}, (401, "token-not-active-yet")),
    "nbf is to come, without exp": ({"nbf": NOW + 3000, "exp": DROP}, (401, "token-not-active-yet")),
    "iat is to come": ({"iat": NOW + 3000}, (401, "token-not-active-yet")),
    "iat is a text": ({"iat": "yesterday"}, (401, "token-claims")),
    "bound to a key": ({"cnf": {"jkt": "x"}}, (401, "token-type")),
    "bound to nothing": ({"cnf": {}}, (401, "token-type")),
    "token_type DPoP": ({"token_type": "DPoP"}, (401, "token-type")),
    "token_type mac": ({"token_type": "mac"}, (401, "token-type")),
    "token_type is a refresh token": ({"token_type": "refresh_token"}, (401, "token-type")),
    "token_type is a list": ({"token_type": ["Bearer"]}, (401, "token-type")),
    "Keycloak's refresh token": ({"typ": "Refresh", "token_type": DROP}, (401, "token-type")),
    "Hydra's refresh token": ({"token_use": "refresh_token", "token_type": DROP}, (401, "token-type")),
    "scope is a number": ({"scope": 5}, (401, "token-claims")),
    "scope is an object": ({"scope": {"todos:write": True}}, (401, "token-claims")),
    "scope has a number": ({"scope": ["a", 1]}, (401, "token-claims")),
    "sub is a number": ({"sub": 5}, (401, "token-claims")),
    "sub is a list": ({"sub": ["alice"]}, (401, "token-claims")),
    "sub is too long": ({"sub": "a" * 256}, (401, "token-claims")),
    "sub has a line end": ({"sub": "a\nb"}, (401, "token-claims")),
    "neither user nor client": ({"sub": DROP, "client_id": DROP}, (401, "token-claims")),
    "client_id has a line end": ({"sub": DROP, "client_id": "a\r\nb"}, (401, "token-claims")),
    "client_id is a number": ({"sub": DROP, "client_id": 7}, (401, "token-claims")),
    "act names nobody": ({"act": {"x": 1}}, (401, "token-claims")),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_what_an_issuer_may_answer(client: Client, issuer: Issuer, what: str) -> None:
    members, expected = ANSWERS[what]
    issuer.opaque(OPAQUE)
    usual = {"active": True, **issuer.tokens[OPAQUE]}
    issuer.introspect = lambda request, token: oidc_kit.without({**usual, **members})
    got = await me(client, OPAQUE)
    assert reason(got) == expected
    if got.status == 401:
        assert got.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


async def test_unmapped_members_grant_nothing(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, table(issuer, claims={"org_id": "org"}, require={"client_id": ["app"]}))
    issuer.opaque(OPAQUE, org="north", org_role="org:admin", org_permissions=["org:invoices:read"], roles=["admin"], username="root", ext={"a": 1})
    said = (await me(client, OPAQUE)).json()
    assert (said["user_id"], said["org_id"], said["org_role"], said["org_permissions"]) == ("alice", "north", None, None)
    assert (said["claims"], said["scopes"]) == (None, ["todos:read"])
    issuer.opaque("other", client_id="evil")
    assert reason(await me(client, "other")) == (401, "token-claims")


# Outages ---------------------------------------------------------------------------------------------------------------


def answers(**more: Any) -> Any:
    return lambda request, token: web.Response(**more)


GOOD = json.dumps({"active": True, "aud": AUDIENCE, "sub": "alice", "client_id": "app"})
OUTAGES: dict[str, Any] = {
    **{str(status): answers(status=status, text=GOOD) for status in (201, 204, 400, 401, 403, 404, 418, 500, 502, 503, 504)},
    "429": answers(status=429, headers={"Retry-After": "7"}),
    "a redirect": answers(status=302, headers={"Location": "/introspect"}, text=GOOD),
    "a redirect that keeps the method": answers(status=307, headers={"Location": "/introspect"}, text=GOOD),
    "no JSON": answers(text="<html>"),
    "nothing": answers(body=b""),
    "half a JSON": answers(text=GOOD[:-1]),
    "a list": answers(text=f"[{GOOD}]"),
    "a text": answers(text='"active"'),
    "true": answers(text="true"),
    "active twice": answers(text='{"active": false, "active": true, "aud": "x"}'),
    "NaN": answers(text='{"active": true, "exp": NaN}'),
    "no UTF-8": answers(body=b'{"active": true, "sub": "\xff"}'),
    "a byte-order mark": answers(body=b"\xef\xbb\xbf" + GOOD.encode()),
    "nested too deeply": answers(text='{"a":' * 5000 + "1" + "}" * 5000),
    "too large": answers(text=GOOD[:-1] + ', "x": "' + "y" * 70_000 + '"}'),
    "a JWT (RFC 9701)": answers(text="eyJhbGciOiJub25lIn0.e30.", content_type="application/token-introspection+jwt"),
}


@pytest.mark.parametrize("what", OUTAGES)
async def test_an_issuer_that_does_not_answer_properly_is_a_503(
    client: Client, issuer: Issuer, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    issuer.introspect = OUTAGES[what]
    got = await me(client, OPAQUE)
    assert got.status == 503
    assert got.headers["Retry-After"] == ("7" if what == "429" else "1")
    assert got.json() == {"error": "Service Unavailable"}
    logged = str([record.__dict__.get("fields") for record in caplog.records])
    assert issuer.url in logged  # which issuer, and why
    assert what.split()[0] in logged if what.isdigit() else "introspection" in logged or "larger than" in logged
    assert OPAQUE not in logged
    # It is not remembered: the next answer counts.
    issuer.introspect = issuer.about
    issuer.opaque(OPAQUE)
    assert (await me(client, OPAQUE)).status == 200


async def test_a_slow_issuer_has_a_deadline(client: Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introspection_room, "_CALL_SECONDS", 0.3)

    async def never(request: web.Request, token: str) -> Any:
        await asyncio.sleep(30)

    async def drips(request: web.Request, token: str) -> Any:
        response = web.StreamResponse()
        await response.prepare(request)
        for letter in GOOD:
            await response.write(letter.encode())
            await asyncio.sleep(0.1)
        return response

    for slow in (never, drips):
        issuer.introspect = slow
        began = time.monotonic()
        assert (await me(client, OPAQUE)).status == 503
        assert time.monotonic() - began < 3


async def test_an_issuer_that_closes_a_kept_connection_is_asked_again(client: Client, issuer: Issuer) -> None:
    issuer.opaque(OPAQUE)

    def hangs_up(request: web.Request, token: str) -> Any:
        if len(issuer.asked) == 2:
            assert request.transport is not None
            request.transport.close()
        return issuer.about(request, token)

    issuer.introspect = hangs_up
    assert (await me(client, OPAQUE)).status == 200
    assert (await me(client, OPAQUE)).status == 200
    assert len(issuer.asked) == 3


async def test_an_issuer_that_is_down_then_up(serve: Serve) -> None:
    port = unused_port()
    client = await served(serve, table(f"http://127.0.0.1:{port}"))
    assert (await me(client, OPAQUE)).status == 503
    async with oidc_kit.serve(port=port) as issuer:
        issuer.opaque(OPAQUE)
        for _ in range(100):
            if (await me(client, OPAQUE)).status == 200:
                break
            await asyncio.sleep(0.1)
        assert (await me(client, OPAQUE)).status == 200
    assert (await me(client, OPAQUE)).status == 503  # cache_seconds is 0


async def test_an_issuer_without_the_endpoint_is_not_ready(serve: Serve, issuer: Issuer) -> None:
    issuer.document["introspection_endpoint"] = DROP
    client = await served(serve, table(issuer))
    assert (await me(client, OPAQUE)).status == 503
    assert (await me(client, issuer.token())).status == 200  # its JWTs need no endpoint
    assert issuer.asked == []


@pytest.mark.parametrize("url", ["http://login.example/introspect", "ftp://a.example", "/introspect", 5, "https://u:p@a.example/", ""])
async def test_an_endpoint_that_is_no_safe_url_is_never_asked(serve: Serve, issuer: Issuer, url: Any) -> None:
    issuer.document["introspection_endpoint"] = url
    client = await served(serve, table(issuer))
    assert (await me(client, OPAQUE)).status == 503


async def test_the_endpoint_can_be_named(serve: Serve, issuer: Issuer) -> None:
    """For an issuer without a discovery document: its keys and its endpoint are in the settings."""
    issuer.document["issuer"] = "https://other.example"
    issuer.opaque(OPAQUE)
    client = await served(serve, table(issuer, jwks_uri=f"{issuer.url}/keys", introspection={"endpoint": f"{issuer.url}/introspect"}))
    assert (await me(client, OPAQUE)).status == 200
    client = await served(serve, table(issuer, jwks_uri=f"{issuer.url}/keys"))
    assert (await me(client, OPAQUE)).status == 503
    assert (await me(client, issuer.token())).status == 200


# Several issuers -------------------------------------------------------------------------------------------------------


async def test_each_issuer_sees_its_own_tokens_alone(serve: Serve) -> None:
    async with oidc_kit.serve() as one, oidc_kit.serve() as other:
        client = await served(
            serve,
            table(one, namespace="one", introspection={"prefix": "one_", "cache_seconds": 60}),
            table(other, namespace="other", introspection={"cache_seconds": 60}),
        )
        one.opaque("one_token")
        other.opaque("token")
        other.opaque("one_token", sub="mallory")  # it claims the other's token, and is never asked
        for _ in range(2):
            assert (await me(client, "one_token")).json()["user_id"] == "one|alice"
            assert (await me(client, "token")).json()["user_id"] == "other|alice"
        assert [token for token, _ in one.asked] == ["one_token"]
        assert [token for token, _ in other.asked] == ["token"]
        # The same text as a JWT's is another token: nothing that one issuer said is used for the other.
        assert reason(await me(client, "one_else")) == (401, "credential-rejected")
        assert [token for token, _ in other.asked] == ["token"]
        one.introspect = lambda request, token: {"active": True, **other.claims(iss=other.url)}
        assert reason(await me(client, "one_third")) == (401, "token-issuer")


async def test_a_prefix_can_be_that_of_another_providers_tokens(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, table(issuer, introspection={"prefix": "oat_"}))
    issuer.opaque("oat_1")
    assert (await me(client, "oat_1")).status == 200
    assert (await me(client, "else")).status == 401
    assert [token for token, _ in issuer.asked] == ["oat_1"]


A, B = "https://a.example", "https://b.example"
MISTAKES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "two that are asked about everything": (
        [table(A, namespace="a"), table(B, namespace="b")],
        f"oidc.issuers: '{A}' and '{B}' would both be asked about tokens that are opaque; give each its own introspection.prefix",
    ),
    "two with one prefix": (
        [table(A, namespace="a", introspection={"prefix": "x_"}), table(B, namespace="b", introspection={"prefix": "x_"})],
        f"'{A}' and '{B}' would both be asked about tokens that begin with 'x_'",
    ),
    "the prefix of API keys": ([table(A, introspection={"prefix": "gp_live"})], "introspection: prefix must not begin with gp_"),
    "no client_id": ([{**table(A), "introspection": {"client_secret": "x"}}], "introspection: client_id is missing"),
    "no secret": ([{**table(A), "introspection": {"client_id": "x"}}], "introspection: client_secret is missing: set one of"),
    "two secrets": ([table(A, introspection={"client_secret_env": "X"})], "introspection: client_secret is given twice"),
    "no such file": (
        [{**table(A), "introspection": {"client_id": "x", "client_secret_file": "/nowhere"}}], "client_secret_file names a file that cannot be read"
    ),
    "no such variable": (
        [{**table(A), "introspection": {"client_id": "x", "client_secret_env": "NO_SUCH_VARIABLE"}}], "client_secret_env holds no secret: one line"
    ),
    "a secret that HTTP Basic cannot carry": ([table(A, introspection={"client_secret": "canary-ü"})], "client_secret holds no secret: one line"),
    "a variable of ours": (
        [{**table(A), "introspection": {"client_id": "x", "client_secret_env": "GATEPOST_SECRET"}}], "client_secret_env must not begin with GATEPOST_"
    ),
    "no table": ([{**table(A), "introspection": "yes"}], "introspection must be a table"),
    "an unknown member": ([table(A, introspection={"cache": 5})], "unknown member 'cache'; the nearest known one is 'cache_seconds'"),
    "a negative cache": ([table(A, introspection={"cache_seconds": -1})], "cache_seconds must be a number of seconds from 0 to 3600"),
    "an endless cache": ([table(A, introspection={"cache_seconds": 3601})], "cache_seconds must be a number of seconds from 0 to 3600"),
    "an endpoint without TLS": ([table(A, introspection={"endpoint": "http://a.example"})], "endpoint must be a URL that starts with https://"),
    "clients": ([table(A, clients="maybe")], "clients must be refuse or accept, not 'maybe'"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_prevents_startup_with_one_line(make_app: MakeApp, what: str) -> None:
    tables, line = MISTAKES[what]
    with pytest.raises(ConfigError) as mistake:
        make_app({"providers": ["oidc"], "oidc.issuers": tables})
    assert line in str(mistake.value)
    assert "canary" not in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_the_secret_is_in_no_repr() -> None:
    (one,) = oidc_settings.read({"issuers": [table(A)]})
    assert "canary" not in f"{one} {one!r} {one.introspection!r}"


# Floods ----------------------------------------------------------------------------------------------------------------


async def test_forged_tokens_do_not_hammer_the_issuer(serve: Serve, issuer: Issuer) -> None:
    """5,000 forged tokens from one address: the address is limited, and few are asked about at once."""
    proxied = {"trusted_proxies": ["127.0.0.1/32"], "limits.address": "50/minute"}
    client = await served(serve, table(issuer), **proxied)
    issuer.opaque(OPAQUE)
    honest = {**bearer(OPAQUE), "X-Forwarded-For": "198.51.100.7"}
    neighbour = {**bearer(OPAQUE), "X-Forwarded-For": "203.0.113.9"}
    assert (await client.get("/api/me", neighbour)).status == 200
    under_way = most = 0

    async def counted(request: web.Request, token: str) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return issuer.about(request, token)

    issuer.introspect = counted
    places = asyncio.Semaphore(50)

    async def forged(number: int) -> int:
        async with places:
            headers = {**bearer(f"forged-{number}"), "X-Forwarded-For": "203.0.113.9"}
            return (await client.get("/api/me", headers)).status

    statuses = await asyncio.gather(*(forged(number) for number in range(5000)))
    assert set(statuses) <= {401, 429, 503}
    assert statuses.count(429) > 4800
    assert len(issuer.asked) < 200
    assert most <= introspection_room._AT_ONCE
    assert (await client.get("/api/me", honest)).status == 200
    assert (await client.get("/api/me", neighbour)).status == 200  # a token that was good is not refused for its neighbour's sake


async def test_a_flood_waits_in_a_bounded_queue(client: Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introspection_room, "_WAITING", 20)
    monkeypatch.setattr(introspection_room, "_QUEUE_SECONDS", 0.3)

    async def slowly(request: web.Request, token: str) -> Any:
        await asyncio.sleep(1)
        return {"active": False}

    issuer.introspect = slowly
    began = time.monotonic()
    statuses = [got.status for got in await asyncio.gather(*(me(client, f"forged-{number}") for number in range(60)))]
    assert statuses.count(503) >= 50
    assert len(issuer.asked) <= introspection_room._AT_ONCE
    assert time.monotonic() - began < 5
    # JWTs of the same issuer are verified without waiting for it.
    assert (await me(client, issuer.token())).status == 200


# Tokens that are bound to a key ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_seconds", [0, 60])
async def test_a_bound_opaque_token_needs_its_proof(serve: Serve, issuer: Issuer, cache_seconds: int) -> None:
    """RFC 9449 6.2: the issuer's answer names the key."""
    client = await served(serve, table(issuer, dpop="accept", introspection={"cache_seconds": cache_seconds}))
    url = f"http://127.0.0.1:{client.port}/api/me"
    holder, thief = Holder(), Holder(name="thief")
    issuer.opaque(OPAQUE, cnf={"jkt": holder.jkt}, token_type="DPoP")
    issuer.opaque("unbound")
    for _ in range(2):
        assert (await client.get("/api/me", holder.headers(OPAQUE, "GET", url))).status == 200
        assert reason(await me(client, OPAQUE)) == (401, "proof-missing")
        assert reason(await client.get("/api/me", thief.headers(OPAQUE, "GET", url))) == (401, "proof-rejected")
        assert (await me(client, "unbound")).status == 200
        assert reason(await client.get("/api/me", holder.headers("unbound", "GET", url))) == (401, "token-unbound")
    issuer.opaque("odd", cnf={"jkt": holder.jkt}, token_type="mac")
    assert reason(await client.get("/api/me", holder.headers("odd", "GET", url))) == (401, "token-type")
    issuer.opaque("claimed", token_type="DPoP")
    assert reason(await me(client, "claimed")) == (401, "token-type")
    got = await client.get("/api/me", holder.headers("nothing", "GET", url))
    assert reason(got) == (401, "credential-rejected")
    assert got.headers["WWW-Authenticate"].startswith('DPoP error="invalid_token"')


async def test_without_a_proof_the_issuer_is_not_asked(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, table(issuer, dpop="accept", introspection={"cache_seconds": 0}))
    issuer.opaque(OPAQUE, cnf={"jkt": Holder().jkt})
    assert reason(await client.get("/api/me", {"Authorization": f"DPoP {OPAQUE}"})) == (401, "proof-missing")
    assert issuer.asked == []


async def test_where_proofs_are_required_a_bearer_is_refused_however_often(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, table(issuer, dpop="required", introspection={"cache_seconds": 60}))
    issuer.opaque(OPAQUE)
    for _ in range(3):
        assert reason(await me(client, OPAQUE)) == (401, "token-unbound")
