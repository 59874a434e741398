"""Clerk's opaque machine tokens against a Backend API on loopback: who is let in, what is refused, what a call costs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kits import app as app_kit
from kits import tokens as kit

from providers.clerk import machine_tokens as machine
from providers.clerk.machine_answer import KINDS
from providers.clerk.machine_tokens import MachineTokens
from providers.clerk.settings import ClerkSettings
from server import Answer, CredentialRejected, Identity, Unavailable, identity_of, requires, signed_in
from server.testing.clerk import LoopbackClerk

EVERY = frozenset(kind.token_type for kind in KINDS)
USER, ORG, MACHINE = "user_2xhFjEI5X2qWRvtV13BzSj8H6Dk", "org_2xhFjEI5X2qWRvtV13BzSj8H6Dk", "mch_2xhFjEI5X2qWRvtV13BzSj8H6Dk"
SUBJECT = {"api_key": USER, "m2m_token": MACHINE, "oauth_token": USER}
PATH = {
    "api_key": "/api_keys/verify",
    "m2m_token": "/m2m_tokens/verify",
    "oauth_token": "/oauth_applications/access_tokens/verify",
}
TYPE = {"api_key": "clerk_api_key", "m2m_token": "m2m_token", "oauth_token": "oauth_token"}
PRE = "credential-rejected"


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def clerk() -> AsyncIterator[LoopbackClerk]:
    async with LoopbackClerk() as one:
        one.slow_seconds = 0.2
        yield one


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def tokens(clerk, clock, tmp_path) -> AsyncIterator[MachineTokens]:
    house = kit.TestHouse(tmp_path)
    made = MachineTokens(ClerkSettings.read({"secret_key": clerk.secret_key, "api_url": clerk.url}), house, clock)
    yield made
    await made.close()
    await house.close()


async def ask(tokens: MachineTokens, token: str, accepted: frozenset[str] = EVERY) -> Any:
    """The Identity, or the reason and detail of the refusal."""
    kind = tokens.kind_of(token)
    assert kind is not None
    try:
        return await tokens.identify(token, kind, accepted)
    except CredentialRejected as refused:
        return refused.reason, refused.detail


def calls(clerk: LoopbackClerk) -> int:
    return sum(count for path, count in clerk.calls.items() if path.endswith("/verify"))


@pytest.mark.parametrize("kind", PATH)
async def test_a_good_token(tokens, clerk, kind) -> None:
    claims = None if kind == "oauth_token" else {"plan": "gold", "org_role": "org:admin", "deep": {"a": [1]}}
    token = clerk.machine_token(SUBJECT[kind], kind, scopes=["read:x", "write:x"], claims=claims, created_at=1_700_000_000_123)
    got = await ask(tokens, token)
    assert isinstance(got, Identity)
    assert (got.provider, got.token_type, got.scopes) == ("clerk", TYPE[kind], ("read:x", "write:x"))
    assert (got.user_id, got.org_id) == (None if kind == "m2m_token" else USER, None)
    assert got.key_id == clerk.answers[token]["id"]
    assert got.issued_at == 1_700_000_000.123
    assert (dict(got.claims) if got.claims else None) == ({**claims, "deep": {"a": (1,)}} if claims else None)
    headers, body = clerk.seen[0]
    assert clerk.calls == {PATH[kind]: 1}
    assert list(body.values()) == [token]
    assert headers["Authorization"] == f"Bearer {clerk.secret_key}"
    assert headers["Content-Type"] == "application/json"
    assert headers["Clerk-API-Version"] == "2026-05-12"


async def test_subjects(tokens, clerk) -> None:
    organisation = await ask(tokens, clerk.machine_token(ORG))
    assert (organisation.user_id, organisation.org_id, organisation.org_role) == (None, ORG, None)
    robot = await ask(tokens, clerk.machine_token(MACHINE))
    assert (robot.user_id, robot.org_id) == (None, None)
    assert robot.actor == f"key:{robot.key_id}"


@pytest.mark.parametrize("kind", PATH)
async def test_a_machine_has_no_role_permission_plan_feature_or_fresh_factor(tokens, clerk, kind) -> None:
    claims = {"org_role": "org:admin", "org_permissions": ["org:a:b"], "fea": "o:x,u:x", "pla": "u:p", "fva": [0, 0], "v": 2,
              "o": {"id": ORG, "rol": "admin"}}  # fmt: skip
    got = await ask(tokens, clerk.machine_token(SUBJECT[kind] if kind != "api_key" else ORG, kind, claims=claims))
    for word in ({"role": "org:admin"}, {"permission": "org:a:b"}, {"feature": "x"}, {"plan": "p"}, {"reverification": "lax"}):
        assert not got.has(**word)


SLUG_ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("revoked", {"revoked": True}, "key-revoked", "revoked"),
    ("expired", {"expired": True}, "key-expired", "expired"),
    ("revoked and expired", {"revoked": True, "expired": True}, "key-revoked", "revoked"),
    ("expiration past, in ms", {"expiration": 1_799_999_999_000}, "key-expired", "expired"),
    ("expiration past, in s", {"expiration": 1_799_999_999}, "key-expired", "expired"),
    ("expiration now", {"expiration": 1_800_000_000_000}, "key-expired", "expired"),
    ("expiration 0", {"expiration": 0}, "key-expired", "expired"),
    ("not active", {"active": False}, PRE, "not active"),
    ("active null", {"active": []}, PRE, "not active"),
    ("wrong object", {"object": "user"}, PRE, "another kind of object"),
    ("no object", {"object": None}, PRE, "another kind of object"),
    ("no subject", {"subject": None}, PRE, "subject is missing"),
    ("empty subject", {"subject": ""}, PRE, "subject is missing"),
    ("odd subject", {"subject": "sess_1"}, PRE, "subject is not of an expected kind"),
    ("prefix in another place", {"subject": "xuser_1"}, PRE, "subject is not of an expected kind"),
    ("list subject", {"subject": [USER]}, PRE, "subject is missing"),
    ("subject with newline", {"subject": "user_1\n"}, PRE, "subject is missing"),
    ("a subject like another issuer's", {"subject": "user_1|alice"}, "token-claims", "an id of Clerk's has no '|'"),
    ("an actor like another issuer's", {"act": {"sub": "acme|alice"}}, "token-claims", "an id of Clerk's has no '|'"),
    ("no id", {"id": None}, PRE, "id is missing"),
    ("id of another kind", {"id": "inv_1"}, PRE, "id is not of this kind"),
    ("number id", {"id": 5}, PRE, "id is missing"),
    ("no revoked", {"revoked": None}, PRE, "revoked is missing"),
    ("revoked is 0", {"revoked": 0}, PRE, "revoked is missing"),
    ("revoked is a text", {"revoked": "false"}, PRE, "revoked is missing"),
    ("no expired", {"expired": None}, PRE, "expired is missing"),
    ("expiration a text", {"expiration": "2099-01-01"}, PRE, "expiration is not a time"),
    ("expiration true", {"expiration": True}, PRE, "expiration is not a time"),
    ("expiration negative", {"expiration": -1}, PRE, "expiration is not a time"),
    ("scopes a text", {"scopes": "a b"}, PRE, "scopes is not a list"),
    ("scopes of numbers", {"scopes": [1]}, PRE, "scopes is not a list"),
    ("claims a list", {"claims": []}, PRE, "claims is not an object"),
    ("claims a text", {"claims": "x"}, PRE, "claims is not an object"),
]


@pytest.mark.parametrize("kind", PATH)
@pytest.mark.parametrize("row", SLUG_ROWS, ids=[row[0] for row in SLUG_ROWS])
async def test_a_200_is_not_trusted_as_it_is(tokens, clerk, kind, row) -> None:
    _, changes, reason, detail = row
    got = await ask(tokens, clerk.machine_token(SUBJECT[kind], kind, **changes))
    assert got[0] == reason
    assert detail in got[1]


@pytest.mark.parametrize(
    ("kind", "subject"), [("m2m_token", USER), ("m2m_token", ORG), ("oauth_token", ORG), ("oauth_token", MACHINE)]
)
async def test_a_subject_of_the_wrong_kind(tokens, clerk, kind, subject) -> None:
    assert (await ask(tokens, clerk.machine_token(subject, kind)))[0] == PRE


async def test_an_answer_that_is_only_inactive(tokens, clerk) -> None:
    token = clerk.machine_token(USER, "oauth_token")
    clerk.answers[token] = {"active": False}
    assert await ask(tokens, token) == (PRE, "Clerk says that it is not active")


async def test_the_answer_about_another_kind_does_not_count(tokens, clerk) -> None:
    clerk.answers["ak_x"] = clerk.answers[clerk.machine_token(MACHINE, "m2m_token")]
    assert (await ask(tokens, "ak_x"))[0] == PRE


@pytest.mark.parametrize("status", ["400", "404"])
async def test_unknown_tokens_are_refused_and_remembered_for_five_seconds(tokens, clerk, clock, status) -> None:
    clerk.mode = status
    for _ in range(100):
        assert await ask(tokens, "ak_forged") == (PRE, f"Clerk knows no such token ({status})")
    assert calls(clerk) == 1
    clock.now += 4.9
    await ask(tokens, "ak_forged")
    assert calls(clerk) == 1
    clock.now += 0.2
    await ask(tokens, "ak_forged")
    assert calls(clerk) == 2


OUTAGES = ["401", "403", "402", "405", "409", "422", "500", "502", "503", "garbage", "bad key", "301", "204"]


@pytest.mark.parametrize("mode", OUTAGES)
async def test_an_outage_is_no_verdict(tokens, clerk, mode) -> None:
    token, clerk.mode = clerk.machine_token(USER), mode
    with pytest.raises(Unavailable):
        await ask(tokens, token)
    clerk.mode = "ok"
    assert isinstance(await ask(tokens, token), Identity)  # and it leaves nothing behind


async def test_a_rate_limit_passes_its_retry_after_on(tokens, clerk) -> None:
    token, clerk.mode = clerk.machine_token(USER), "429"
    for said, passed in [("7", 7), ("0", 1), ("999999", 3600), ("soon", 1), ("-5", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)]:
        clerk.retry_after = said
        with pytest.raises(Unavailable) as limited:
            await ask(tokens, token)
        assert limited.value.retry_after == passed


class Strange:
    """A house that answers with these very bytes."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def fetch(self, url: str, **_: Any) -> Answer:
        return Answer(200, self.body, {})


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"{", b'{"object":"api_key","object":"api_key"}', b"NaN", b'"ok"'])
async def test_answers_that_are_no_json_object_are_an_outage(clock, body) -> None:
    tokens = MachineTokens(ClerkSettings(secret_key="sk_test_x"), Strange(body), clock)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await ask(tokens, "ak_1")


