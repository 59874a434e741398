"""Webhooks sent by Clerk and by other clients: what is taken, what is refused, and that each event is applied once."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.app import ask
from kits.webhooks import (
    OTHER,
    PATH,
    SECRET,
    SETTINGS,
    T0,
    deliver,
    empty,
    event,
    headers,
    membership,
    organization,
    organization_deleted,
    revocations,
    session,
    signature,
    sweep,
    take,
    user,
    user_deleted,
)
from multidict import CIMultiDict

from providers.clerk.webhooks import Receiver, revoke_for, secrets
from server import public
from server.auth.revocation import REVOCATION_FAILURES
from server.database.connections import Database
from server.database.scope import DATABASE
from server.settings.setting import ConfigError
from tests.conftest import Client, Serve, TestDatabase, plugin, stub

RAW = json.dumps(user("created", 0)).encode()


@pytest.fixture
async def hooks(serve: Serve, db: TestDatabase) -> AsyncIterator[Client]:
    """A server with one secret."""
    yield await serve(SETTINGS)
    await empty(db)


def now() -> int:
    return int(time.time())


# The signature -----------------------------------------------------------------------------------------------------------

CLERKS = ("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "msg_abc", 1700000000, b'{"a":1}',
          "v1,/r6B6BPMuGOmrdgVL9QDkPpi14CmimpDRpDoDsmnFms=")  # fmt: skip
STANDARDS = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}',
             "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")  # fmt: skip


@pytest.mark.parametrize("vector", [CLERKS, STANDARDS], ids=["clerk", "standard"])
@pytest.mark.parametrize("spoil", ["", "secret", "id", "time", "body", "signature"])
def test_known_signatures(vector: tuple[str, str, int, bytes, str], spoil: str) -> None:
    """The two published vectors hold, and nothing that differs from them in one place."""
    secret, message, sent, raw, said = vector
    assert signature(raw, message, sent, secret) == said
    receiver = Receiver({"webhook_signing_secret": OTHER if spoil == "secret" else secret})
    given = (raw + b" " * (spoil == "body"), message + "x" * (spoil == "id"), sent + (spoil == "time"),
             [said[:-3] + "AA=" if spoil == "signature" else said])  # fmt: skip
    with pytest.raises(ValueError, match="not an event" if not spoil else "webhook-signature"):
        receiver._event(*given)  # both bodies are proven and no events


@pytest.mark.parametrize("family", ["svix", "webhook"])
async def test_both_families_are_taken(hooks: Client, db: TestDatabase, family: str) -> None:
    got = await deliver(hooks, RAW, "msg_1", family=family)
    assert (got.status, got.raw) == (204, b"")
    assert [row["id"] for row in await db.rows("SELECT id FROM webhook_inbox")] == ["msg_1"]


def _good() -> CIMultiDict[str]:
    return CIMultiDict(headers(RAW, "msg_1", now()))


def _changed(**changes: str | None) -> CIMultiDict[str]:
    made = _good()
    for name, value in changes.items():
        made.popall(name.replace("_", "-"), None)
        if value is not None:
            made.add(name.replace("_", "-"), value)
    return made


def _with(*more: tuple[str, str]) -> CIMultiDict[str]:
    made = _good()
    for name, value in more:
        made.add(name, value)
    return made


def _renamed(*names: str) -> CIMultiDict[str]:
    return CIMultiDict((name.replace("svix", "webhook") if name in names else name, value) for name, value in _good().items())


def _signed(**how: Any) -> CIMultiDict[str]:
    return CIMultiDict(headers(**{"raw": RAW, "message": "msg_1", "sent": now(), **how}))


GOOD_SIGNATURE = signature(RAW, "msg_1", "{now}")
REFUSED = {
    "nothing": lambda: CIMultiDict[str](),
    "no id": lambda: _changed(svix_id=None),
    "no time": lambda: _changed(svix_timestamp=None),
    "no signature": lambda: _changed(svix_signature=None),
    "empty id": lambda: _changed(svix_id=""),
    "blank signature": lambda: _changed(svix_signature="   "),
    "mixed, one": lambda: _renamed("svix-id"),
    "mixed, two": lambda: _renamed("svix-id", "svix-timestamp"),
    "a part of the other family": lambda: _with(("webhook-id", "msg_1")),
    "both families, different": lambda: _with(*headers(RAW, "msg_2", now(), family="webhook").items()),
    "id twice": lambda: _with(("svix-id", "msg_1")),
    "time twice": lambda: _with(("svix-timestamp", str(now()))),
    "signature twice": lambda: _with(("Svix-Signature", "v1,AAAA")),
    "another secret": lambda: _signed(secret=OTHER),
    "dot in the id": lambda: _signed(message="msg.1"),
    "blank in the id": lambda: _signed(message="msg 1"),
    "long id": lambda: _signed(message="m" * 256),
    "too old": lambda: _signed(sent=now() - 302),
    "too new": lambda: _signed(sent=now() + 303),
    "milliseconds": lambda: _signed(sent=now() * 1000),
    "half a second": lambda: _signed(sent=f"{now()}.5"),
    "sign": lambda: _signed(sent=f"+{now()}"),
    "zeros": lambda: _signed(sent=f"0{now()}"),
    "negative": lambda: _signed(sent=-1),
    "words": lambda: _signed(sent="now"),
    "not a number": lambda: _signed(sent="NaN"),
    "huge": lambda: _signed(sent="9" * 5000),
    "other digits": lambda: _signed(sent="".join(chr(0x660 + int(digit)) for digit in str(now()))),
    "no version": lambda: _changed(svix_signature=_good()["svix-signature"][3:]),
    "version 1a": lambda: _changed(svix_signature="v1a" + _good()["svix-signature"][2:]),
    "version 2": lambda: _changed(svix_signature="v2" + _good()["svix-signature"][2:]),
    "comma list": lambda: _changed(svix_signature="v1,AAAA," + _good()["svix-signature"]),
    "tab list": lambda: _changed(svix_signature="v1,AAAA\t" + _good()["svix-signature"]),
    "not base64": lambda: _changed(svix_signature="v1,@@@"),
    "empty one": lambda: _changed(svix_signature="v1,"),
    "not ASCII": lambda: _changed(svix_signature="v1,éééé ☃"),
    "half of it": lambda: _changed(svix_signature=_good()["svix-signature"][:20]),
    "loose base64": lambda: _changed(svix_signature=_good()["svix-signature"] + "="),
    "eleven": lambda: _changed(svix_signature=" ".join(["v1,AAAA"] * 10 + [_good()["svix-signature"]])),
    "a thousand": lambda: _changed(svix_signature="v1,A " * 1000),
    "compressed": lambda: _with(("Content-Encoding", "gzip")),
    "another encoding": lambda: _with(("Content-Encoding", "br")),
}


@pytest.fixture
async def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each connection that a request takes."""
    taken: list[str] = []
    real = Database.connection

    @contextlib.asynccontextmanager
    async def counting(self: Database) -> AsyncIterator[Any]:
        taken.append("connection")
        async with real(self) as connection:
            yield connection

    monkeypatch.setattr(Database, "connection", counting)
    return taken


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
async def test_what_is_not_ours(
    hooks: Client, db: TestDatabase, counted: list[str], caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    """One constant answer, no connection, nothing kept; the log has the reason."""
    caplog.set_level(logging.INFO)
    counted.clear()
    got = await hooks.post(PATH, make(), data=RAW)
    assert (got.status, got.json()) == (400, {"error": "Bad Request"})
    (line,) = [record for record in caplog.records if record.getMessage() in ("refused", "request refused")]
    assert line.fields["request_id"] == got.headers["X-Request-Id"]  # type: ignore[attr-defined]
    if line.getMessage() == "refused":  # otherwise by the parser, which has no decoder for the encoding
        assert (line.fields["route"], line.fields["reason"].partition("-")[0]) == (PATH, "webhook")  # type: ignore[attr-defined]
    assert counted == []
    assert await db.count("webhook_inbox") == 0


@pytest.mark.parametrize(("ago", "status"), [(300, 204), (301, 400), (-300, 204), (-301, 400), (0, 204)])
async def test_five_minutes_to_the_second(serve: Serve, db: TestDatabase, ago: int, status: int) -> None:
    moment = 1_800_000_000.9
    receiver = Receiver({"webhook_signing_secret": SECRET}, clock=lambda: moment)
    client = await serve({"public_routes": ["/api/hook"]}, {"hook": plugin(web.post("/api/hook", public(receiver.take)))})
    got = await client.post("/api/hook", headers(RAW, "msg_1", int(moment) - ago), data=RAW)
    assert got.status == status
    await empty(db)


async def test_headers_that_are_taken(hooks: Client, db: TestDatabase) -> None:
    """Blanks around values, ten signatures with the right one last, both families that say the same."""
    right = _good()
    for number, given in enumerate((
        _changed(svix_id="  msg_1 "),
        _changed(svix_signature=" ".join(["v1a,x", "v2,x"] + ["v1,AAAA"] * 7 + [right["svix-signature"]])),
        _with(*((name.replace("svix", "webhook"), value) for name, value in right.items())),
        _with(("Content-Encoding", "identity"), ("Content-Type", "text/plain")),
    )):  # fmt: skip
        assert (await hooks.post(PATH, given, data=RAW)).status == 204, number
    assert await db.count("webhook_inbox") == 1


async def test_rotation(serve: Serve, db: TestDatabase) -> None:
    """Two secrets hold at once, by commas or blanks, with and without prefix and padding; a third does not."""
    client = await serve({"clerk.webhook_signing_secret": f"{SECRET}, {OTHER.removeprefix('whsec_').rstrip('=')}"})
    assert (await deliver(client, RAW)).status == 204
    assert (await deliver(client, RAW, secret=OTHER)).status == 204
    assert (await deliver(client, RAW, secret=STANDARDS[0])).status == 400
    assert await db.count("webhook_inbox") == 2
    await empty(db)


@pytest.mark.parametrize("value", ["", " , ", "whsec_", "whsec_QQ==", "whsec_!!!", "not base64", f"{SECRET} short", "x" * 200,
                                   "whsec_c2VjcmV0LXdpdGgtMjMtYnl0ZXMu"])  # fmt: skip
async def test_a_bad_secret_prevents_startup(serve: Serve, value: str) -> None:
    with pytest.raises((ConfigError, ValueError), match="clerk.webhook_signing_secret") as raised:
        await serve({"clerk.webhook_signing_secret": value})
    assert len(value) < 8 or value not in str(raised.value)


def test_secrets_and_the_time_that_revocations_last() -> None:
    assert secrets(None) == []
    assert len(secrets(SECRET)[0]) == 32
    assert revoke_for({"max_token_seconds": 60.0, "leeway_seconds": 5.0}).total_seconds() == 130
    assert revoke_for({"max_token_seconds": 0.0}).days == 365


async def test_without_a_secret_there_is_no_receiver(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    got = await deliver(client, RAW)
    assert (got.status, got.headers["Retry-After"]) == (503, "1")
    (line,) = [record.fields for record in caplog.records if record.getMessage() == "unavailable"]  # type: ignore[attr-defined]
    assert line["request_id"] == got.headers["X-Request-Id"]
    assert "CLERK_WEBHOOK_SIGNING_SECRET" in line["why"]


async def test_each_refusal_says_in_the_log_what_to_mend(hooks: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    late = headers(RAW, "msg_1", now() - 3600)
    for sent, raw, reason in (
        (headers(RAW, "msg_1", now(), secret=OTHER), RAW, "webhook-signature"), (late, RAW, "webhook-time"), ({}, RAW, "webhook-headers"),
        (headers(b"{", "msg_1", now()), b"{", "webhook-body"), ({**late, "Content-Encoding": "gzip"}, RAW, "webhook-encoding"),
    ):  # fmt: skip
        caplog.clear()
        assert (await hooks.post(PATH, sent, data=raw)).status in (400, 415)
        (line,) = [record.fields for record in caplog.records if record.getMessage() == "refused"]  # type: ignore[attr-defined]
        assert line["reason"] == reason


async def test_the_size_of_an_unsigned_body_is_judged_first(hooks: Client, db: TestDatabase) -> None:
    """256 KiB for a sender that has proven nothing, whatever else is wrong with the delivery."""
    for sent in ({}, headers(RAW, "msg_1", now() - 3600), headers(RAW, "msg_1", now(), secret=OTHER)):
        for size, status in ((262_144, 400), (262_145, 413)):
            assert (await hooks.post(PATH, sent, data=io.BytesIO(b" " * size))).status == status
    assert (await ask(hooks.port, "POST", PATH)).status == 411
    assert await db.count("webhook_inbox") == 0


# Bodies ------------------------------------------------------------------------------------------------------------------

NOT_EVENTS = [b"", b"{", b"null", b"[]", b'"text"', b"{}", b'{"type": "user.created"}', b'{"type": 5, "data": {}}', b"\xff\xfe", b"\xef\xbb\xbf{}",
              b'{"type": "user.created", "data": []}', b'{"type": "../x", "data": {}}', b'{"type": "", "data": {}}', b"[" * 100_000,
              b'{"type": "x", "data": {"a": NaN}}', b'{"type": "x", "data": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_001,
              b'{"type": "x", "data": {"a": ' + b"9" * 5000 + b"}}", b'{"type": "' + b"x" * 101 + b'", "data": {}}',
              b'{"type": "user.created", "type": "user.deleted", "data": {"id": "user_1"}}',
              b'{"type": "user.deleted", "data": {"id": "user_1", "\\u0069d": "user_2"}}']  # fmt: skip


@pytest.mark.parametrize("raw", NOT_EVENTS, ids=range(len(NOT_EVENTS)))
async def test_signed_and_no_event(hooks: Client, db: TestDatabase, counted: list[str], raw: bytes) -> None:
    counted.clear()
    assert (await deliver(hooks, raw)).status == 400
    assert (counted, await db.count("webhook_inbox")) == ([], 0)


async def test_bodies_without_end(hooks: Client) -> None:
    large = b" " * 1_048_577
    assert (await hooks.post(PATH, headers(large, "msg_1", now()), data=io.BytesIO(large))).status == 413
    got = await hooks.post(PATH, _with(("Content-Encoding", "gzip")), data=gzip.compress(RAW))
    assert got.status == 400


ODD: list[dict[str, Any]] = [
    event("user.created", 0), event("user.created", 0, id=5), event("user.created", 0, id=""), event("user.created", 0, id="a b"),
    event("user.created", 0, id="x" * 256), event("user.deleted", 0, id=None), event("organizationMembership.created", 0, id="orgmem_1"),
    event("organizationMembership.deleted", 0, id="orgmem_1", organization="org_a", public_user_data=[]), event("role.updated", 0, id="role_1"),
    event("session.ended", 0, id={}), event("organization.updated", 0, id=["org"]), event("user.deleted", 0, id="acme|alice"),
    event("session.revoked", 0, id="acme|s"),
]  # fmt: skip
STRANGE: list[dict[str, Any]] = [
    user("created", 0, first_name=5, last_name={}, username=["x"], email_addresses="none", public_metadata=7, banned="yes", locked=1),
    user("created", 0, first_name="\x00N\ud800ul", public_metadata={"\x00k": "\x00", "n": 1e308, "deep": [[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]}),
    user("created", 0, created_at="yesterday", updated_at=-5), user("created", 0, created_at=1e300, updated_at=10**40),
    user("created", 0, updated_at=True, email_addresses=[None, 5, {"id": None}], primary_email_address_id=None),
    user("created", 0, first_name="x" * 100_000), {**user("created", 0), "timestamp": None}, {**user("created", 0), "timestamp": "x"},
    {**user("created", 0), "timestamp": -1}, user("created", 0, public_metadata={"number": 10**400}),
    membership("created", 0, role="admin", permissions=[5, None, "\x00"]), membership("created", 0) | {"timestamp": T0},
    event("waitlistEntry.created", 0, id="wait_1"), event("brand.new", 0, anything=[1, 2, {"\x00": "\x00"}]),
]  # fmt: skip


@pytest.mark.parametrize("odd", range(len(ODD)))
async def test_an_event_that_cannot_be_read_is_kept(hooks: Client, db: TestDatabase, odd: int) -> None:
    """Refused it would come again for days."""
    await take(hooks, ODD[odd])
    assert [await db.count(table) for table in ("webhook_inbox", "users", "organizations", "memberships", "revocations")] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("strange", range(len(STRANGE)))
async def test_strange_values_never_fail(hooks: Client, db: TestDatabase, strange: int) -> None:
    one = STRANGE[strange]
    await take(hooks, one)
    assert await db.count("webhook_inbox") == 1
    assert await db.count("users") == int(one["type"] == "user.created")
    assert await db.count("memberships") == int(one["type"].startswith("organizationMembership"))
    assert not await db.rows("SELECT 1 FROM users WHERE updated_at > now() + interval '6 minutes'")


# Once --------------------------------------------------------------------------------------------------------------------


async def test_a_replay_is_taken_and_does_nothing(hooks: Client, db: TestDatabase) -> None:
    """Even one whose signature is new, with another body under the same id."""
    await deliver(hooks, user("created", 0), "msg_1")
    before = await db.rows("SELECT * FROM users")
    for again in (user("created", 0), user("updated", 9, first_name="Mallory"), user_deleted(9)):
        assert (await deliver(hooks, again, "msg_1")).status == 204
    assert await db.rows("SELECT * FROM users") == before
    assert await db.count("revocations") == 0


COUNTER = """
CREATE TABLE applied (n int);
CREATE FUNCTION count_one() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN INSERT INTO public.applied VALUES (1); RETURN NULL; END $$;
CREATE TRIGGER counting AFTER INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION count_one()"""
BROKEN = """
CREATE FUNCTION count_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{0}' USING ERRCODE = '{0}'; END $$;
CREATE TRIGGER counting AFTER INSERT OR UPDATE ON {1} FOR EACH ROW EXECUTE FUNCTION count_one()"""
MENDED = "DROP TRIGGER counting ON {}; DROP FUNCTION count_one(); DROP TABLE IF EXISTS applied"


@contextlib.asynccontextmanager
async def changed(db: TestDatabase, sql: str, table: str = "users") -> AsyncIterator[None]:
    """The database with this done to it, for a while."""
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(sql)
        try:
            yield
        finally:
            await admin.execute(MENDED.format(table))


async def test_twenty_at_once_are_one(hooks: Client, db: TestDatabase) -> None:
    async with changed(db, COUNTER):
        got = await asyncio.gather(*(deliver(hooks, user("created", 0), "msg_1") for _ in range(20)))
        assert [one.status for one in got] == [204] * 20
        assert (await db.count("applied"), await db.count("webhook_inbox")) == (1, 1)


async def test_a_burst_leaves_connections_to_others(hooks: Client, db: TestDatabase) -> None:
    """While something holds events up, everybody else is served (four connections here)."""
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("SELECT pg_advisory_lock(4716, 2)")
        waiting = [asyncio.create_task(deliver(hooks, user("created", 0, id=f"u{n}"))) for n in range(12)]
        await asyncio.sleep(0.2)
        assert (await hooks.get("/api/data", stub("alice"))).status == 200
        await admin.execute("SELECT pg_advisory_unlock(4716, 2)")
        assert {one.status for one in await asyncio.gather(*waiting)} == {204}
    assert await db.count("users") == 12


@pytest.mark.parametrize("code", ["P0001", "40001", "23514", "23505", "22023", "42501", "57014", "55P03"])
@pytest.mark.parametrize("table", ["users", "revocations"])
async def test_what_fails_in_the_middle_leaves_nothing(
    hooks: Client, db: TestDatabase, code: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """503: nothing is noted, nothing is done; the next try does all of it. That access goes on is an error in the log, and counted."""
    banned = user("updated", 5, banned=True)
    async with changed(db, BROKEN.format(code, table), table):
        got = await deliver(hooks, banned, "msg_1")
        assert got.status == 503
        assert "Retry-After" in got.headers
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len([line for line in errors if "access could not be ended" in line]) == 1
        assert hooks.app[REVOCATION_FAILURES] == {"user": 1}
        assert [await db.count(name) for name in ("users", "webhook_inbox", "revocations")] == [0, 0, 0]
    assert (await deliver(hooks, banned, "msg_1")).status == 204
    assert [await db.count(name) for name in ("users", "webhook_inbox")] == [1, 1]
    assert set(await revocations(db)) == {("user", "alice")}


async def test_with_the_database_away(hooks: Client) -> None:
    await hooks.app[DATABASE].close()
    assert (await deliver(hooks, RAW)).status == 503
    assert (await deliver(hooks, RAW, secret=OTHER)).status == 400


# In any order ------------------------------------------------------------------------------------------------------------

HISTORIES: dict[str, list[dict[str, Any]]] = {
    "a user's life": [user("created", 0), user("updated", 10, first_name="Two"), user("updated", 20, banned=True), user_deleted(30)],
    "a user's changes": [user("created", 0), user("updated", 10, first_name="Two"), user("updated", 20, banned=True), user("updated", 30, locked=True)],
    "changes within one moment": [user("updated", 10, first_name=name) | {"timestamp": (T0 + at) * 1000} for name, at in
                                  (("One", 10), ("Two", 11), ("Three", 12), ("Four", 13))],
    "an organisation's life": [organization("created", 0), organization("updated", 10, name="Two"), membership("created", 5), organization_deleted(30)],
    "a membership's changes": [membership("created", 0), membership("updated", 10, role="org:admin"), membership("updated", 20), membership("deleted", 30)],
    "gone and back": [membership("created", 0), membership("deleted", 10), membership("created", 20, id="orgmem_2", born=20),
                      membership("updated", 30, id="orgmem_2", born=20, role="org:admin")],
    "back and gone": [membership("created", 0), membership("deleted", 10), membership("created", 20, id="orgmem_2", born=20),
                      membership("deleted", 30, id="orgmem_2", born=20)],
    "a member's end": [user("created", 0), membership("created", 5), membership("updated", 10, role="org:admin"), user_deleted(20)],
    "everybody's end": [membership("created", 0), membership("deleted", 30), user_deleted(20), organization_deleted(10)],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if number > 1 else []) for number, name in enumerate(HISTORIES)]
)
async def test_every_order_ends_alike(hooks: Client, db: TestDatabase, name: str) -> None:
    """All 24 orders of a history, each event delivered twice, lead to what its own order leads to."""
    async def state(order: tuple[dict[str, Any], ...]) -> list[Any]:
        await empty(db)
        for number, one in enumerate(order):
            message = f"msg_{HISTORIES[name].index(one)}"
            assert (await deliver(hooks, one, message)).status == 204
            if number % 2:
                assert (await deliver(hooks, one, message)).status == 204
        await sweep(db)
        tables = [await db.rows(f"SELECT * FROM {table}") for table in ("users", "organizations", "memberships")]
        for row in itertools.chain(*tables):
            row.pop("keys_ended_at", None)  # when this server learned of it, by its own clock
        kept = {key: before for key, before in (await revocations(db)).items() if key[0] != "membership"}
        return [*tables, kept]

    wanted = await state(tuple(HISTORIES[name]))
    assert any(wanted)
    for order in itertools.permutations(HISTORIES[name]):
        assert await state(order) == wanted, [one["type"] for one in order]


async def test_a_deleted_membership_is_revoked_in_every_order(hooks: Client, db: TestDatabase) -> None:
    for order in itertools.permutations(HISTORIES["gone and back"]):
        await empty(db)
        await take(hooks, *order)
        before = (await revocations(db))["membership", "alice org_a"]
        assert before is not None
        assert before >= 10
        assert [row["role"] for row in await db.rows("SELECT role FROM memberships")] == ["org:admin"]


# Silence -----------------------------------------------------------------------------------------------------------------


async def test_logs_hold_no_secret(hooks: Client, db: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the secret, nor a signature, nor anything of a body: when it is taken, refused, unreadable, and failed."""
    caplog.set_level(logging.DEBUG)
    signed = headers(RAW, "msg_9", now())
    await hooks.post(PATH, signed, data=RAW)
    await hooks.post(PATH, {**signed, "svix-id": "msg_8"}, data=RAW)
    await take(hooks, event("user.created", 0, id="a b", first_name="hunter2"), session("ended", 5))
    async with changed(db, BROKEN.format("P0001", "users")):
        await deliver(hooks, user("updated", 5), "msg_10")
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "could not be read" in said
    for secret in (SECRET[6:20], signed["svix-signature"][3:20], "hunter2", "alice@example.com", "203.0.113.5"):
        assert secret not in said
