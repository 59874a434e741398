"""Every route against every kind of caller: the exact status, body, reason and headers. A route without a row here fails."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from handlers.docs import POLICY
from server import Unavailable, hookimpl
from server.app import TABLE
from tests.conftest import (
    ADMIN_A,
    ADMIN_B,
    ALICE,
    ALICE_ALONE,
    BAD_CREDENTIALS,
    BOB,
    CLERK_A,
    CLERK_B,
    CREATE,
    READ,
    ROBOT_A,
    Client,
    Got,
    Serve,
    TestDatabase,
    plugin,
    stub,
)

ROW = "00000000-0000-4000-8000-000000000001"  # exists, alice's and org_a's
KEY = "0123456789abcdef"  # exists, alice's
NONE = "00000000-0000-4000-8000-00000000dead"
Header = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One route: a path, who gets which status there, and who is refused for which reason."""

    path: str
    right: dict[int, list[Header]]
    denied: dict[str, list[Header]] = field(default_factory=dict)
    body: Any = None
    public: bool = False
    own: Mapping[str, str] = field(default_factory=dict)  # headers that a success bears in place of the usual ones


NEW = {"name": "new"}
EVENTS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
INVOICE = {"customer": "Acme", "amount": "12.50", "currency": "EUR"}
NO_ROLE = stub("alice", org_id="org_a")
ROLE_WITHOUT_ORG = stub("anna", org_role="org:admin")
ODD_ROLES = [stub("anna", org_id="org_a", org_role=role) for role in ("org:Admin", "org:admin2", "org:", "administrator")]
READER, WRITER = (stub("alice", org_id="org_a", org_permissions=words) for words in (READ, CREATE))
IMPERSONATED = [stub(user, org_id="org_a", org_role=role, impersonator="eve") for user, role in (("alice", "org:member"), ("anna", "org:admin"))]
WITHOUT_ORG = stub("alice", org_permissions=f"{READ} {CREATE}")

