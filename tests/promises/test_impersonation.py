"""Impersonation: who really acts is always shown, leaves with no lasting credential, and ends with either of the two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.pages import blocks
from kits.webhooks import SETTINGS, deliver, empty, user, user_deleted

from server import answer, identity_of, requires, scoped
from server.auth.access import Access, check
from server.auth.identity import Identity
from server.database.statements import SET_SCOPE_AND_WRITER
from server.http.errors import Forbidden
from server.testing.clerk import LoopbackClerk
from tests.conftest import ADMIN_A, ALICE, ROBOT_A, Client, Serve, TestDatabase, plugin, stub

ALICE_BY_EVE = stub("alice", org_id="org_a", org_role="org:member", impersonator="eve")
ADMIN_BY_EVE = stub("anna", org_id="org_a", org_role="org:admin", impersonator="eve")
DASHBOARD = {"iss": "https://dashboard.clerk.com", "sid": "sess_eve", "sub": "eve"}


@pytest.fixture
async def clerk() -> AsyncIterator[LoopbackClerk]:
    async with LoopbackClerk() as instance:
        yield instance


@pytest.fixture
async def client(serve: Serve, db: TestDatabase) -> Client:
    """One connection for all requests: what one leaves behind, the next one finds."""
    await empty(db)
    await db.rows("DELETE FROM api_keys")
    await db.rows("DELETE FROM idempotency_keys")
    return await serve({**SETTINGS, "database.pool_size": 1}, extra={"acme": plugin(web.post("/owner", owner))})


@requires(impersonation=False)
async def owner(request: web.Request) -> web.Response:
    async with scoped(request):
        return answer({"done": True})


@requires(accepts=["oauth_token"])
async def who(request: web.Request) -> web.Response:
    return answer({"impersonator": identity_of(request).impersonator})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(got: Any) -> None:
    assert (got.status, got.json()) == (403, {"error": "Forbidden", "reason": "impersonation"})


async def entries(client: Client, request_id: str, number: int = 1) -> list[dict[str, Any]]:
    """The audit entries of one request, as the administrator reads them; denials are written a little later."""
    async with asyncio.timeout(8):
        while True:
            got = await client.get("/api/orgs/org_a/audit?limit=100", ADMIN_A)
            found = [row for row in got.json() if row["request_id"] == request_id]
            if len(found) >= number:
                return found
            await asyncio.sleep(0.05)


# Both are shown ----------------------------------------------------------------------------------------------------------


async def test_who_am_i_shows_both(client: Client) -> None:
    assert {name: (await client.get("/api/me", ALICE_BY_EVE)).json()[name] for name in ("user_id", "impersonator")} == {
        "user_id": "alice", "impersonator": "eve"}  # fmt: skip
    for caller in (ALICE, ROBOT_A):
        assert (await client.get("/api/me", caller)).json()["impersonator"] is None


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act", [{"sub": "eve"}, DASHBOARD, {**DASHBOARD, "type": "agent"}], ids=["sub", "dashboard", "agent"])
async def test_a_session_of_clerks(serve: Serve, clerk: LoopbackClerk, version: int, act: dict[str, str]) -> None:
    client = await serve(clerk.settings())
    more: dict[str, Any] = {"v": None} if version == 1 else {"o": {"id": "org_a", "rol": "member"}}
    token = clerk.token("alice", act=act, **more)
    for headers in (bearer(token), clerk.cookies(token)) * 2:  # the second time it is known
        me = (await client.get("/api/me", headers)).json()
        assert (me["user_id"], me["impersonator"], me["claims"]["act"], me["claims"].get("v")) == (
            "alice", "eve", act, 2 if version == 2 else None)  # fmt: skip
    me = (await client.get("/api/me", bearer(clerk.token("alice")))).json()
    assert (me["user_id"], me["impersonator"]) == ("alice", None)


@pytest.mark.parametrize("act", ["eve", ["eve"], {}, {"sub": ""}, {"sub": 7}, {"sub": "e\nve"}, {"act": {"sub": "eve"}}, False], ids=str)
async def test_a_malformed_act_is_a_401(serve: Serve, clerk: LoopbackClerk, act: Any) -> None:
    client = await serve(clerk.settings())
    token = clerk.token("alice", act=act)
    for headers in (bearer(token), clerk.cookies(token)):
        got = await client.get("/api/me", headers)
        assert (got.status, got.json()) == (401, {"error": "Unauthorized", "reason": "token-claims"})


async def test_an_oauth_token_of_clerks(serve: Serve, clerk: LoopbackClerk) -> None:
    """Clerk's answer about an opaque token may have the member `act`; null means none."""
    client = await serve(clerk.settings(), extra={"acme": plugin(web.get("/who", who))})
    for act, wanted in (({"sub": "eve"}, "eve"), (None, None)):
        token = clerk.machine_token("user_1", "oauth_token")
        clerk.answers[token]["act"] = act
        assert (await client.get("/who", bearer(token))).json() == {"impersonator": wanted}
    token = clerk.machine_token("user_1", "oauth_token", act={"sub": 7})
    assert (await client.get("/who", bearer(token))).status == 401