async def test_positives_are_kept_for_thirty_seconds(tokens, clerk, clock) -> None:
    token = clerk.machine_token(USER)
    first = await ask(tokens, token)
    clerk.answers[token]["revoked"] = True
    for step in (0, 15, 14.9):
        clock.now += step
        assert await ask(tokens, token) is first
    assert calls(clerk) == 1
    clock.now += 0.2
    assert (await ask(tokens, token))[0] == "key-revoked"
    assert calls(clerk) == 2


async def test_positives_are_never_kept_past_the_expiration(tokens, clerk, clock) -> None:
    token = clerk.machine_token(USER, expiration=int((clock.now + 10) * 1000))
    assert isinstance(await ask(tokens, token), Identity)
    clock.now += 9.9
    assert isinstance(await ask(tokens, token), Identity)
    clock.now += 0.2
    assert (await ask(tokens, token))[0] == "key-expired"
    assert calls(clerk) == 2


async def test_a_clock_that_jumps_back_lengthens_nothing(tokens, clerk, clock) -> None:
    token = clerk.machine_token(USER)
    await ask(tokens, token)
    clock.now -= 3600
    clerk.answers[token]["revoked"] = True
    assert (await ask(tokens, token))[0] == "key-revoked"


@pytest.mark.parametrize("seconds", [0, 0.0, 300])
async def test_the_setting(clerk, clock, tmp_path, seconds) -> None:
    house = kit.TestHouse(tmp_path)
    table = {"secret_key": clerk.secret_key, "api_url": clerk.url, "machine_cache_seconds": seconds}
    tokens, token = MachineTokens(ClerkSettings.read(table), house, clock), clerk.machine_token(USER)
    await ask(tokens, token)
    clock.now += 299
    await ask(tokens, token)
    assert calls(clerk) == (1 if seconds else 2)
    await house.close()


