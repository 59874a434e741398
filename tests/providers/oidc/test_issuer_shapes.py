"""Tokens and key sets as real issuers make them, really signed, on a server with the page's own examples as its settings."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kits import oidc as kit
from kits.oidc import DROP, Issuer, key

from providers.oidc.provider import OidcProvider
from tests.conftest import Client, Serve
from tests.providers.oidc.test_oidc import SHOWN, authorization, examples

TENANT = "33333333-3333-3333-3333-333333333333"
LISTED = "22222222-2222-2222-2222-222222222222"
# How each product's key set describes its keys (a member that is None is left out), and the rest of its tokens' headers.
KEY_SETS: dict[str, dict[str, Any]] = {
    "Auth0": {"alg": "RS256", "x5t": "dGh1bWI", "x5c": ["MIIC"]},
    "Keycloak": {"alg": "RS256", "x5t#S256": "dGh1bWI", "x5c": ["MIIC"]},
    "Okta": {"alg": "RS256"},
    "Entra ID": {"x5t": "dGh1bWI", "x5c": ["MIIC"], "issuer": f"https://login.microsoftonline.com/{TENANT}/v2.0"},
    "Cognito": {"alg": "RS256"},
}
HEADS: dict[str, dict[str, Any]] = {"Entra ID": {"x5t": "dGh1bWI", "nonce": DROP}, "Cognito": {}, "Auth0": {}, "Okta": {}, "Keycloak": {}}
# Keycloak publishes the key for encryption beside the one for signatures; others keep the key that comes next there.
BESIDE = {"Keycloak": {"kid": "enc", "use": "enc", "alg": "RSA-OAEP"}, "Auth0": {"kid": "next", "use": "sig", "alg": "RS256"}}
# A client's own token (client credentials), and the ID token that the same sign-in returns; both replace members of the user's.
CLIENTS: dict[str, dict[str, Any]] = {
    "Auth0": {"sub": "c1@clients", "azp": "c1", "client_id": "c1", "gty": "client-credentials", "org_id": DROP},
    "Keycloak": {"sub": "5c1e", "azp": "job", "client_id": "job", "preferred_username": "service-account-job", "sid": DROP},
    "Okta": {"sub": "0oa1abcd", "uid": DROP},
    "Entra ID": {"sub": "o1", "oid": "o1", "scp": DROP, "idtyp": "app"},
    "Cognito": {"sub": "1example23456789", "cognito:groups": DROP},
}
ID_TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Auth0": ({"typ": "JWT"}, {"aud": "c1", "nonce": "n", "sid": "s", "client_id": DROP, "scope": DROP}),
    "Keycloak": ({}, {"typ": "ID", "aud": "gatepost", "at_hash": "h", "nonce": "n"}),
    "Okta": ({}, {"aud": "0oa1abcd", "cid": DROP, "uid": DROP, "at_hash": "h", "nonce": "n", "amr": ["pwd"]}),
    "Entra ID": ({}, {"azp": DROP, "scp": DROP, "nonce": "n", "preferred_username": "a@b.example"}),
    "Cognito": ({}, {"token_use": "id", "aud": "1example23456789", "client_id": DROP, "at_hash": "h"}),
}


@pytest.fixture
async def keys() -> AsyncIterator[Issuer]:
    """The key set on loopback; the issuers' own addresses are never asked."""
    async with kit.serve() as made:
        made.keys = {}
        yield made


def public(kid: str, name: str, **members: Any) -> dict[str, Any]:
    return {**key("RS256", name).as_dict(private=False), "kid": kid, "use": "sig", **members}


def token(product: str, head: dict[str, Any] | None = None, **members: Any) -> str:
    """A user's token of this product, signed with its key; `members` replace or add, DROP takes away."""
    usual, claims, _ = SHOWN[product]
    now = int(time.time())
    header = {"alg": "RS256", "kid": f"{product}-1", **usual, **HEADS[product], **(head or {})}
    payload = {"iss": examples()[product]["issuer"], "iat": now, "nbf": now, "exp": now + 3600, **claims, **members}
    return kit.sign(kit.without(header), json.dumps(kit.without(payload)), key("RS256", product))


