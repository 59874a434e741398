"""Sign-out from an issuer: logout tokens and security events over real HTTP, each rule broken one by one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kits import oidc as oidc_kit
from kits import signals
from kits.live import LIVE, events, registry, until
from kits.oidc import AUDIENCE, DROP, Issuer, key
from kits.signals import DISABLED, EVENT, LOGOUT, REVOKED, SCHEMAS, SSF, VERIFICATION, asked, ends, iss_sub, log_out, push

from providers.api_key.key_format import make
from providers.oidc import settings as settings_room
from server.app import TABLE
from server.auth.revocation import REVOCATION_FAILURES
from server.database.scope import DATABASE
from server.openapi.document import DOCUMENT
from tests.conftest import Client, Serve, TestDatabase

AUTHORIZATION = "Bearer canary-of-the-transmitter"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


@pytest.fixture
async def other() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


@pytest.fixture
async def client(serve: Serve, issuer: Issuer) -> Client:
    return await serve(signals.table(issuer, logout_audience=["app", "other-app"]))


async def revocations(db: TestDatabase) -> set[tuple[str, str]]:
    return {(row["kind"], row["subject"]) for row in await db.rows("SELECT kind, subject FROM revocations WHERE kind <> 'keys'")}


# Back-Channel Logout -----------------------------------------------------------------------------------------------------


async def test_a_logout_by_sid_ends_that_session_in_every_process(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    clients = [await serve(signals.table(issuer)) for _ in range(2)]
    gone, stays, alone, bobs = issuer.token(sid="s1"), issuer.token(sid="s2"), issuer.token(), issuer.token(sid="s3", sub="bob")
    for client in clients:
        assert [await asked(client, one) for one in (gone, stays, alone, bobs)] == [200] * 4
    got = await log_out(clients[0], signals.logout_token(issuer, sub=DROP, sid="s1"))
    assert (got.status, got.raw, got.headers["Cache-Control"]) == (200, b"", "no-store")
    for client in clients:
        assert await ends(client, gone) < 5
        assert [await asked(client, one) for one in (stays, alone, bobs)] == [200] * 3
        assert await asked(client, issuer.token(sid="s1", jti="later")) == "session-revoked"
    assert await revocations(db) == {("session", "n0|s1")}


async def test_with_a_sub_as_well_tokens_that_name_no_session_end_too(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    gone, stays, alone, bobs = issuer.token(sid="s1"), issuer.token(sid="s2"), issuer.token(), issuer.token(sub="bob")
    assert (await log_out(client, signals.logout_token(issuer, sid="s1"))).status == 200
    await ends(client, gone, alone)
    assert [await asked(client, one) for one in (stays, bobs)] == [200] * 2
    assert await asked(client, issuer.token(iat=int(time.time()) + 2)) == 200  # signed in again
    assert await revocations(db) == {("session", "n0|s1"), ("subject", "n0|alice")}


async def test_a_logout_by_sub_ends_all_tokens_of_the_user_until_then(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    one, two, alone, bobs = issuer.token(sid="s1"), issuer.token(sid="s2"), issuer.token(), issuer.token(sub="bob")
    assert (await log_out(client, signals.logout_token(issuer))).status == 200
    await ends(client, one, two, alone)
    assert await asked(client, bobs) == 200
    assert await asked(client, issuer.token(sid="s4", iat=int(time.time()) + 2)) == 200  # signed in again
    assert await revocations(db) == {("user", "n0|alice")}


async def test_the_same_sub_and_sid_of_another_issuer_are_unharmed(
    serve: Serve, issuer: Issuer, other: Issuer, db: TestDatabase
) -> None:
    client = await serve(signals.table(issuer, other))
    mine, theirs = issuer.token(sid="s1"), other.token(sid="s1")
    assert (await log_out(client, signals.logout_token(issuer, sid="s1"))).status == 200
    assert (await log_out(client, signals.logout_token(issuer))).status == 200
    assert (await push(client, signals.security_event(issuer, {DISABLED: {}}))).status == 202
    await ends(client, mine)
    assert await asked(client, theirs) == 200
    assert all(subject.startswith("n0|") for _, subject in await revocations(db))
    # No issuer speaks of another's, whatever its token says.
    forged = signals.logout_token(other, signer=key("RS256", "attacker"))
    got = await log_out(client, signals.logout_token(issuer, iss=other.url, signer=key("RS256", "attacker")))
    assert (got.status, (await log_out(client, forged)).status) == (400, 400)
    got = await push(client, signals.security_event(issuer, sub_id=iss_sub(other)))
    assert (got.status, got.json()["err"], got.json()["description"]) == (400, "invalid_request", "the subject is another issuer's")
    assert await asked(client, theirs) == 200


async def test_no_id_can_pass_for_another_issuers(serve: Serve, issuer: Issuer, other: Issuer, db: TestDatabase) -> None:
    settings = signals.table(issuer, other)
    settings["oidc.issuers"][0]["namespace"] = ""
    client = await serve(settings)
    for claims in ({"sub": "n1|alice"}, {"sub": DROP, "sid": "n1|s1"}, {"sub": "alice", "sid": "n1|s1"}):
        assert (await log_out(client, signals.logout_token(issuer, **claims))).status == 400
    assert (await push(client, signals.security_event(issuer, sub_id=iss_sub(issuer, "n1|alice")))).status == 400
    assert await asked(client, issuer.token(sid="n1|s1")) == "token-claims"
    assert await revocations(db) == set()


async def test_an_issuer_whose_user_id_is_not_the_sub(serve: Serve, issuer: Issuer) -> None:
    client = await serve(signals.table(issuer, claims={"user_id": "uid"}))
    by_sub, by_uid = issuer.token(uid="u1", sid="s1"), issuer.token(uid="u2", sub="bob", sid="s2")
    stays = issuer.token(uid="u3", sub="carol", sid="s3")
    assert (await log_out(client, signals.logout_token(issuer))).status == 200
    assert (await push(client, signals.security_event(issuer, sub_id=iss_sub(issuer, "u2")))).status == 202
    await ends(client, by_sub, by_uid)
    assert await asked(client, stays) == 200


async def test_a_repeat_gets_the_same_answer_and_does_nothing(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    at = int(time.time())
    first = signals.logout_token(issuer, jti="one")
    answers = [await log_out(client, first) for _ in range(3)]
    answers.append(await log_out(client, signals.logout_token(issuer, jti="one", sub="bob")))
    answers += await asyncio.gather(*(log_out(client, signals.logout_token(issuer, jti="two", sub="carol")) for _ in range(10)))
    assert {(got.status, got.raw) for got in answers} == {(200, b"")}
    assert await revocations(db) == {("user", "n0|alice"), ("user", "n0|carol")}
    rows = await db.rows("SELECT provider, type, payload, event_at, expires_at FROM webhook_inbox ORDER BY received_at")
    assert [(row["provider"], row["type"]) for row in rows] == [("oidc", "backchannel-logout")] * 2
    assert rows[0]["event_at"].timestamp() >= at
    # The same jti of a security event is another token.
    assert (await push(client, signals.security_event(issuer, jti="one", sub_id=iss_sub(issuer, "dora")))).status == 202
    assert ("user", "n0|dora") in await revocations(db)


async def test_what_was_ended_is_audited(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    got = await log_out(client, signals.logout_token(issuer, sid="s1"))
    entries = await db.rows("SELECT actor, action, target, row_id, user_id, org_id, request_id FROM audit_log ORDER BY row_id")
    usual = {"actor": f"issuer:{issuer.url}", "action": "insert", "target": "revocations", "user_id": None, "org_id": None,
             "request_id": got.headers["X-Request-Id"]}  # fmt: skip
    assert entries == [{**usual, "row_id": "n0|alice"}, {**usual, "row_id": "n0|s1"}]


NOW = int(time.time())
FINE: dict[str, dict[str, Any]] = {
    "no typ": {"head": {"typ": DROP}},
    "the typ with its prefix": {"head": {"typ": "application/logout+jwt"}},
    "the typ of older issuers": {"head": {"typ": "JWT"}},
    "the typ in capitals": {"head": {"typ": "LOGOUT+JWT"}},
    "ES256": {"head": {"alg": "ES256", "kid": "ES256"}},
    "aud is a client": {"aud": "app"},
    "aud in a list": {"aud": ["x", "other-app"]},
    "an event with members": {"events": {EVENT: {"x": 1}}},
    "another event too": {"events": {EVENT: {}, "urn:x": {}}},
    "more claims": {"azp": "x", "typ": "Logout", "auth_time": 1},
    "within the leeway": {"iat": 60, "exp": 90},  # from now
    "both": {"sid": "s1"},
}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "alg none": ({"raw": "none"}, "alg is not allowed"),
    "alg HS256": ({"raw": "HS256"}, "alg is not allowed"),
    "an alg that is not allowed": ({"head": {"alg": "PS256", "kid": "RS256"}, "signer": key("PS256")}, "alg is not allowed"),
    "crit": ({"raw": "crit"}, "crit in the header is refused"),
    "an access token's typ": ({"head": {"typ": "at+jwt"}}, "typ is that of another kind of token"),
    "an ID token": ({"head": {"typ": "JWT"}, "events": DROP, "nonce": "n"}, f"events has no object {EVENT}"),
    "an ID token without a nonce": ({"head": {"typ": "JWT"}, "events": DROP}, f"events has no object {EVENT}"),
    "a security event's typ": ({"head": {"typ": "secevent+jwt"}}, "typ is that of another kind of token"),
    "a bad signature": ({"signer": key("RS256", "attacker")}, "it is not signed with one of the issuer's keys"),
    "an unknown key": ({"head": {"kid": "nobodys"}, "signer": key("RS256")}, "it is not signed with one of the issuer's keys"),
    "no kid": ({"head": {"kid": DROP}, "signer": key("RS256")}, "it is not signed with one of the issuer's keys"),
    "no iss": ({"iss": DROP}, "iss is not an issuer that this server trusts"),
    "another iss": ({"iss": "https://other.example"}, "iss is not an issuer that this server trusts"),
    "iss in a list": ({"iss": ["x"]}, "iss is not an issuer that this server trusts"),
    "no aud": ({"aud": DROP}, "aud names neither `audience` nor `logout_audience`"),
    "another aud": ({"aud": "x"}, "aud names neither `audience` nor `logout_audience`"),
    "aud is empty": ({"aud": []}, "aud names neither `audience` nor `logout_audience`"),
    "aud is a number": ({"aud": [AUDIENCE, 1]}, "aud names neither `audience` nor `logout_audience`"),
    "no iat": ({"iat": DROP}, "iat is missing"),
    "iat is a text": ({"iat": str(NOW)}, "iat is not a time"),
    "iat is to come": ({"iat": NOW + 9000, "exp": NOW + 9100}, "iat is to come"),
    "no exp": ({"exp": DROP}, "exp is missing"),
    "exp is past": ({"iat": NOW - 900, "exp": NOW - 800}, "exp is past"),
    "exp is far": ({"exp": NOW + 10**6}, "the token lives longer than max_token_seconds"),
    "neither sub nor sid": ({"sub": DROP}, "it has neither sub nor sid"),
    "sub is empty": ({"sub": ""}, "sub is not 1 to 255 characters of printable text"),
    "sub is null": ({"sub": None}, "sub is not 1 to 255 characters of printable text"),
    "sub is a number": ({"sub": 7}, "sub is not 1 to 255 characters of printable text"),
    "sub is odd": ({"sub": "a\nb"}, "sub is not 1 to 255 characters of printable text"),
    "sid is a list": ({"sid": ["s1"]}, "sid is not 1 to 255 characters of printable text"),
    "sid is long": ({"sid": "s" * 254}, "the subject or session is too long with its namespace"),
    "no events": ({"events": DROP}, f"events has no object {EVENT}"),
    "events is a list": ({"events": [EVENT]}, f"events has no object {EVENT}"),
    "another event": ({"events": {"urn:x": {}}}, f"events has no object {EVENT}"),
    "the event is no object": ({"events": {EVENT: None}}, f"events has no object {EVENT}"),
    "the event is a text": ({"events": {EVENT: "{}"}}, f"events has no object {EVENT}"),
    "a nonce": ({"nonce": "x"}, "nonce is prohibited"),
    "a nonce that is null": ({"nonce": None}, "nonce is prohibited"),
    "no jti": ({"jti": DROP}, "jti is not 1 to 255 characters of printable text"),
    "jti is a number": ({"jti": 1}, "jti is not 1 to 255 characters of printable text"),
    "jti is odd": ({"jti": "a\x00"}, "jti is not 1 to 255 characters of printable text"),
}  # fmt: skip


def made(issuer: Issuer, given: dict[str, Any], maker: Any = signals.logout_token) -> str:
    """The token of a row; `raw` replaces its header after it was signed."""
    given = dict(given)
    raw = given.pop("raw", None)
    token = str(maker(issuer, **given))
    if raw is None:
        return token
    head = {"alg": "RS256" if raw == "crit" else raw, "kid": "RS256", "typ": "logout+jwt"} | ({"crit": ["x"]} if raw == "crit" else {})
    return ".".join([oidc_kit.sign({"alg": "RS256"}, b"", key("RS256")).split(".")[0] and _encoded(head), *token.split(".")[1:]])


def _encoded(members: dict[str, Any]) -> str:
    import base64

    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


async def test_logout_tokens_that_are_accepted(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    client = await serve(signals.table(issuer, logout_audience=["app", "other-app"], leeway_seconds=300))
    for row, members in FINE.items():
        given = {name: int(time.time()) + value if name in ("iat", "exp") else value for name, value in members.items()}
        await db.empty()
        got = await log_out(client, made(issuer, given))
        assert (got.status, got.raw) == (200, b""), (row, got.raw)
        assert await revocations(db) != set(), row


async def test_every_rule_of_a_logout_token(client: Client, issuer: Issuer, db: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for row, (given, rule) in BROKEN.items():
        caplog.clear()
        got = await log_out(client, made(issuer, given))
        assert (got.status, got.headers["Cache-Control"]) == (400, "no-store"), row
        assert got.json() == {"error": "invalid_request", "reason": "logout-token", "error_description": rule}, row
        line = next(record for record in caplog.records if record.message == "refused")
        fields = line.fields  # type: ignore[attr-defined]
        assert (fields["request_id"], fields["why"]) == (got.headers["X-Request-Id"], rule), row
    assert await revocations(db) == set()
    assert await db.count("webhook_inbox") == 0
    assert await asked(client, issuer.token()) == 200


FORMS: list[tuple[Any, dict[str, str], int]] = [
    ("logout_token=TOKEN&x=1&y=", {}, 200),
    ("", {}, 400),
    ("x=1", {}, 400),
    ("logout_token=", {}, 400),
    ("logout_token=TOKEN&logout_token=TOKEN", {}, 400),
    ("logout_token=TOKEN" + "&a=1" * 200, {}, 400),
    ("TOKEN", {}, 400),
    ("logout_token=é", {}, 400),
    ("logout_token=TOKEN", {"Content-Type": "application/json"}, 415),
    ("logout_token=TOKEN", {"Content-Type": "text/plain"}, 415),
    ("logout_token=" + "a" * 300_000, {}, 413),
    ("logout_token=" + "e." * 9_000, {}, 400),
]


async def test_the_form_of_a_logout_request(client: Client, issuer: Issuer) -> None:
    for form, more, status in FORMS:
        body = form.replace("TOKEN", signals.logout_token(issuer)).encode()
        got = await client.post(LOGOUT, {"Content-Type": "application/x-www-form-urlencoded", **more}, data=body)
        assert got.status == status, (form[:60], got.raw)
    assert (await client.post(f"{LOGOUT}?logout_token={signals.logout_token(issuer)}", data=b"")).status in (400, 415)
    assert (await client.get(LOGOUT)).status in (401, 405)


# Shared Signals ----------------------------------------------------------------------------------------------------------


def session(sid: str = "s1") -> dict[str, str]:
    return {"format": "opaque", "id": sid}


# event, subject -> what ends
ENDS: dict[str, tuple[str, dict[str, Any] | None, set[tuple[str, str]]]] = {
    "all sessions of a user": (REVOKED, None, {("user", "n0|alice")}),
    "a session of a user": (REVOKED, {"format": "complex", "user": "ISS_SUB", "session": session()},
                            {("session", "n0|s1"), ("subject", "n0|alice")}),
    "a session": (REVOKED, {"format": "complex", "session": session()}, {("session", "n0|s1")}),
    "a user and more that is unknown here": (REVOKED, {"format": "complex", "user": "ISS_SUB", "device": session("d1"), "tenant": session("t")},
                                             {("user", "n0|alice")}),
    "a user in an unknown format and a session": (REVOKED, {"format": "complex", "user": {"format": "email", "email": "a@b.example"},
                                                            "session": session()}, {("session", "n0|s1")}),
    "without a format, as in a draft": (REVOKED, {"user": "ISS_SUB", "session": session()}, {("session", "n0|s1"), ("subject", "n0|alice")}),
    "an id without a meaning": (REVOKED, session("x"), {("session", "n0|x"), ("user", "n0|x")}),
    "aliases": (REVOKED, {"format": "aliases", "identifiers": [{"format": "email", "email": "a@b.example"}, "ISS_SUB"]}, {("user", "n0|alice")}),
    "a disabled account": (DISABLED, None, {("user", "n0|alice")}),
    "an account by an opaque id": (DISABLED, session("alice"), {("user", "n0|alice")}),
    "a purged account": (SCHEMAS + "risc/event-type/account-purged", None, {("user", "n0|alice")}),
    "a leaked password": (SCHEMAS + "risc/event-type/credential-compromise", None, {("user", "n0|alice")}),
    "all sessions, in an older word": (SCHEMAS + "risc/event-type/sessions-revoked", None, {("user", "n0|alice")}),
    "all tokens": (SCHEMAS + "oauth/event-type/tokens-revoked", None, {("user", "n0|alice")}),
    "a verification of the stream": (VERIFICATION, session("stream"), set()),
    "an enabled account": (SCHEMAS + "risc/event-type/account-enabled", None, set()),
    "a changed credential": (SCHEMAS + "caep/event-type/credential-change", None, set()),
    "an unknown event": ("urn:example:event", None, set()),
}  # fmt: skip


def filled(value: Any, issuer: Issuer) -> Any:
    """`ISS_SUB` replaced by alice's identifier."""
    if isinstance(value, dict):
        return {name: filled(one, issuer) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, issuer) for one in value]
    return iss_sub(issuer) if value == "ISS_SUB" else value


