"""POST /api/mcp with the official clients of the Model Context Protocol, and by its conformance tests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import ADMIN_A, ALICE, Serve
from kits.agents import HANDLERS, MODERN, installed
from kits.mcp_clients import run_client
from kits.tool_routes import PRODUCT

pytestmark = installed
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("whoami", {}),
    ("add_thing", {"name": "a hammer", "payload": {"weight": 2.5}}),
    ("list_things", {}),
    ("find.things", {"words": ["a", "b"], "exact": True}),
    ("get_thing", {"id": "schön & gut?"}),
    ("org_report", {}),
    ("as_text", {}),
    ("add_thing", {"name": ""}),
    ("delete_all", {}),
    ("nothing", {}),
]


@pytest.mark.parametrize(
    ("sdk", "mode", "version"),
    [
        ("typescript", "auto", MODERN),
        ("typescript", {"pin": MODERN}, MODERN),
        ("typescript", "legacy", "2025-11-25"),
        ("typescript", "v1", "2025-11-25"),
        ("python", "auto", MODERN),
        ("python", MODERN, MODERN),
        ("python", "legacy", "2025-11-25"),
    ],
)
async def test_the_official_clients(serve: Serve, sdk: str, mode: Any, version: str) -> None:
    """They validate every result against the schema of its tool."""
    client = await serve({"handlers": HANDLERS, "public_routes": ["/api/public/open"]}, extra={"product": PRODUCT})
    said = await run_client(sdk, f"http://127.0.0.1:{client.port}/api/mcp", ALICE, mode=mode, calls=CALLS)
    assert said["version"] == version
    if mode in ("auto", "legacy", "v1"):  # who pins a version need not ask who answers
        assert said["server"]["name"] == "Gatepost"
    names = {tool["name"] for tool in said["tools"]}
    assert {"whoami", "add_thing", "list_things", "org_report"} <= names
    assert not {"delete_all", "machines_only", "scoped_thing"} & names
    who, added, listed, found, got, report, text, invalid, refused, unknown = said["results"]
    assert who["structuredContent"]["user_id"] == "alice"
    assert added["structuredContent"]["name"] == "a hammer"
    assert json.loads(listed["content"][0]["text"])[0]["name"] == "a hammer"
    assert found["structuredContent"]["query"] == [["words", "a"], ["words", "b"], ["exact", "true"]]
    assert got["structuredContent"]["path"] == {"id": "schön & gut?"}
    assert report["structuredContent"]["path"] == {"org_id": "org_a"}
    assert text["content"][0]["text"] == "schön"
    assert (invalid["isError"], json.loads(invalid["content"][0]["text"])["fields"][0]["field"]) == (True, "name")
    assert (refused["isError"], json.loads(refused["content"][0]["text"])["reason"]) == (True, "role")
    assert "raised" in unknown
    assert "Unknown tool" in unknown["message"]
    again = await run_client(sdk, f"http://127.0.0.1:{client.port}/api/mcp", ADMIN_A, mode=mode, calls=[("delete_all", {})])
    assert "delete_all" in {tool["name"] for tool in again["tools"]}
    assert again["results"][0].get("isError", False) is False
