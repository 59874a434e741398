"""Session tokens in cookies: which cookie counts, what it may serve, and what is refused for which reason."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from kits import app as app_kit
from kits import tokens as kit
from multidict import CIMultiDict

from providers.clerk.cookies import suffix
from providers.clerk.provider import ClerkProvider
from server import CredentialRejected, Identity, identity_of, requires, signed_in
from server.testing.clerk import LoopbackClerk

NOW = 1_800_000_000
TEST_KEY, TEST_ISSUER = "pk_test_Zm9vLWJhci0xMy5jbGVyay5hY2NvdW50cy5kZXYk", "https://foo-bar-13.clerk.accounts.dev"
LIVE_END, TEST_END = "_naoXFJnI", "_nx2hSE6I"
PRE = "credential-rejected"
NO_UAT, NO_SESSION, NEITHER = (
    "session-token-but-no-client-uat",
    "client-uat-but-no-session-token",
    "session-token-and-uat-missing",
)
DB = "__clerk_db_jwt=dvb_1"


@pytest.mark.parametrize(
    ("key", "end"),
    [
        (TEST_KEY, "nx2hSE6I"),
        ("pk_live_Y2xlcmsuZXhhbXBsZS5jb20k", "naoXFJnI"),
        ("pk_live_Y2xlcmsuY2xlcmsuZGV2JA", "1Z8AzTQD"),
        ("pk_test_Y2xlcmsuY2xlcmsuZGV2JA", "QvfNY2dr"),
    ],
)
def test_the_suffix_is_clerks(key, end) -> None:
    assert suffix(key) == end


def tok(user: str = "user_1", issuer: object = kit.ISSUER, **claims: Any) -> str:
    return kit.mint(kit.claims(NOW, **{"iss": issuer, "sub": user, **claims}))


async def made(house: kit.TestHouse, *, test: bool = False, **more: Any) -> ClerkProvider:
    key = TEST_KEY if test else kit.PUBLISHABLE_KEY
    table = {"publishable_key": key, "jwt_key": kit.pem(kit.rsa_key()), "authorized_parties": [kit.PARTY], **more}
    provider = ClerkProvider({name: value for name, value in table.items() if value is not None}, clock=lambda: NOW)
    await provider.open(house)
    return provider


@pytest.fixture
async def house(tmp_path):
    one = kit.TestHouse(tmp_path)
    yield one
    await one.close()


def asked(*cookies: str, method: str = "GET", path: str = "/api/me", headers: list[tuple[str, str]] | None = None) -> web.Request:
    pairs = [("Host", "127.0.0.1:8080"), *(("Cookie", cookie) for cookie in cookies), *(headers or [])]
    return make_mocked_request(method, path, headers=CIMultiDict(pairs))


async def outcome(provider: ClerkProvider, request: web.Request) -> Any:
    """The user's id, None for "not mine", or the reason and detail of a refusal."""
    try:
        identity = await provider.authenticate(request)
    except CredentialRejected as refused:
        return refused.reason, kit.without_values(refused.detail)
    return identity.user_id if identity is not None else None


def cookie(plain: Any = None, uat: Any = None, other: Any = None, other_uat: Any = None, end: str = LIVE_END, more: str = "") -> str:
    named = {"__session": plain, "__client_uat": uat, f"__session{end}": other, f"__client_uat{end}": other_uat}
    return "; ".join([*(f"{name}={value}" for name, value in named.items() if value is not None), *([more] if more else [])])