MATRIX: dict[tuple[str, str], Case] = {
    ("GET", "/api/health"): Case(
        "/api/health", {200: [{}, ALICE, BOB, *BAD_CREDENTIALS.values()]}, public=True, own={"Cache-Control": "no-store"}
    ),
    ("GET", "/api/me"): Case("/api/me", {200: [ALICE, ALICE_ALONE, ROBOT_A]}),
    ("GET", "/api/me/profile"): Case("/api/me/profile", {200: [ALICE, ALICE_ALONE], 404: [BOB]}, {"user": [ROBOT_A]}),
    # The signature is its credential; here no secret is configured.
    ("POST", "/api/webhooks/clerk"): Case("/api/webhooks/clerk", {503: [{}, ALICE, *BAD_CREDENTIALS.values()]}, public=True),
    ("GET", "/api/data"): Case("/api/data", {200: [ALICE, ALICE_ALONE, BOB]}, {"user": [ROBOT_A]}),
    ("POST", "/api/data"): Case("/api/data", {201: [ALICE, ALICE_ALONE]}, {"user": [ROBOT_A]}, NEW),
    ("GET", "/api/data/events"): Case("/api/data/events", {200: [ALICE, ALICE_ALONE, BOB]}, {"user": [ROBOT_A]}, own=EVENTS),
    ("GET", "/api/data/{id}"): Case(f"/api/data/{ROW}", {200: [ALICE, ALICE_ALONE], 404: [BOB, ADMIN_A]}, {"user": [ROBOT_A]}),
    ("PATCH", "/api/data/{id}"): Case(
        f"/api/data/{ROW}", {200: [ALICE, ALICE_ALONE], 404: [BOB, ADMIN_A]}, {"user": [ROBOT_A]}, NEW
    ),
    ("DELETE", "/api/data/{id}"): Case(
        f"/api/data/{ROW}",
        {404: [ADMIN_B], 200: [ADMIN_A]},
        {"role": [ALICE, ALICE_ALONE, NO_ROLE, ROLE_WITHOUT_ORG, *ODD_ROLES]},
    ),
    ("GET", "/api/orgs/{org_id}/data"): Case(
        "/api/orgs/org_a/data", {200: [ALICE, ADMIN_A, ROBOT_A]}, {"organization": [BOB, ALICE_ALONE, ADMIN_B]}
    ),
    ("POST", "/api/orgs/{org_id}/data"): Case(
        "/api/orgs/org_a/data", {201: [ALICE, ADMIN_A, ROBOT_A]}, {"organization": [BOB, ALICE_ALONE, ADMIN_B]}, NEW
    ),
    ("GET", "/api/orgs/{org_id}/data/events"): Case(
        "/api/orgs/org_a/data/events", {200: [ALICE, ADMIN_A, ROBOT_A]}, {"organization": [BOB, ALICE_ALONE, ADMIN_B]}, own=EVENTS
    ),
    # For the path of a stream that the caller may open; what refuses there refuses here.
    ("POST", "/api/stream-tickets"): Case(
        "/api/stream-tickets", {201: [ALICE, ALICE_ALONE, BOB]}, {"user": [ROBOT_A]}, {"path": "/api/data/events"}
    ),
    ("GET", "/api/orgs/{org_id}/audit"): Case(
        "/api/orgs/org_a/audit",
        {200: [ADMIN_A, ROBOT_A]},
        {"role": [ALICE, NO_ROLE, *ODD_ROLES], "organization": [BOB, ALICE_ALONE, ADMIN_B, ROLE_WITHOUT_ORG]},
    ),
    ("GET", "/api/orgs/{org_id}/members"): Case(
        "/api/orgs/org_a/members", {200: [ALICE, ADMIN_A, ROBOT_A]}, {"organization": [BOB, ALICE_ALONE, ADMIN_B]}
    ),
    ("GET", "/api/keys"): Case("/api/keys", {200: [ALICE, ALICE_ALONE, BOB, ADMIN_A, ROBOT_A]}),
    ("POST", "/api/keys"): Case(
        "/api/keys", {201: [ALICE, ALICE_ALONE, BOB, ADMIN_A]}, {"user": [ROBOT_A], "impersonation": IMPERSONATED}, NEW
    ),
    ("POST", "/api/keys/{id}/rotate"): Case(
        f"/api/keys/{KEY}/rotate", {404: [BOB, ADMIN_A, ROBOT_A], 200: [ALICE, ALICE_ALONE]}, {"impersonation": IMPERSONATED}, body={}
    ),
    ("DELETE", "/api/keys/{id}"): Case(f"/api/keys/{KEY}", {404: [BOB, ADMIN_A, ROBOT_A], 204: [ALICE, ALICE_ALONE, IMPERSONATED[0]]}),
    ("GET", "/api/invoices"): Case(
        "/api/invoices", {200: [CLERK_A, READER, CLERK_B, ROBOT_A]}, {"permission": [ALICE, ADMIN_A, WRITER, WITHOUT_ORG]}
    ),
    ("POST", "/api/invoices"): Case(
        "/api/invoices", {201: [CLERK_A, WRITER, ROBOT_A]}, {"permission": [ALICE, ADMIN_A, READER, WITHOUT_ORG]}, INVOICE
    ),
    ("GET", "/api/invoices/{id}"): Case(
        f"/api/invoices/{ROW}",
        {200: [CLERK_A, READER, ROBOT_A], 404: [CLERK_B]},
        {"permission": [ALICE, ADMIN_A, WRITER, WITHOUT_ORG]},
    ),
}
KEPT = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
for _path, _template, _type in (
    ("/api/public/openapi.json", "/api/public/openapi.json", "application/json"),
    ("/api/public/docs", "/api/public/docs", "text/html; charset=utf-8"),
    ("/api/public/docs/page.css", "/api/public/docs/{file}", "text/css; charset=utf-8"),
):
    MATRIX["GET", _template] = Case(
        _path, {200: [{}, ALICE, *BAD_CREDENTIALS.values()]}, public=True, own={**KEPT, "Content-Type": _type}
    )
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
async def rows(db: TestDatabase) -> None:
    """One row of each kind, alice's and org_a's."""
    await db.rows("INSERT INTO users (id, first_name, created_at) VALUES ('alice', 'Alice', now())")
    await db.rows("INSERT INTO data (id, user_id, org_id, name) VALUES ($1, 'alice', 'org_a', 'old')", ROW)
    await db.rows("INSERT INTO api_keys (id, hash, name, user_id, created_by) VALUES ($1, sha256('k'), 'k', 'alice', 'alice')", KEY)
    await db.rows(
        "INSERT INTO invoices (id, organization_id, created_by, customer, amount, currency)"
        " VALUES ($1, 'org_a', 'alice', 'Acme', 1, 'EUR')", ROW
    )  # fmt: skip