@pytest.mark.parametrize("mode", ["slow", "404", "500"])
async def test_those_who_ask_at_the_same_time_share_one_call(tokens, clerk, mode) -> None:
    token, clerk.mode = clerk.machine_token(USER), mode
    got = await asyncio.gather(*(ask(tokens, token) for _ in range(200)), return_exceptions=True)
    assert calls(clerk) == 1
    expected = {"slow": Identity, "404": tuple, "500": Unavailable}[mode]
    assert {type(each) for each in got} == {expected}


async def test_one_who_goes_away_does_not_end_the_call_for_the_others(tokens, clerk) -> None:
    token, clerk.mode = clerk.machine_token(USER), "slow"
    first, second = asyncio.create_task(ask(tokens, token)), asyncio.create_task(ask(tokens, token))
    await asyncio.sleep(0.05)
    first.cancel()
    assert isinstance(await second, Identity)
    assert calls(clerk) == 1


async def test_a_flood_of_different_bad_tokens_leaves_connections_free(tokens, clerk, monkeypatch) -> None:
    clerk.mode, clerk.slow_seconds = "slow", 0.3
    monkeypatch.setattr(machine, "_QUEUE_SECONDS", 0.1)
    got = await asyncio.gather(*(ask(tokens, f"ak_{n}") for n in range(700)), return_exceptions=True)
    assert calls(clerk) == 12
    assert sum(isinstance(each, tuple) for each in got) == 12
    assert sum(isinstance(each, Unavailable) for each in got) == 688
    clerk.mode = "ok"
    assert isinstance(await ask(tokens, clerk.machine_token(USER)), Identity)


