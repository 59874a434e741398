"""POST /api/mcp by the Model Context Protocol, revision 2026-07-28: messages, headers, versions, statuses."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from conftest import ALICE, BAD_CREDENTIALS, Client, Serve
from kits.agents import HANDLERS, META, MODERN, Agent, installed, message
from kits.tool_routes import PRODUCT

pytestmark = installed


@pytest.fixture
async def agent(serve: Serve) -> Agent:
    return Agent(await serve({"handlers": HANDLERS, "public_routes": ["/api/public/open"]}, extra={"product": PRODUCT}), ALICE)


def error_of(got: Any, status: int, code: int, id: Any = 1) -> dict[str, Any]:
    """The JSON-RPC error of a response."""
    assert got.status == status, (got.status, got.raw)
    said = got.json()
    assert said.get("id") == id
    assert set(said) <= {"jsonrpc", "id", "error"}
    assert said["error"]["code"] == code, said
    return dict(said["error"])


# The route -------------------------------------------------------------------------------------------------------------


async def test_it_is_off_unless_listed(client: Client) -> None:
    assert (await client.post("/api/mcp", ALICE, json=message("tools/list"))).status == 404


async def test_an_unknown_caller_gets_only_a_challenge(agent: Agent) -> None:
    for caller in ({}, BAD_CREDENTIALS["unknown key"], BAD_CREDENTIALS["garbage token"]):
        got = await Agent(agent.client, caller).post(message("tools/list"))
        assert got.status == 401
        assert got.headers["WWW-Authenticate"].startswith("Bearer")
        assert set(got.json()) == {"error", "reason"}
        foreign = await Agent(agent.client, caller).post(message("tools/list"), {"Origin": "http://evil.example"})
        assert foreign.status == 401


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_other_methods_are_405(agent: Agent, method: str) -> None:
    got = await agent.client.send(method, "/api/mcp", {**ALICE, "Accept": "text/event-stream"})
    assert got.status == 405
    assert got.headers["Allow"] == "POST"
    assert (await agent.client.send(method, "/api/mcp")).status == 401


# Discovery and lists ---------------------------------------------------------------------------------------------------


async def test_discovery(agent: Agent) -> None:
    result = await agent.ask("server/discover")
    assert result["resultType"] == "complete"
    assert result["supportedVersions"] == [MODERN, "2025-11-25", "2025-06-18"]
    assert result["capabilities"] == {"tools": {}}
    assert set(result["serverInfo"]) == {"name", "version"}
    assert result["_meta"]["io.modelcontextprotocol/serverInfo"] == result["serverInfo"]
    assert (result["cacheScope"], result["ttlMs"] > 0) == ("private", True)


async def test_the_product_names_the_server(serve: Serve) -> None:
    about = {"openapi.title": "Acme", "openapi.version": "7.1", "openapi.description": "Things, and what to do with them."}
    agent = Agent(await serve({"handlers": HANDLERS, **about}), ALICE)
    result = await agent.ask("server/discover")
    assert result["serverInfo"] == {"name": "Acme", "version": "7.1"}
    assert result["instructions"] == "Things, and what to do with them."


async def test_the_list_of_tools(agent: Agent) -> None:
    first = await agent.ask("tools/list")
    assert first["resultType"] == "complete"
    assert first["cacheScope"] == "private"
    assert first["ttlMs"] >= 0
    assert "nextCursor" not in first
    assert first == await agent.ask("tools/list")
    names = [tool["name"] for tool in first["tools"]]
    assert names == sorted(names)
    tools = {tool["name"]: tool for tool in first["tools"]}
    add = tools["add_thing"]
    assert add["description"] == "Add a thing"
    assert add["inputSchema"]["required"] == ["name"]
    assert add["inputSchema"]["additionalProperties"] is False
    assert add["inputSchema"]["properties"]["name"] == {
        "type": "string", "minLength": 1, "maxLength": 50, "description": "What it is called.",
    }  # fmt: skip
    assert add["outputSchema"]["properties"].keys() == {"id", "name"}
    assert tools["list_things"]["inputSchema"]["properties"].keys() == {"limit", "cursor"}
    assert tools["list_things"]["outputSchema"]["type"] == "array"
    assert "#/components/" not in json.dumps(first)
    assert tools["find.things"]["inputSchema"]["required"] == ["words"]
    assert tools["get_thing"]["inputSchema"]["required"] == ["id"]
    assert tools["sum-up"]["inputSchema"]["properties"]["body"]["type"] == "array"
    assert tools["replace_thing"]["inputSchema"]["properties"].keys() == {"id", "if_match"}
    assert "required" not in tools["org_report"]["inputSchema"]  # it is the active organisation
    assert "outputSchema" not in tools["as_text"]
    assert tools["get_thing"]["annotations"]["readOnlyHint"] is True
    assert tools["replace_thing"]["annotations"] == {
        "readOnlyHint": False, "destructiveHint": True, "idempotentHint": True, "openWorldHint": False,
    }  # fmt: skip


async def test_there_is_no_second_page(agent: Agent) -> None:
    error_of(await agent.post(message("tools/list", {"cursor": "x"})), 400, -32602)


# Calls -----------------------------------------------------------------------------------------------------------------


async def test_a_call_returns_json_and_the_same_as_text(agent: Agent) -> None:
    made = await agent.call("add_thing", {"name": "a hammer"})
    assert made["isError"] is False
    assert made["resultType"] == "complete"
    assert made["structuredContent"]["name"] == "a hammer"
    assert json.loads(made["content"][0]["text"]) == made["structuredContent"]
    assert made["content"][1]["text"] == "Location: /api/things/new"
    listed = await agent.call("list_things")
    assert [one["name"] for one in listed["structuredContent"]] == ["a hammer"]


async def test_a_text_response_and_an_empty_one(agent: Agent) -> None:
    text = await agent.call("as_text")
    assert (text["content"][0]["text"], "structuredContent" in text) == ("schön", False)
    admin = Agent(agent.client, {"Authorization": 'Stub user_id="anna", org_id="org_a", org_role="org:admin"'})
    done = await admin.call("delete_all")
    assert (done["content"][0]["text"], done["isError"]) == ("204 No Content", False)


async def test_the_cursor_of_the_next_page_is_in_the_result(agent: Agent) -> None:
    for name in ("one", "two", "three"):
        await agent.call("add_thing", {"name": name})
    first = await agent.call("list_things", {"limit": 2})
    cursor = first["content"][1]["text"].rpartition("cursor=")[2]
    second = await agent.call("list_things", {"limit": 2, "cursor": cursor})
    assert [one["name"] for one in (*first["structuredContent"], *second["structuredContent"])] == ["three", "two", "one"]
    assert len(second["content"]) == 1


async def test_an_etag_and_its_condition(agent: Agent) -> None:
    first = await agent.call("replace_thing", {"id": "1"})
    tag = first["content"][1]["text"].removeprefix("ETag: ")
    again = await agent.call("replace_thing", {"id": "1", "if_match": tag})
    assert again["isError"] is False, again
    late = await agent.call("replace_thing", {"id": "1", "if_match": '"other"'})
    assert json.loads(late["content"][0]["text"])["error"] == "Precondition Failed"
    odd = await agent.call("replace_thing", {"id": "1", "if_match": "x\r\nX-Injected: 1"})
    assert json.loads(odd["content"][0]["text"])["fields"][0]["field"] == "if_match"


# Messages --------------------------------------------------------------------------------------------------------------


async def test_notifications_get_no_answer(agent: Agent) -> None:
    for method in ("notifications/cancelled", "notifications/initialized", "notifications/unknown"):
        got = await agent.post({"jsonrpc": "2.0", "method": method, "params": {"requestId": 1}})
        assert (got.status, got.raw) == (202, b"")
    called = message("tools/call", {"name": "add_thing", "arguments": {"name": "silent"}})
    del called["id"]
    assert (await agent.post(called)).status == 202
    assert (await agent.call("list_things"))["structuredContent"] == []


@pytest.mark.parametrize("method", ["Initialize", "ping", "resources/list", "prompts/get", "subscriptions/listen", "tools/List", ""])
async def test_unknown_methods(agent: Agent, method: str) -> None:
    error_of(await agent.post(message(method), {"Mcp-Method": method or " "}), 404, -32601)


@pytest.mark.parametrize(
    ("body", "code", "id"),
    [
        (b"", -32700, None),
        (b"{", -32700, None),
        (b'{"jsonrpc": "2.0", "jsonrpc": "2.0", "id": 1, "method": "tools/list"}', -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[" * 10_000, -32700, None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"x": ' + b"[" * 200 + b"]" * 200 + b"}}", -32700, None),
        (b"[]", -32600, None),
        (json.dumps([message("tools/list")]).encode(), -32600, None),
        (b"1", -32600, None),
        (b"null", -32600, None),
        (b"{}", -32600, None),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "tools/list"}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": null, "method": "tools/list"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": true, "method": "tools/list"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "tools/list"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "tools/list"}', -32600, None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 7}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {}}', -32600, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": [1]}', -32602, 1),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": 3}}', -32602, 1),
        (b'{"jsonrpc": "2.0", "id": "a\\u0000b", "method": "tools/list"}', -32600, None),
    ],
)
async def test_malformed_messages(agent: Agent, body: bytes, code: int, id: Any) -> None:
    error_of(await agent.post(body, {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"}), 400, code, id)


async def test_other_bodies(agent: Agent) -> None:
    got = await agent.client.send("POST", "/api/mcp", {**ALICE, "Content-Type": "text/plain"}, data=b"{}")
    error_of(got, 415, -32600, None)


async def test_a_large_body(serve: Serve) -> None:
    agent = Agent(await serve({"handlers": HANDLERS, "limits.body_bytes": 1000}), ALICE)
    error_of(await agent.post(b" " * 1001), 413, -32600, None)


@pytest.mark.parametrize("id", ["", "x", 0, -5, 2**62])
async def test_ids_are_repeated(agent: Agent, id: Any) -> None:
    assert (await agent.post(message("server/discover", id=id))).json()["id"] == id
    error_of(await agent.post(message("nothing", id=id)), 404, -32601, id)


@pytest.mark.parametrize("key", sorted(META)[:3:2])
async def test_every_request_must_name_its_version_and_capabilities(agent: Agent, key: str) -> None:
    asked = message("tools/list")
    asked["params"]["_meta"] = {name: value for name, value in META.items() if name != key}
    error_of(await agent.post(asked), 400, -32602)
    asked["params"]["_meta"] = {**META, key: 5}
    error_of(await agent.post(asked), 400, -32602)


async def test_a_request_without_meta(agent: Agent) -> None:
    error_of(await agent.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}), 400, -32602)


@pytest.mark.parametrize("version", ["1900-01-01", "2027-01-01", "2024-11-05", "2025-03-26", "DRAFT", "x" * 5000])
async def test_unknown_versions(agent: Agent, version: str) -> None:
    asked = message("tools/list")
    asked["params"]["_meta"] = {**META, "io.modelcontextprotocol/protocolVersion": version}
    error = error_of(await agent.post(asked, {"MCP-Protocol-Version": version}), 400, -32022)
    assert error["data"] == {"supported": [MODERN, "2025-11-25", "2025-06-18"], "requested": version[:64]}


@pytest.mark.parametrize(
    "headers",
    [
        {"MCP-Protocol-Version": ""},
        {"MCP-Protocol-Version": "2025-11-25"},
        {"Mcp-Method": ""},
        {"Mcp-Method": "tools/list"},
        {"Mcp-Method": "TOOLS/CALL"},
        {"Mcp-Name": ""},
        {"Mcp-Name": "delete_all"},
        {"Mcp-Name": "WHOAMI"},
        {"Mcp-Name": "=?base64?!!!?="},
        {"Mcp-Name": "=?base64?/w==?="},
    ],
)
async def test_headers_that_do_not_match_the_body(agent: Agent, headers: dict[str, str]) -> None:
    error_of(await agent.post(message("tools/call", {"name": "whoami", "arguments": {}}), headers), 400, -32020)


async def test_headers_as_http_allows_them(agent: Agent) -> None:
    asked = message("tools/call", {"name": "whoami", "arguments": {}})
    encoded = base64.b64encode(b"whoami").decode()
    for headers in ({"Mcp-Name": f"=?base64?{encoded}?="}, {"Mcp-Name": "  whoami\t"}, {"Mcp-Session-Id": "ignored", "Last-Event-ID": "3"}):
        assert (await agent.post(asked, headers)).status == 200
    async with agent.client.wire() as wire:
        body = json.dumps(asked).encode()
        common = {**ALICE, "Content-Type": "application/json", "Content-Length": str(len(body)), "mcp-protocol-version": MODERN}
        twice = {"mcp-METHOD": "tools/call", "Mcp-Method": "tools/call", "mcp-name": "whoami"}
        await wire.send("POST /api/mcp", common, twice, body=body)
        assert (await wire.answer())[0] == 400


@pytest.mark.parametrize(
    "params", [{}, {"name": 3}, {"name": None}, {"name": "whoami", "arguments": []}, {"name": "whoami", "arguments": "x"}, {"name": "whoami", "arguments": 0}]
)
async def test_malformed_calls(agent: Agent, params: dict[str, Any]) -> None:
    error_of(await agent.post(message("tools/call", params)), 400, -32602)


@pytest.mark.parametrize("name", ["", "nothing", "__class__", "secret_thing", "send_mcp_message", "../whoami", "Whoami"])
async def test_unknown_tools(agent: Agent, name: str) -> None:
    asked = message("tools/call", {"name": name, "arguments": {}})
    error = error_of(await agent.post(asked, {"Mcp-Name": f"=?base64?{base64.b64encode(name.encode()).decode()}?="}), 200, -32602)
    assert error["message"] == "Unknown tool"


# Origins ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost", "http://localhost", "http://127.0.0.1:1", "file://"])
async def test_a_foreign_origin_is_forbidden(agent: Agent, origin: str) -> None:
    got = await agent.post(message("tools/call", {"name": "whoami"}), {"Origin": origin})
    error_of(got, 403, -32600, None)
    rebound = await agent.post(message("tools/list"), {"Origin": f"http://evil.example:{agent.client.port}"})
    assert rebound.status == 403


async def test_own_and_listed_origins_are_not_foreign(serve: Serve) -> None:
    client = await serve({"handlers": HANDLERS, "cors_origins": ["https://app.example.com", "https://*.preview.example.com"]})
    agent = Agent(client, ALICE)
    for origin in ("https://app.example.com", "https://a.preview.example.com", f"http://localhost:{client.port}", f"http://127.0.0.1:{client.port}"):
        assert (await agent.post(message("tools/list"), {"Origin": origin})).status == 200
    got = await client.send(
        "OPTIONS", "/api/mcp", {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    )  # fmt: skip
    allowed = got.headers["Access-Control-Allow-Headers"].lower()
    assert all(name in allowed for name in ("mcp-method", "mcp-name", "mcp-protocol-version"))


# Earlier revisions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "got"), [("2025-11-25", "2025-11-25"), ("2025-06-18", "2025-06-18"), ("2024-11-05", "2025-11-25"), ("2030-01-01", "2025-11-25")]
)
async def test_the_handshake_of_earlier_revisions(agent: Agent, asked: str, got: str) -> None:
    params = {"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}
    answered = await agent.post(json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).encode())
    assert answered.status == 200
    assert "Mcp-Session-Id" not in answered.headers
    result = answered.json()["result"]
    assert result["protocolVersion"] == got
    assert "resultType" not in result
    ready = await agent.post(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}', {"MCP-Protocol-Version": got})
    assert ready.status == 202


async def test_calls_of_earlier_revisions(agent: Agent) -> None:
    async def ask(method: str, params: dict[str, Any], version: str = "2025-06-18") -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        return await agent.post(body, {"MCP-Protocol-Version": version})

    assert (await ask("ping", {})).json() == {"jsonrpc": "2.0", "id": 1, "result": {}}
    tools = {tool["name"]: tool for tool in (await ask("tools/list", {})).json()["result"]["tools"]}
    assert "outputSchema" not in tools["list_things"]  # before 2026-07-28 it had to be an object's
    assert tools["whoami"]["outputSchema"]["type"] == "object"
    called = (await ask("tools/call", {"name": "whoami", "arguments": {}}, "")).json()["result"]
    assert called["structuredContent"]["user_id"] == "alice"
    listed = (await ask("tools/call", {"name": "list_things"})).json()["result"]
    assert (listed["content"][0]["text"], "structuredContent" in listed) == ("[]", False)
    error_of(await ask("resources/list", {}), 200, -32601)
    error_of(await ask("tools/list", {}, "1999-01-01"), 400, -32022)
    error_of(await ask("server/discover", {}), 200, -32601)


async def test_a_handshake_under_this_revision_says_which_versions_there_are(agent: Agent) -> None:
    error_of(await agent.post(b'{"jsonrpc": "2.0", "id": 1, "method": "initialize"}', {"MCP-Protocol-Version": MODERN}), 400, -32020)
    error_of(await agent.post(message("initialize")), 404, -32601)


async def test_a_version_that_is_no_text_is_refused(agent: Agent) -> None:
    """A header may hold any bytes; the error repeats the version, so it must be text again."""
    said = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
    async with agent.client.wire() as wire:
        odd = {"MCP-Protocol-Version": "\udcff\udcfe", "Content-Type": "application/json", "Content-Length": str(len(said))}
        head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **ALICE, **odd}.items())
        wire.writer.write(f"POST /api/mcp HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogateescape") + said)
        status, _, raw = await wire.answer()
    assert (status, json.loads(raw)["error"]["code"]) == (400, -32022)
    assert json.loads(raw)["error"]["data"]["requested"] == "??"