def stamped(got: Got, *, cacheable: bool = False, own: Mapping[str, str] | None = None) -> None:
    """The headers of every response, for every caller."""
    headers = got.headers
    assert re.fullmatch(r"[0-9a-f]{24}", headers["X-Request-Id"])
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Vary"] == "Authorization, Cookie, X-API-Key, Origin"
    assert headers["Server"] == "gatepost"
    usual = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Content-Type": "application/json",
             "Cache-Control": None if cacheable else "no-store"}  # fmt: skip
    expected = {**usual, **(own or {})}
    assert {name: headers.get(name) for name in expected} == expected
    assert headers["Referrer-Policy"] == "no-referrer"
    assert ("WWW-Authenticate" in headers) == (got.status == 401)


def unauthorized(got: Got, reason: str, *, head: bool = False) -> None:
    stamped(got)
    assert got.status == 401
    assert got.raw == b"" if head else got.json() == {"error": "Unauthorized", "reason": reason}
    assert got.headers["WWW-Authenticate"] == ("Bearer" if reason == "credential-missing" else 'Bearer error="invalid_token"')


def refused(got: Got, status: int, body: dict[str, Any], *, head: bool = False) -> None:
    stamped(got)
    assert got.status == status
    assert got.raw == b"" if head else got.json() == body


def test_every_route_has_a_row_and_every_row_a_route(make_app: Any) -> None:
    served = {(row.method, row.template) for row in make_app()[TABLE].rows}
    heads = {("HEAD", template) for method, template in MATRIX if method == "GET"}
    assert served == set(MATRIX) | heads


def test_what_is_reachable_without_a_credential_is_what_is_declared_public(make_app: Any) -> None:
    opened = {(route.method, plan.template) for route, plan in make_app()[TABLE].rules.items() if plan.public}
    assert opened == {(verb, key) for (method, key), case in MATRIX.items() if case.public for verb in with_head(method)}


PRIVATE = [pytest.param(method, case, id=f"{method} {key}") for (method, key), case in MATRIX.items() if not case.public]
EVERY = [pytest.param(method, case, id=f"{method} {key}") for (method, key), case in MATRIX.items()]


@pytest.mark.parametrize(("method", "case"), PRIVATE)
async def test_a_caller_without_a_credential_is_refused(client: Client, rows: None, method: str, case: Case) -> None:
    for verb in with_head(method):
        head = verb == "HEAD"
        unauthorized(await client.send(verb, case.path, json=case.body), "credential-missing", head=head)
        for credential in BAD_CREDENTIALS.values():
            unauthorized(await client.send(verb, case.path, credential, json=case.body), "credential-rejected", head=head)
        two = await client.send(verb, case.path, {**ALICE, **ROBOT_A}, json=case.body)
        refused(two, 400, {"error": "Bad Request", "reason": "credentials-ambiguous"}, head=head)