FOREIGN = "https://clerk.other.example"
BEFORE = {"iat": NOW - 30, "nbf": NOW - 40}
OLD = {"iat": NOW - 100, "nbf": NOW - 100, "exp": NOW - 10}
# name, the plain session and uat, the suffixed session and uat, what comes of it. Tokens are (user, issuer, claims).
ROWS: list[tuple[str, Any, Any, Any, Any, Any]] = [
    ("nothing", None, None, None, None, None),
    ("plain alone", ("plain",), NOW - 9, None, None, "plain"),
    ("signed out", None, 0, None, None, None),
    ("uat alone", None, NOW, None, None, None),
    ("empty session", "", NOW, None, None, None),
    ("session without uat", ("plain",), None, None, None, (PRE, NO_UAT)),
    ("session with uat 0", ("plain",), 0, None, None, (PRE, NO_UAT)),
    ("session with odd uat", ("plain",), "1e9", None, None, (PRE, NO_UAT)),
    ("session with negative uat", ("plain",), "-5", None, None, (PRE, NO_UAT)),
    ("garbage", "garbage", 1, None, None, (PRE, "the session cookie holds no JWT")),
    ("machine token", "ak_0123", 1, None, None, (PRE, "the session cookie holds no JWT")),
    ("bad signature", "forged", 1, None, None, (PRE, "bad signature")),
    ("iat is uat", ("plain",), NOW, None, None, "plain"),
    ("iat before uat", ("plain",), NOW + 1, None, None, ("session-revoked", "session-token-iat-before-client-uat")),
    ("uat in milliseconds", ("plain",), NOW * 1000, None, None, ("session-revoked", "session-token-iat-before-client-uat")),
    ("no iat", ("plain", kit.ISSUER, {"iat": kit.DROP}), 1, None, None, ("token-claims", "iat is missing in a cookie's token")),
    ("no azp", ("plain", kit.ISSUER, {"azp": kit.DROP}), 1, None, None, ("token-authorized-party", "azp is missing")),
    ("expired", ("plain", kit.ISSUER, OLD), 1, None, None, ("token-expired", "exp is past")),
    # 1. plain without iss, or undecodable: plain
    ("1 undecodable", "garbage", 1, ("other",), 1, (PRE, "the session cookie holds no JWT")),
    ("1 no iss", ("plain", kit.ISSUER, {"iss": kit.DROP}), 1, ("other",), 1, ("token-issuer", "iss is missing or not a string")),
    ("1 empty iss", ("plain", ""), 1, ("other",), 1, ("token-issuer", "iss is not one of ours")),
    # 2. plain of another instance: suffixed
    ("2 foreign", ("plain", FOREIGN), NOW + 5, ("other",), 1, "other"),
    ("2 foreign, newer", ("plain", FOREIGN), 1, ("other", kit.ISSUER, BEFORE), 1, "other"),
    ("2 odd iss", ("plain", 7), 1, ("other",), 1, "other"),
    ("2 foreign, only uat", ("plain", FOREIGN), 1, None, 1, (PRE, NO_SESSION)),
    ("2 foreign, nothing else", ("plain", FOREIGN), 1, None, None, (PRE, NEITHER)),
    ("2 foreign, session alone", ("plain", FOREIGN), 1, ("other",), None, (PRE, NO_UAT)),
    # 4. neither signed out, plain is newer: plain
    ("4 plain newer", ("plain",), 1, ("other", kit.ISSUER, BEFORE), 1, "plain"),
    ("4 plain newer, no plain uat", ("plain",), None, ("other", kit.ISSUER, BEFORE), 1, (PRE, NO_UAT)),
    ("4 plain older", ("plain", kit.ISSUER, BEFORE), 1, ("other",), 1, "other"),
    ("4 same age", ("plain",), 1, ("other",), 1, "other"),
    ("4 plain signed out", ("plain",), 0, ("other", kit.ISSUER, BEFORE), 1, "other"),
    # 5. suffixed signed out, plain not: plain
    ("5", ("plain", kit.ISSUER, BEFORE), 1, ("other",), 0, "plain"),
    ("5 no plain uat", ("plain", kit.ISSUER, BEFORE), None, ("other",), 0, (PRE, NO_UAT)),
    ("5 both signed out", ("plain",), 0, ("other",), 0, (PRE, NO_UAT)),
    # 6. is for development instances: in production the suffixed is refused for itself
    ("6 live", ("plain", kit.ISSUER, BEFORE), 0, ("other", kit.ISSUER, OLD), 1, ("token-expired", "exp is past")),
    # 7. suffixed session without suffixed uat: plain
    ("7", ("plain", kit.ISSUER, BEFORE), 1, ("other",), None, "plain"),
    ("7 no plain session", None, 1, ("other",), None, (PRE, NO_SESSION)),
    # 8. otherwise suffixed
    ("8 suffixed alone", None, None, ("other",), 1, "other"),
    ("8 suffixed, plain signed out", None, 0, ("other",), 1, "other"),
    ("8 suffixed uat alone", ("plain", kit.ISSUER, BEFORE), 1, None, 1, "plain"),
]  # fmt: skip


def shown(what: Any) -> Any:
    if what == "forged":
        return kit.encode(kit.claims(NOW), kit.rsa_key("attacker"))
    if not isinstance(what, tuple):
        return what
    user, issuer, claims = what + (None, kit.ISSUER, {})[len(what) :]
    return tok(user, issuer, **claims)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