async def test_the_audit_log_names_both_for_every_write(client: Client) -> None:
    """Also where an Idempotency-Key makes one transaction of the request; and nothing is left behind for the next one."""
    writers = [(ALICE_BY_EVE, "alice", "alice", "eve"), (ALICE, "alice", "alice", None), (ROBOT_A, None, "key:robot_a", None),
               (ADMIN_BY_EVE, "anna", "anna", "eve"), (ADMIN_A, "anna", "anna", None)]  # fmt: skip
    for at, (caller, *wanted) in enumerate(writers):
        for key in ({}, {"Idempotency-Key": f"k{at}"}):
            got = await client.post("/api/orgs/org_a/data", {**caller, **key}, {"name": "n"})
            assert got.status == 201, got
            (entry,) = await entries(client, got.headers["X-Request-Id"])
            assert [entry[name] for name in ("action", "user_id", "actor", "impersonator")] == ["insert", *wanted]


async def test_a_denial_names_both(client: Client) -> None:
    """And a denial of the user is another entry than the same one of who impersonates them."""
    for caller, wanted in ((ALICE_BY_EVE, "eve"), (ALICE, None)):
        got = await client.delete("/api/data/00000000-0000-4000-8000-00000000dead", caller)
        assert (got.status, got.json()["reason"]) == (403, "role")
        (entry,) = await entries(client, got.headers["X-Request-Id"])
        assert (entry["action"], entry["user_id"], entry["actor"], entry["impersonator"], entry["times"]) == (
            "denied", "alice", "alice", wanted, 1)  # fmt: skip