@pytest.mark.parametrize(("method", "case"), [each for each in PRIVATE if each.values[1].denied])  # type: ignore[attr-defined]
async def test_a_known_caller_without_the_right_is_refused(client: Client, rows: None, method: str, case: Case) -> None:
    for verb in with_head(method):
        for reason, callers in case.denied.items():
            for caller in callers:
                got = await client.send(verb, case.path, caller, json=case.body)
                refused(got, 403, {"error": "Forbidden", "reason": reason}, head=verb == "HEAD")


@pytest.mark.parametrize(("method", "case"), EVERY)
async def test_the_right_caller_gets_in(client: Client, rows: None, method: str, case: Case) -> None:
    for status, callers in case.right.items():
        for caller in callers:
            if method == "GET":
                head = await client.send("HEAD", case.path, caller)
            got = await client.begin(method, case.path, caller, json=case.body)
            assert got.status == status, (caller, got)
            stamped(got, cacheable=case.public and status < 300, own=case.own)
            if status == 404:
                assert got.raw == b'{"error": "Not Found"}'
            if method == "GET":
                stamped(head, cacheable=case.public, own=case.own)
                assert (head.status, head.raw) == (status, b"")
                assert unlike(head) == unlike(got)


def with_head(method: str) -> tuple[str, ...]:
    return ("GET", "HEAD") if method == "GET" else (method,)


def unlike(got: Got) -> dict[str, str]:
    """The headers but for those that tell two exchanges apart, and those of a body without an end."""
    ignored = {"x-request-id", "date"} | ({"connection", "transfer-encoding"} if got.headers.get("Content-Type") == EVENTS["Content-Type"] else set())
    return {name: value for name, value in got.headers.items() if name.lower() not in ignored}


# What is not there -----------------------------------------------------------------------------------------------------

UNKNOWN = ["/", "/api", "/api/", "/api/nothing", "/api/me/", "/API/me", "/api/healthz", "/api/health/", "/api/webhooks",
           "/api/webhooks/nobody", "/api/public/nothing", "/api/data/a/b", "/api//me", "/metrics", "/api/me;a=b",
           "/api/me.json", "/api/orgs//data", "/livez", "/readyz", "/favicon.ico"]  # fmt: skip


async def test_an_unknown_path_is_a_401_without_a_credential_and_a_404_for_known_callers(client: Client) -> None:
    for path in UNKNOWN:
        for method in METHODS:
            unauthorized(await client.send(method, path), "credential-missing", head=method == "HEAD")
            got = await client.send(method, path, ALICE)
            refused(got, 404, {"error": "Not Found"}, head=method == "HEAD")
        unauthorized(await client.get(path, BAD_CREDENTIALS["unknown key"]), "credential-rejected")


async def test_a_wrong_method_is_a_401_without_a_credential_and_a_405_for_known_callers(client: Client) -> None:
    methods, paths = defaultdict(set), {}
    for (method, template), case in MATRIX.items():
        methods[template] |= set(with_head(method))
        paths[template] = case.path
    methods["/api/data/events"] |= methods["/api/data/{id}"]  # whose other methods take `events` for an id, which no row has
    for template, right in methods.items():
        for method in set(METHODS) - right:
            head = method == "HEAD"
            unauthorized(await client.send(method, paths[template]), "credential-missing", head=head)
            got = await client.send(method, paths[template], ALICE)
            refused(got, 405, {"error": "Method Not Allowed"}, head=head)
            assert set(re.split(r",\s*", got.headers["Allow"])) == right


async def test_options_without_a_credential_is_a_401_and_a_preflight_says_the_same_for_every_path(client: Client) -> None:
    said = []
    for path in ("/api/me", "/api/health", "/api/nothing"):
        unauthorized(await client.send("OPTIONS", path), "credential-missing")
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        got = await client.send("OPTIONS", path, asked)
        assert (got.status, got.raw) == (204, b"")
        assert "Access-Control-Allow-Origin" not in got.headers
        said.append(unlike(got))
    assert said[0] == said[1] == said[2]