async def test_the_table_on_a_live_instance(house, row) -> None:
    _, plain, uat, other, other_uat, expected = row
    provider = await made(house)
    request = asked(cookie(shown(plain), uat, shown(other), other_uat, more="theme=dark"))
    for _ in range(2):  # the second time from the cache, where the token was good
        got = await outcome(provider, request)
        assert got == expected or (isinstance(expected, tuple) and got[0] == expected[0] and got[1].startswith(expected[1]))


DEV_ROWS = [
    ("no dev browser", {"plain": True, "uat": 1}, "", "/api/me", (PRE, "dev-browser-missing")),
    ("empty dev browser", {"plain": True, "uat": 1}, "__clerk_db_jwt=", "/api/me", (PRE, "dev-browser-missing")),
    ("with dev browser", {"plain": True, "uat": 1}, DB, "/api/me", "plain"),
    ("dev browser in the query", {"plain": True, "uat": 1}, "", "/api/me?__clerk_db_jwt=dvb_1", "plain"),
    ("suffixed needs its own", {"other": True, "other_uat": 1}, DB, "/api/me", (PRE, "dev-browser-missing")),
    ("suffixed with its own", {"other": True, "other_uat": 1}, f"__clerk_db_jwt{TEST_END}=x", "/api/me", "other"),
    ("dev browser alone", {}, DB, "/api/me", None),
    ("no cookies", {}, "", "/api/me", None),
]


@pytest.mark.parametrize(("name", "cookies", "more", "path", "expected"), DEV_ROWS, ids=[row[0] for row in DEV_ROWS])
async def test_a_development_instance_needs_its_dev_browser(house, name, cookies, more, path, expected) -> None:
    provider = await made(house, test=True)
    tokens = {key: tok(key, TEST_ISSUER) if value is True else value for key, value in cookies.items()}
    assert await outcome(provider, asked(cookie(**tokens, end=TEST_END, more=more), path=path)) == expected


async def test_rule_6_an_expired_suffixed_session_beside_a_plain_sign_out_in_development(house) -> None:
    provider = await made(house, test=True)
    other = tok("other", TEST_ISSUER, **OLD)
    said = cookie(None, 0, other, 1, end=TEST_END, more=DB)
    assert await outcome(provider, asked(said)) == (PRE, NEITHER)


async def test_header_tokens_need_no_dev_browser(house) -> None:
    provider = await made(house, test=True)
    assert isinstance(await provider.authenticate(kit.bearer(tok(issuer=TEST_ISSUER))), Identity)


@pytest.mark.parametrize(
    "name", ["__session_evil", "__Session", "__sessio", "__session_nx2hSE6I", "__session_naoxfjni", "%5F_session", "session", " x"]
)
async def test_other_names_are_no_session_cookie(house, name) -> None:
    provider = await made(house)
    assert await outcome(provider, asked(f"{name}={tok()}; __client_uat=1")) is None


@pytest.mark.parametrize(
    "cookies",
    [
        ["__session={t}; __session={t}; __client_uat=1"],
        ["__session={t}; __session={u}; __client_uat=1"],
        ["__session={t}; __client_uat=1", "__session={u}"],
        ["__session=; __session={t}; __client_uat=1"],
        ["__session={t}; __client_uat=1; __client_uat=2"],
        ["__session={t}; __client_uat=1; __session_naoXFJnI={t}; __session_naoXFJnI={t}"],
        ["__session={t};__session={t};__client_uat=1"],
    ],
)
async def test_two_cookies_of_one_name_are_refused(house, cookies) -> None:
    provider = await made(house)
    said = [each.format(t=tok("one"), u=tok("two")) for each in cookies]
    assert await outcome(provider, asked(*said)) == (PRE, "two cookies of the same name")


async def test_two_other_cookies_of_one_name_are_not_our_business(house) -> None:
    assert await outcome(await made(house), asked(f"a=1; a=2; __session={tok()}; __client_uat=1; b")) == "user_1"