async def test_the_caches_are_bounded(tokens, clerk) -> None:
    tokens._bad._entries.most = 10
    for n in range(30):
        await ask(tokens, f"ak_{n}")
    assert len(tokens._bad) == 10


async def test_a_wrong_type_costs_no_call(tokens, clerk) -> None:
    for kind, path in PATH.items():
        token = clerk.machine_token(SUBJECT[kind], kind)
        assert path
        assert (await ask(tokens, token, EVERY - {TYPE[kind]}))[0] == PRE
        assert (await ask(tokens, token, frozenset({"session_token"})))[0] == PRE
    assert calls(clerk) == 0


@pytest.mark.parametrize("token", ["ak_" + "x" * 600, "ak_a b", "ak_é", "ak_\udcff", "ak_a\tb"])
async def test_what_no_token_looks_like_costs_no_call(tokens, clerk, token) -> None:
    assert (await ask(tokens, token))[0] == PRE
    assert calls(clerk) == 0


def test_prefixes_and_keys() -> None:
    def kinds(**settings: str) -> list[str | None]:
        tokens = MachineTokens(ClerkSettings(**settings), Strange(b""), Clock())  # type: ignore[arg-type]
        found = [tokens.kind_of(token) for token in ("ak_1", "mt_1", "oat_1", "AK_1", "Mt_1", "m2m_1", "xak_1", "")]
        assert found[3:] == [None] * 5
        return [kind.token_type if kind else None for kind in found[:3]]

    assert kinds(secret_key="sk_test_1") == ["clerk_api_key", "m2m_token", "oauth_token"]
    assert kinds(machine_secret_key="ak_1") == [None, "m2m_token", None]
    assert kinds() == [None, None, None]


async def test_the_machine_secret_is_for_m2m_tokens_alone(clerk, clock, tmp_path) -> None:
    house, clerk.machine_secret_key = kit.TestHouse(tmp_path), "ak_machinesecret"
    table = {"secret_key": clerk.secret_key, "machine_secret_key": "ak_machinesecret", "api_url": clerk.url}
    tokens = MachineTokens(ClerkSettings.read(table), house, clock)
    for kind in PATH:
        assert isinstance(await ask(tokens, clerk.machine_token(SUBJECT[kind], kind)), Identity)
    sent = {headers["Authorization"] for headers, body in clerk.seen if "token" in body}
    assert sent == {"Bearer ak_machinesecret"}
    await house.close()


