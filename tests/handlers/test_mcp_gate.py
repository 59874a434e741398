"""A call of a tool is its route's request: access, limits, revocation, idempotency, audit, log, rows; and attacks on that."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from conftest import ADMIN_A, ALICE, ALICE_ALONE, BOB, ROBOT_A, Client, Serve, TestDatabase, stub
from kits.agents import HANDLERS, Agent, installed, message, refusal
from kits.app import provider_plugin, routes_plugin
from kits.tool_routes import PRODUCT, seen

from server import Identity, answer, call_tool, calls_tools, describe, signed_in
from server.app import METRICS, SERVER_DATABASE
from server.telemetry.prometheus import as_text

pytestmark = installed
SETTINGS = {"handlers": HANDLERS, "public_routes": ["/api/public/open"]}


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve(SETTINGS, extra={"product": PRODUCT})


class Known:
    """A provider that believes a header, with what the stub cannot say."""

    reads = ("X-Known",)

    async def authenticate(self, request: web.Request) -> Identity | None:
        given = request.headers.get("X-Known")
        return None if given is None else Identity(provider="known", **json.loads(given))


def known(**members: Any) -> dict[str, str]:
    return {"X-Known": json.dumps(members)}


@pytest.fixture
async def anybody(serve: Serve) -> Client:
    """A server that believes in token types, scopes and impersonators."""
    more = {"product": PRODUCT, "known": provider_plugin(known=Known())}
    return await serve({**SETTINGS, "providers": ["known", "stub"]}, extra=more)


# Access ----------------------------------------------------------------------------------------------------------------

EVERYBODYS = {"whoami", "get_thing", "find.things", "sum-up", "replace_thing", "rarely", "as_text", "broken", "streaming", "live", "file", "writes", "no_json", "open_door", "in_person"}


@pytest.mark.parametrize(
    ("caller", "more"),
    [
        (known(user_id="u"), {"add_thing", "list_things"}),
        (known(user_id="u", org_id="o"), {"add_thing", "list_things", "org_report"}),
        (known(user_id="u", org_id="o", org_role="org:member"), {"add_thing", "list_things", "org_report"}),
        (known(user_id="u", org_id="o", org_role="org:admin"), {"add_thing", "list_things", "org_report", "delete_all"}),
        (known(org_id="o", key_id="k", token_type="api_key"), {"org_report"}),
        (known(user_id="u", scopes=["things:write", "more"]), {"add_thing", "list_things", "scoped_thing"}),
        (known(user_id="u", scopes=["things"]), {"add_thing", "list_things"}),
    ],
)
async def test_what_a_caller_may_not_call_is_not_listed(anybody: Client, caller: dict[str, str], more: set[str]) -> None:
    assert set(await Agent(anybody, caller).tools()) == EVERYBODYS | more


async def test_the_route_decides_which_token_types_it_takes(anybody: Client) -> None:
    machine = Agent(anybody, known(user_id="m", token_type="m2m_token"))
    assert set(await machine.tools()) == {"machines_only", "open_door"}
    assert (await machine.call("machines_only"))["isError"] is False
    assert refusal(await machine.call("whoami")) == {"error": "Unauthorized", "reason": "token-type"}
    user = Agent(anybody, known(user_id="u", token_type="session_token"))
    assert refusal(await user.call("machines_only")) == {"error": "Unauthorized", "reason": "token-type"}
    for token_type in ("oauth_token", "clerk_api_key", "api_key", "access_token"):
        assert (await Agent(anybody, known(user_id="u", token_type=token_type)).post(message("server/discover"))).status == 200


async def test_impersonation(anybody: Client) -> None:
    agent = Agent(anybody, known(user_id="u", impersonator="support"))
    assert "in_person" not in await agent.tools()
    assert refusal(await agent.call("in_person")) == {"error": "Forbidden", "reason": "impersonation"}
    assert (await agent.call("whoami"))["structuredContent"]["impersonator"] == "support"


async def test_a_missing_scope_is_a_challenge(anybody: Client) -> None:
    """So that the client's library asks its user for it, as on any route."""
    agent = Agent(anybody, known(user_id="u"))
    got = await agent.post(message("tools/call", {"name": "scoped_thing", "arguments": {}}))
    assert got.status == 403
    assert 'error="insufficient_scope"' in got.headers["WWW-Authenticate"]
    assert 'scope="things:write"' in got.headers["WWW-Authenticate"]
    assert got.json()["error"]["code"] == -32600
    assert got.json()["id"] == 1
    allowed = Agent(anybody, known(user_id="u", scopes=["things:write"]))
    assert (await allowed.call("scoped_thing"))["structuredContent"]["body"] is None
    assert (await allowed.call("scoped_thing", {"name": "x"}))["structuredContent"]["body"] == {"name": "x"}


