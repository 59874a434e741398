"""POST /api/mcp with the official clients of the Model Context Protocol, and by its conformance tests."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import ADMIN_A, ALICE, Serve
from kits.agents import HANDLERS, MODERN, installed
from kits.app import provider_plugin
from kits.mcp_clients import CONFORMANCE, HERE, node_program, run, run_client
from kits.mcp_clients.conformance import CONFORMANCE as CONFORMANCE_ROUTES
from kits.tool_routes import PRODUCT

from server import Identity

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
    if sdk == "python" and mode != MODERN:  # who pins a version need not ask who answers
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


# The conformance tests -------------------------------------------------------------------------------------------------


class Anybody:
    """A provider for programs that cannot send a credential: every request is one user's."""

    async def authenticate(self, request: web.Request) -> Identity:
        return Identity(provider="anybody", user_id="anybody")


@pytest.mark.parametrize(("chosen", "scenarios"), [(["--requirements", MODERN], 40), (["--spec-version", "2025-11-25", "--suite", "all"], 20)])
async def test_the_conformance_tests_of_the_protocol(serve: Serve, tmp_path: Path, chosen: list[str], scenarios: int) -> None:
    node, *_ = node_program("client.mjs")
    extra = {"product": CONFORMANCE_ROUTES, "anybody": provider_plugin(anybody=Anybody())}
    client = await serve({"handlers": HANDLERS, "providers": ["anybody"], "limits.caller": "100000/minute"}, extra=extra)
    program = [node, "--no-warnings", "--import", str(HERE / "node20.mjs"), str(CONFORMANCE)]
    url = f"http://127.0.0.1:{client.port}/api/mcp"
    _, out, err = await run([*program, "server", "--url", url, *chosen, "-o", str(tmp_path)], 240)
    failed, passed = set(), set()
    ran = [path for path in tmp_path.glob("*/checks.json") if "-tasks-" not in path.parent.name and "sep-2640" not in path.parent.name]
    assert len(ran) >= scenarios, out[-2000:] + err[-2000:]  # without those of extensions
    for path in ran:
        name = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*$", "", path.parent.name)
        for check in json.loads(path.read_text()):
            if check["status"] in ("FAILURE", "WARNING"):
                failed.add((name, check["id"]))
            elif check["status"] == "SUCCESS":
                passed.add((name, check["id"]))
    expected = tomllib.loads((HERE / "expected_failures.toml").read_text())
    unexpected = {(name, check) for name, check in failed if name not in expected["scenarios"] and check not in expected["checks"]}
    assert unexpected == set()
    if MODERN in chosen:
        fails, checks = {name for name, _ in failed}, {check for _, check in failed}
        stale = {name for name, _ in passed if name in expected["scenarios"]} - fails
        stale |= {check for _, check in passed if check in expected["checks"]} - checks
        assert stale == set(), "expected to fail, and passed"