async def test_percent_encoding_is_undone_after_the_split_once_and_in_values_alone(house) -> None:
    provider, token = await made(house), tok()
    spelt = "".join(f"%{ord(letter):02x}" for letter in token[:5]) + token[5:]
    assert await outcome(provider, asked(f"__session={spelt}; __client_uat=%31")) == "user_1"
    no_jwt = (PRE, "the session cookie holds no JWT")
    assert await outcome(provider, asked(f"__session={token}%3B%20x=1; __client_uat=1")) == no_jwt
    assert await outcome(provider, asked(f"a=1%3B__session={token}%3B__client_uat=1")) is None
    assert await outcome(provider, asked(f"__session=%2565{token[1:]}; __client_uat=1")) == no_jwt
    assert await outcome(provider, asked(f'__session="{token}"; __client_uat=1')) == no_jwt
    for bad in ("%", "%6", "%zz", "%ff", "%c3%28"):
        malformed = (PRE, "a cookie with malformed percent-encoding")
        assert await outcome(provider, asked(f"__session={token}{bad}; __client_uat=1")) == malformed
        assert await outcome(provider, asked(f"theme={bad}; __session={token}; __client_uat=1")) == "user_1"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
async def test_unsafe_methods_need_the_origin_of_an_authorized_party(house, method) -> None:
    provider, said = await made(house), cookie(tok(), 1)
    refused = (PRE, "a cookie serves this method only with the Origin of an authorized party")
    for origins in (
        [],
        ["https://evil.example"],
        ["null"],
        [f"{kit.PARTY}/"],
        [kit.PARTY.upper()],
        [f"{kit.PARTY}.evil.example"],
        [kit.PARTY, kit.PARTY],
        ["https://evil.example", kit.PARTY],
        [""],
    ):
        headers = [("Origin", origin) for origin in origins]
        assert await outcome(provider, asked(said, method=method, headers=headers)) == refused
        headers.append(("Sec-Fetch-Site", "same-origin"))
        assert await outcome(provider, asked(said, method=method, headers=headers)) == refused
    assert await outcome(provider, asked(said, method=method, headers=[("Origin", kit.PARTY)])) == "user_1"
    assert await outcome(provider, asked("theme=dark", method=method)) is None


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_safe_methods_are_served_whatever_the_origin(house, method) -> None:
    provider = await made(house)
    for headers in ([], [("Origin", "https://evil.example")]):
        assert await outcome(provider, asked(cookie(tok(), 1), method=method, headers=headers)) == "user_1"


async def test_without_authorized_parties_no_unsafe_method_is_served_and_a_missing_azp_is_told_once(house, caplog) -> None:
    provider = await made(house, authorized_parties=None)
    said = cookie(tok(azp=kit.DROP), 1)
    assert await outcome(provider, asked(said)) == await outcome(provider, asked(said)) == "user_1"
    assert [record.levelno for record in caplog.records if "azp" in record.message] == [logging.WARNING]
    assert (await outcome(provider, asked(said, method="POST", headers=[("Origin", kit.PARTY)])))[0] == PRE


async def test_the_lenient_azp_switch_is_for_headers_alone(house) -> None:
    provider, token = await made(house, allow_missing_azp=True), tok(azp=kit.DROP)
    for _ in range(2):
        assert isinstance(await provider.authenticate(kit.bearer(token)), Identity)
        refused = ("token-authorized-party", "azp is missing in a cookie's token")
        assert await outcome(provider, asked(cookie(token, 1))) == refused  # though the cache knows the token


async def test_a_known_token_is_held_against_each_browsers_own_uat(house) -> None:
    provider, token = await made(house), tok()
    assert await outcome(provider, asked(cookie(token, NOW))) == "user_1"
    assert (await outcome(provider, asked(cookie(token, NOW + 1))))[0] == "session-revoked"
    assert await outcome(provider, asked(cookie(token, NOW))) == "user_1"


@pytest.mark.parametrize("category", ["cl_B7d4PD222AAA", "cl_B7d4PD333AAA", "cl_X"])
async def test_other_categories_in_a_cookie_are_no_session(house, category) -> None:
    token = kit.mint(kit.claims(NOW), kit.header(cat=category))
    assert (await outcome(await made(house), asked(cookie(token, 1))))[0] == "token-type"


async def test_a_cookie_of_another_configured_issuer_is_not_ours(tmp_path) -> None:
    house = kit.TestHouse(tmp_path, issuers={FOREIGN: "oidc"})
    provider = await made(house, publishable_key=None, issuer=[kit.ISSUER])
    assert await outcome(provider, asked(cookie(tok(issuer=FOREIGN), 1))) is None
    assert await outcome(provider, asked(cookie(tok(), 1))) == "user_1"
    assert await outcome(provider, asked(cookie(None, None, tok(), 1))) is None  # no key, so no suffix is known