async def test_a_challenge_names_the_endpoint_that_the_client_asked(serve: Serve) -> None:
    """And not the tool's route: the client compares the resource in the metadata with the URL that it called (RFC 9728 3.3)."""
    more = {"product": PRODUCT, "known": provider_plugin(known=Known())}
    client = await serve({**SETTINGS, "providers": ["known"], "resource.url": "https://api.example.com"}, extra=more)
    metadata = "https://api.example.com/.well-known/oauth-protected-resource/api/mcp"
    stranger = await Agent(client, {}).post(message("tools/list"))
    assert stranger.headers["WWW-Authenticate"] == f'Bearer resource_metadata="{metadata}"'
    got = await Agent(client, known(user_id="u")).post(message("tools/call", {"name": "scoped_thing", "arguments": {}}))
    assert got.status == 403
    assert f'resource_metadata="{metadata}"' in got.headers["WWW-Authenticate"]
    described = (await client.get("/.well-known/oauth-protected-resource/api/mcp")).json()
    assert described["resource"] == "https://api.example.com/api/mcp"
    assert described["scopes_supported"] == ["things:write"]
    page = await Agent(client, known(user_id="u")).post(message("tools/list"), {"Origin": "https://api.example.com"})
    assert page.status == 200


async def test_a_refused_call_runs_nothing_and_is_recorded(client: Client, db: TestDatabase) -> None:
    assert refusal(await Agent(client, ALICE).call("delete_all")) == {"error": "Forbidden", "reason": "role"}
    assert seen == []
    assert (await Agent(client, ADMIN_A).call("delete_all"))["isError"] is False
    assert seen == [{"deleted": True}]


async def test_denials_are_audited_under_the_tools_route(serve: Serve, db: TestDatabase) -> None:
    client = await serve({**SETTINGS, "audit.denials": True}, extra={"product": PRODUCT})
    got = await Agent(client, ALICE).post(message("tools/call", {"name": "delete_all", "arguments": {}}))
    for _ in range(100):
        rows = await db.rows("SELECT * FROM audit_log")
        if rows:
            break
        await asyncio.sleep(0.05)
    (row,) = [{name: str(value) for name, value in row.items()} for row in rows]
    assert "/api/things" in str(row)
    assert got.headers["X-Request-Id"] in str(row)


async def test_public_routes_do_not_know_the_caller(client: Client) -> None:
    assert (await Agent(client, ALICE).call("open_door"))["structuredContent"] == {"known": False}


# Organisations ---------------------------------------------------------------------------------------------------------


async def test_no_argument_switches_the_organisation(client: Client) -> None:
    agent = Agent(client, ALICE)
    assert (await agent.call("org_report"))["structuredContent"]["path"] == {"org_id": "org_a"}
    assert (await agent.call("org_report", {"org_id": "org_a"}))["structuredContent"]["path"] == {"org_id": "org_a"}
    for other in ("org_b", "ORG_A", "org_a ", "org_a/../org_b"):
        assert refusal(await agent.call("org_report", {"org_id": other}))["error"] in ("Forbidden", "Bad Request")
    assert refusal(await agent.call("org_report", {"org_id": ""}))["reason"] == "organization"
    assert refusal(await agent.call("org_report", {"org_id": None}))["reason"] == "organization"
    assert refusal(await agent.call("org_report", {"org_id": ["org_a"]}))["reason"] == "organization"
    assert refusal(await Agent(client, ALICE_ALONE).call("org_report", {"org_id": "org_a"}))["reason"] == "organization"
    assert [one["path"] for one in seen] == ["/api/orgs/org_a/report"] * 2


