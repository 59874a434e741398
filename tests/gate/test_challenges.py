"""`resource.url`: challenges that tell a client how to get in, and the metadata that they name (RFC 9728)."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from aiohttp import web
from kits.oidc_provider import oidc_provider

from server import CredentialRejected, Forbidden, Identity, hookimpl, public, requires, signed_in
from server.commands.explain import explain
from server.http.errors import Unauthorized
from server.settings.setting import ConfigError
from tests.conftest import ALICE, MakeApp, Serve, plugin

URL = "https://api.acme.example"
WELL_KNOWN = "/.well-known/oauth-protected-resource"
PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')


@requires(scopes=["todos:read", "todos:write"])
async def todos(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


@requires(scopes=["todos:read"], user=True)
async def one(request: web.Request) -> web.Response:
    return web.json_response({"ok": True})


ROUTES = plugin(web.get("/api/todos", todos), web.post("/api/todos/{id}", one))


def parameters(challenge: str) -> dict[str, str]:
    assert challenge.startswith("Bearer ")
    return dict(PARAMETER.findall(challenge))


# Not set ---------------------------------------------------------------------------------------------------------------


async def test_without_the_setting_nothing_changes(serve: Serve) -> None:
    client = await serve(extra={"acme": ROUTES})
    assert (await client.get("/api/todos")).headers.getall("WWW-Authenticate") == ["Bearer"]
    bad = await client.get("/api/todos", {"Authorization": "Bearer gp_nothing"})
    assert bad.headers.getall("WWW-Authenticate") == ['Bearer error="invalid_token"']
    scope = 'Bearer error="insufficient_scope", scope="todos:read todos:write"'
    assert (await client.get("/api/todos", ALICE)).headers.getall("WWW-Authenticate") == [scope]
    assert (await client.get(WELL_KNOWN)).status == 401
    assert (await client.get(WELL_KNOWN, ALICE)).status == 404


# Challenges ------------------------------------------------------------------------------------------------------------


async def test_challenges_name_the_metadata_and_the_scopes(serve: Serve) -> None:
    client = await serve({"resource.url": URL}, extra={"acme": ROUTES})
    metadata = f"{URL}{WELL_KNOWN}"
    missing = await client.get("/api/todos?x=1")
    assert missing.status == 401
    assert missing.json() == {"error": "Unauthorized", "reason": "credential-missing"}
    (challenge,) = missing.headers.getall("WWW-Authenticate")
    assert challenge == f'Bearer scope="todos:read todos:write", resource_metadata="{metadata}/api/todos"'
    bad = await client.get("/api/todos", {"Authorization": "Bearer gp_nothing"})
    (challenge,) = bad.headers.getall("WWW-Authenticate")
    assert challenge.startswith('Bearer error="invalid_token", scope="todos:read todos:write", resource_metadata=')
    short = await client.get("/api/todos", ALICE)
    assert (short.status, short.json()["reason"]) == (403, "scope")
    (challenge,) = short.headers.getall("WWW-Authenticate")
    assert challenge == f'Bearer error="insufficient_scope", scope="todos:read todos:write", resource_metadata="{metadata}/api/todos"'
    # A route without scopes, one that does not exist, another method, a parameter.
    for method, path in (("GET", "/api/me"), ("GET", "/api/nothing"), ("DELETE", "/api/todos"), ("POST", "/api/todos/7")):
        got = await client.send(method, path)
        (challenge,) = got.headers.getall("WWW-Authenticate")
        assert parameters(challenge)["resource_metadata"] == metadata + path
        assert parameters(challenge).get("scope") == ("todos:read" if path.endswith("7") else None)
    # A refusal that is no challenge gets none.
    assert "WWW-Authenticate" not in (await client.get("/api/invoices", ALICE)).headers


async def test_challenges_hold_for_problem_details_and_head(serve: Serve) -> None:
    client = await serve({"resource.url": URL, "errors.format": "problem"}, extra={"acme": ROUTES})
    for method in ("GET", "HEAD"):
        got = await client.send(method, "/api/todos")
        assert (got.status, got.headers["Content-Type"]) == (401, "application/problem+json")
        assert parameters(got.headers["WWW-Authenticate"])["scope"] == "todos:read todos:write"
        assert got.headers["Cache-Control"] == "no-store"
        assert len(got.headers.getall("X-Request-Id")) == 1


async def test_the_host_header_decides_nothing(serve: Serve) -> None:
    client = await serve({"resource.url": URL}, extra={"acme": ROUTES})
    forwarded = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    got = await client.get("/api/todos", forwarded)
    assert "evil" not in got.headers["WWW-Authenticate"]
    assert (await client.get(WELL_KNOWN, forwarded)).json()["resource"] == URL


@pytest.mark.parametrize(
    "path",
    ['/api/"x"', '/api/x",evil="1', "/api/<b>", "/api/{x}", "/api/" + "a" * 4000, "/api/é".encode().decode("latin-1"), "//evil.example/x"],
)
async def test_odd_paths_are_not_repeated_in_a_challenge(serve: Serve, path: str) -> None:
    client = await serve({"resource.url": URL}, extra={"acme": ROUTES})
    async with client.wire() as wire:
        await wire.send(f"GET {path}")
        status, headers, _ = await wire.answer()
    assert status in (400, 401)
    if status == 401:
        challenge = headers["www-authenticate"]
        assert challenge in (f'Bearer resource_metadata="{URL}{WELL_KNOWN}"', f'Bearer resource_metadata="{URL}{WELL_KNOWN}{path}"')
        assert challenge.count('"') == 2
        assert len(challenge) < 700


@pytest.mark.parametrize("scope", ['a"b', "a\r\nSet-Cookie: x=1", "a\\", "a b", "a,b", "ä"])
def test_no_scope_can_break_out_of_a_challenge(scope: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        requires(scopes=[scope])


async def test_a_challenge_of_a_handlers_own_stays(serve: Serve) -> None:
    @signed_in
    async def basic(request: web.Request) -> web.Response:
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": 'Basic realm="x"'})

    @signed_in
    async def own(request: web.Request) -> web.Response:
        raise Forbidden("scope", headers={"WWW-Authenticate": 'Bearer error="insufficient_scope", scope="mine"'})

    @signed_in
    async def plain(request: web.Request) -> web.Response:
        raise web.HTTPUnauthorized

    client = await serve({"resource.url": URL}, extra={"acme": plugin(web.get("/a", basic), web.get("/b", own), web.get("/c", plain))})
    assert (await client.get("/a", ALICE)).headers.getall("WWW-Authenticate") == ['Basic realm="x"']
    assert parameters((await client.get("/b", ALICE)).headers["WWW-Authenticate"])["scope"] == "mine"
    assert (await client.get("/c", ALICE)).headers["WWW-Authenticate"] == f'Bearer resource_metadata="{URL}{WELL_KNOWN}/c"'


# Challenges of providers -----------------------------------------------------------------------------------------------


class Acme:
    """A provider with a scheme of its own."""

    reads = ("Authorization",)
    challenge = 'Acme algs="A1"'
    resource_metadata = {"acme_algs_supported": ["A1"], "resource": "https://evil.example", "acme_none": []}  # noqa: RUF012

    async def authenticate(self, request: web.Request) -> Identity | None:
        words = request.headers.get("Authorization", "")
        if words == "Acme nonce":
            raise CredentialRejected(challenge='Acme error="use_nonce", algs="A1"', headers={"Acme-Nonce": "n1"})
        if words == "Acme dpop":
            raise CredentialRejected(challenge='DPoP algs="ES256"')
        if words.startswith("Acme "):
            raise CredentialRejected
        return None


def with_acme(*routes: web.RouteDef) -> object:
    hooks = {"register_providers": lambda: {"acme": lambda settings: Acme()}, "register_handlers": lambda: routes}
    return SimpleNamespace(**{name: hookimpl(hook, specname=name) for name, hook in hooks.items()})


@signed_in
async def ended(request: web.Request) -> web.Response:
    raise Unauthorized("session-revoked")


@signed_in
async def unauthorized(request: web.Request) -> web.Response:
    raise web.HTTPUnauthorized


async def test_a_401_after_admission_has_the_challenges_of_providers_too(serve: Serve) -> None:
    for settings in ({}, {"resource.url": URL}):
        own = with_acme(web.get("/ended", ended), web.get("/plain", unauthorized))
        client = await serve({"providers": ["acme", "stub"], **settings}, extra={"acme": own})
        for path, error in {"/ended": 'error="invalid_token"', "/plain": ""}.items():
            (challenge,) = (await client.get(path, ALICE)).headers.getall("WWW-Authenticate")
            usual = ", ".join(filter(None, [error, f'resource_metadata="{URL}{WELL_KNOWN}{path}"' if settings else ""]))
            assert challenge == f"Bearer {usual}".rstrip() + ', Acme algs="A1"'


async def test_a_provider_adds_its_challenge_to_every_401(serve: Serve) -> None:
    for settings in ({}, {"resource.url": URL}):
        client = await serve({"providers": ["acme", "stub"], **settings}, extra={"acme": with_acme(web.get("/api/todos", todos))})
        scope = 'scope="todos:read todos:write"'
        parameters = f'{scope}, resource_metadata="{URL}{WELL_KNOWN}/api/todos"'
        for headers in ({}, {"Authorization": "Acme x"}, {"Authorization": "Stub x"}):
            (challenge,) = (await client.get("/api/todos", headers)).headers.getall("WWW-Authenticate")
            error = 'error="invalid_token"' if headers else ""
            usual = ", ".join(filter(None, [error, parameters if settings else ""]))
            assert challenge == f"Bearer {usual}".rstrip() + ', Acme algs="A1"'
        got = await client.get("/api/todos", {"Authorization": "Acme nonce"})
        assert got.headers["WWW-Authenticate"] == 'Acme error="use_nonce", algs="A1"'
        assert got.headers["Acme-Nonce"] == "n1"
        got = await client.get("/api/todos", {"Authorization": "Acme dpop"})
        assert got.headers["WWW-Authenticate"] == 'DPoP algs="ES256"' + (f", {parameters}" if settings else "")
        assert "Acme" not in (await client.get("/api/todos", ALICE)).headers["WWW-Authenticate"]  # 403: the caller is known


async def test_a_provider_adds_to_the_metadata_and_replaces_nothing(serve: Serve) -> None:
    client = await serve({"providers": ["acme", "stub"], "resource.url": URL}, extra={"acme": with_acme()})
    assert (await client.get(WELL_KNOWN)).json() == {
        "resource": URL, "bearer_methods_supported": ["header"], "acme_algs_supported": ["A1"],
    }  # fmt: skip


# Metadata --------------------------------------------------------------------------------------------------------------

ISSUERS = [
    {"issuer": "https://login.acme.example", "audience": URL, "namespace": "acme"},
    {"issuer": "https://other.example/realm/", "audience": URL, "namespace": "other"},
]
CLERK = {"clerk.issuer": "https://clerk.acme.example", "clerk.jwt_key": None}


async def test_the_metadata_names_every_issuer_and_scope(serve: Serve) -> None:
    client = await serve(
        {"providers": ["clerk", "oidc", "stub"], "oidc.issuers": ISSUERS, "resource.url": URL,
         "clerk.publishable_key": "pk_test_Y2xlcmsuYWNtZS5leGFtcGxlJA"},
        extra={"acme": ROUTES},
    )  # fmt: skip
    got = await client.get(WELL_KNOWN)
    assert got.status == 200
    assert got.json() == {
        "resource": URL,
        "authorization_servers": ["https://clerk.acme.example", "https://login.acme.example", "https://other.example/realm/"],
        "scopes_supported": ["todos:read", "todos:write"],
        "bearer_methods_supported": ["header"],
    }


async def test_the_resource_is_the_url_asked_for(serve: Serve) -> None:
    client = await serve({"resource.url": URL}, extra={"acme": ROUTES})
    for path in ("/api/todos", "/api/mcp", "/api/nothing", "/a%20b", "/x/", "/x//y"):
        got = await client.get(WELL_KNOWN + path)
        assert (got.status, got.json()["resource"]) == (200, URL + path)
    for path in ("", "/", "?x=1"):
        assert (await client.get(WELL_KNOWN + path)).json()["resource"] == URL
    assert (await client.send("HEAD", WELL_KNOWN)).status == 200
    for method, path in (("POST", WELL_KNOWN), ("GET", WELL_KNOWN + "x"), ("GET", "/.well-known/else")):
        assert (await client.send(method, path)).status == 401
    assert (await client.get(WELL_KNOWN + "/..%2fx")).status == 400


async def test_an_api_below_a_path(serve: Serve) -> None:
    client = await serve({"resource.url": f"{URL}/v1/"}, extra={"acme": ROUTES})
    challenge = (await client.get("/api/todos")).headers["WWW-Authenticate"]
    assert parameters(challenge)["resource_metadata"] == f"{URL}{WELL_KNOWN}/v1/api/todos"
    assert (await client.get(f"{WELL_KNOWN}/v1/api/todos")).json()["resource"] == f"{URL}/v1/api/todos"
    assert (await client.get(f"{WELL_KNOWN}/v1")).json()["resource"] == f"{URL}/v1/"
    assert (await client.get(WELL_KNOWN)).json()["resource"] == f"{URL}/v1/"
    assert (await client.get(f"{WELL_KNOWN}/v2/api/todos")).status == 404
    assert (await client.get(f"{WELL_KNOWN}/v11")).status == 404


async def test_pages_of_any_origin_read_the_metadata(serve: Serve) -> None:
    client = await serve({"resource.url": URL, "cors_origins": ["https://app.acme.example"]})
    for origin in (None, "https://elsewhere.example"):
        got = await client.get(WELL_KNOWN, {"Origin": origin} if origin else {})
        assert got.headers.getall("Access-Control-Allow-Origin") == ["*"]
        assert "Access-Control-Allow-Credentials" not in got.headers
        assert got.headers["Cache-Control"] == "public, max-age=300"
    got = await client.get(WELL_KNOWN, {"Origin": "https://app.acme.example"})
    assert got.headers.getall("Access-Control-Allow-Origin") == ["https://app.acme.example"]


async def test_no_credential_is_read_for_the_metadata(serve: Serve) -> None:
    client = await serve({"resource.url": URL})
    assert (await client.get(WELL_KNOWN, {"Authorization": "Bearer gp_wrong"})).status == 200


async def test_neither_key_alone_opens_a_route(serve: Serve) -> None:
    """A plugin's public route at another well-known path still needs the operator's pattern."""

    @public
    async def wide(request: web.Request) -> web.Response:
        return web.json_response({})

    client = await serve({"resource.url": URL}, extra={"acme": plugin(web.get("/.well-known/acme", wide))})
    assert (await client.get("/.well-known/acme")).status == 401


def test_a_plugin_cannot_take_the_path(make_app: MakeApp) -> None:
    with pytest.raises(ConfigError, match=f"GET {WELL_KNOWN}: it can never be reached"):
        make_app({"resource.url": URL}, {"acme": plugin(web.get(WELL_KNOWN, todos))})


@pytest.mark.parametrize(
    "url",
    ["api.acme.example", "http://api.acme.example", "https://", "https://u@api.example", "https://api.example?x=1", "https://a.example#x",
     'https://a.example/"', "https://a.example/a b", "https://a.example:port", "ftp://a.example", "https://é.example", "https://a.example\\b"],
)  # fmt: skip
def test_a_url_that_is_none_prevents_startup(make_app: MakeApp, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^resource\.url: "):
        make_app({"resource.url": url})


def test_plain_http_to_this_machine_is_permitted(make_app: MakeApp) -> None:
    make_app({"resource.url": "http://127.0.0.1:8080"})


# From nothing but the 401 ----------------------------------------------------------------------------------------------


async def test_a_client_that_knows_nothing_gets_in(serve: Serve) -> None:
    """It follows the 401 to the metadata, the metadata to the issuer, and comes back with a token that has the scopes."""
    async with oidc_provider(resource=f"{URL}/api/todos") as provider:
        issuer = {"issuer": provider.issuer, "audience": [URL, f"{URL}/api/todos"]}
        client = await serve({"providers": ["oidc"], "oidc.issuers": [issuer], "resource.url": URL}, extra={"acme": ROUTES})
        refused = await client.get("/api/todos")
        assert refused.status == 401
        asked = parameters(refused.headers["WWW-Authenticate"])
        metadata = (await client.get(asked["resource_metadata"].removeprefix(URL))).json()
        assert metadata["resource"] == f"{URL}/api/todos"  # RFC 9728 3.3: the URL that was called
        assert metadata["authorization_servers"] == [provider.issuer]
        assert set(asked["scope"].split()) <= set(metadata["scopes_supported"])
        token = await provider.user_token("alice", scope=asked["scope"], resource=metadata["resource"])
        assert (await client.get("/api/todos", {"Authorization": f"Bearer {token}"})).status == 200
        less = await provider.user_token("alice", scope="todos:read", resource=metadata["resource"])
        got = await client.get("/api/todos", {"Authorization": f"Bearer {less}"})
        assert (got.status, parameters(got.headers["WWW-Authenticate"])["scope"]) == (403, asked["scope"])
        assert json.loads(got.raw)["reason"] == "scope"


# The document, and the command ----------------------------------------------------------------------------------------


async def test_the_document_has_the_metadata(serve: Serve) -> None:
    client = await serve({"resource.url": URL})
    document = (await client.get("/api/public/openapi.json")).json()
    for path in (WELL_KNOWN, WELL_KNOWN + "/{path}"):
        operation = document["paths"][path]["get"]
        assert (operation["security"], operation["x-gatepost-access"]["public"]) == ([], True)
    assert (await explain(client.app, "GET", f"{WELL_KNOWN}/api/me"))["why"] == "declared @public, and the setting resource.url opens it"
    assert WELL_KNOWN not in (await (await serve()).get("/api/public/openapi.json")).json()["paths"]
