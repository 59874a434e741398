"""Tickets: once, for one path, as the caller who asked, with the end of that caller's credential; and in no log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import time

import pytest
from aiohttp import web
from kits.live import LIVE as TICKS
from kits.live import events, websocket

from server import Identity, caller_of, event_stream, identity_of, public, requires, signed_in
from server.streams.ticket_route import OFFICE
from server.streams.tickets import PER_CALLER, from_text, to_text
from tests.conftest import ALICE, BOB, ROBOT_A, Client, Serve, TestDatabase, plugin

routes = web.RouteTableDef()


async def who(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send({"user_id": identity_of(request).user_id, "target": str(request.rel_url), "raw": request.raw_path}, event="hello")
        await asyncio.Event().wait()
    return stream.response


@routes.get("/api/orgs/{org_id}/ticks")
@requires(organization="org_id")
async def of_organization(request: web.Request) -> web.StreamResponse:
    return await who(request)


@routes.get("/api/ticks/{name}")
@signed_in
async def named(request: web.Request) -> web.StreamResponse:
    return await who(request)


@routes.get("/api/admin/ticks")
@requires(role="org:admin")
async def for_admins(request: web.Request) -> web.StreamResponse:
    return await who(request)


@routes.get("/api/public/ticks")
@public
async def for_all(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("", event="hello")
    return stream.response


@routes.get("/api/public/maybe")
@public(optional=True)
async def for_some(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    async with event_stream(request) as stream:
        await stream.send({"user_id": caller and caller.user_id}, event="hello")
        await asyncio.Event().wait()
    return stream.response


LIVE = {**TICKS, "more": plugin(*routes)}
PUBLIC = {"public_routes": ["/api/public/(.*)", "/api/health", "/api/webhooks(.*)"]}
FORM = re.compile(r"st_[A-Za-z0-9_-]{43}")


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve(PUBLIC, extra=LIVE)


async def ticket(client: Client, path: str, caller: dict[str, str] = ALICE) -> str:
    got = await client.post("/api/stream-tickets", caller, {"path": path})
    assert (got.status, got.json()["expires_in"]) == (201, 30), got.raw
    assert FORM.fullmatch(got.json()["ticket"])
    assert got.headers["Cache-Control"] == "no-store"
    return str(got.json()["ticket"])


async def refused(client: Client, path: str, headers: dict[str, str] | None = None) -> tuple[int, str | None]:
    got = await client.get(path, headers)
    return got.status, got.json().get("reason")


REJECTED = (401, "credential-rejected")


async def test_a_ticket_opens_one_stream_once(client: Client, db: TestDatabase) -> None:
    made = await ticket(client, "/api/ticks")
    ((row,)) = await db.rows("SELECT hash, caller, path, identity FROM gatepost_tickets")
    assert bytes(row["hash"]) == hashlib.sha256(made.encode()).digest()
    assert made[3:] not in str(row)
    async with events(client, f"/api/ticks?ticket={made}") as stream:
        assert stream.response.status == 200
        assert json.loads((await stream.next())["data"]) == {"user_id": "alice"}
        assert stream.response.headers["Cache-Control"] == "no-store"
        assert await refused(client, f"/api/ticks?ticket={made}") == REJECTED
    assert await db.count("gatepost_tickets") == 0


async def test_a_socket_accepts_a_ticket_too(client: Client) -> None:
    made = await ticket(client, "/api/echo")
    async with websocket(client, f"/api/echo?ticket={made}") as ws:
        await ws.send_str("hello")
        assert await ws.receive_str() == "echo hello"
    assert await refused(client, f"/api/echo?ticket={made}") == REJECTED


async def test_a_ticket_opens_only_its_path(client: Client) -> None:
    made = await ticket(client, "/api/ticks/one")
    for path in ("/api/ticks", "/api/ticks/two", "/api/ticks/One", "/api/echo", "/api/orgs/org_a/ticks", "/api/ticks/one%20"):
        assert await refused(client, f"{path}?ticket={made}") == REJECTED
    async with events(client, f"/api/ticks/one?a=1&ticket={made}&b=%20") as stream:
        said = json.loads((await stream.next())["data"])
    assert (said["target"], said["raw"]) == ("/api/ticks/one?a=1&b=%20", "/api/ticks/one?a=1&b=%20")  # nothing can log it later


async def test_escapes_do_not_make_another_path(client: Client) -> None:
    made = await ticket(client, "/api/ticks/%C3%BC~a")
    async with events(client, f"/api/ticks/%c3%bc%7Ea?ticket={made}") as stream:
        assert stream.response.status == 200


async def test_malformed_and_unknown_tickets(client: Client) -> None:
    for text in ("", "st_", "x", "st_" + "a" * 43, "st_" + "a" * 44, "st_" + "%61" * 43, "a" * 8000):
        assert await refused(client, f"/api/ticks?ticket={text}") == REJECTED
    made = await ticket(client, "/api/ticks")
    assert await refused(client, f"/api/ticks?ticket={made}&ticket={made}") == REJECTED
    assert await refused(client, "/api/ticks?tickets=x") == (401, "credential-missing")


async def test_a_ticket_beside_another_credential_is_ambiguous(client: Client) -> None:
    made = await ticket(client, "/api/ticks")
    assert await refused(client, f"/api/ticks?ticket={made}", BOB) == (400, "credentials-ambiguous")
    assert await refused(client, f"/api/ticks?ticket={made}", ROBOT_A) == (400, "credentials-ambiguous")
    async with events(client, f"/api/ticks?ticket={made}", {"Cookie": "__session=x"}) as stream:  # a browser sends its cookies
        assert json.loads((await stream.next())["data"]) == {"user_id": "alice"}


async def test_other_routes_do_not_read_tickets(client: Client, db: TestDatabase) -> None:
    made = await ticket(client, "/api/ticks")
    for method, path in (("GET", "/api/me"), ("GET", "/api/data"), ("HEAD", "/api/ticks"), ("POST", "/api/stream-tickets"), ("GET", "/api/nothing")):
        got = await client.send(method, f"{path}?ticket={made}")
        assert got.status == 401
        if method != "HEAD":
            assert got.json()["reason"] == "credential-missing"
    assert (await client.get(f"/api/me?ticket={made}", ALICE)).status == 200
    async with events(client, "/api/public/ticks?ticket=x") as stream:
        assert (await stream.next())["event"] == "hello"
    assert await db.count("gatepost_tickets") == 1


async def test_a_caller_who_is_optional(client: Client) -> None:
    made = await ticket(client, "/api/public/maybe")
    async with events(client, f"/api/public/maybe?ticket={made}") as stream:
        assert json.loads((await stream.next())["data"]) == {"user_id": "alice"}
    assert await refused(client, f"/api/public/maybe?ticket={made}") == REJECTED
    async with events(client, "/api/public/maybe") as stream:
        assert json.loads((await stream.next())["data"]) == {"user_id": None}


@pytest.mark.parametrize("path", [
    "/api/me", "/api/data", "/api/nothing", "", "api/ticks", "/api/ticks?x=1", "/api/ticks#x", "//api/ticks", "http://localhost/api/ticks", "/api/ticks/", "/api/../api/ticks",
    "/api/ticks/%2e", "/api/ticks/\x00", "/api/ticks/ü", "/api/public/ticks", "/api/ticks/" + "a" * 2000, "/api/stream-tickets",
])  # fmt: skip
async def test_a_path_that_does_not_stream_is_a_422(client: Client, path: str) -> None:
    got = await client.post("/api/stream-tickets", ALICE, {"path": path})
    assert got.status == 422
    assert [one["field"] for one in got.json()["fields"]] == ["path"]


async def test_bodies_of_a_ticket_request(client: Client) -> None:
    for wrong, field in (({}, "path"), ({"path": 1}, "path"), ({"path": "/api/ticks", "seconds": 5}, "seconds"), ({"path": None}, "path")):
        got = await client.post("/api/stream-tickets", ALICE, wrong)
        assert (got.status, [one["field"] for one in got.json()["fields"]]) == (422, [field])
    assert (await client.post("/api/stream-tickets", None, {"path": "/api/ticks"})).status == 401
    got = await client.post("/api/stream-tickets", {**ALICE, "Idempotency-Key": "k"}, {"path": "/api/ticks"})
    again = await client.post("/api/stream-tickets", {**ALICE, "Idempotency-Key": "k"}, {"path": "/api/ticks"})
    assert (got.status, again.status, again.json()["reason"]) == (201, 409, "idempotency-secret-not-kept")


async def test_only_for_a_stream_that_the_caller_could_open(client: Client) -> None:
    got = await client.post("/api/stream-tickets", ALICE, {"path": "/api/admin/ticks"})
    assert (got.status, got.json()["reason"]) == (403, "role")
    got = await client.post("/api/stream-tickets", ALICE, {"path": "/api/orgs/org_b/ticks"})
    assert (got.status, got.json()["reason"]) == (403, "organization")
    made = await ticket(client, "/api/orgs/org_a/ticks")
    async with events(client, f"/api/orgs/org_a/ticks?ticket={made}") as stream:
        assert stream.response.status == 200


async def test_of_two_servers_one_accepts_the_ticket(serve: Serve) -> None:
    one, two = await serve(extra=LIVE), await serve(extra=LIVE)
    for _ in range(5):
        made = await ticket(one, "/api/ticks")

        async def open_it(client: Client, made: str = made) -> int:
            async with events(client, f"/api/ticks?ticket={made}") as stream:
                return stream.response.status

        statuses = await asyncio.gather(*(open_it(client) for client in (one, two) * 4))
        assert sorted(statuses) == [200] + [401] * 7


async def test_a_ticket_expires(client: Client, db: TestDatabase) -> None:
    made = await ticket(client, "/api/ticks")
    await db.rows("UPDATE gatepost_tickets SET expires_at = now() - interval '1 second'")
    assert await refused(client, f"/api/ticks?ticket={made}") == REJECTED
    assert await db.count("gatepost_tickets") == 1
    await ticket(client, "/api/ticks")  # making one deletes expired ones
    assert await db.count("gatepost_tickets") == 1


async def test_a_caller_cannot_fill_the_table(client: Client, db: TestDatabase) -> None:
    await ticket(client, "/api/ticks")
    await db.rows("INSERT INTO gatepost_tickets SELECT sha256(i::text::bytea), caller, path, identity, expires_at"
                  f" FROM gatepost_tickets, generate_series(1, {PER_CALLER - 1}) AS i")  # fmt: skip
    got = await client.post("/api/stream-tickets", ALICE, {"path": "/api/ticks"})
    assert (got.status, got.json()["reason"], got.headers["Retry-After"]) == (429, "tickets", "30")
    await ticket(client, "/api/ticks", BOB)
    await db.rows("UPDATE gatepost_tickets SET expires_at = now() WHERE caller = 'user/alice'")
    await ticket(client, "/api/ticks")


async def test_the_serving_role_cannot_read_tickets(db: TestDatabase) -> None:
    async with db.server.connected(db.server.serving_role, db.name) as app:
        for sql in ("SELECT * FROM gatepost_tickets", "DELETE FROM gatepost_tickets", "UPDATE gatepost_tickets SET path = ''"):
            with pytest.raises(Exception, match="permission denied"):
                await app.execute(sql)


async def test_a_ticket_is_in_no_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve({"log.requests": True}, extra=LIVE)
    with caplog.at_level(logging.DEBUG):
        made = await ticket(client, "/api/ticks")
        for path in (f"/api/ticks?ticket={made}", f"/api/ticks?ticket={made}", f"/api/me?ticket={made}", f"/api/nothing?ticket={made}",
                     f"/api/ticks?ticket={made}%zz"):  # fmt: skip
            async with events(client, path) as stream:
                assert stream.response.status in (200, 400, 401)
                assert made not in str(stream.response.headers)
                if stream.response.status != 200:
                    assert made not in (await stream.response.text())
    said = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records if record.name.startswith(("gatepost", "server", "aiohttp.server"))]
    assert said
    assert not [line for line in said if made[3:] in line]


# Whom it stands for ------------------------------------------------------------------------------------------------------


def test_a_ticket_keeps_every_field_of_the_identity() -> None:
    claims = {"sub": "u", "sts": "pending", "fva": [1, 2], "fea": "o:x", "n": 1.5, "deep": {"a": [None, True, "ü\x00"]}}
    one = Identity(provider="clerk", token_type="session_token", user_id="u", org_id="o", org_slug="s", org_role="org:admin", org_permissions=["org:a:b"],
                   session_id="sess", scopes=["a", "b"], claims=claims, issued_at=math.inf, expires_at=12.5, key_id="k", token_id="t", impersonator="boss")
    assert [name for name in Identity.__slots__ if getattr(one, name) is None] == []  # a field that is added is kept, too
    one.derived["digest"], one.derived["cached"], one.derived["subject"] = b"\x00\xff", object(), "acme|u"
    two = from_text(to_text(one))
    for name in Identity.__slots__:
        if name != "derived":
            assert getattr(one, name) == getattr(two, name), name
    assert (two.pending, two.derived) == (True, {"digest": b"\x00\xff", "subject": "acme|u"})
    bare = Identity(provider="p")
    assert all(getattr(bare, name) == getattr(from_text(to_text(bare)), name) for name in Identity.__slots__)


async def test_a_ticket_expires_with_its_credential(client: Client) -> None:
    office = client.app[OFFICE]
    soon = Identity(provider="stub", user_id="alice", expires_at=time.time() + 5.9)
    made, seconds = await office.tickets.issue(soon, "/api/ticks")
    assert seconds == 5
    async with events(client, f"/api/ticks?ticket={made}") as stream:
        assert stream.response.status == 200
        assert await stream.end(8) == "token-expired"


async def revoke(db: TestDatabase, client: Client, kind: str, subject: str) -> None:
    await db.rows("INSERT INTO revocations (kind, subject, expires_at) VALUES ($1, $2, now() + interval '1 hour')", kind, subject)
    await asyncio.sleep(0.8)


async def test_a_session_that_was_revoked_meanwhile(client: Client, db: TestDatabase) -> None:
    made = await ticket(client, "/api/ticks")
    await revoke(db, client, "user", "alice")
    assert await refused(client, f"/api/ticks?ticket={made}") == (401, "session-revoked")


@pytest.mark.parametrize(("kind", "subject"), [("jti", "t_1"), ("user", "eve")])
async def test_a_token_or_an_impersonator_that_was_revoked_meanwhile(client: Client, db: TestDatabase, kind: str, subject: str) -> None:
    office = client.app[OFFICE]
    one = Identity(provider="stub", token_type="session_token", user_id="alice", token_id="t_1", impersonator="eve", issued_at=time.time())
    before, after = [(await office.tickets.issue(one, "/api/ticks"))[0] for _ in range(2)]
    async with events(client, f"/api/ticks?ticket={before}") as stream:
        assert json.loads((await stream.next())["data"]) == {"user_id": "alice"}
        await revoke(db, client, kind, subject)
        assert await stream.end() == "session-revoked"
    assert await refused(client, f"/api/ticks?ticket={after}") == (401, "session-revoked")


async def test_a_key_that_was_revoked_or_rotated_meanwhile(client: Client, db: TestDatabase) -> None:
    made = await client.post("/api/keys", ALICE, {"name": "k"})
    assert made.status == 201, made.raw
    key, id = {"X-API-Key": made.json()["secret"]}, made.json()["id"]
    first, second = await ticket(client, "/api/ticks", key), await ticket(client, "/api/ticks", key)
    async with events(client, f"/api/ticks?ticket={first}") as stream:
        assert json.loads((await stream.next())["data"]) == {"user_id": "alice"}
        assert (await client.post(f"/api/keys/{id}/rotate", ALICE, {})).status == 200
        assert await stream.end() == "key-revoked"
    status, reason = await refused(client, f"/api/ticks?ticket={second}")
    assert (status, reason) == (401, "key-revoked")
    made = await client.post("/api/keys", ALICE, {"name": "k"})
    third = await ticket(client, "/api/ticks", {"X-API-Key": made.json()["secret"]})
    assert (await client.delete(f"/api/keys/{made.json()['id']}", ALICE)).status == 204
    assert (await refused(client, f"/api/ticks?ticket={third}"))[0] == 401


async def test_a_static_key(client: Client) -> None:
    made = await ticket(client, "/api/orgs/org_a/ticks", ROBOT_A)
    async with events(client, f"/api/orgs/org_a/ticks?ticket={made}") as stream:
        assert json.loads((await stream.next())["data"])["user_id"] is None


async def test_another_origin_needs_no_cookie(serve: Serve) -> None:
    client = await serve({"cors_origins": ["https://app.example"]}, extra=LIVE)
    made = await ticket(client, "/api/ticks")
    async with events(client, f"/api/ticks?ticket={made}", {"Origin": "https://app.example"}) as stream:
        assert stream.response.status == 200
        assert stream.response.headers["Access-Control-Allow-Origin"] == "https://app.example"


async def test_without_a_stream_there_is_no_such_route(serve: Serve) -> None:
    client = await serve({"handlers": ["health", "me"]})
    assert (await client.post("/api/stream-tickets", ALICE, {"path": "/api/ticks"})).status == 404


async def test_the_document_has_the_ticket_route(client: Client) -> None:
    document = (await client.get("/api/public/openapi.json")).json()
    operation = document["paths"]["/api/stream-tickets"]["post"]
    assert set(operation["responses"]) >= {"201", "401", "403", "422", "429", "503"}


async def test_guesses_count_against_their_address(serve: Serve) -> None:
    """Each one asks the database, so an address with too many refusals is not asked for any more of them."""
    client = await serve({"limits.address": "3/minute"}, extra=LIVE)
    got = [await client.get(f"/api/ticks?ticket=st_{'x' * 42}{number}") for number in range(5)]
    assert [one.status for one in got] == [401, 401, 401, 429, 429]
    assert int(got[-1].headers["Retry-After"]) > 0
    assert (await client.get(f"/api/ticks?ticket=st_{'x' * 43}", ALICE)).status == 400  # two credentials come first