async def test_rows_are_the_callers(client: Client, db: TestDatabase) -> None:
    await Agent(client, ALICE).call("add_thing", {"name": "of alice"})
    await Agent(client, BOB).call("add_thing", {"name": "of bob"})
    assert [one["name"] for one in (await Agent(client, BOB).call("list_things"))["structuredContent"]] == ["of bob"]
    assert refusal(await Agent(client, ROBOT_A).call("list_things")) == {"error": "Forbidden", "reason": "user"}
    assert len(await db.rows("SELECT * FROM audit_log WHERE actor = 'alice'")) == 1


# Arguments -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id",
    ["../secret", "..", ".", "a/../secret", "%2e%2e", "%2fsecret", "a%00", "a\x00b", "a\nb", "\\secret", "a\u2028b", "/secret", "secret/", "a/b", "%", "%25"],
)
async def test_a_path_parameter_stays_one(client: Client, id: str) -> None:
    got = await Agent(client, ALICE).post(message("tools/call", {"name": "get_thing", "arguments": {"id": id}}))
    if got.status == 200:
        assert refusal(got.json()["result"])["error"] == "Bad Request"
    else:  # the message itself is refused
        assert (got.status, got.json()["error"]["code"]) == (400, -32600)
    assert seen == []


@pytest.mark.parametrize("id", ["secret", "search"])
async def test_no_path_leads_to_another_route(client: Client, id: str) -> None:
    assert refusal(await Agent(client, ALICE).call("get_thing", {"id": id})) == {"error": "Not Found"}
    assert seen == []


@pytest.mark.parametrize("id", ["a?admin=true", "a#b", "a;b", "a b", "ä", "a&b=c", "...", "a+b", "=", "\U0001f600"])
async def test_other_characters_are_part_of_the_value(client: Client, id: str) -> None:
    echo = (await Agent(client, ALICE).call("get_thing", {"id": id}))["structuredContent"]
    assert echo["path"] == {"id": id}
    assert echo["query"] == []


async def test_arguments_of_another_type(client: Client) -> None:
    agent = Agent(client, ALICE)
    assert (await agent.call("get_thing", {"id": 7}))["structuredContent"]["path"] == {"id": "7"}
    for id in (True, None, 1.5, [], {}, ["x"], {"x": 1}, ""):
        said = refusal(await agent.call("get_thing", {"id": id}))
        assert (said["error"], said["fields"][0]["field"]) == ("Unprocessable Content", "id")
    assert refusal(await agent.call("get_thing"))["fields"] == [{"field": "id", "message": "Field required"}]
    for body in ({"name": 5}, {"name": ""}, {"name": None}, {"name": "x", "payload": "text"}, {"name": "x", "id": "1"}, {"name": "x", "user_id": "bob"}, {}):
        assert refusal(await agent.call("add_thing", body))["error"] == "Unprocessable Content"
    assert refusal(await agent.call("whoami", {"user_id": "bob", "__proto__": 1}))["fields"][0]["message"] == "is no argument of this tool"
    assert (await agent.call("sum-up", {"body": [1, 2]}))["structuredContent"]["body"] == 3
    for body in ({}, {"body": "12"}, {"body": {"0": 1}}, {"body": [1], "more": 2}):
        assert refusal(await agent.call("sum-up", body))["error"] == "Unprocessable Content"
    assert (await agent.call("list_things"))["structuredContent"] == []