async def test_request_ids_are_ours_and_never_the_same(client: Client) -> None:
    ids = [(await client.get("/api/me", {**ALICE, "X-Request-Id": "mine"})).headers["X-Request-Id"] for _ in range(20)]
    assert len(set(ids)) == 20
    assert "mine" not in ids


async def test_a_method_override_overrides_nothing(client: Client, rows: None, db: TestDatabase) -> None:
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert (await client.get(f"/api/data/{ROW}", {**ALICE, name: "DELETE"})).status == 200
        assert (await client.post(f"/api/data/{ROW}?_method=DELETE", {**ADMIN_A, name: "DELETE"})).status == 405
    assert await db.count("data") == 1


OFFERED = ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Uri", "X-Forwarded-Prefix", "X-User-Id", "X-Org-Id",
           "X-Middleware-Subrequest", "X-Clerk-Auth-Status"]  # fmt: skip


async def test_no_header_but_a_credential_determines_the_caller_or_the_address(client: Client) -> None:
    for name in OFFERED:
        unauthorized(await client.get("/api/me", {name: "/api/health"}), "credential-missing")
        assert (await client.get("/api/health", {name: "/api/me"})).json() == {"status": "ok"}


async def test_two_credentials_in_headers_are_a_400_wherever_credentials_are_read(client: Client) -> None:
    pairs = [[("Authorization", ALICE["Authorization"])] * 2, [("X-API-Key", ROBOT_A["X-API-Key"])] * 2,
             [*ALICE.items(), ("X-API-Key", "x")], [("Authorization", "Bearer x"), ("X-API-Key", "y")]]  # fmt: skip
    for pair in pairs:
        for path in ("/api/me", "/api/nothing"):
            got = await client.get(path, pair)  # type: ignore[arg-type]
            refused(got, 400, {"error": "Bad Request", "reason": "credentials-ambiguous"})
        assert (await client.get("/api/health", pair)).status == 200  # type: ignore[arg-type]


async def test_an_empty_api_key_is_no_credential(client: Client) -> None:
    assert (await client.get("/api/me", [*ALICE.items(), ("X-API-Key", "")])).status == 200  # type: ignore[arg-type]
    unauthorized(await client.get("/api/me", {"X-API-Key": ""}), "credential-missing")


# Providers -------------------------------------------------------------------------------------------------------------


def provider(error: Exception | None, answer: object = None) -> tuple[object, list[str]]:
    """A plugin whose provider raises or returns what it is given, and the paths for which it was called."""
    asked: list[str] = []

    class Scripted:
        async def authenticate(self, request: Any) -> Any:
            asked.append(request.path)
            if error is not None:
                raise error
            return answer

    made = plugin()
    made.register_providers = hookimpl(lambda: {"scripted": lambda settings: Scripted()}, specname="register_providers")  # type: ignore[attr-defined]
    return made, asked


@pytest.mark.parametrize("error", [Unavailable("down", retry_after=7), RuntimeError("secret"), TimeoutError(), KeyError("x")])
async def test_a_provider_that_fails_is_a_503_and_never_the_next_ones_turn(serve: Serve, error: Exception) -> None:
    scripted, asked = provider(error)
    client = await serve({"providers": ["scripted", "stub"]}, extra={"scripted": scripted})
    got = await client.get("/api/me", ALICE)
    refused(got, 503, {"error": "Service Unavailable"})
    assert got.headers["Retry-After"] == ("7" if isinstance(error, Unavailable) else "1")
    assert (await client.get("/api/health", ALICE)).status == 200
    assert asked == ["/api/me"]  # on a public route nobody is asked


@pytest.mark.parametrize("answer", [True, "alice", {"user_id": "alice"}, 0, ""])
async def test_an_answer_that_is_none_of_the_three_is_a_503(serve: Serve, answer: object) -> None:
    client = await serve({"providers": ["scripted", "stub"]}, extra={"scripted": provider(None, answer)[0]})
    refused(await client.get("/api/me", ALICE), 503, {"error": "Service Unavailable"})