# Over HTTP, through the gate -------------------------------------------------------------------------------------------


@signed_in
async def who(request: web.Request) -> web.Response:
    return web.json_response({"user_id": identity_of(request).user_id})


@requires(accepts=["api_key", "clerk_api_key"])
async def machines(request: web.Request) -> web.Response:
    return web.json_response({})


@asynccontextmanager
async def running():
    async with LoopbackClerk() as clerk:
        plugin = app_kit.routes_plugin(
            web.get("/x/who", who), web.post("/x/who", who), web.get("/x/machines", machines)
        )
        given = {name.replace(".", "__"): value for name, value in clerk.settings().items()}
        app = app_kit.build_app({"x": plugin}, **{**given, "providers": ["clerk", "api_key", "stub"]})
        async with app_kit.serving(app) as port:
            yield clerk, port


async def test_over_http() -> None:
    async with running() as (clerk, port):
        jar = next(iter(clerk.cookies(clerk.token("browser")).items()))
        party, evil = ("Origin", clerk.party), ("Origin", "https://evil.example")

        got = await app_kit.ask(port, "GET", "/x/who", jar)
        assert (got.status, got.json) == (200, {"user_id": "browser"})
        got = await app_kit.ask(port, "GET", "/x/who", jar, party)
        assert got.headers["access-control-allow-origin"] == clerk.party
        assert (await app_kit.ask(port, "HEAD", "/x/who", jar)).status == 200
        assert (await app_kit.ask(port, "POST", "/x/who", jar, party)).status == 200
        for more in ((), (evil,), (party, evil), (("Sec-Fetch-Site", "same-origin"),)):
            got = await app_kit.ask(port, "POST", "/x/who", jar, *more)
            assert (got.status, got.json["reason"]) == (401, PRE)
            assert "location" not in got.headers
            assert "set-cookie" not in got.headers
        for accept in ("text/html", "*/*"):  # where Clerk's own middleware would redirect to its handshake
            stale = next(iter(clerk.cookies(clerk.token("browser"), client_uat=2**33).items()))
            got = await app_kit.ask(port, "GET", "/x/who", stale, ("Accept", accept), ("Sec-Fetch-Dest", "document"))
            assert (got.status, got.json["reason"]) == (401, "session-revoked")
        assert (await app_kit.ask(port, "GET", "/x/nowhere", jar)).status == 404
        got = await app_kit.ask(port, "GET", "/x/nowhere")
        assert (got.status, got.json["reason"]) == (401, "credential-missing")


async def test_a_header_goes_before_the_cookie_and_never_falls_back() -> None:
    async with running() as (clerk, port):
        jar = next(iter(clerk.cookies(clerk.token("browser")).items()))
        got = await app_kit.ask(port, "GET", "/x/who", jar, ("Authorization", f"Bearer {clerk.token('header')}"))
        assert got.json == {"user_id": "header"}
        got = await app_kit.ask(port, "GET", "/x/who", jar, app_kit.stub("stubbed"))
        assert got.json == {"user_id": "stubbed"}
        expired = clerk.token("header", now=1_600_000_000)
        for header, reason in [
            (("Authorization", f"Bearer {expired}"), "token-expired"),
            (("Authorization", "Bearer garbage"), PRE),
            (("Authorization", "Basic YTpi"), PRE),
            (("Authorization", ""), PRE),
            (("X-API-Key", "whatever"), PRE),
            (("X-API-Key", ""), "credential-missing"),
        ]:
            got = await app_kit.ask(port, "GET", "/x/who", jar, header)
            assert (got.status, got.json["reason"]) == (401, reason), header
        two = [("Authorization", f"Bearer {clerk.token('header')}"), ("X-API-Key", "gp_x")]
        assert (await app_kit.ask(port, "GET", "/x/who", jar, *two)).status == 400


async def test_a_route_without_session_tokens_reads_no_cookie() -> None:
    async with running() as (clerk, port):
        jar = next(iter(clerk.cookies(clerk.token("browser")).items()))
        got = await app_kit.ask(port, "GET", "/x/machines", jar)
        assert (got.status, got.json["reason"]) == (401, "credential-missing")
        got = await app_kit.ask(port, "GET", "/x/machines", ("Authorization", f"Bearer {clerk.token('header')}"))
        assert (got.status, got.json["reason"]) == (401, "token-type")