async def test_query_arguments(client: Client) -> None:
    agent = Agent(client, ALICE)
    echo = (await agent.call("find.things", {"words": ["a&b=c", "ü#"], "exact": True, "most": 3}))["structuredContent"]
    assert echo["query"] == [["words", "a&b=c"], ["words", "ü#"], ["exact", "true"], ["most", "3"]]
    assert (await agent.call("find.things", {"words": "one", "most": None}))["structuredContent"]["query"] == [["words", "one"]]
    for bad in ({}, {"words": []}, {"words": [{}]}, {"words": "x", "most": "y"}, {"words": "x", "exact": [True, False]}, {"words": "x", "limit": 2}):
        assert refusal(await agent.call("find.things", bad))["error"] == "Unprocessable Content"
    assert refusal(await agent.call("find.things", {"words": "x" * 20_000}))["error"] == "Bad Request"
    for limit in (0, 201, "many", 2.5, [1, 2]):
        assert refusal(await agent.call("list_things", {"limit": limit}))["error"] == "Unprocessable Content"


async def test_huge_arguments_are_bounded(client: Client) -> None:
    agent = Agent(client, ALICE)
    many = {f"member{number}": 1 for number in range(20_000)}
    got = await agent.post(message("tools/call", {"name": "whoami", "arguments": many}))
    assert got.status in (200, 400)
    assert len(got.raw) < 60_000
    got = await agent.post(message("tools/call", {"name": "add_thing", "arguments": {"name": "x", **many}}))
    assert len(got.raw) < 60_000
    deep: Any = 1
    for _ in range(90):
        deep = {"a": deep}
    got = await agent.post(message("tools/call", {"name": "add_thing", "arguments": {"name": "x", "payload": deep}}))
    assert got.status in (200, 400)


# Headers ---------------------------------------------------------------------------------------------------------------


async def test_a_handler_sees_no_credential_and_no_foreign_header(serve: Serve) -> None:
    plugins = {"product": PRODUCT, "known": provider_plugin(known=Known())}
    client = await serve({**SETTINGS, "providers": ["known"], "trusted_proxies": ["127.0.0.1"]}, extra=plugins)
    more = {
        "Cookie": "session=canary", "X-Forwarded-For": "203.0.113.7", "User-Agent": "agent/1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
        "X-Custom": "smuggled", "If-Match": '"x"', "If-None-Match": "*", "Range": "bytes=0-1", "Origin": f"http://127.0.0.1:{client.port}", "X-HTTP-Method-Override": "DELETE",
    }  # fmt: skip
    await Agent(client, known(user_id="u")).call("get_thing", {"id": "1"}, more)
    (one,) = seen
    assert {name.lower() for name in one["headers"]} == {"host", "x-forwarded-for", "user-agent", "traceparent"}
    assert one["address"] == "203.0.113.7"


# Limits ----------------------------------------------------------------------------------------------------------------


async def test_a_tools_response_that_is_the_handlers_own_has_each_header_once(serve: Serve) -> None:
    @calls_tools
    @signed_in
    async def outer(request: web.Request) -> web.StreamResponse:
        return await call_tool(request, "rarely", {})

    plugins = {"product": PRODUCT, "outer": routes_plugin(web.get("/api/outer", outer))}
    client = await serve({**SETTINGS, "limits.caller": "100/minute"}, extra=plugins)
    seen_statuses: set[int] = set()
    while 429 not in seen_statuses:  # the fourth, unless a minute ends meanwhile
        got = await client.get("/api/outer", {**ALICE, "Origin": "http://localhost:3000"})
        seen_statuses.add(got.status)
        assert sorted(got.headers) == sorted(set(got.headers)), "a header is there twice"
        assert got.headers["RateLimit-Policy"] == '"caller";q=100;w=60, "route";q=3;w=60'
    assert seen_statuses == {200, 429}