async def served(serve: Serve, keys: Issuer, *products: str, **members: Any) -> Client:
    for product in products:
        if product in BESIDE:
            keys.odd.append(public("next", "beside") | BESIDE[product])
        keys.odd.append(public(f"{product}-1", product, **KEY_SETS[product]))
    tables = [{**examples()[product], "jwks_uri": f"{keys.url}/keys", **members} for product in products]
    return await serve({"providers": ["oidc", "api_key"], "oidc.issuers": tables})


@pytest.mark.parametrize("product", SHOWN)
async def test_a_user_a_client_and_an_id_token(serve: Serve, keys: Issuer, product: str) -> None:
    client = await served(serve, keys, product)
    wanted = SHOWN[product][2]
    got = await client.get("/api/me", authorization(token(product)))
    assert got.status == 200, got.raw
    me = got.json()
    for name, value in wanted.items():
        assert me[name] == (list(value) if isinstance(value, tuple) else value), name
    assert (await client.get("/api/data", authorization(token(product)))).status == 200

    own = authorization(token(product, **CLIENTS[product]))
    got = await client.get("/api/me", own)
    assert (got.status, got.json().get("user_id", "absent")) == (200, None), got.raw
    got = await client.get("/api/data", own)
    assert (got.status, got.json()["reason"]) == (403, "user")

    head, members = ID_TOKENS[product]
    got = await client.get("/api/me", authorization(token(product, head, **members)))
    assert got.status == 401
    assert got.json()["reason"] in ("token-type", "token-audience", "token-claims")


@pytest.mark.parametrize("product", SHOWN)
async def test_its_neighbours(serve: Serve, keys: Issuer, product: str, caplog: pytest.LogCaptureFixture) -> None:
    """A slash more or less in `iss`, the other form of `aud`, the other name for scopes, another tenant."""
    caplog.set_level(logging.INFO, "gatepost")
    client = await served(serve, keys, product)
    issuer = examples()[product]["issuer"]
    other = issuer.rstrip("/") if issuer.endswith("/") else issuer + "/"
    for iss in (other, issuer.upper(), issuer.replace("https://", "http://")):
        got = await client.get("/api/me", authorization(token(product, iss=iss)))
        assert (got.status, got.json()["reason"]) == (401, "credential-rejected")
        line = caplog.records[-1].fields["detail"]  # type: ignore[attr-defined]
        assert repr(iss) in line
        assert repr(issuer) in line
    claim = examples()[product].get("audience_claim", "aud")
    audience = examples()[product]["audience"]
    for aud in (audience, [audience], ["https://other.example", audience]):
        assert (await client.get("/api/me", authorization(token(product, **{claim: aud})))).status == 200
    for aud in (audience + "/", audience.upper() + "X", [], ["https://other.example"], None, 7, {audience: True}):
        got = await client.get("/api/me", authorization(token(product, **{claim: aud})))
        assert (got.status, got.json()["reason"]) == (401, "token-audience")
    got = await client.get("/api/me", authorization(token(product, **{claim: "https://other.example"})))
    assert got.status == 401
    assert "'https://other.example', not " + repr(audience) in caplog.records[-1].fields["detail"]  # type: ignore[attr-defined]
    for scopes in ("a b", ["a", "b"]):
        name = "scp" if product in ("Okta", "Entra ID") else "scope"
        got = await client.get("/api/me", authorization(token(product, **{name: scopes})))
        assert got.json()["scopes"] == ["a", "b"]