async def test_no_token_and_no_secret_in_any_log_line_or_message(tokens, clerk, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    for mode in ("404", "500", "garbage", "401"):
        clerk.mode = mode
        try:
            said = await ask(tokens, f"ak_PRIVATE{mode}")
        except Unavailable as outage:
            said = outage
        assert "PRIVATE" not in repr(said)
        assert clerk.secret_key not in repr(said)
    assert "PRIVATE" not in caplog.text
    assert clerk.secret_key not in caplog.text


# Over HTTP, through the gate -------------------------------------------------------------------------------------------


async def who(request: web.Request) -> web.Response:
    caller = identity_of(request)
    return web.json_response({"type": caller.token_type, "user_id": caller.user_id, "org_id": caller.org_id})


async def admins(request: web.Request) -> web.Response:
    return web.json_response({})


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[LoopbackClerk, int]]:
    every = sorted(EVERY)
    plugin = app_kit.routes_plugin(
        web.get("/x/everyday", signed_in(who)),
        web.get("/x/machines", requires(accepts=every)(who)),
        web.get("/x/keys", requires(accepts=["clerk_api_key"])(who)),
        web.get("/x/scoped", requires(accepts=[*every, "session_token"], scopes=["read:x"])(who)),
        web.get("/x/users", requires(accepts=every, user=True)(who)),
        web.get("/x/admins", requires(accepts=every, role="org:admin")(admins)),
        web.get("/x/orgs/{org_id}", requires(accepts=every, organization="org_id")(who)),
    )
    async with LoopbackClerk() as clerk:
        given = {name.replace(".", "__"): value for name, value in {**clerk.settings(), **settings}.items()}
        async with app_kit.serving(app_kit.build_app({"x": plugin}, **given)) as port:
            yield clerk, port


async def get(port: int, path: str, token: str) -> tuple[int, Any, dict[str, str]]:
    got = await app_kit.ask(port, "GET", path, ("Authorization", f"Bearer {token}"))
    return got.status, got.json.get("reason") if got.status >= 400 else got.json, got.headers


async def test_over_http() -> None:
    async with running() as (clerk, port):
        user, org, m2m = clerk.machine_token(USER), clerk.machine_token(ORG), clerk.machine_token(MACHINE, "m2m_token")
        oauth = clerk.machine_token(USER, "oauth_token", scopes=["read:x"])

        for token in (user, org, m2m, oauth):
            for path in ("/x/everyday", "/x/nowhere"):
                assert (await get(port, path, token))[:2] == (401, PRE)
        assert (await get(port, "/x/keys", m2m))[:2] == (401, PRE)
        assert calls(clerk) == 0

        assert (await get(port, "/x/machines", user))[1] == {"type": "clerk_api_key", "user_id": USER, "org_id": None}
        assert (await get(port, "/x/machines", org))[1] == {"type": "clerk_api_key", "user_id": None, "org_id": ORG}
        assert (await get(port, "/x/machines", m2m))[1] == {"type": "m2m_token", "user_id": None, "org_id": None}
        assert (await get(port, "/x/scoped", oauth))[1] == {"type": "oauth_token", "user_id": USER, "org_id": None}
        assert (await get(port, "/x/scoped", user))[:2] == (403, "scope")
        assert (await get(port, "/x/users", org))[:2] == (403, "user")
        assert (await get(port, "/x/users", m2m))[:2] == (403, "user")
        assert (await get(port, "/x/admins", org))[:2] == (403, "role")
        assert (await get(port, f"/x/orgs/{ORG}", org))[0] == 200
        assert (await get(port, "/x/orgs/org_other", org))[:2] == (403, "organization")
        assert calls(clerk) == 4
        # Known by now, and still only where the route takes them.
        assert (await get(port, "/x/everyday", user))[:2] == (401, PRE)
        assert (await get(port, "/x/scoped", clerk.token()))[:2] == (403, "scope")
        assert (await get(port, "/x/machines", clerk.token()))[:2] == (401, "token-type")


async def test_refusals_and_outages_over_http() -> None:
    async with running(**{"limits.provider_seconds": 0.5}) as (clerk, port):
        assert (await get(port, "/x/machines", "ak_forged"))[:2] == (401, PRE)
        assert (await get(port, "/x/machines", clerk.machine_token(USER, revoked=True)))[:2] == (401, "key-revoked")
        assert (await get(port, "/x/machines", clerk.machine_token(USER, expired=True)))[:2] == (401, "key-expired")
        for mode, wait in (("429", "7"), ("500", "1"), ("slow", "1"), ("garbage", "1"), ("bad key", "1")):
            clerk.mode = mode
            status, _, headers = await get(port, "/x/machines", clerk.machine_token(USER))
            assert (status, headers["retry-after"]) == (503, wait)
        assert (await get(port, "/x/machines", clerk.token()))[:2] == (401, "token-type")  # sessions need no Backend API


async def test_without_a_secret_key_machine_tokens_are_nobodys() -> None:
    async with running(**{"clerk.secret_key": None}) as (clerk, port):
        assert (await get(port, "/x/machines", clerk.machine_token(USER)))[:2] == (401, PRE)
        assert calls(clerk) == 0
