"""Clerk's machine tokens that are JWTs, over HTTP: each row of the table on routes that name its type, and on others."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from kits import tokens as kit
from kits.app import ask as send
from kits.app import build_app, routes_plugin, serving
from kits.clerk_machine_rows import CLAIMS, M2M, MACHINE, OAUTH, ORG, ROWS, SESSION, USER, Row

from providers.clerk import token_command
from server import answer, identity_of, is_plain_text, requires, signed_in
from server.app import SERVER_DATABASE, TABLE
from server.plugins.providers import PROVIDERS
from server.settings.setting import ConfigError
from server.testing.clerk import LoopbackClerk
from tests.conftest import Serve, plugin

ROUTES = {"/oauth": [OAUTH], "/m2m": [M2M], "/any": [OAUTH, M2M, SESSION], "/usual": None}


async def who(request: web.Request) -> web.Response:
    one = identity_of(request)
    names = ("provider", "token_type", "user_id", "session_id", "org_id", "org_role", "scopes", "key_id", "token_id", "impersonator")
    has = [one.has(**asked) for asked in ({"role": "org:admin"}, {"permission": "a:b"}, {"feature": "x"}, {"plan": "p"}, {"reverification": "lax"})]
    return answer({**{name: getattr(one, name) for name in names}, "claims": one.claims, "has": has, "ends": one.expires_at})


def route(path: str, types: list[str] | None) -> web.RouteDef:
    async def handler(request: web.Request) -> web.Response:
        return await who(request)

    return web.get(path, signed_in(handler) if types is None else requires(accepts=types)(handler))


def app_of(settings: dict[str, Any] | None = None) -> web.Application:
    given = {"publishable_key": kit.PUBLISHABLE_KEY, "jwt_key": kit.pem(kit.rsa_key()), "authorized_parties": [kit.PARTY], **(settings or {})}
    routes = [route(path, types) for path, types in ROUTES.items()]
    return build_app({"acme": routes_plugin(*routes)}, providers=["clerk"], **{f"clerk__{name}": value for name, value in given.items()})


async def ask(port: int, path: str, token: str) -> tuple[int, Any]:
    reply = await send(port, "GET", path, ("Authorization", f"Bearer {token}"))
    return reply.status, reply.json


def expected(row: Row, path: str, outcome: str) -> tuple[int, str | None]:
    """The status, and the reason of a refusal where it is certain."""
    types = ROUTES[path]
    if outcome in (OAUTH, M2M, SESSION):
        accepted = outcome in (types or [SESSION])
        return (200, None) if accepted else (401, "token-type")
    named = row.kind in (types or []) or (outcome == "credential-rejected")
    return 401, outcome if named and path != "/any" else None


def groups() -> list[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for row in ROWS:
        found.setdefault(json.dumps(row.settings), []).append(row)
    return list(found.items())


@pytest.mark.parametrize(("settings", "rows"), groups(), ids=[text[:40] for text, _ in groups()])
async def test_every_row_on_every_route(settings: str, rows: list[Row]) -> None:
    wrong = []
    async with serving(app_of(json.loads(settings))) as port:
        for row in rows:
            token = row.token()
            for path in [*ROUTES, *ROUTES]:  # the second time it is known
                status, body = await ask(port, path, token)
                wanted, reason = expected(row, path, row.outcome)
                if status != wanted or (reason is not None and body.get("reason") != reason):
                    wrong.append((row.kind, row.name, path, status, body.get("reason")))
                if status == 200 and (body["token_type"] != row.outcome or body["has"] != [False] * 5):
                    wrong.append((row.kind, row.name, path, body))
    assert wrong == []


def test_the_table_is_large_and_its_names_differ() -> None:
    assert len(ROWS) >= 150
    assert len({(row.kind, row.name) for row in ROWS}) == len(ROWS)


async def test_the_caller_of_a_machine_token() -> None:
    row = {(one.kind, one.name): one for one in ROWS}
    async with serving(app_of()) as port:
        _, oauth = await ask(port, "/oauth", row[OAUTH, "nothing"].token())
        _, machine = await ask(port, "/m2m", row[M2M, "nothing"].token())
        _, by = await ask(port, "/oauth", row[OAUTH, "`act` names who acts"].token())
        _, listed = await ask(port, "/oauth", row[OAUTH, "`scp` and `scope` differ"].token())
        _, alone = await ask(port, "/oauth", row[OAUTH, "`org_id` is missing"].token())
        _, audience = await ask(port, "/m2m", row[M2M, "`scopes` is missing, `aud` a list"].token())
    assert oauth | {"claims": None, "ends": None} == {
        "provider": "clerk", "token_type": OAUTH, "user_id": USER, "session_id": None, "org_id": ORG, "org_role": None,
        "scopes": ["profile", "user:org:read"], "key_id": "oat_1", "token_id": "oat_1", "impersonator": None, "claims": None,
        "has": [False] * 5, "ends": None}  # fmt: skip
    assert oauth["claims"]["scope"] == CLAIMS[OAUTH]["scope"]
    assert oauth["ends"] == oauth["claims"]["exp"] + 5
    assert (machine["user_id"], machine["org_id"], machine["key_id"], machine["token_id"]) == (None, None, MACHINE, "m2m_1")
    assert machine["scopes"] == ["mch_a", "mch_b"]
    assert (by["user_id"], by["impersonator"]) == (USER, "user_9")
    assert listed["scopes"] == ["profile"]
    assert (alone["user_id"], alone["org_id"]) == (USER, None)
    assert audience["scopes"] == ["mch_a"]


async def test_claims_of_a_session_prove_nothing_in_a_machine_token() -> None:
    forged = {"org_role": "org:admin", "org_permissions": ["org:a:b"], "fea": "o:x,u:x", "pla": "u:p", "fva": [0, 0], "v": 2, "sts": "active",
              "sid": "sess_1", "azp": kit.PARTY, "o": {"id": ORG, "rol": "admin"}}  # fmt: skip
    async with serving(app_of()) as port:
        for kind, path in ((OAUTH, "/oauth"), (M2M, "/m2m")):
            status, body = await ask(port, path, Row(kind, "", {}, forged, {}, kind).token())
            assert (status, body["has"], body["org_role"], body["session_id"]) == (200, [False] * 5, None, None)


async def test_a_token_in_a_cookie_is_never_a_machine_token() -> None:
    """Neither one that the cache knows from a header."""
    async with serving(app_of()) as port:
        for kind in (OAUTH, M2M):
            token = Row(kind, "", {}, {}, {}, kind).token()
            assert (await ask(port, "/any", token))[0] == 200
            for path in ROUTES:
                got = await send(port, "GET", path, ("Cookie", f"__session={token}; __client_uat=1"))
                assert (got.status, got.json["reason"]) in ((401, "token-type"), (401, "credential-missing")), path
        session = Row(SESSION, "", {}, {}, {}, SESSION).token()
        assert (await send(port, "GET", "/any", ("Cookie", f"__session={session}; __client_uat=1"))).status == 200


async def test_an_unknown_path_is_a_401() -> None:
    async with serving(app_of()) as port:
        for kind in (OAUTH, M2M):
            token = Row(kind, "", {}, {}, {}, kind).token()
            for _ in range(2):
                assert (await ask(port, "/nowhere", token))[0] == 401
                assert (await ask(port, "/any", token))[0] == 200


async def test_no_number_of_machine_tokens_displaces_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of()
    async with serving(app) as port:
        provider: Any = app[PROVIDERS][0].provider
        provider._machine_cache._entries.most = 10
        await ask(port, "/usual", Row(SESSION, "", {}, {}, {}, SESSION).token())
        for number in range(30):
            await ask(port, "/oauth", Row(OAUTH, "", {}, {"jti": f"oat_{number}"}, {}, OAUTH).token())
        assert (len(provider._cache), len(provider._machine_cache)) == (1, 10)


async def test_a_known_token_costs_no_second_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []
    original = __import__("providers.clerk.provider", fromlist=["verify"]).verify

    async def counting(*arguments: Any) -> Any:
        verified.append(1)
        return await original(*arguments)

    monkeypatch.setattr("providers.clerk.provider.verify", counting)
    async with serving(app_of()) as port:
        token = Row(OAUTH, "", {}, {}, {}, OAUTH).token()
        for _ in range(5):
            assert (await ask(port, "/oauth", token))[0] == 200
    assert verified == [1]


async def test_a_machine_token_causes_no_fetch() -> None:
    """Neither the key set again nor the Backend API, also where a route does not name the type or the key id is unknown."""
    async with LoopbackClerk() as clerk:
        settings = {name.removeprefix("clerk."): value for name, value in clerk.settings().items() if name != "providers"}
        async with serving(app_of({**settings, "jwt_key": None})) as port:
            fetches = clerk.calls["/v1/jwks"]
            for _ in range(3):
                assert (await ask(port, "/oauth", clerk.machine_jwt(USER)))[0] == 200
                assert (await ask(port, "/m2m", clerk.machine_jwt(MACHINE, M2M)))[0] == 200
                assert (await ask(port, "/usual", clerk.machine_jwt(USER)))[0] == 401
            assert dict(clerk.calls) == {"/v1/jwks": fetches}


async def test_a_token_of_another_instance() -> None:
    async with LoopbackClerk(key=kit.rsa_key("other")) as other, serving(app_of()) as port:
        for token in (other.machine_jwt(USER), other.machine_jwt(USER, iss=kit.ISSUER, header={"kid": "k1"}), other.machine_jwt(MACHINE, M2M)):
            for path in ROUTES:
                assert await ask(port, path, token) == (401, {"error": "Unauthorized", "reason": "credential-rejected"})


async def test_a_stale_feed_of_revocations_is_a_503() -> None:
    app = app_of()
    async with serving(app) as port:
        token = Row(OAUTH, "", {}, {}, {}, OAUTH).token()
        assert (await ask(port, "/oauth", token))[0] == 200
        app[SERVER_DATABASE].revocations.replace([], -1e9)
        for one in (token, Row(M2M, "", {}, {}, {}, M2M).token()):
            assert [(await ask(port, path, one))[0] for path in ("/oauth", "/m2m")].count(503) == 1


# Audience ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"require_audience": True}, {"audience_mode": "observe"}, {"audience_mode": "sometimes", "audience": ["a"]}])
def test_settings_that_contradict_each_other_prevent_startup(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="audience"):
        app_of(settings)


@pytest.fixture
async def loopback() -> AsyncIterator[LoopbackClerk]:
    async with LoopbackClerk() as clerk:
        yield clerk


@pytest.mark.parametrize("opaque", [False, True])
async def test_observing_counts_and_logs_what_would_be_refused(loopback: LoopbackClerk, opaque: bool, caplog: pytest.LogCaptureFixture) -> None:
    settings = {name.removeprefix("clerk."): value for name, value in loopback.settings().items() if name != "providers"}
    settings |= {"jwt_key": None, "audience": ["https://api.example.com"], "require_audience": True}
    bad = (["https://canary.example"], None, "https://canary.example")

    def token(audience: Any) -> str:
        return loopback.machine_token(USER, OAUTH, aud=audience) if opaque else loopback.machine_jwt(USER, aud=audience)

    async with serving(app_of(settings)) as port:
        for audience in bad:
            assert await ask(port, "/oauth", token(audience)) == (401, {"error": "Unauthorized", "reason": "token-audience"})
        assert (await ask(port, "/oauth", token(["https://api.example.com"])))[0] == 200
    app = app_of({**settings, "audience_mode": "observe"})
    async with serving(app) as port:
        for audience in (*bad, "https://api.example.com"):
            one = token(audience)
            for _ in range(2):
                assert (await ask(port, "/oauth", one))[0] == 200
        if not opaque:  # what is refused for another reason is not counted
            for more in ({"exp": 1}, {"iss": "https://other.example"}, {"scope": 7}):
                assert (await ask(port, "/oauth", loopback.machine_jwt(USER, aud="x", **more)))[0] == 401
        assert app[PROVIDERS][0].figures()["audience_observed_total"] == 3
    lines = [record for record in caplog.records if "audience" in record.getMessage() and record.levelno == logging.WARNING]
    assert [line.getMessage().partition(":")[0] for line in lines] == [
        "clerk.audience_mode is observe", "a machine token for another audience was accepted (clerk.audience_mode)"]  # fmt: skip
    assert "canary" not in str([vars(line) for line in lines])


async def test_an_opaque_token_without_the_audience_check(loopback: LoopbackClerk) -> None:
    settings = {name.removeprefix("clerk."): value for name, value in loopback.settings().items() if name != "providers"}
    async with serving(app_of({**settings, "jwt_key": None, "audience": ["a"]})) as port:
        assert (await ask(port, "/oauth", loopback.machine_token(USER, OAUTH)))[0] == 200  # it names none
    async with serving(app_of({**settings, "jwt_key": None})) as port:
        for audience in (["x"], "x", 7, []):
            assert (await ask(port, "/oauth", loopback.machine_token(USER, OAUTH, aud=audience)))[0] == 200


# Rows --------------------------------------------------------------------------------------------------------------------


async def test_the_organisation_of_an_oauth_token_is_the_active_one(serve: Serve, loopback: LoopbackClerk) -> None:
    """Its rows, and no other's, with no role in it."""
    from server import read, scoped

    @requires(accepts=[OAUTH], organization="org_id")
    async def notes(request: web.Request) -> web.Response:
        return answer(await read(request, "SELECT name FROM org_data ORDER BY name"))

    @requires(accepts=[OAUTH], organization="org_id", scopes=["notes:write"])
    async def add(request: web.Request) -> web.Response:
        async with scoped(request) as db:
            await db.execute("INSERT INTO org_data (organization_id, created_by, name) VALUES ($1, $2, 'by an agent')",
                             identity_of(request).org_id, identity_of(request).actor)  # fmt: skip
        return answer({"made": True})

    client = await serve(loopback.settings(), extra={"acme": plugin(web.get("/orgs/{org_id}/notes", notes), web.post("/orgs/{org_id}/notes", add))})
    a, b = (loopback.machine_jwt("alice", org_id=org, scope="notes:write") for org in ("org_a", "org_b"))
    none = loopback.machine_jwt("alice", scope="notes:write")
    weak = loopback.machine_jwt("alice", org_id="org_a", scope="notes:read")

    def bearer(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    assert (await client.post("/orgs/org_a/notes", bearer(a))).status == 200
    assert (await client.get("/orgs/org_a/notes", bearer(a))).json() == [{"name": "by an agent"}]
    assert (await client.get("/orgs/org_b/notes", bearer(b))).json() == []
    for token, path, reason in ((a, "/orgs/org_b/notes", "organization"), (none, "/orgs/org_a/notes", "organization"), (weak, "/orgs/org_a/notes", "scope")):
        got = await client.post(path, bearer(token))
        assert (got.status, got.json()["reason"]) == (403, reason)


async def test_the_test_kit_makes_machine_tokens(loopback: LoopbackClerk) -> None:
    settings = {name.removeprefix("clerk."): value for name, value in loopback.settings().items() if name != "providers"}
    async with serving(app_of({**settings, "jwt_key": None})) as port:
        status, body = await ask(port, "/oauth", loopback.machine_jwt("user_1", org_id="org_1", scope="a b", ttl=60))
        assert (status, body["user_id"], body["org_id"], body["scopes"]) == (200, "user_1", "org_1", ["a", "b"])
        status, body = await ask(port, "/m2m", loopback.machine_jwt("mch_1", M2M, scopes="mch_2", jti=secrets.token_hex(4)))
        assert (status, body["key_id"], body["scopes"]) == (200, "mch_1", ["mch_2"])
        await asyncio.sleep(0)


async def token_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `python -m server token` prints."""
    parser = argparse.ArgumentParser()
    token_command.arguments(parser)
    context: Any = SimpleNamespace(env="development", settings={}, folder=tmp_path)
    capsys.readouterr()
    assert await token_command.run(parser.parse_args(list(words)), context) == 0
    return capsys.readouterr().out.strip()


async def test_the_token_command_makes_machine_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = build_app({"acme": routes_plugin(*(route(path, types) for path, types in ROUTES.items()))}, providers=["clerk"], data_folder=str(tmp_path))
    async with serving(app) as port:
        oauth = await token_of(tmp_path, capsys, "--type", "oauth_token", "--user", "alice", "--org", "org_1", "--scope", "a", "--scope", "b")
        status, body = await ask(port, "/oauth", oauth)
        assert (status, body["user_id"], body["org_id"], body["scopes"]) == (200, "alice", "org_1", ["a", "b"])
        status, body = await ask(port, "/m2m", await token_of(tmp_path, capsys, "--type", "m2m_token", "--scope", "mch_2"))
        assert (status, body["key_id"], body["scopes"]) == (200, "mch_1", ["mch_2"])
        status, body = await ask(port, "/oauth", await token_of(tmp_path, capsys, "--type", "oauth_token", "--impersonator", "eve"))
        assert (status, body["impersonator"]) == (200, "eve")
        assert (await ask(port, "/oauth", await token_of(tmp_path, capsys, "--type", "oauth_token", "--expired")))[1]["reason"] == "token-expired"
        assert (await ask(port, "/usual", oauth))[1]["reason"] == "token-type"
        reply = await send(port, "GET", "/oauth", ("Authorization", f"Bearer {oauth}"), ("X-Forwarded-For", "203.0.113.9"))
        assert reply.status == 401


@pytest.mark.parametrize(
    "words",
    [("--type", "m2m_token", "--org", "o"), ("--type", "oauth_token", "--role", "r", "--org", "o"), ("--type", "oauth_token", "--pending"),
     ("--type", "m2m_token", "--user", "alice"), ("--type", "oauth_token", "--user", "mch_1"), ("--scope", "a"), ("--type", "oauth_token", "--ttl", "0")],
    ids=" ".join,
)  # fmt: skip
async def test_the_token_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="--"):
        await token_of(tmp_path, capsys, *words)


# What no token has -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permission", ["org:sys_memberships:manage", "sys_domains:read", "org:org:sys_profile:manage"])
def test_startup_warns_about_a_system_permission(permission: str) -> None:
    guarded = web.get("/guarded", requires(permission=permission)(_nothing))
    fine = web.get("/fine", requires(permission="org:system:read")(_nothing_else))
    warnings = build_app({"acme": routes_plugin(guarded, fine)})[TABLE].warnings
    assert warnings == [
        f"GET /guarded (plugin 'acme') requires the permission {permission!r}: Clerk puts system permissions into no token, so its users "
        "are refused; require the role, or a permission of your own"
    ]


async def _nothing(request: web.Request) -> web.Response:
    raise AssertionError


async def _nothing_else(request: web.Request) -> web.Response:
    raise AssertionError


# Hostile ---------------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, True, False, 0, -1, 1.5, 2**63, "", " ", "a b", "x" * 300, "\x00", "é", "mch_", "user_", "org_", [], [[]], ["a"], [None], {}, {"a": {}},
                     {"sub": "x"}, "at+jwt", "JWT", MACHINE, USER, ORG]  # fmt: skip


async def test_any_value_in_any_place_is_a_200_or_a_401() -> None:
    """And where it is a 200 the identity is one that the database and the log can hold."""
    chance = random.Random(17)
    places = ["iss", "sub", "jti", "scope", "scp", "scopes", "aud", "org_id", "client_id", "act", "cnf", "exp", "nbf", "iat", "sid", "azp", "o", "v", "sts"]
    statuses: Counter[int] = Counter()
    async with serving(app_of({"audience": ["api"]})) as port:
        for number in range(600):
            kind = (OAUTH, M2M)[number % 2]
            claims = {chance.choice(places): chance.choice(VALUES) for _ in range(chance.randint(1, 3))}
            header = {chance.choice(["typ", "cat", "kid", "alg", "crit", "x"]): chance.choice(VALUES)} if number % 5 == 0 else {}
            status, body = await ask(port, "/any", Row(kind, "", header, claims, {}, kind).token())
            statuses[status] += 1
            if status == 200:
                ids = [body[name] for name in ("user_id", "org_id", "key_id", "token_id", "impersonator") if body[name] is not None]
                assert all(is_plain_text(one) for one in [*ids, *(body["scopes"] or [])]), (claims, header)
                assert (body["token_type"] == M2M) == (body["user_id"] is None), (claims, header)
            else:
                assert set(body) == {"error", "reason"}
    assert statuses.keys() == {200, 401}
    assert min(statuses.values()) > 50


async def test_a_key_that_left_the_set_takes_its_machine_tokens_along(loopback: LoopbackClerk) -> None:
    settings = {name.removeprefix("clerk."): value for name, value in loopback.settings().items() if name != "providers"}
    app = app_of({**settings, "jwt_key": None})
    async with serving(app) as port:
        token = loopback.machine_jwt(USER)
        for _ in range(2):
            assert (await ask(port, "/oauth", token))[0] == 200
        loopback.key = kit.rsa_key("rotated")
        keys: Any = app[PROVIDERS][0].provider
        await keys._keys._refreshed()
        assert await ask(port, "/oauth", token) == (401, {"error": "Unauthorized", "reason": "credential-rejected"})
        assert (await ask(port, "/oauth", loopback.machine_jwt(USER)))[0] == 200


async def test_no_token_is_in_a_log_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(app_of({"audience": ["api"]})) as port:
        for row in ROWS[:60]:
            token = row.token()
            for path in ROUTES:
                reply = await send(port, "GET", path, ("Authorization", f"Bearer {token}"))
                assert token not in reply.body.decode()
                assert not any(token in f"{record.getMessage()} {vars(record)}" for record in caplog.records)
            caplog.clear()
