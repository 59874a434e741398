"""An agent for tests: it sends messages of the Model Context Protocol as bytes of its own, so that they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import pytest

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
}
HANDLERS = ["health", "me", "profile", "data", "orgs", "invoices", "audit_log", "docs", "clerk", "api_key", "mcp"]
# Entry points are read from the installed package, not from the checkout.
installed = pytest.mark.skipif(
    not any(point.name == "mcp" for point in metadata.entry_points(group="gatepost.plugins")),
    reason="the entry point of handlers/mcp is not installed: make install",
)


def message(method: str, params: Mapping[str, Any] | None = None, *, id: Any = 1) -> dict[str, Any]:
    """A request of the revision 2026-07-28."""
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": {**(params or {}), "_meta": META}}


def headers_of(data: Mapping[str, Any]) -> dict[str, str]:
    """The headers that go with such a request."""
    name = data.get("params", {}).get("name")
    named = {"Mcp-Name": name} if isinstance(name, str) else {}
    return {"MCP-Protocol-Version": MODERN, "Mcp-Method": str(data.get("method")), "Accept": "application/json, text/event-stream", **named}


class Agent:
    """One caller's agent at one server; `client` is that of the fixtures."""

    def __init__(self, client: Any, caller: Mapping[str, str]) -> None:
        self.client, self.caller = client, caller

    async def post(self, data: Any, headers: Mapping[str, str] | None = None) -> Any:
        """Send this body. Headers of the revision are added where it is a message, unless `headers` replaces them."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        own = headers_of(data) if isinstance(data, dict) else {}
        given = {"Content-Type": "application/json", **self.caller, **own, **(headers or {})}
        return await self.client.send("POST", "/api/mcp", {name: value for name, value in given.items() if value != ""}, data=body)

    async def ask(self, method: str, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """The result of a method."""
        got = await self.post(message(method, params), headers)
        assert got.status == 200, (got.status, got.raw)
        return got.json()["result"]

    async def tools(self) -> dict[str, Any]:
        return {tool["name"]: tool for tool in (await self.ask("tools/list"))["tools"]}

    async def call(self, name: str, arguments: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """The result of a call of a tool."""
        return await self.ask("tools/call", {"name": name, "arguments": arguments or {}}, headers)


def refusal(result: Any) -> Any:
    """The error body that a call's result holds."""
    assert result["isError"] is True, result
    assert "structuredContent" not in result
    return json.loads(result["content"][0]["text"])