async def test_a_call_counts_once_for_the_caller_and_once_for_the_route(serve: Serve) -> None:
    client = await serve({**SETTINGS, "limits.caller": "20/minute"}, extra={"product": PRODUCT})
    agent = Agent(client, ALICE)
    results = [await agent.call("rarely") for _ in range(5)]
    assert [one["isError"] for one in results] == [False] * 3 + [True] * 2
    assert refusal(results[-1]) == {"error": "Too Many Requests", "reason": "rate"}
    got = await agent.post(message("tools/call", {"name": "rarely", "arguments": {}}))
    assert int(got.headers["Retry-After"]) > 0
    assert "route" in got.headers["RateLimit-Policy"]
    assert (await client.get("/api/rarely", ALICE)).status == 429
    statuses = [(await agent.post(message("tools/call", {"name": "whoami", "arguments": {}}))).status for _ in range(16)]
    assert statuses.count(200) == 13  # 20 less 5, 1, and 1 by HTTP
    assert set(statuses) == {200, 429}
    assert (await Agent(client, BOB).call("whoami"))["isError"] is False


async def test_a_thousand_calls(serve: Serve) -> None:
    client = await serve({**SETTINGS, "limits.caller": "100/day"}, extra={"product": PRODUCT})
    agent = Agent(client, ALICE)
    done: list[int] = []
    for _ in range(20):
        asked = [agent.post(message("tools/call", {"name": "whoami", "arguments": {}})) for _ in range(50)]
        done += [got.status for got in await asyncio.gather(*asked)]
    assert (done.count(200), done.count(429)) == (100, 900)


async def test_many_calls_at_once_do_not_wait_for_each_other(serve: Serve) -> None:
    """Each has one turn of its caller, not two: otherwise sixteen would hold what all of them wait for."""
    client = await serve({**SETTINGS, "limits.concurrency": 2}, extra={"product": PRODUCT})
    agent = Agent(client, ALICE)
    async with asyncio.timeout(20):
        results = await asyncio.gather(*(agent.call("add_thing", {"name": f"number {number}"}) for number in range(12)))
    assert [one["isError"] for one in results] == [False] * 12


# Ended access ----------------------------------------------------------------------------------------------------------


async def test_access_that_ends_while_the_request_is_under_way(anybody: Client) -> None:
    agent = Agent(anybody, known(user_id="u", session_id="s", token_type="session_token", issued_at=1.0))
    assert (await agent.call("whoami"))["isError"] is False
    revocations = anybody.app[SERVER_DATABASE].revocations
    denied, asked = revocations.denies, [False, True]
    revocations.denies = lambda identity: asked.pop(0) if asked else True  # type: ignore[method-assign]
    try:
        got = await agent.post(message("tools/call", {"name": "add_thing", "arguments": {"name": "late"}}))
    finally:
        revocations.denies = denied  # type: ignore[method-assign]
    assert got.status == 401
    assert got.headers["WWW-Authenticate"].startswith("Bearer")
    assert got.json()["error"]["code"] == -32600
    assert (await agent.call("list_things"))["structuredContent"] == []


# Idempotency -----------------------------------------------------------------------------------------------------------


async def test_an_idempotency_key_is_that_of_the_tools_route(client: Client, db: TestDatabase) -> None:
    agent = Agent(client, ALICE)
    key = {"Idempotency-Key": "once"}
    asked = message("tools/call", {"name": "add_thing", "arguments": {"name": "a"}})
    first, second = await agent.post(asked, key), await agent.post({**asked, "id": 2}, key)
    assert first.json()["result"] == second.json()["result"]
    assert (first.json()["id"], second.json()["id"]) == (1, 2)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert await db.count("data") == 1
    other = await agent.call("add_thing", {"name": "b"}, key)
    assert refusal(other)["reason"] == "idempotency-key-reused"
    direct = await client.post("/api/things", {**ALICE, **key}, json={"name": "a"})
    assert (direct.status, direct.headers["Idempotency-Replayed"]) == (201, "true")
    assert refusal(await agent.call("add_thing", {"name": "c"}, {"Idempotency-Key": "not a key"}))["reason"] == "idempotency-key-malformed"
    assert (await agent.call("list_things", {}, key))["isError"] is False  # a GET has no use for it
    assert (await Agent(client, BOB).call("add_thing", {"name": "a"}, key))["structuredContent"]["name"] == "a"
    assert await db.count("data") == 2