@pytest.mark.parametrize("where", ["sub_id", "subject"])
async def test_what_security_events_end(client: Client, issuer: Issuer, db: TestDatabase, where: str) -> None:
    for row, (event, given, ended) in ENDS.items():
        await db.empty()
        subject = iss_sub(issuer) if given is None else filled(given, issuer)
        token = signals.security_event(issuer, {event: {"subject": subject}}, sub_id=DROP) if where == "subject" else None
        got = await push(client, token or signals.security_event(issuer, {event: {}}, sub_id=subject))
        assert (got.status, got.raw, got.headers["Cache-Control"]) == (202, b"", "no-store"), (row, got.raw)
        assert await revocations(db) == ended, row


async def test_events_beside_it_change_nothing(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    events = {"urn:\x00": {}, "": {}, "\U0001f600": {}, "x" * 5000: {}, REVOKED: {}, DISABLED: {"reason": "\x00"}, VERIFICATION: {"state": "s"}}
    for _ in range(2):
        assert (await push(client, signals.security_event(issuer, events, jti="one"))).status == 202
    assert (await push(client, signals.security_event(issuer, jti="one", sub_id=iss_sub(issuer, "bob")))).status == 202  # the same jti
    assert await revocations(db) == {("user", "n0|alice")}
    assert [row["type"] for row in await db.rows("SELECT type FROM webhook_inbox")] == [f"{REVOKED},{DISABLED}"[:100]]


async def test_a_security_event_ends_sessions_in_every_process(serve: Serve, issuer: Issuer) -> None:
    clients = [await serve(signals.table(issuer)) for _ in range(2)]
    gone, stays, bobs = issuer.token(sid="s1"), issuer.token(sid="s2"), issuer.token(sub="bob")
    for client in clients:
        assert [await asked(client, one) for one in (gone, stays, bobs)] == [200] * 3
    complex_one = {"format": "complex", "user": iss_sub(issuer), "session": session()}
    assert (await push(clients[1], signals.security_event(issuer, sub_id=complex_one))).status == 202
    for client in clients:
        assert await ends(client, gone) < 5
        assert await asked(client, stays) == 200
    assert (await push(clients[1], signals.security_event(issuer, {DISABLED: {"reason": "hijacking"}}))).status == 202
    for client in clients:
        await ends(client, stays)
        assert await asked(client, bobs) == 200


@pytest.mark.parametrize(
    ("more", "old", "new"),
    [({"event": {"event_timestamp": -600}}, -601, -590), ({"event": {"event_timestamp": -600_000_000}}, -700, -590),
     ({"toe": -600}, -601, -590), ({}, -10, 5)],
    ids=["event_timestamp", "in milliseconds", "toe", "iat"],
)  # fmt: skip
async def test_the_time_of_the_event(client: Client, issuer: Issuer, more: dict[str, Any], old: int, new: int) -> None:
    """Tokens that were issued later are not ended, however late the event arrives."""
    now = int(time.time())
    event = {name: now + value if value > -10_000 else (now - 600) * 1000 for name, value in more.get("event", {}).items()}
    toe = {"toe": now + more["toe"]} if "toe" in more else {}
    before, after = (issuer.token(iat=now + at, exp=now + 300, jti=str(at)) for at in (old, new))
    assert (await push(client, signals.security_event(issuer, {REVOKED: event}, **toe))).status == 202
    await ends(client, before)
    assert await asked(client, after) == 200


async def test_a_time_in_the_future_does_not_lock_a_user_out(client: Client, issuer: Issuer) -> None:
    at = int(time.time())
    assert (await push(client, signals.security_event(issuer, {REVOKED: {"event_timestamp": at + 9000}}))).status == 202
    await ends(client, issuer.token(iat=at - 1))
    assert await asked(client, issuer.token(iat=at + 4)) == 200


async def test_a_disabled_account_ends_its_api_keys(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    """As a ban at Clerk: those that exist, and none that is made afterwards."""
    client = await serve(signals.table(issuer))
    old = {"X-API-Key": await made_key(db, "n0|alice")}
    others = {"X-API-Key": await made_key(db, "n0|bob")}
    assert (await client.get("/api/me", old)).json()["user_id"] == "n0|alice"
    assert (await push(client, signals.security_event(issuer, {SCHEMAS + "risc/event-type/credential-compromise": {}}))).status == 202
    await asyncio.sleep(0.3)
    assert (await client.get("/api/me", old)).status == 200
    await asyncio.sleep(1.1 - time.time() % 1)  # the key was made in an earlier second
    disabled = signals.security_event(issuer, {DISABLED: {}}, jti="disabled")
    assert (await push(client, disabled)).status == 202
    async with asyncio.timeout(10):
        while (await client.get("/api/me", old)).status == 200:
            await asyncio.sleep(0.05)
    new = {"X-API-Key": await made_key(db, "n0|alice")}
    await db.rows("DELETE FROM webhook_inbox")  # even where the repeat is not recognised
    assert (await push(client, disabled)).status == 202
    await asyncio.sleep(0.7)
    assert (await client.get("/api/me", new)).status == 200
    assert (await client.get("/api/me", others)).status == 200


async def test_a_disabled_account_ends_keys_of_the_settings_until_it_is_enabled(serve: Serve, issuer: Issuer, db: TestDatabase) -> None:
    """Also when the revocation has run out, and by a server that starts afterwards. No look-up waits for the clean-up."""
    static, of_bob = {"X-API-Key": "gp_the-static-key-of-alice"}, {"X-API-Key": "gp_the-static-key-of-bob"}
    keys = [
        {"id": one, "hash": "sha256:" + hashlib.sha256(key["X-API-Key"].encode()).hexdigest(), "user_id": f"n0|{one}"}
        for one, key in (("alice", static), ("bob", of_bob))
    ]
    settings = {**signals.table(issuer), "api_key.keys": keys}
    client = await serve(settings)
    below = {"X-API-Key": (await client.post("/api/keys", static, {"name": "k"})).json()["secret"]}
    of_org = {"X-API-Key": await made_key(db, "n0|alice")}
    await db.rows("UPDATE api_keys SET created_at = now() - interval '1 minute'")
    assert [(await client.get("/api/me", key)).status for key in (static, of_bob, below, of_org)] == [200] * 4
    assert (await push(client, signals.security_event(issuer, {DISABLED: {}}))).status == 202
    await db.rows("DELETE FROM endings")
    await db.rows("DELETE FROM revocations")
    later = await serve(settings)
    assert [(await later.get("/api/me", key)).status for key in (static, of_bob, below, of_org)] == [401, 200, 401, 401]
    assert (await later.get("/api/me/profile", {"X-API-Key": await made_key(db, "n0|alice")})).status == 404  # it is not Clerk's user
    early, enabled = {"event_timestamp": int(time.time()) - 60}, {"event_timestamp": int(time.time()) + 1}
    for event, status in ((early, 401), (enabled, 200)):
        await asyncio.sleep(1)  # a time in the future counts as now
        got = await push(later, signals.security_event(issuer, {SCHEMAS + "risc/event-type/account-enabled": event}))
        assert got.status == 202
        await db.rows("DELETE FROM revocations WHERE kind = 'user'")
        again = await serve(settings)
        assert (await again.get("/api/me", static)).status == status
    assert [(await again.get("/api/me", key)).status for key in (of_bob, below, of_org)] == [200, 401, 401]


async def made_key(db: TestDatabase, user: str) -> str:
    """A new API key of this user."""
    made = make("test")
    await db.rows(
        "INSERT INTO api_keys (id, hash, name, user_id, created_by) VALUES ($1, sha256($2::bytea), 'k', $3, $3)",
        made.id, made.text.encode(), user,
    )  # fmt: skip
    return made.text


async def test_live_answers_end_too(serve: Serve, issuer: Issuer) -> None:
    client = await serve(signals.table(issuer), extra=LIVE)
    shown = [{"Authorization": f"Bearer {token}"} for token in (issuer.token(sid="s1"), issuer.token(), issuer.token(sid="s2"))]
    async with events(client, "/api/ticks", shown[0]), events(client, "/api/ticks", shown[1]), events(client, "/api/ticks", shown[2]):
        assert registry(client).number == 3
        assert (await log_out(client, signals.logout_token(issuer, sid="s1"))).status == 200
        await until(lambda: registry(client).number == 1)
        assert registry(client).ended == {"session-revoked": 2}


UNFIT: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no typ": ({"head": {"typ": DROP}}, 400, "invalid_request", "typ is that of another kind of token"),
    "a logout token's typ": ({"head": {"typ": "logout+jwt"}}, 400, "invalid_request", "typ is that of another kind of token"),
    "an access token's typ": ({"head": {"typ": "at+jwt"}}, 400, "invalid_request", "typ is that of another kind of token"),
    "alg none": ({"raw": "none"}, 400, "invalid_request", "alg is not allowed"),
    "a bad signature": ({"signer": key("RS256", "attacker")}, 400, "invalid_key", "it is not signed with one of the issuer's keys"),
    "an unknown key": ({"head": {"kid": "nobodys"}, "signer": key("RS256")}, 400, "invalid_key", "it is not signed with one of the issuer's keys"),
    "another iss": ({"iss": "https://other.example"}, 400, "invalid_issuer", "iss is not an issuer that this server trusts"),
    "no aud": ({"aud": DROP}, 400, "invalid_audience", "aud names neither `audience` nor `logout_audience`"),
    "another aud": ({"aud": ["x"]}, 400, "invalid_audience", "aud names neither `audience` nor `logout_audience`"),
    "no iat": ({"iat": DROP}, 400, "invalid_request", "iat is missing"),
    "iat is to come": ({"iat": NOW + 9000}, 400, "invalid_request", "iat is to come"),
    "iat is a text": ({"iat": "now"}, 400, "invalid_request", "iat is not a time"),
    "exp is past": ({"exp": NOW - 900}, 400, "invalid_request", "exp is past"),
    "no jti": ({"jti": DROP}, 400, "invalid_request", "jti is not 1 to 255 characters of printable text"),
    "no events": ({"events": {}}, 400, "invalid_request", "events is not an object of objects"),
    "events is a list": ({"events": [REVOKED]}, 400, "invalid_request", "events is not an object of objects"),
    "an event is a text": ({"events": {REVOKED: "x"}}, 400, "invalid_request", "events is not an object of objects"),
    "many events": ({"events": {f"urn:{n}": {} for n in range(21)}}, 400, "invalid_request", "events has more than 20 members"),
    "no subject": ({"sub_id": DROP}, 400, "invalid_request", "there is no sub_id and no subject"),
    "sub is no subject": ({"sub_id": DROP, "sub": "alice"}, 400, "invalid_request", "there is no sub_id and no subject"),
    "a subject by its address": ({"sub_id": {"format": "email", "email": "a@b.example"}}, 400, "invalid_request",
                                 "the subject is in an unsupported format: use iss_sub, opaque or complex"),
    "another issuer's subject": ({"sub_id": {"format": "iss_sub", "iss": "https://other.example", "sub": "alice"}}, 400, "invalid_request",
                                 "the subject is another issuer's"),
    "a subject without sub": ({"sub_id": {"format": "opaque"}}, 400, "invalid_request", "the subject's id is not 1 to 255 characters of printable text"),
    "complex without user and session": ({"sub_id": {"format": "complex", "device": {}}}, 400, "invalid_request",
                                         "the subject names neither a user nor a session"),
    "complex of texts": ({"sub_id": {"format": "complex", "user": "alice"}}, 400, "invalid_request", "a member of the subject is not an object"),
    "a disabled account without a user": ({"events": {DISABLED: {}}, "sub_id": {"format": "complex", "session": {"format": "opaque", "id": "s1"}}},
                                          400, "invalid_request", "the subject names no user"),
    "aliases of nothing": ({"sub_id": {"format": "aliases", "identifiers": []}}, 400, "invalid_request", "the subject has no identifiers"),
    "aliases of aliases": ({"sub_id": {"format": "aliases", "identifiers": [{"format": "aliases"}]}}, 400, "invalid_request", "the subject has no identifiers"),
}  # fmt: skip


async def test_every_rule_of_a_security_event(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    for row, (given, status, code, rule) in UNFIT.items():
        got = await push(client, made(issuer, given, signals.security_event))
        said = {"error": "Bad Request", "reason": "security-event", "err": code, "description": rule}
        assert (got.status, got.json()) == (status, said), row
        assert (got.headers["Content-Language"], got.headers["Cache-Control"]) == ("en", "no-store"), row
    assert await revocations(db) == set()
    assert await asked(client, issuer.token()) == 200


async def test_the_body_of_a_push(client: Client, issuer: Issuer) -> None:
    token = signals.security_event(issuer).encode()
    rows = [(b"", "", 415), (token, "application/jwt", 415), (token, "application/json", 415), (b"x", SET, 400), (b"", SET, 400), (b"\xff", SET, 400),
            (token + b"\n", SET, 400), (b"e" * 300_000, SET, 413), (token, "application/secevent+jwt; charset=us-ascii", 202)]  # fmt: skip
    for body, content_type, status in rows:
        got = await client.post(SSF, {"Content-Type": content_type} if content_type else {"Content-Type": "x/y"}, data=body)
        assert got.status == status, (body[:20], content_type, got.raw)


SET = "application/secevent+jwt"


async def test_the_transmitters_own_credential(
    serve: Serve, issuer: Issuer, db: TestDatabase, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    client = await serve(signals.table(issuer, ssf_authorization=AUTHORIZATION))
    token = signals.security_event(issuer)
    for shown in ({}, {"Authorization": "Bearer x"}, {"Authorization": AUTHORIZATION[:-1]}, {"Authorization": AUTHORIZATION.lower()},
                  {"Authorization": "Bearer é"}):  # fmt: skip
        caplog.clear()
        got = await push(client, token, **shown)
        assert (got.status, got.json()["err"], got.headers["WWW-Authenticate"]) == (401, "authentication_failed", "Bearer"), shown
        line = next(record for record in caplog.records if record.message == "refused")
        assert line.fields["request_id"] == got.headers["X-Request-Id"]  # type: ignore[attr-defined]
    assert await revocations(db) == set()
    assert (await push(client, token, Authorization=AUTHORIZATION)).status == 202
    assert (await log_out(client, signals.logout_token(issuer))).status == 200  # a logout token has no such credential
    kept = tmp_path / "authorization"
    kept.write_text(AUTHORIZATION + "\n")
    monkeypatch.setenv("TRANSMITTER", AUTHORIZATION)
    for given in ({"ssf_authorization_file": str(kept)}, {"ssf_authorization_env": "TRANSMITTER"}):
        client = await serve(signals.table(issuer, **given))
        assert [(await push(client, token)).status, (await push(client, token, Authorization=AUTHORIZATION)).status] == [401, 202]
    assert "canary" not in repr(settings_room.read({"issuers": [{"issuer": issuer.url, "audience": "a", "ssf_authorization": AUTHORIZATION}]}))


@pytest.mark.parametrize(
    ("given", "line"),
    [({"ssf_authorization": ""}, "ssf_authorization must be a string"), ({"ssf_authorization": "Bearer \n"}, "ssf_authorization must be a string"),
     ({"ssf_authorization": 7}, "ssf_authorization must be a string"), ({"ssf_authorization": "Bearer é"}, "ssf_authorization holds no secret"),
     ({"ssf_authorization": "a", "ssf_authorization_env": "B"}, "ssf_authorization is given twice"),
     ({"ssf_authorization_file": "/nowhere"}, "ssf_authorization_file names a file that cannot be read"),
     ({"logout_audience": []}, "logout_audience must name at least one"), ({"logout_audience": ""}, "logout_audience must be a string"),
     ({"logout_audience": ["a", "a"]}, "logout_audience contains a duplicate"), ({"logout_audiences": "a"}, "the nearest known one is 'logout_audience'")],
)  # fmt: skip
def test_mistakes_in_the_settings(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        settings_room.read({"issuers": [{"issuer": "https://a.example", "audience": "a", **given}]})


ODD: list[Any] = [None, True, 0, -1, 1e308, 2**63, "", "x", "\x00", "a|b", "n1|x", "x" * 300, "\u2028", [], [None], ["x"], {}, {"x": {}}, DROP]


def odd(pick: random.Random, deep: int = 3) -> Any:
    """Any JSON value, or an identifier with odd members."""
    if deep and pick.random() < 0.6:
        names = ("format", "subject_type", "iss", "sub", "id", "user", "session", "identifiers", "subject", "event_timestamp", REVOKED, DISABLED, EVENT)
        words = ("iss_sub", "iss-sub", "opaque", "complex", "aliases", "email")
        made = {name: odd(pick, deep - 1) for name in pick.sample(names, 4)} | {"format": pick.choice(words)}
        return [made, made] if pick.random() < 0.2 else oidc_kit.without(made)
    value = pick.choice(ODD)
    return None if value is DROP else value


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_an_issuer_signs_is_accepted_or_refused(client: Client, issuer: Issuer, db: TestDatabase, seed: int) -> None:
    pick, told = random.Random(seed), Counter[int]()
    names = ("iss", "aud", "sub", "sid", "iat", "exp", "jti", "nonce", "events", "sub_id", "toe")
    for _ in range(300):
        changes = {name: odd(pick) for name in pick.sample(names, pick.randint(1, 3))}
        for send, make_token in ((log_out, signals.logout_token), (push, signals.security_event)):
            if send is push and pick.random() < 0.7:
                changes["events"] = {pick.choice((REVOKED, DISABLED)): odd(pick, 2) if pick.random() < 0.3 else {}}
            got = await send(client, make_token(issuer, **changes))
            told[got.status] += 1
            assert got.status in (200, 202, 400), (changes, got.raw)
    assert told[400] > 100
    assert told[202] > 10
    assert all(subject.startswith("n0|") for _, subject in await revocations(db))


# Both --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["logout", "ssf"])
async def test_an_outage_of_the_database_is_a_503_with_the_alarm(
    serve: Serve, issuer: Issuer, db: TestDatabase, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    token, send = (signals.logout_token(issuer), log_out) if way == "logout" else (signals.security_event(issuer), push)
    away, back = [await serve(signals.table(issuer)) for _ in range(2)]
    await away.app[DATABASE].close()
    got = await send(away, token)
    assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})
    assert int(got.headers["Retry-After"]) >= 1
    assert away.app[REVOCATION_FAILURES] == {"user": 1}
    assert "access could not be ended" in caplog.text
    assert (await send(away, token[:-6] + "AAAAAA")).status == 400
    assert (await send(back, token)).status in (200, 202)  # the issuer repeats it
    assert await revocations(db) == {("user", "n0|alice")}


@pytest.mark.parametrize("way", ["logout", "ssf"])
async def test_while_the_keys_cannot_be_known_it_is_a_503(client: Client, issuer: Issuer, db: TestDatabase, way: str) -> None:
    issuer.keys, issuer.status = {"new": key("RS256", "new")}, 500
    given: dict[str, Any] = {"head": {"kid": "new"}}
    token, send = (signals.logout_token(issuer, **given), log_out) if way == "logout" else (signals.security_event(issuer, **given), push)
    got = await send(client, token)
    assert (got.status, int(got.headers["Retry-After"])) == (503, 1)
    issuer.status = 200
    assert (await send(client, token)).status in (200, 202)
    assert await revocations(db) == {("user", "n0|alice")}


async def test_5000_forged_tokens_cost_the_budget_of_fetches(client: Client, issuer: Issuer, db: TestDatabase) -> None:
    fetched, at = len(issuer.seen), time.monotonic()
    template, payload = signals.logout_token(issuer).split("."), signals.security_event(issuer).split(".")[1]

    async def flood(lane: int) -> set[int]:
        told = set()
        for number in range(250):
            head = {"alg": "RS256", "kid": f"{lane}-{number}", "typ": "logout+jwt" if number % 2 else "secevent+jwt"}
            forged = f"{_encoded(head)}.{template[1] if number % 2 else payload}.{template[2]}"
            told.add((await (log_out if number % 2 else push)(client, forged)).status)
        return told

    told = set().union(*await asyncio.gather(*(flood(lane) for lane in range(20))))
    assert told <= {400, 503}
    fetches = (len(issuer.seen) - fetched) / 2  # each reads the discovery document too
    assert fetches <= 4 + (time.monotonic() - at) / 15 + 1
    assert await asked(client, issuer.token()) == 200
    assert await db.count("webhook_inbox") == 0
    assert (await log_out(client, signals.logout_token(issuer))).status == 200


async def test_without_an_issuer_there_are_no_such_routes(serve: Serve) -> None:
    client = await serve({"providers": ["stub", "api_key"]})
    for path in (LOGOUT, SSF):
        assert (await client.post(path, data=b"x")).status == 401


async def test_the_routes_and_their_access(client: Client, serve: Serve, issuer: Issuer) -> None:
    rows = {(row.method, row.template): row.access for row in client.app[TABLE].rows if "webhooks" in row.template}
    assert rows == {("POST", "/api/webhooks/clerk"): "public", ("POST", LOGOUT): "public", ("POST", SSF): "public"}
    served = await serve(signals.table(issuer) | {"handlers": ["health", "me"]})
    assert not [row for row in served.app[TABLE].rows if "webhooks" in row.template]
    locked = await serve(signals.table(issuer) | {"public_routes": ["/api/health"]})
    assert (await log_out(locked, signals.logout_token(issuer))).status == 401


async def test_without_the_provider_oidc_it_is_a_503(serve: Serve, issuer: Issuer) -> None:
    client = await serve(signals.table(issuer) | {"providers": ["stub"]})
    assert (await log_out(client, signals.logout_token(issuer))).status == 503


async def test_the_document_has_both_routes(client: Client) -> None:
    paths = json.loads(client.app[DOCUMENT].json)["paths"]
    assert set(paths[LOGOUT]["post"]["responses"]) >= {"200", "400", "503"}
    assert list(paths[LOGOUT]["post"]["requestBody"]["content"]) == ["application/x-www-form-urlencoded"]
    assert set(paths[SSF]["post"]["responses"]) >= {"202", "400", "401", "503"}
    assert list(paths[SSF]["post"]["requestBody"]["content"]) == [SET]
    assert paths[SSF]["post"].get("security", []) == paths[LOGOUT]["post"].get("security", []) == []