async def test_the_log_names_both(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gatepost")
    client = await serve({"log.requests": True})
    for path in ("/api/me", "/api/orgs/org_b/data"):
        for caller in (ALICE_BY_EVE, ALICE):
            await client.get(path, caller)
    lines: list[dict[str, Any]] = [record.fields for record in caplog.records if record.getMessage() in ("request", "denied")]  # type: ignore[attr-defined]
    assert [(line["user_id"], line.get("impersonator")) for line in lines] == [("alice", "eve"), ("alice", None)] * 2


def test_a_plain_write_sets_what_it_did_before() -> None:
    """The impersonator comes in the setting of the actor: five settings for each transaction, and always all of them."""
    names = ("user_id", "org_id", "admin_org_id", "actor", "request_id")
    assert ", ".join(f"set_config('gatepost.{name}', ${at}, true)" for at, name in enumerate(names, 1)) in SET_SCOPE_AND_WRITER


@pytest.mark.parametrize("field", ["user_id", "key_id", "impersonator"])
def test_no_name_can_contain_what_separates_the_two(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Identity(**{"provider": "p", "token_type": "api_key", field: "alice\neve"})


# No lasting credential ---------------------------------------------------------------------------------------------------


async def test_keys_are_neither_made_nor_rotated(client: Client, db: TestDatabase) -> None:
    mine = (await client.post("/api/keys", ALICE, {"name": "mine"})).json()
    org = (await client.post("/api/keys", ADMIN_A, {"name": "org", "owner": "organization"})).json()
    before, keyed = await db.rows("SELECT * FROM api_keys ORDER BY id"), {"Idempotency-Key": "k"}
    for caller, key, owner in ((ALICE_BY_EVE, mine, "user"), (ADMIN_BY_EVE, org, "organization")):
        denied = [await client.post("/api/keys", {**caller, **more}, {"name": "stolen", "owner": owner}) for more in ({}, keyed)]
        for more in ({}, keyed):
            denied.append(await client.post(f"/api/keys/{key['id']}/rotate", {**caller, **more}, {"overlap_seconds": 60}))
        for got in denied:
            refused(got)
        (entry,) = await entries(client, denied[0].headers["X-Request-Id"])
        assert (entry["action"], entry["target"], entry["reason"], entry["impersonator"]) == (
            "denied", "POST /api/keys", "impersonation", "eve")  # fmt: skip
    assert await db.rows("SELECT * FROM api_keys ORDER BY id") == before


async def test_a_key_is_listed_and_ended(client: Client, db: TestDatabase) -> None:
    key = (await client.post("/api/keys", ALICE, {"name": "mine"})).json()
    assert [row["id"] for row in (await client.get("/api/keys", ALICE_BY_EVE)).json()] == [key["id"]]
    got = await client.delete(f"/api/keys/{key['id']}", ALICE_BY_EVE)
    assert got.status == 204
    (entry,) = await entries(client, got.headers["X-Request-Id"])
    assert (entry["action"], entry["target"], entry["actor"], entry["impersonator"]) == ("update", "api_keys", "alice", "eve")


async def test_a_session_of_clerks_makes_no_key(serve: Serve, clerk: LoopbackClerk, db: TestDatabase) -> None:
    client = await serve({**clerk.settings(), "providers": ["clerk", "api_key"]})
    keys = await db.count("api_keys")
    token = clerk.token("alice", org_id="org_a", org_role="org:admin", act=DASHBOARD)
    for sent in ({"name": "k"}, {"name": "k", "owner": "organization"}):
        refused(await client.post("/api/keys", bearer(token), sent))
    assert await db.count("api_keys") == keys
    assert (await client.post("/api/keys", bearer(clerk.token("alice")), {"name": "k"})).status == 201


async def test_a_session_in_a_cookie_makes_and_rotates_no_key(serve: Serve, clerk: LoopbackClerk, db: TestDatabase) -> None:
    client = await serve({**clerk.settings(), "providers": ["clerk", "api_key"]})
    mine = (await client.post("/api/keys", bearer(clerk.token("alice")), {"name": "mine"})).json()
    before = await db.rows("SELECT * FROM api_keys ORDER BY id")
    by_eve = {**clerk.cookies(clerk.token("alice", act=DASHBOARD)), "Origin": clerk.party}
    for _ in range(2):
        refused(await client.post("/api/keys", by_eve, {"name": "k"}))
        refused(await client.post(f"/api/keys/{mine['id']}/rotate", by_eve, {}))
    assert await db.rows("SELECT * FROM api_keys ORDER BY id") == before
    assert (await client.post("/api/keys", {**by_eve, **clerk.cookies(clerk.token("alice"))}, {"name": "k"})).status == 201


MACHINE_KINDS = [("oauth_token", "alice"), ("m2m_token", "mch_1")]


async def test_no_machine_token_makes_a_key(serve: Serve, clerk: LoopbackClerk, db: TestDatabase) -> None:
    """With or without `act`: the routes of keys name no such type."""
    client = await serve({**clerk.settings(), "providers": ["clerk", "api_key"]})
    keys = await db.count("api_keys")
    for kind, subject in MACHINE_KINDS:
        for act in ({}, {"act": DASHBOARD}):
            token = clerk.machine_jwt(subject, kind, org_id="org_a", **act)
            for path in ("/api/keys", "/api/keys/gk_1/rotate"):
                got = await client.post(path, bearer(token), {"name": "k"})
                assert (got.status, got.json()["reason"]) == (401, "token-type")
    assert await db.count("api_keys") == keys


@requires(accepts=["oauth_token", "m2m_token"])
async def note(request: web.Request) -> web.Response:
    async with scoped(request) as db:
        await db.execute("INSERT INTO data (user_id, name) VALUES ($1, 'n')", identity_of(request).user_id)
    return answer({"impersonator": identity_of(request).impersonator})


@requires(accepts=["oauth_token", "m2m_token"], impersonation=False)
async def alone(request: web.Request) -> web.Response:
    return answer({})


async def test_a_jwt_machine_token_names_both(serve: Serve, clerk: LoopbackClerk, db: TestDatabase) -> None:
    client = await serve(clerk.settings(), extra={"acme": plugin(web.post("/note", note), web.post("/alone", alone), web.get("/who", who))})
    token = clerk.machine_jwt("alice", act=DASHBOARD, jti="oat_1")
    for _ in range(2):
        got = await client.post("/note", bearer(token))
        assert got.json() == {"impersonator": "eve"}
        (entry,) = await db.rows("SELECT user_id, actor, impersonator FROM audit_log WHERE request_id = $1", got.headers["X-Request-Id"])
        assert tuple(entry.values()) == ("alice", "key:oat_1", "eve")
    for kind, subject in MACHINE_KINDS:
        refused(await client.post("/alone", bearer(clerk.machine_jwt(subject, kind, act=DASHBOARD))))
        assert (await client.post("/alone", bearer(clerk.machine_jwt(subject, kind)))).status == 200
        for act in ("eve", [], {}, {"sub": ""}, {"sub": 7}, False):
            got = await client.post("/alone", bearer(clerk.machine_jwt(subject, kind, act=act)))
            assert (got.status, got.json()) == (401, {"error": "Unauthorized", "reason": "token-claims"})


async def test_a_route_of_a_product_refuses(client: Client) -> None:
    assert (await client.post("/owner", ALICE)).json() == {"done": True}
    assert (await client.post("/owner", ROBOT_A)).json() == {"done": True}
    got = await client.post("/owner", ALICE_BY_EVE)
    refused(got)
    assert "WWW-Authenticate" not in got.headers


async def test_the_route_of_the_guide_refuses(serve: Serve) -> None:
    (block,) = blocks("python", page="docs/guides/impersonation.md")
    page: dict[str, Any] = {"__name__": "guide"}
    exec(compile(block.text, block.page, "exec", dont_inherit=True), page)
    client = await serve(extra={"acme": plugin(*page["routes"])})
    assert (await client.post("/api/account/close", ALICE)).json() == {"closed": True}
    refused(await client.post("/api/account/close", ALICE_BY_EVE))


async def test_the_second_lock_refuses_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gate.admission.check", lambda *_: None)
    refused(await client.post("/owner", ALICE_BY_EVE))
    refused(await client.post("/api/keys", ALICE_BY_EVE, {"name": "k"}))


async def test_a_stored_answer_is_not_for_who_impersonates(client: Client) -> None:
    keyed = {"Idempotency-Key": "k"}
    assert (await client.post("/owner", {**ALICE, **keyed})).status == 200
    refused(await client.post("/owner", {**ALICE_BY_EVE, **keyed}))


def test_impersonation_of_the_own_user_is_refused_too() -> None:
    with pytest.raises(Forbidden):
        check(Access(impersonation=False), Identity(provider="p", user_id="alice", impersonator="alice"), {})


# Keys of a client, limits, and the end -----------------------------------------------------------------------------------


async def test_two_callers_have_their_own_idempotency_keys(client: Client, db: TestDatabase) -> None:
    """Otherwise an impersonator could use up a key, and the user's own request would be answered without an effect."""
    before, seen = await db.count("data"), []
    for caller in (ALICE_BY_EVE, ALICE, stub("alice", org_id="org_a", org_role="org:member", impersonator="mallory")) * 2:
        got = await client.post("/api/data", {**caller, "Idempotency-Key": "same"}, {"name": "n"})
        assert got.status == 201
        seen.append((got.json()["id"], "Idempotency-Replayed" in got.headers))
    assert [again for _, again in seen] == [False] * 3 + [True] * 3
    assert [id for id, _ in seen[:3]] == [id for id, _ in seen[3:]]
    assert await db.count("data") == before + 3


async def test_an_impersonation_counts_for_the_user(serve: Serve) -> None:
    """No impersonator gives a user another rate: the load that one user causes stays bounded."""
    client = await serve({"limits.caller": "3/day"})
    callers = [ALICE, ALICE_BY_EVE, stub("alice", impersonator="mallory"), stub("alice", impersonator="another"), ALICE]
    assert [(await client.get("/api/me", caller)).status for caller in callers] == [200, 200, 200, 429, 429]
    assert (await client.get("/api/me", stub("eve"))).status == 200


@pytest.mark.parametrize("end", [user("updated", 5, id="eve", banned=True), user_deleted(5, id="eve"), user_deleted(5, id="alice")],
                         ids=["impersonator banned", "impersonator deleted", "user deleted"])  # fmt: skip
async def test_it_ends_with_either_of_the_two(serve: Serve, db: TestDatabase, clerk: LoopbackClerk, end: Any) -> None:
    await empty(db)
    client = await serve({**clerk.settings(), **SETTINGS})
    headers, others = bearer(clerk.token("alice", act=DASHBOARD, iat=int(end["timestamp"] / 1000) - 60)), bearer(clerk.token("cy"))
    assert (await client.get("/api/me", headers)).json()["impersonator"] == "eve"
    for event in (user("created", 0, id="alice"), user("created", 0, id="eve"), end):
        assert (await deliver(client, event)).status == 204
    async with asyncio.timeout(10):
        while (got := await client.get("/api/me", headers)).status == 200:
            await asyncio.sleep(0.02)
    assert (got.status, got.json()["reason"]) == (401, "session-revoked")
    assert (await client.get("/api/me", others)).status == 200
    await empty(db)
