"""`@public(optional=True)`: anyone may call, and a caller who shows a credential is known as on any other route."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest
from aiohttp import web
from kits import oidc
from kits import tokens as kit
from kits.app import Reply, ask, build_app, provider_plugin, routes_plugin, serving
from kits.webhooks import SETTINGS, deliver, sweep, user

from server import (
    CredentialRejected,
    Identity,
    Unavailable,
    answer,
    body,
    caller_of,
    identity_of,
    public,
    read,
    requires,
    scoped,
    signed_in,
)
from server.app import DISPATCHER, METRICS, TABLE
from server.commands.explain import explain
from server.commands.routes import as_text
from server.openapi.document import DOCUMENT
from tests.conftest import ALICE, BAD_CREDENTIALS, BOB, ROBOT_A, Client, Serve, TestDatabase, plugin, stub
from tests.promises.test_public_property import TRICKS

PATTERNS = ["/api/webhooks(.*)", "/api/health", "/api/public(.*)", "/open(.*)"]
TAG = '"v1"'
routes = web.RouteTableDef()


def named(request: web.Request) -> dict[str, Any]:
    identity = caller_of(request)
    return {"user": identity.user_id if identity else None, "type": identity.token_type if identity else None}


@routes.get("/open/who")
@public(optional=True)
async def who(request: web.Request) -> web.Response:
    return answer(named(request))


@routes.post("/open/who")
@public(optional=True)
async def post_who(request: web.Request) -> web.Response:
    return answer(named(request))


@routes.get("/open/page")
@public(optional=True)
async def open_page(request: web.Request) -> web.StreamResponse:
    headers = {"ETag": TAG, "Cache-Control": "public, max-age=60"}
    if request.headers.get("If-None-Match") == TAG:
        return web.Response(status=304, headers=headers)
    if "file" in request.query:
        return web.FileResponse(__file__, headers=headers)
    if "stream" in request.query and request.method == "GET":
        stream = web.StreamResponse(headers=headers)
        await stream.prepare(request)
        await stream.write_eof(b"x")
        return stream
    return answer(named(request), headers=headers)


@routes.get("/open/tag")
@public(optional=True)
async def tagged(request: web.Request) -> web.Response:
    if request.headers.get("If-None-Match") == TAG:
        return web.Response(status=304, headers={"ETag": TAG})
    return answer(named(request), headers={"ETag": TAG})


@routes.get("/open/mine")
@public(optional=True)
async def mine(request: web.Request) -> web.Response:
    identity_of(request)
    return answer(named(request))


@routes.get("/open/rows")
@public(optional=True)
async def rows(request: web.Request) -> web.Response:
    return answer(await read(request, "SELECT name FROM data ORDER BY name"))


@routes.post("/open/rows")
@public(optional=True)
async def insert(request: web.Request) -> web.Response:
    given = await body(request, dict[str, str])
    identity = caller_of(request)
    if identity is None:
        return answer({"id": None}, 201)
    async with scoped(request) as db:
        row = await db.fetchval("INSERT INTO data (user_id, org_id, name) VALUES ($1, $2, $3) RETURNING id", identity.user_id, identity.org_id, given["name"])
    return answer({"id": str(row)}, 201)


@routes.get("/open/admin")
@public(optional=True)
async def admin(request: web.Request) -> web.Response:
    async with scoped(request, admin=True):
        return answer(named(request))


@routes.get("/open/machines")
@public(optional=True, accepts=["session_token", "m2m_token"])
async def machines(request: web.Request) -> web.Response:
    return answer(named(request))


@routes.get("/open/plain")
@public
async def plain(request: web.Request) -> web.Response:
    return answer(named(request))


@routes.get("/open/brackets")
@public()
async def brackets(request: web.Request) -> web.Response:
    return answer(named(request))


@routes.get("/closed")
@public(optional=True)
async def uncovered(request: web.Request) -> web.Response:
    return answer(named(request))


@routes.get("/locked")
@signed_in
async def locked(request: web.Request) -> web.Response:
    return answer(named(request))


NOBODY = {"user": None, "type": None}
ALICE_KNOWN = {"user": "alice", "type": "session_token"}


@pytest.fixture
async def open_client(serve: Serve) -> Client:
    return await serve({"public_routes": PATTERNS}, extra={"acme": plugin(*routes)})


# Who is calling ----------------------------------------------------------------------------------------------------------


async def test_anyone_may_call_and_a_credential_makes_them_known(open_client: Client) -> None:
    for method in ("GET", "POST"):
        assert (await open_client.send(method, "/open/who")).json() == NOBODY
        for _ in range(2):  # the second time from memory
            assert (await open_client.send(method, "/open/who", ALICE)).json() == ALICE_KNOWN
        assert (await open_client.send(method, "/open/who", ROBOT_A)).json() == {"user": None, "type": "api_key"}
        assert (await open_client.send(method, "/open/who", {"Cookie": "consent=yes"})).json() == NOBODY
        assert (await open_client.send(method, "/open/who", {"X-API-Key": ""})).json() == NOBODY


@pytest.mark.parametrize("bad", BAD_CREDENTIALS.values(), ids=BAD_CREDENTIALS)
async def test_a_bad_credential_is_a_401_as_everywhere(open_client: Client, bad: dict[str, str]) -> None:
    there, here = await open_client.get("/locked", bad), await open_client.get("/open/who", bad)
    assert there.status == here.status == 401
    assert there.json() == here.json()
    for name in ("Cache-Control", "WWW-Authenticate", "Vary"):
        assert there.headers[name] == here.headers[name]
    assert here.headers["Cache-Control"] == "no-store"


async def test_no_trick_makes_a_bad_credential_a_visitor_or_a_visitor_a_caller() -> None:
    """The headers of the corpus of anonymous requests: not one of its credentials is good."""
    app = build_app({"acme": routes_plugin(*routes)}, providers=["stub", "api_key"], public_routes=PATTERNS)
    counts: Counter[int] = Counter()
    async with serving(app) as port:
        for tricks in TRICKS:
            shown = any(name in ("Authorization", "X-API-Key") for name, _ in tricks)
            got = await ask(port, "GET", "/open/who", *tricks)
            assert got.status in ((400, 401) if shown else (200, 400, 417)), tricks
            assert got.status != 200 or got.json == NOBODY
            counts[got.status] += 1
    assert counts[200] > 50
    assert counts[401] >= 8


async def test_two_credentials_are_a_400(open_client: Client) -> None:
    got = await open_client.get("/open/who", {**ALICE, **ROBOT_A})
    assert (got.status, got.json()) == (400, {"error": "Bad Request", "reason": "credentials-ambiguous"})
    assert (await open_client.get("/open/plain", {**ALICE, **ROBOT_A})).status == 200


async def test_head_and_preflight(open_client: Client) -> None:
    for caller, kept in (({}, None), (ALICE, "no-store")):
        got = await open_client.send("HEAD", "/open/who", caller)
        assert (got.status, got.headers.get("Cache-Control")) == (200, kept)
    assert (await open_client.send("HEAD", "/open/who", BAD_CREDENTIALS["unknown key"])).status == 401
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert (await open_client.send("OPTIONS", "/open/who", preflight)).status == (await open_client.send("OPTIONS", "/locked", preflight)).status
    assert (await open_client.send("DELETE", "/open/who")).status == 401, "another method of the path is no route"


async def test_caller_of_and_identity_of_on_every_kind_of_route(open_client: Client) -> None:
    got = await open_client.get("/open/mine")
    assert (got.status, got.json()) == (401, {"error": "Unauthorized", "reason": "credential-missing"})
    assert got.headers["Cache-Control"] == "no-store"
    assert (await open_client.get("/open/mine", ALICE)).json() == ALICE_KNOWN
    assert (await open_client.get("/locked", ALICE)).json() == ALICE_KNOWN
    for path in ("/open/plain", "/open/brackets"):
        assert (await open_client.get(path, ALICE)).json() == NOBODY, "credentials of a public route are not read"
        assert (await open_client.get(path, BAD_CREDENTIALS["garbage token"])).status == 200


async def test_without_the_operators_key_it_stays_locked(open_client: Client) -> None:
    got = await open_client.get("/closed")
    assert (got.status, got.json()["reason"]) == (401, "credential-missing")
    got = await open_client.get("/closed", ALICE)
    assert (got.json(), got.headers["Cache-Control"]) == (ALICE_KNOWN, "no-store")


# Every provider -------------------------------------------------------------------------------------------------------------


def clerk(**given: Any) -> web.Application:
    own = {"clerk__jwt_key": kit.pem(kit.rsa_key()), "clerk__publishable_key": kit.PUBLISHABLE_KEY, "clerk__authorized_parties": [kit.PARTY]}
    return build_app({"acme": routes_plugin(*routes)}, providers=["clerk", "api_key"], public_routes=PATTERNS, **own, **given)


def token(key: Any = None, **members: Any) -> tuple[str, str]:
    return ("Authorization", f"Bearer {kit.encode(kit.claims(**members), key)}")


def said(got: Reply) -> tuple[int, Any, str | None]:
    return got.status, got.json.get("reason", got.json.get("user")), got.headers.get("cache-control")


async def test_clerks_sessions() -> None:
    cookie = ("Cookie", f"__session={kit.encode(kit.claims())}; __client_uat=1")
    async with serving(clerk()) as port:

        async def asked(*headers: tuple[str, str], path: str = "/open/who", method: str = "GET") -> tuple[int, Any, str | None]:
            return said(await ask(port, method, path, *headers))

        assert await asked(token()) == (200, "user_1", "no-store")
        assert await asked() == (200, None, None)
        assert await asked(("Cookie", "other=1")) == (200, None, None)
        assert await asked(cookie, ("Origin", kit.PARTY)) == (200, "user_1", "no-store")
        assert await asked(cookie, ("Origin", kit.PARTY), method="POST") == (200, "user_1", "no-store")
        assert await asked(cookie, method="POST") == (401, "credential-rejected", "no-store")
        assert await asked(cookie, ("Origin", "https://evil.example"), method="POST") == (401, "credential-rejected", "no-store")
        assert await asked(("Cookie", "__client_uat=0")) == (200, None, None), "signed out"
        assert await asked(("Cookie", "__session=garbage")) == (401, "credential-rejected", "no-store")
        now = int(time.time())
        assert await asked(token(exp=now - 60, iat=now - 120, nbf=now - 120)) == (401, "token-expired", "no-store")
        assert await asked(token(kit.rsa_key("forger"))) == (401, "credential-rejected", "no-store")
        assert await asked(token(sts="pending")) == (401, "session-pending", "no-store")
        assert await asked(token(act={"sub": "user_boss"})) == (200, "user_1", "no-store")
        assert await asked(token(), path="/open/machines") == (200, "user_1", "no-store")
        assert await asked(("X-API-Key", "gp_nobody"), path="/open/machines") == (401, "credential-rejected", "no-store")


async def test_an_oidc_issuers_tokens(serve: Serve) -> None:
    async with oidc.serve() as issuer:
        settings = {"providers": ["oidc"], "oidc.issuers": [{"issuer": issuer.url, "audience": oidc.AUDIENCE}], "public_routes": PATTERNS}
        client = await serve(settings, extra={"acme": plugin(*routes)})
        good = {"Authorization": f"Bearer {issuer.token()}"}
        assert (await client.get("/open/who", good)).json() == {"user": "alice", "type": "access_token"}
        assert (await client.get("/open/who")).json() == NOBODY
        got = await client.get("/open/who", {"Authorization": f"Bearer {issuer.token(exp=int(time.time()) - 60)}"})
        assert (got.status, got.json()["reason"]) == (401, "token-expired")
        got = await client.get("/open/machines", good)
        assert (got.status, got.json()["reason"]) == (401, "token-type")
        assert (await client.get("/open/machines")).json() == NOBODY


async def test_managed_keys_that_expire_and_are_revoked(serve: Serve, db: TestDatabase) -> None:
    client = await serve({**SETTINGS, "public_routes": PATTERNS}, extra={"acme": plugin(*routes)})
    made = (await client.post("/api/keys", ALICE, {"name": "k"})).json()
    key = {"X-API-Key": made["secret"]}
    for _ in range(2):
        assert (await client.get("/open/who", key)).json() == {"user": "alice", "type": "api_key"}
    assert (await client.delete(f"/api/keys/{made['id']}", ALICE)).status == 204
    await ended(client, key, "key-revoked")
    await db.rows("DELETE FROM api_keys")


async def ended(client: Client, headers: dict[str, str], reason: str) -> None:
    deadline = time.monotonic() + 1.5
    while (got := await client.get("/open/who", headers)).status != 401:
        assert time.monotonic() < deadline, got
        await asyncio.sleep(0.02)
    assert got.json()["reason"] == reason


async def test_a_ban_ends_it_at_once(serve: Serve, db: TestDatabase) -> None:
    client = await serve({**SETTINGS, "public_routes": PATTERNS}, extra={"acme": plugin(*routes)})
    assert (await client.get("/open/who", ALICE)).status == 200
    await deliver(client, user("updated", 5, id="alice", banned=True))
    await sweep(db)
    await ended(client, ALICE, "session-revoked")
    assert (await client.get("/open/who")).json() == NOBODY


class Asked:
    """A provider that counts its calls."""

    def __init__(self, *results: Any, reads: tuple[str, ...] | None = ("Authorization", "X-Mine", "Cookie")) -> None:
        self.results, self.calls = results, 0
        if reads is not None:
            self.reads = reads

    async def authenticate(self, request: web.Request) -> Identity | None:
        self.calls += 1
        result = self.results[0]
        if isinstance(result, Exception):
            raise result
        return result


async def test_no_provider_is_asked_where_no_credential_is_shown() -> None:
    asked = Asked(None)
    app = build_app({"acme": routes_plugin(*routes), "p": provider_plugin(asked=asked)}, providers=["asked"], public_routes=PATTERNS)
    async with serving(app) as port:
        assert (await ask(port, "GET", "/open/who")).json == NOBODY
        assert asked.calls == 0
        assert (await ask(port, "GET", "/open/who", ("Cookie", "a=b"))).json == NOBODY
        assert asked.calls == 1
        assert said(await ask(port, "GET", "/open/who", ("X-Mine", "x"))) == (401, "credential-rejected", "no-store")
        assert said(await ask(port, "GET", "/open/who", ("X-API-Key", "x"))) == (401, "credential-rejected", "no-store")
        assert sum(app[METRICS].authentications.values()) == 2, "a visitor without a credential is no failed authentication"


async def test_a_provider_without_reads_is_always_asked() -> None:
    asked = Asked(Identity(provider="asked", user_id="u"), reads=None)
    app = build_app({"acme": routes_plugin(*routes), "p": provider_plugin(asked=asked)}, providers=["asked"], public_routes=PATTERNS)
    async with serving(app) as port:
        assert (await ask(port, "GET", "/open/who")).json["user"] == "u"


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("down"), 503), (RuntimeError("x"), 503), (CredentialRejected("credential-missing"), 401)]
)
async def test_a_provider_that_fails_or_refuses_makes_no_anonymous_caller(error: Exception, status: int) -> None:
    app = build_app({"acme": routes_plugin(*routes), "p": provider_plugin(asked=Asked(error))}, providers=["asked"], public_routes=PATTERNS)
    async with serving(app) as port:
        assert (await ask(port, "GET", "/open/who", ("Authorization", "x"))).status == status
        assert (await ask(port, "GET", "/open/who", ("Cookie", "x=y"))).status == status
        assert (await ask(port, "GET", "/open/who")).status == 200


# What a cache may keep -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"If-None-Match": TAG}])
@pytest.mark.parametrize("path", ["/open/page", "/open/page?file", "/open/page?stream", "/open/tag", "/open/who"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_to_a_known_caller_is_never_cached(open_client: Client, method: str, path: str, more: dict[str, str]) -> None:
    got = await open_client.send(method, path, {**ALICE, **more})
    assert got.status in (200, 304)
    assert got.headers["Cache-Control"] == "no-store"
    got = await open_client.send(method, path, more)
    assert got.headers.get("Cache-Control") == ("public, max-age=60" if "page" in path else None)
    assert {"Authorization", "Cookie", "X-API-Key"} <= {name.strip() for name in got.headers["Vary"].split(",")}


async def test_errors_are_not_cached_for_anyone(open_client: Client) -> None:
    for caller in ({}, ALICE):
        got = await open_client.get("/open/admin", caller)
        assert (got.status, got.json()["reason"], got.headers["Cache-Control"]) == (403, "role", "no-store")


# Rows, repeated requests, limits -------------------------------------------------------------------------------------------


async def test_rows_are_those_of_the_caller_and_without_a_caller_there_are_none(open_client: Client) -> None:
    for caller in (ALICE, BOB):
        name = "alice" if caller is ALICE else "bob"
        assert (await open_client.post("/open/rows", caller, {"name": name})).status == 201
        assert (await open_client.get("/open/rows", caller)).json() == [{"name": name}]
    assert (await open_client.get("/open/rows")).json() == []
    assert (await open_client.get("/open/admin", stub("anna", org_id="org_a", org_role="org:admin"))).status == 200


async def test_an_idempotency_key_is_a_known_callers(open_client: Client, db: TestDatabase) -> None:
    keyed = {"Idempotency-Key": "k1"}
    first = await open_client.post("/open/rows", {**ALICE, **keyed}, {"name": "once"})
    again = await open_client.post("/open/rows", {**ALICE, **keyed}, {"name": "once"})
    assert (again.raw, again.headers["Idempotency-Replayed"]) == (first.raw, "true")
    assert again.headers["Cache-Control"] == "no-store"
    assert await db.count("data") == 1
    nobody = await open_client.post("/open/rows", keyed, {"name": "once"})
    assert (nobody.json(), nobody.headers.get("Idempotency-Replayed")) == ({"id": None}, None)
    other = await open_client.post("/open/rows", {**BOB, **keyed}, {"name": "once"})
    assert other.headers.get("Idempotency-Replayed") is None
    assert (await open_client.post("/open/rows", {**BAD_CREDENTIALS["unknown key"], **keyed}, {"name": "once"})).status == 401
    assert await db.count("idempotency_keys") == 2


async def test_the_callers_rate_limit_counts_and_visitors_are_not_counted(serve: Serve) -> None:
    client = await serve({"public_routes": PATTERNS, "limits.caller": "2/day"}, extra={"acme": plugin(*routes)})
    assert [(await client.get("/open/who", ALICE)).status for _ in range(3)] == [200, 200, 429]
    got = await client.get("/open/who", BOB)
    assert got.headers["RateLimit"].startswith('"caller";r=1')
    for _ in range(4):
        got = await client.get("/open/who")
        assert (got.status, "RateLimit" in got.headers) == (200, False)


async def test_refused_credentials_count_against_the_address_and_visitors_go_on() -> None:
    via = ("X-Forwarded-For", "198.51.100.7")
    async with serving(clerk(limits__address="3/day", trusted_proxies=["127.0.0.1"])) as port:
        bad = [(await ask(port, "GET", "/open/who", token(kit.rsa_key("forger")), via)).status for _ in range(5)]
        assert bad == [401] * 3 + [429] * 2
        assert (await ask(port, "GET", "/open/who", via)).status == 200
        assert (await ask(port, "GET", "/open/who", token(), ("X-Forwarded-For", "198.51.100.8"))).status == 200


@pytest.mark.parametrize(("caller", "status"), [({}, 413), (ALICE, 201)])
async def test_a_body_without_a_verified_credential_is_bounded(open_client: Client, caller: dict[str, str], status: int) -> None:
    assert (await open_client.post("/open/rows", caller, {"name": "x", "more": "y" * 300_000})).status == status


# What is told ---------------------------------------------------------------------------------------------------------------


async def test_denials_and_requests_are_logged_once(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gatepost")
    client = await serve({"public_routes": PATTERNS, "log.requests": True}, extra={"acme": plugin(*routes)})
    for headers in ({}, ALICE, BAD_CREDENTIALS["unknown key"], BAD_CREDENTIALS["not a key"]):
        await client.get("/open/who", headers)
    lines = [(record.getMessage(), record.fields.get("user_id"), record.fields["outcome"]) for record in caplog.records
             if record.getMessage() in ("request", "denied")]  # type: ignore[attr-defined]  # fmt: skip
    assert lines == [("request", None, "200"), ("request", "alice", "200"), ("denied", None, "unauthorized"), ("denied", None, "unauthorized")]


async def test_a_known_callers_denial_is_audited(serve: Serve, db: TestDatabase) -> None:
    client = await serve({"public_routes": PATTERNS, "audit.denials": True}, extra={"acme": plugin(*routes)})
    assert (await client.get("/open/admin", ALICE)).status == 403
    assert (await client.get("/open/admin")).status == 403
    async with asyncio.timeout(5):
        while not (noted := await db.rows("SELECT actor, target, reason FROM audit_log WHERE action = 'denied'")):
            await asyncio.sleep(0.05)
    assert [(row["actor"], row["target"], row["reason"]) for row in noted] == [("alice", "GET /open/admin", "role")]


async def test_routes_explain_and_the_document() -> None:
    app = build_app({"acme": routes_plugin(*routes)}, public_routes=PATTERNS)
    words = {(row.method, row.template): row.access for row in app[TABLE].rows}
    assert words["GET", "/open/who"] == words["HEAD", "/open/who"] == "public, caller optional"
    assert words["GET", "/open/machines"] == "public, caller optional, accepts m2m_token session_token"
    assert words["GET", "/open/plain"] == words["GET", "/open/brackets"] == "public"
    assert words["GET", "/closed"] == "signed in (declared public, not listed)"
    assert "public, caller optional " in as_text(app[TABLE].rows)
    told = await explain(app, "GET", "/open/who")
    assert (told["access"], told["answer"]) == ("public, caller optional", "open")
    assert (await explain(app, "GET", "/closed"))["answer"] == "401"
    paths = json.loads(app[DOCUMENT].json)["paths"]
    get, post = paths["/open/who"]["get"], paths["/open/who"]["post"]
    assert get["security"] == [{}, {"stub": []}]
    assert paths["/open/plain"]["get"]["security"] == []
    assert paths["/closed"]["get"]["security"] == [{"stub": []}]
    assert {"401", "429", "503"} <= set(get["responses"])
    assert "403" not in get["responses"]
    assert get["x-gatepost-access"] == {
        "words": "public, caller optional", "public": True, "optional": True, "accepts": ["access_token", "api_key", "session_token"],
    }  # fmt: skip
    assert [one["$ref"].rpartition("/")[2] for one in post["parameters"]] == ["Idempotency-Key"]


# Mistakes, and the second lock -----------------------------------------------------------------------------------------------


def test_mistakes_are_found_at_import() -> None:
    for wrong in (1, "yes", None):
        with pytest.raises(ValueError, match="optional"):
            public(optional=wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="accepts"):
        public(accepts=["session_token"])
    with pytest.raises(ValueError, match="unknown token type"):
        public(optional=True, accepts=["password"])
    with pytest.raises(TypeError, match="async def"):
        public(optional=True)(lambda request: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="twice"):
        requires(user=True)(public(optional=True)(who.__wrapped__))  # type: ignore[attr-defined]


async def test_no_more_is_done_for_a_visitor_than_on_a_public_route(monkeypatch: pytest.MonkeyPatch) -> None:
    app = build_app({"acme": routes_plugin(*routes)}, public_routes=PATTERNS)
    gate = app[DISPATCHER]._gate

    async def never(*args: object) -> None:
        raise AssertionError("a provider was asked")

    monkeypatch.setattr(gate, "_identify", never)
    monkeypatch.setattr(gate, "_recall", never)
    async with serving(app) as port:
        assert (await ask(port, "GET", "/open/who")).json == NOBODY