async def test_simultaneous_calls_with_one_key_take_effect_once(client: Client, db: TestDatabase) -> None:
    agent = Agent(client, ALICE)
    results = await asyncio.gather(*(agent.call("add_thing", {"name": "a"}, {"Idempotency-Key": "k"}) for _ in range(8)))
    assert await db.count("data") == 1
    assert sum(not one["isError"] for one in results) >= 1


# Failures --------------------------------------------------------------------------------------------------------------


async def test_failures_reveal_nothing_internal(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(client, ALICE)
    assert refusal(await agent.call("broken")) == {"error": "Internal Server Error"}
    for name in ("streaming", "live", "file", "writes"):
        assert refusal(await agent.call(name)) == {"error": "Internal Server Error"}
    text = await agent.call("no_json")
    assert (text["content"][0]["text"], "structuredContent" in text) == ('{"not": json', False)
    places = [record.fields for record in caplog.records if record.getMessage() == "handler failed"]
    assert [one["error"] for one in places] == ["RuntimeError", "TypeError", "TypeError", "AttributeError"]
    assert not [record for record in caplog.records if "canary" in record.getMessage()]
    assert (await agent.call("whoami"))["isError"] is False


async def test_the_operators_errors(serve: Serve) -> None:
    client = await serve({**SETTINGS, "errors.format": "problem"}, extra={"product": PRODUCT})
    assert refusal(await Agent(client, ALICE).call("delete_all"))["status"] == 403


# Log and metrics -------------------------------------------------------------------------------------------------------


async def test_log_lines_and_metrics_are_the_routes(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve({**SETTINGS, "log.requests": True}, extra={"product": PRODUCT})
    with caplog.at_level(logging.INFO, logger="gatepost"):
        got = await Agent(client, ALICE).post(message("tools/call", {"name": "add_thing", "arguments": {"name": "x"}}))
    lines = [record.fields for record in caplog.records if getattr(record, "fields", {}).get("request_id") == got.headers["X-Request-Id"]]
    assert [(line["method"], line["route"]) for line in lines] == [("POST", "/api/things"), ("POST", "/api/mcp")]
    text = as_text(client.app[METRICS].families()).decode()
    for route, status in (("/api/things", 201), ("/api/mcp", 200)):
        assert f'gatepost_requests_total{{method="POST",route="{route}",status="{status}"}} 1.0' in text


# A chain of calls ------------------------------------------------------------------------------------------------------


async def test_only_a_marked_handler_calls_tools_and_no_call_leads_to_another(serve: Serve) -> None:
    @signed_in
    async def unmarked(request: web.Request) -> web.Response:
        return await call_tool(request, "whoami", {})

    @signed_in
    @calls_tools
    async def marked(request: web.Request) -> web.Response:
        inner = await call_tool(request, "recursive", {})
        return answer(inner.body, inner.status)

    @signed_in
    @describe(returns=dict[str, Any], tool="recursive", summary="Calls again")
    async def recursive(request: web.Request) -> web.Response:
        return await call_tool(request, "recursive", {})

    more = routes_plugin(web.get("/api/unmarked", unmarked), web.get("/api/marked", marked), web.get("/api/recursive", recursive))
    client = await serve(SETTINGS, extra={"product": PRODUCT, "more": more})
    assert (await client.get("/api/unmarked", ALICE)).status == 500
    assert (await client.get("/api/marked", ALICE)).status == 500
    assert refusal(await Agent(client, ALICE).call("recursive")) == {"error": "Internal Server Error"}


async def test_callers_do_not_mix(client: Client) -> None:
    async def one(name: str) -> bool:
        agent = Agent(client, stub(name, org_id=f"org_{name}"))
        return bool((await agent.call("whoami"))["structuredContent"]["user_id"] == name)

    assert all(await asyncio.gather(*(one(f"user{number}") for number in range(60))))