async def test_all_of_them_on_one_server(serve: Serve, keys: Issuer) -> None:
    """One key set has the keys of all, and yet a token is its issuer's: by `iss`, with that issuer's own rules."""
    client = await served(serve, keys, *SHOWN)
    for product in SHOWN:
        got = await client.get("/api/me", authorization(token(product)))
        assert (got.status, got.json()["user_id"]) == (200, SHOWN[product][2]["user_id"])


NESTED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a path": ("realm_access.roles", {"realm_access": {"roles": ["a"]}}, ["org:a"]),
    "a client of Keycloak's": ("resource_access.my.api.roles", {"resource_access": {"my.api": {"roles": ["a"]}}}, ["org:a"]),
    "a URL": ("https://example.com/roles", {"https://example.com/roles": ["a", "b"]}, ["org:a", "org:b"]),
    "a URL with a path into it": ("https://example.com/app.roles", {"https://example.com/app": {"roles": ["a"]}}, ["org:a"]),
    "a URL before a path that is spelled alike": (
        "https://example.com/roles", {"https://example": {"com/roles": ["x"]}, "https://example.com/roles": ["a"]}, ["org:a"],
    ),
    "a URN": ("urn:zitadel:iam:org:project:roles", {"urn:zitadel:iam:org:project:roles": "a b"}, ["org:a", "org:b"]),
    "a colon": ("cognito:groups", {"cognito:groups": ["a"]}, ["org:a"]),
    "words": ("perms", {"perms": "a  b"}, ["org:a", "org:b"]),
    "an empty list": ("perms", {"perms": []}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", NESTED)
async def test_nested_and_namespaced_claims(serve: Serve, keys: Issuer, case: str) -> None:
    """Where roles are, in each form in which issuers write them. The claims come out of `/api/me` as they went in."""
    name, claims, wanted = NESTED[case]
    client = await served(serve, keys, "Auth0", claims={"org_id": "https://example.com/org.id", "org_permissions": name})
    deep = {"https://example.com/org": {"id": "o1"}, "deep": {"list": [{"a": [1, 2.5, None, True]}], "https://x.example/y": {}}}
    got = await client.get("/api/me", authorization(token("Auth0", org_id=DROP, **deep, **claims)))
    me = got.json()
    assert (got.status, me["org_id"], me["org_permissions"]) == (200, "auth0|o1", wanted)
    assert {name: me["claims"][name] for name in deep} == deep


@pytest.mark.parametrize(
    "claims",
    [{"realm_access": ["roles"]}, {"realm_access": "roles"}, {"realm_access": None}, {"realm_access": {}}, {"realm_access": {"Roles": ["a"]}},
     {}, {"realm_access": {"roles": None}}],
    ids=str,
)  # fmt: skip
async def test_a_path_that_leads_nowhere_gives_no_permission(serve: Serve, keys: Issuer, claims: dict[str, Any]) -> None:
    client = await served(serve, keys, "Keycloak")
    got = await client.get("/api/me", authorization(token("Keycloak", **{"realm_access": DROP, **claims})))
    assert (got.status, got.json()["org_permissions"]) == (200, None)


@pytest.mark.parametrize("roles", [{"a": {}}, 7, True, [["a"]], [{"name": "a"}], ["a", None]], ids=str)
async def test_roles_of_another_form_are_refused(serve: Serve, keys: Issuer, roles: Any) -> None:
    client = await served(serve, keys, "Keycloak")
    got = await client.get("/api/me", authorization(token("Keycloak", realm_access={"roles": roles})))
    assert (got.status, got.json()["reason"]) == (401, "token-claims")


# An `issuer` that is no token's `iss` -> what the one line at startup says.
NEVER: dict[str, str] = {
    "https://login.microsoftonline.com/common/v2.0": "no token has 'common' in its `iss`",
    "https://login.microsoftonline.com/organizations/v2.0": "no token has 'organizations' in its `iss`",
    "https://login.microsoftonline.com/consumers/v2.0": "no token has 'consumers' in its `iss`",
    "https://login.microsoftonline.us/common/v2.0": "no token has 'common' in its `iss`",
    "https://sts.windows.net/common/": "no token has 'common' in its `iss`",
    "https://login.microsoftonline.com/acme.onmicrosoft.com/v2.0": "by its domain 'acme.onmicrosoft.com'",
    "https://login.microsoftonline.com/{tenantid}/v2.0": "placeholder",
    "https://login.microsoftonline.com/<tenant-id>/v2.0": "placeholder",
    "https://YOUR_DOMAIN/": "placeholder",
    "https://your-tenant.eu.auth0.com/": "placeholder",
    "https://{yourOktaDomain}/oauth2/default": "placeholder",
    "https://login.acme.example/realms/$REALM": "placeholder",
    "https://login.acme.example/.well-known/openid-configuration": "the issuer ends before /.well-known",
    "https://acme.eu.auth0.com/.well-known/jwks.json": "the issuer ends before /.well-known",
    "https://login.acme.example/jwks.json": "the issuer ends before /jwks.json",
    "https://acme.eu.auth0.com/oauth/token": "the issuer ends before /oauth/token",
    "https://acme.okta.com/oauth2/default/v1/keys": "the issuer ends before /v1/keys",
    "https://login.acme.example/realms/acme/protocol/openid-connect/certs": "the issuer ends before /protocol/openid-connect/certs",
    f"https://login.microsoftonline.com/{TENANT}/discovery/v2.0/keys": "the issuer ends before /discovery/v2.0/keys",
    f"https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/authorize": "the issuer ends before /oauth2/v2.0/authorize",
    "accounts.google.com": "must be a URL that starts with https://",
}


@pytest.mark.parametrize("issuer", NEVER)
def test_an_issuer_that_no_token_names_prevents_startup(issuer: str) -> None:
    with pytest.raises(ValueError) as caught:
        OidcProvider({"issuers": [{"issuer": issuer, "audience": "x"}]})
    assert NEVER[issuer] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("issuer", [
    f"https://login.microsoftonline.com/{TENANT}/v2.0", f"https://sts.windows.net/{TENANT}/", "https://accounts.google.com",
    "https://acme.b2clogin.com/33333333-3333-3333-3333-333333333333/v2.0/", "https://yourcompany.okta.com", "https://acme.okta.com/oauth2/default",
    "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Example1", "https://securetoken.google.com/acme", "https://a.supabase.co/auth/v1",
    "https://login.acme.example/realms/acme", "https://login.acme.example/keys", "https://login.acme.example/oauth2",
    "https://login.acme.example/v1/tokens", "https://login.acme.example/jwks-prod", "https://login.acme.example/v1/token/acme",
])  # fmt: skip
def test_issuers_that_exist_are_taken_as_they_are(issuer: str) -> None:
    assert OidcProvider({"issuers": [{"issuer": issuer, "audience": "x"}]}).issuers == {issuer}


@pytest.mark.parametrize(("named", "said"), [
    ("{url}/", "it names '{url}/'; if that is yours, write it exactly so in place of '{url}'"),
    ("https://login.microsoftonline.com/{{tenantid}}/v2.0", "which is no issuer of tokens"),
    ("x" * 201, "it names none"), (7, "it names none"), (DROP, "it names none"),
])  # fmt: skip
async def test_a_document_of_another_issuer_is_named(serve: Serve, keys: Issuer, caplog: pytest.LogCaptureFixture, named: Any, said: str) -> None:
    """A slash too many or too few: the discovery document says how the issuer is written, and the log says it on."""
    keys.document = {"issuer": named.format(url=keys.url) if isinstance(named, str) else named}
    await serve({"providers": ["oidc"], "oidc.issuers": [{"issuer": keys.url, "audience": kit.AUDIENCE}]})
    lines = [record.getMessage() for record in caplog.records if "another issuer's" in record.getMessage()]
    assert lines
    assert said.format(url=keys.url) in lines[0]
