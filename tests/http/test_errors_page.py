"""The page of errors shows what the server does: its handler is called, its form of errors is loaded; every reason has a row."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from kits import ROOT
from kits.app import ask, build_app, routes_plugin, serving, stub
from kits.pages import blocks
from pydantic import BaseModel

import server
from server.app import DOCUMENT

PAGE, REASONS = "docs/guides/errors.md", ROOT / "docs" / "reference" / "reasons.md"
HANDLER, SHAPE = (block.text for block in blocks("python", page=PAGE))
CONFLICT, PROBLEM = (json.loads(block.text) for block in blocks("json", page=PAGE))


class NewProject(BaseModel):
    name: str
    size: int


def routes() -> web.RouteTableDef:
    scope: dict[str, Any] = {name: getattr(server, name) for name in server.__all__}
    scope |= {"routes": web.RouteTableDef(), "NewProject": NewProject, "Project": NewProject}
    exec(compile(HANDLER, PAGE, "exec", dont_inherit=True), scope)
    return scope["routes"]  # type: ignore[no-any-return]


def shape_plugin() -> object:
    scope: dict[str, Any] = {}
    exec(compile(SHAPE, PAGE, "exec", dont_inherit=True), scope)
    return SimpleNamespace(register_error_body=scope["register_error_body"])


async def answers(app: web.Application, **new: Any) -> Any:
    async with serving(app) as port:
        raw = json.dumps(new).encode()
        return await ask(port, "POST", "/api/projects", stub(), ("Content-Type", "application/json"), body=raw)


async def test_the_handler_of_the_page() -> None:
    extra: dict[str, object] = {"x": routes_plugin(*routes())}
    taken = await answers(build_app(extra), name="Apollo", size=1)
    assert (taken.status, taken.json) == (409, CONFLICT)
    denied = await answers(build_app(extra), name="Gemini", size=11)
    assert (denied.status, denied.json["reason"], denied.json["detail"]) == (403, "plan", "Large projects need the plan Team.")
    assert (await answers(build_app(extra), name="Gemini", size=1)).status == 201
    problem = await answers(build_app(extra, errors__format="problem"), name="Apollo", size=1)
    assert {name: value for name, value in problem.json.items() if name != "fields"} == PROBLEM
    shaped = await answers(build_app(extra | {"y": shape_plugin()}), name="Apollo", size=1)
    assert shaped.json == {"errors": {"name": ["is taken"]}}


def error_schemas(document: Any) -> set[tuple[str, str]]:
    """(content type, schema) of every error in the document."""
    found = set()
    responses = [*document["components"]["responses"].values()]
    for operations in document["paths"].values():
        for one in operations.values():
            responses += [response for status, response in one["responses"].items() if status[0] in "45" and "content" in response]
    for response in responses:
        for kind, content in response["content"].items():
            found.add((kind, json.dumps(content["schema"])))
    return found


def test_the_document_shows_the_form() -> None:
    extra: dict[str, object] = {"x": routes_plugin(*routes())}
    for app, kind, name, members in (
        (build_app(extra), "application/json", "Error", {"error", "reason", "detail", "fields"}),
        (build_app(extra, errors__format="problem"), "application/problem+json", "Problem", {"type", "title", "status", "detail", "reason", "fields"}),
        (build_app(extra | {"y": shape_plugin()}), "application/json", "YErrors", {"errors"}),
    ):
        document = json.loads(app[DOCUMENT].json)
        assert error_schemas(document) == {(kind, json.dumps({"$ref": f"#/components/schemas/{name}"}))}
        assert set(document["components"]["schemas"][name]["properties"]) == members
    example = document["components"]["responses"]["NotFound"]["content"]["application/json"]["example"]
    assert example == {"errors": {"body": ["Not Found"]}}


# Reasons ---------------------------------------------------------------------------------------------------------------

RAISED = {
    "ApiError", "BadRequest", "Conflict", "CredentialRejected", "Forbidden", "NoCredential", "NotFound", "PreconditionFailed", "Refused", "TooManyRequests",
    "ServiceUnavailable", "Unauthorized", "Unprocessable", "_Refused", "CallerLimit", "rejection",
}  # fmt: skip
SLUG = re.compile(r"[a-z]+(?:-[a-z]+)*")
# Those that are put together, or come from the database.
OTHERS = {"role", "permission", "plan", "feature", "reverification", "key-revoked", "idempotency-secret-not-kept", "idempotency-answer-not-kept", "idempotency-key-reused",
          "body-length", "body-size", "body-time", "body-type", "fields", "not-found", "precondition", "upgrade",
          "proof-expired", "proof-nonce", "proof-rejected", "proof-replayed", "proof-target", "proof-token"}  # fmt: skip


def slugs(node: ast.AST) -> Iterator[str]:
    for one in (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,):
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and SLUG.fullmatch(one.value):
            yield one.value


def raised(path: Path) -> Iterator[str]:
    """Every slug that a call of an error's class has as its first argument, `reason=` or `for_log=`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = node.func if isinstance(node, ast.Call) else None
        called = name.id if isinstance(name, ast.Name) else name.attr if isinstance(name, ast.Attribute) else ""
        if isinstance(node, ast.Call) and called in RAISED:
            for given in [*node.args[:1], *(one.value for one in node.keywords if one.arg in ("reason", "for_log"))]:
                yield from slugs(given)


def test_every_reason_has_a_row_and_every_row_a_reason() -> None:
    code = {slug for package in ("server", "providers", "handlers") for path in (ROOT / package).rglob("*.py") if "testing" not in path.parts for slug in raised(path)}
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", REASONS.read_text("utf-8"), re.MULTILINE))
    assert len(code) > 40
    assert code - rows == set()
    assert rows - code - OTHERS == set()
    whole = "\n".join(path.read_text("utf-8") for package in ("server", "providers") for path in (ROOT / package).rglob("*.py"))
    assert [one for one in OTHERS if one not in whole and not one.startswith("idempotency-")] == []

