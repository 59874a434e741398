"""The OpenAPI document: valid, whole, and true: real answers are held against it, and a program that reads it tries to fool us."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from kits import ROOT
from kits.app import build_app, provider_plugin, routes_plugin
from openapi_spec_validator import OpenAPIV31SpecValidator

from server import answer, answer_row, answers_secret, body, check_if_match, describe, entity_tag, page, requires, signed_in
from server.app import TABLE
from server.http.describe import description_of
from server.openapi.document import DOCUMENT
from server.openapi.operation import ACCESS
from server.settings.setting import ConfigError
from tests.conftest import ALICE, CREATE, READ, Client, Serve, TestDatabase, plugin, stub
from tests.promises.test_routes_matrix import KEY, MATRIX, ROW, Case, rows  # noqa: F401 - rows is a fixture

EVERYTHING = stub("alice", org_id="org_a", org_role="org:admin", org_permissions=f"{READ} {CREATE}")
WEBHOOKS = {"clerk.webhook_signing_secret": "whsec_" + "c2VjcmV0" * 4}
ISSUERS = [{"issuer": "https://login.acme.example", "audience": "api", "namespace": "acme"}]
Operation = dict[str, Any]


def document(app: web.Application) -> dict[str, Any]:
    return json.loads(app[DOCUMENT].json)  # type: ignore[no-any-return]


def operations(told: dict[str, Any]) -> dict[tuple[str, str], Operation]:
    return {(method.upper(), path): one for path, methods in told["paths"].items() for method, one in methods.items()}


def with_plugin(*routes: web.RouteDef, **given: Any) -> dict[str, Any]:
    """The document of a server with `health` and these routes of a plugin."""
    told = document(build_app({"acme": routes_plugin(*routes)}, **{"handlers": ["health"], **given}))
    OpenAPIV31SpecValidator(told).validate()
    return told


# Whole and valid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("providers", [["stub"], ["clerk", "api_key"], ["api_key"], ["clerk", "api_key", "oidc", "stub"]], ids=str)
def test_it_is_valid(providers: list[str]) -> None:
    told = document(build_app(providers=providers, oidc__issuers=ISSUERS))
    assert told["openapi"] == "3.1.1"
    OpenAPIV31SpecValidator(told).validate()


def test_every_route_is_in_it_with_its_access() -> None:
    app = build_app()
    told = operations(document(app))
    table = {(row.method, row.template): row.access for row in app[TABLE].rows if row.method != "HEAD"}
    assert {key: one[ACCESS]["words"] for key, one in told.items()} == table
    for (_, template), one in told.items():
        assert f"**Access:** {one[ACCESS]['words']}" in one["description"]
        assert [p["name"] for p in one.get("parameters", ()) if p.get("in") == "path"] == [
            part.strip("{}") for part in template.split("/") if part.startswith("{")
        ]


def test_the_access_is_there_for_programs() -> None:
    told = operations(document(build_app()))
    everyday = ["access_token", "api_key", "session_token"]
    assert told["GET", "/api/health"][ACCESS] == {"words": "public", "public": True}
    assert told["GET", "/api/me"][ACCESS] == {"words": "signed in", "public": False, "accepts": everyday}
    assert told["DELETE", "/api/data/{id}"][ACCESS] == {
        "words": "role org:admin", "public": False, "role": "org:admin", "accepts": everyday,
    }  # fmt: skip
    assert told["POST", "/api/keys"][ACCESS] == {
        "words": "accepts api_key session_token, no impersonation", "public": False, "impersonation": False,
        "accepts": ["api_key", "session_token"],
    }  # fmt: skip
    assert "impersonation" not in told["DELETE", "/api/keys/{id}"][ACCESS]
    assert told["GET", "/api/orgs/{org_id}/data"][ACCESS]["organization"] == "org_id"


def test_every_built_in_handler_is_described() -> None:
    app = build_app()
    assert [plan.template for route, plan in app[TABLE].rules.items() if description_of(route.handler) is None] == []
    assert all("default" not in one["responses"] for one in operations(document(app)).values())


def test_statuses_follow_from_what_is_declared() -> None:
    told = {key: set(one["responses"]) for key, one in operations(document(build_app())).items()}
    locked, with_body = {"400", "401", "429", "431", "503"}, {"408", "411", "413", "415", "422"}
    assert told["GET", "/api/health"] == {"200", "400", "431"}
    assert told["GET", "/api/me"] == locked | {"200"}
    assert told["GET", "/api/data"] == locked | {"200", "403", "422"}
    assert told["POST", "/api/data"] == locked | with_body | {"201", "403", "409"}
    assert told["PATCH", "/api/data/{id}"] == locked | with_body | {"200", "403", "404", "412"}
    assert told["DELETE", "/api/keys/{id}"] == locked | {"204", "404"}
    assert told["POST", "/api/keys/{id}/rotate"] == locked | with_body | {"200", "403", "404", "409"}
    assert told["POST", "/api/keys"] == locked | with_body | {"201", "403", "409"}  # 409: too many keys, `key-limit`
    assert told["POST", "/api/webhooks/clerk"] == with_body | {"204", "400", "431", "503"}


def test_parameters_and_headers() -> None:
    told = operations(document(build_app()))
    names = {key: {p.get("$ref", "").rpartition("/")[2] or p["name"] for p in one.get("parameters", ())} for key, one in told.items()}
    assert names["GET", "/api/data"] == {"limit", "cursor"}
    assert names["PATCH", "/api/data/{id}"] == {"id", "If-Match"}
    for path in ("/api/data/{id}", "/api/invoices/{id}"):
        assert names["GET", path] == {"id", "If-None-Match"}
        unchanged = told["GET", path]["responses"]["304"]
        assert set(unchanged["headers"]) == {"ETag", "X-Request-Id"}
        assert "content" not in unchanged
    assert {key for key, found in names.items() if "Idempotency-Key" in found} == {
        ("POST", "/api/data"), ("POST", "/api/orgs/{org_id}/data"), ("POST", "/api/invoices"),
    }  # fmt: skip
    made = told["POST", "/api/data"]["responses"]["201"]["headers"]
    assert set(made) == {"ETag", "Location", "X-Request-Id"}
    assert set(told["GET", "/api/data"]["responses"]["200"]["headers"]) == {"Link", "X-Request-Id"}
    shared = document(build_app())["components"]["responses"]
    assert set(shared["ServiceUnavailable"]["headers"]) == {"Retry-After", "X-Request-Id"}
    assert all("X-Request-Id" in one["headers"] for one in shared.values())


def test_a_plugins_route_that_answers_a_secret_takes_no_idempotency_key() -> None:
    @signed_in
    @answers_secret
    async def below(request: web.Request) -> web.Response:
        return answer({})

    @answers_secret
    @signed_in
    async def above(request: web.Request) -> web.Response:
        return answer({})

    @signed_in
    async def keysmith(request: web.Request) -> web.Response:
        return answer({})

    routes = [web.post("/api/tokens", below), web.post("/api/tokens/{id}", above), web.post("/api/keys/report", keysmith)]
    told = operations(with_plugin(*routes))
    kept = {path for (_, path), one in told.items() if any("Idempotency-Key" in p.get("$ref", "") for p in one.get("parameters", ()))}
    assert kept == {"/api/keys/report"}


def test_only_what_is_served_is_in_it() -> None:
    assert list(document(build_app(handlers=["health"]))["paths"]) == ["/api/health"]


def test_a_route_that_is_not_opened_is_not_called_public() -> None:
    told = operations(document(build_app(public_routes=["/api/health"])))
    one = told["GET", "/api/public/docs"]
    assert one[ACCESS]["words"] == "signed in (declared public, not listed)"
    assert one[ACCESS]["public"] is False
    assert one["security"] == [{"stub": []}]
    assert "401" in one["responses"]


def test_no_secret_and_no_setting_is_in_it() -> None:
    canaries = {
        "clerk__secret_key": "sk_test_canary1", "clerk__issuer": "https://canary2.example", "clerk__webhook_signing_secret":
        "whsec_" + "Y2FuYXJ5" * 4, "database__url": "postgresql://canary3@localhost/canary4", "cors_origins": ["https://canary5.example"],
        "oidc__issuers": [{"issuer": "https://canary6.example", "audience": "canary7", "namespace": "canary8"}],
    }  # fmt: skip
    raw = build_app(providers=["clerk", "api_key", "oidc"], **canaries)[DOCUMENT].json
    assert b"canary" not in raw
    assert b"Y2FuYXJ5" not in raw


# Credentials -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("providers", "me", "keys"),
    [
        (["stub"], ["stub"], ["stub"]),
        (["clerk"], ["bearerAuth"], ["bearerAuth"]),
        (["api_key"], ["bearerAuth"], ["bearerAuth"]),
        (["oidc", "api_key", "clerk"], ["bearerAuth"], ["bearerAuth"]),
        (["stub", "api_key"], ["bearerAuth", "stub"], ["bearerAuth", "stub"]),
        (["oidc"], ["bearerAuth"], ["bearerAuth"]),  # nobody can call these routes, which is not the same as anybody
    ],
)
def test_the_schemes_are_those_of_the_loaded_providers(providers: list[str], me: list[str], keys: list[str]) -> None:
    told = document(build_app(providers=providers, oidc__issuers=ISSUERS))
    by_route = operations(told)
    assert by_route["GET", "/api/me"]["security"] == [{name: []} for name in me]
    assert by_route["GET", "/api/keys"]["security"] == [{name: []} for name in keys]
    assert by_route["GET", "/api/health"]["security"] == []
    assert set(told["components"]["securitySchemes"]) == {*me, *keys}


def test_a_machine_route_asks_for_a_machines_token() -> None:
    @requires(accepts=["m2m_token"])
    async def machines(request: web.Request) -> web.Response:
        return answer([])

    told = with_plugin(web.get("/api/machines", machines), providers=["clerk", "api_key"])
    assert operations(told)["GET", "/api/machines"]["security"] == [{"bearerAuth": []}]
    (scheme,) = told["components"]["securitySchemes"].values()
    assert {"session_token", "api_key", "m2m_token"} <= set(scheme["x-gatepost-token-types"])
    for place in ("X-API-Key", "__session"):  # mentioned, and no scheme of its own: a client would fill both
        assert place in scheme["description"]


class Quiet:
    """A provider without security schemes, or with the given ones."""

    def __init__(self, schemes: Any = None) -> None:
        self.security_schemes = schemes

    async def authenticate(self, request: web.Request) -> None:
        return None


def test_a_provider_that_says_nothing_does_not_make_routes_look_open() -> None:
    told = document(build_app({"acme": provider_plugin(acme=Quiet())}, providers=["acme"]))
    OpenAPIV31SpecValidator(told).validate()
    assert operations(told)["GET", "/api/me"]["security"] == [{"acme": []}]
    assert told["components"]["securitySchemes"]["acme"]["name"] == "Authorization"
    told = document(build_app({"acme": provider_plugin(acme=Quiet({}))}, providers=["acme"]))
    assert operations(told)["GET", "/api/me"]["security"] == [{"acme": []}]


@pytest.mark.parametrize(
    ("schemes", "said"),
    [
        ({"stub": {"type": "http", "scheme": "bearer"}}, "'stub' already belongs to another provider"),
        ({"a b": {"type": "http", "scheme": "bearer"}}, "'a b' is not a valid name"),
        ({"acme": {"type": "password"}}, "its type must be one of"),
        ({"acme": {"type": "http"}}, "needs 'scheme'"),
        ({"acme": "bearer"}, "its type must be one of"),
        (["acme"], "must be a mapping"),
    ],
)
def test_a_scheme_that_is_none_prevents_startup(schemes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_app({"acme": provider_plugin(acme=Quiet(schemes))}, providers=["stub", "acme"])


# Strangers' handlers ---------------------------------------------------------------------------------------------------


class NewRow(pydantic.BaseModel):
    """The same name as a built-in one's."""

    colour: str


class Error(pydantic.BaseModel):
    """The same name as the server's own."""

    code: int


async def bare(request: web.Request) -> web.Response:
    """Text for readers of the code."""
    return answer([])


def described(**words: Any) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return answer([])

    return signed_in(describe(**words)(handler))


def test_a_plugins_handlers_appear() -> None:
    handler = described(body=NewRow, answers={201: list[Error]}, summary="Paint", text="All of *it*.", tags=["paint"], refusals={402: "No paint."})
    told = with_plugin(web.post("/api/paint", handler), web.put("/api/bare/{id}", requires(role="org:painter")(bare)), handlers=["data", "orgs"])
    paint, plain = operations(told)["POST", "/api/paint"], operations(told)["PUT", "/api/bare/{id}"]
    assert (paint["summary"], paint["tags"]) == ("Paint", ["paint"])
    assert paint["description"].startswith("All of *it*.\n\n**Access:** signed in")
    assert paint["responses"]["402"]["description"] == "No paint."
    assert resolved(told, paint["requestBody"]["content"]["application/json"]["schema"])["required"] == ["colour"]
    row = paint["responses"]["201"]["content"]["application/json"]["schema"]["items"]
    assert list(resolved(told, row)["properties"]) == ["code"]
    assert "reason" in resolved(told, told["components"]["responses"]["Forbidden"]["content"]["application/json"]["schema"])["properties"]
    # Nothing is said of it, so that everything is possible; its docstring is not ours to publish.
    assert {"default", "401", "403", "404", "415", "422", "503"} <= set(plain["responses"])
    assert (plain["summary"], plain["tags"], plain[ACCESS]["role"]) == ("Bare", ["bare"], "org:painter")
    assert "whoever reads" not in json.dumps(told)


def resolved(told: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return told["components"]["schemas"][schema["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]


def test_two_handlers_with_one_name_have_two_ids() -> None:
    def make() -> Any:
        async def same(request: web.Request) -> web.Response:
            return answer([])

        return signed_in(same)

    told = with_plugin(*(web.get(f"/api/{word}", make()) for word in "abc"))
    ids = [one["operationId"] for one in operations(told).values()]
    assert ids == ["get_a", "get_b", "get_c", "get_health"]


def test_templates_with_patterns() -> None:
    routes = [web.get(r"/api/x/{id:\d{1,3}}/{rest:.*}", described()), web.get("/api/x/{id}/{rest}", described()),
              web.delete("/api/x/{id}/{rest}", described())]  # fmt: skip
    told = with_plugin(*routes)
    assert set(operations(told)) == {
        ("GET", "/api/x/{id}/{rest}"), ("GET", "/api/x/{id}/{rest_}"), ("DELETE", "/api/x/{id}/{rest}"), ("GET", "/api/health"),
    }  # fmt: skip
    patterns = {one["parameters"][0]["schema"].get("pattern") for key, one in operations(told).items() if "parameters" in one}
    assert patterns == {r"^(?:\d{1,3})$", None}


@pytest.mark.parametrize("odd", [type("Odd", (), {}), Callable[[int], int]], ids=["unknown", "known and without a schema"])
def test_a_type_without_a_schema_prevents_startup(odd: Any) -> None:
    with pytest.raises(ConfigError, match=r"GET /api/odd: @describe names a type without a JSON Schema"):
        with_plugin(web.get("/api/odd", described(returns=odd)))


# What is said binds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {"returns": NewRow, "answers": {201: NewRow}}, {"answers": {404: None}}, {"refusals": {200: "fine"}}, {"answers": {99: None}},
        {"headers": "ETag"}, {"tags": "data"}, {"body_optional": True}, {"refusals": {409: ""}}, {"retuns": NewRow},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_an_error_at_import(words: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        describe(**words)


def test_it_stands_above_or_below_the_access_but_once() -> None:
    async def handler(request: web.Request) -> web.Response:
        return answer([])

    below = signed_in(describe(page=True)(handler))
    assert description_of(below) is description_of(handler)
    with pytest.raises(TypeError, match="twice"):
        describe()(below)

    async def other(request: web.Request) -> web.Response:
        return answer([])

    above = describe(page=True)(signed_in(other))
    assert description_of(above).page  # type: ignore[union-attr]
    assert description_of(other) is None


class Other(pydantic.BaseModel):
    shade: str


async def takes_new_row(request: web.Request) -> web.Response:
    await body(request, NewRow)
    return answer([])


async def takes_a_page(request: web.Request) -> web.Response:
    page(request)
    return answer([])


async def takes_if_match(request: web.Request) -> web.Response:
    check_if_match(request, "{}")
    return answer([])


async def answers_a_row(request: web.Request) -> web.Response:
    return answer_row(request, "{}")


def copy(handler: Any) -> Any:
    async def same(request: web.Request) -> web.Response:
        return await handler(request)  # type: ignore[no-any-return]

    return same


@pytest.mark.parametrize(
    ("handler", "honest", "lie"),
    [(takes_new_row, {"body": NewRow}, {"body": Other}), (takes_new_row, {"body": NewRow}, {}), (takes_a_page, {"page": True}, {}),
     (takes_if_match, {"if_match": True}, {"page": True}), (answers_a_row, {"if_none_match": True}, {"if_match": True})],
)  # fmt: skip
async def test_a_handler_that_does_another_thing_than_it_says_fails(
    serve: Serve, caplog: pytest.LogCaptureFixture, handler: Any, honest: dict[str, Any], lie: dict[str, Any]
) -> None:
    made = plugin(
        web.post("/api/honest", signed_in(describe(**honest)(copy(handler)))),
        web.post("/api/lie", signed_in(describe(**lie)(copy(handler)))),
        web.post("/api/silent", signed_in(copy(handler))),
    )
    client = await serve(extra={"acme": made})
    for path, status in (("/api/honest", 200), ("/api/silent", 200), ("/api/lie", 500)):
        assert (await client.post(path, ALICE, {"colour": "red"})).status == status
    assert [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("known", ["*", entity_tag("{}")])
async def test_only_a_read_can_be_a_304(serve: Serve, known: str) -> None:
    """RFC 9110 13.1.2: after another method the request has taken effect, and its response is what the client needs."""
    client = await serve(extra={"acme": plugin(web.post("/api/row", signed_in(answers_a_row)), web.get("/api/row", signed_in(copy(answers_a_row))))})
    headers = {**ALICE, "If-None-Match": known}
    for more in ({}, {"Idempotency-Key": "one"}, {"Idempotency-Key": "one"}):
        made = await client.post("/api/row", {**headers, **more}, {})
        assert (made.status, made.raw) == (200, b"{}")
    for method in ("GET", "HEAD"):
        assert (await client.send(method, "/api/row", headers)).status == 304


# Real answers ----------------------------------------------------------------------------------------------------------


def held(told: dict[str, Any], method: str, template: str, got: Any) -> None:
    """This answer is one of those that the document names."""
    responses = operations(told)[method, template]["responses"]
    assert str(got.status) in responses, (method, template, got)
    said = responses[str(got.status)]
    if "$ref" in said:
        said = told["components"]["responses"][said["$ref"].rpartition("/")[2]]
    for name in said["headers"]:
        assert name in got.headers or name == "Link", (method, template, name)  # the last page has none
    assert "Link" not in got.headers or "Link" in said["headers"]
    assert "ETag" not in got.headers or "ETag" in said["headers"]
    assert "Location" not in got.headers or "Location" in said["headers"]
    if "content" not in said:
        assert got.raw == b""
        return
    ((kind, content),) = said["content"].items()
    assert got.headers["Content-Type"].partition(";")[0] == kind or kind == "*/*"
    if kind == "application/json":
        schema = {**content["schema"], "components": told["components"]}
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(got.json())


ROUTES = [pytest.param(method, template, case, id=f"{method} {template}") for (method, template), case in MATRIX.items()]


@pytest.mark.parametrize(("method", "template", "case"), ROUTES)
async def test_what_is_answered_is_in_the_document(
    client: Client, rows: None, db: TestDatabase, method: str, template: str, case: Case  # noqa: F811
) -> None:
    await db.rows(
        "INSERT INTO memberships (organization_id, user_id, id, role, permissions, created_at)"
        " VALUES ('org_a', 'alice', 'mem_1', 'org:member', '{org:invoices:read}', now())"
    )
    await db.rows("INSERT INTO org_data (organization_id, created_by, name) SELECT 'org_a', 'alice', 'x' FROM generate_series(1, 2)")
    told = document(client.app)
    callers = [caller for group in [*case.right.values(), *case.denied.values()] for caller in group]
    for caller in callers:
        held(told, method, template, await client.begin(method, case.path, caller, json=case.body))
    if "limit" in str(operations(told)[method, template].get("parameters")):
        for query, status in (("limit=1", 200), ("limit=0", 422), ("cursor=x", 422)):
            got = await client.get(f"{case.path}?{query}", callers[0])
            assert got.status == status
            held(told, method, template, got)
    if not case.public:
        for headers in ({}, {"Authorization": "Bearer x"}, {**ALICE, "X-API-Key": "x"}):
            held(told, method, template, await client.send(method, case.path, headers, json=case.body))


WITH_BODY = [each for each in ROUTES if each.values[2].body is not None]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "template", "case"), WITH_BODY)
async def test_what_is_said_of_bad_bodies_is_in_the_document(client: Client, rows: None, method: str, template: str, case: Case) -> None:  # noqa: F811
    told, plain = document(client.app), {**EVERYTHING, "Content-Type": "application/json"}
    sent: dict[int, dict[str, Any]] = {
        400: {"data": b'{"a": 1, "a": 2}', "headers": plain},
        413: {"data": io.BytesIO(b" " * 1_048_577), "headers": plain},
        415: {"data": b"a=1", "headers": {**EVERYTHING, "Content-Type": "text/plain"}},
        422: {"data": b'{"unknown": 1}', "headers": plain},
    }
    for status, more in sent.items():
        got = await client.send(method, case.path, **more)
        assert got.status == status
        held(told, method, template, got)
    if template != "/api/keys/{id}/rotate":
        async with client.wire() as wire:
            await wire.send(f"{method} {case.path}", plain)
            assert (await wire.answer())[0] == 411
    if "{id}" in template:
        got = await client.send(method, case.path.replace(ROW, "x").replace(KEY, "x"), EVERYTHING, json=case.body)
        assert got.status == 404
        held(told, method, template, got)


async def test_a_row_that_has_changed_is_in_the_document(client: Client, rows: None) -> None:  # noqa: F811
    got = await client.patch(f"/api/data/{ROW}", {**ALICE, "If-Match": '"x"'}, {"name": "new"})
    assert got.status == 412
    held(document(client.app), "PATCH", "/api/data/{id}", got)


async def test_a_row_that_has_not_changed_is_in_the_document(client: Client, rows: None) -> None:  # noqa: F811
    got = await client.get(f"/api/data/{ROW}", {**ALICE, "If-None-Match": "*"})
    assert got.status == 304
    held(document(client.app), "GET", "/api/data/{id}", got)


async def test_it_is_served_as_it_is_printed(client: Client) -> None:
    got = await client.get("/api/public/openapi.json")
    assert (got.status, got.raw) == (200, client.app[DOCUMENT].json)
    assert got.json()["paths"]
    again = await client.get("/api/public/openapi.json", {"If-None-Match": got.headers["ETag"]})
    assert (again.status, again.raw) == (304, b"")


def test_the_command_prints_it_and_every_process_makes_the_same(tmp_path: Path) -> None:
    """Whatever the order of sets in this process is."""
    printed = []
    for seed in ("1", "2"):
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")}
        environment = {**kept, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "GATEPOST_PROVIDERS": "stub"}
        done = subprocess.run(
            [sys.executable, "-m", "server", "openapi"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert json.loads(printed[0]) == document(build_app())
    assert list(tmp_path.iterdir()) == []  # nothing was opened and nothing made


# A program that reads it and tries --------------------------------------------------------------------------------------

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "negative_data_rejection", "ignored_auth")  # fmt: skip
OTHER_ROW = "00000000-0000-4000-8000-000000000002"
PARAMETERS = f"""
[parameters]
org_id = "org_a"
file = "page.css"

[[operations]]
include-operation-id = ["get_data", "change_data", "get_invoice"]
parameters = {{ id = "{ROW}" }}

[[operations]]
include-operation-id = "delete_data"
parameters = {{ id = "{OTHER_ROW}" }}

[[operations]]
include-operation-id = "rotate_key"
parameters = {{ id = "{KEY}" }}
"""


@pytest.mark.long
async def test_schemathesis_finds_nothing(serve: Serve, rows: None, db: TestDatabase, tmp_path: Path) -> None:  # noqa: F811
    """Fixed seed, a bounded number of examples; `-rP` shows its output."""
    await db.rows("INSERT INTO data (id, user_id, org_id, name) VALUES ($1, 'alice', 'org_a', 'old')", OTHER_ROW)
    client = await serve({**WEBHOOKS})
    (tmp_path / "schemathesis.toml").write_text(PARAMETERS)
    # From a file: of a document that it has fetched it leaves out the route that it fetched it from.
    (tmp_path / "openapi.json").write_bytes((await client.get("/api/public/openapi.json")).raw)
    words = ["--config-file", str(tmp_path / "schemathesis.toml"), "run", str(tmp_path / "openapi.json"),
             "--url", f"http://127.0.0.1:{client.port}", "--header", f"Authorization: {EVERYTHING['Authorization']}", "--checks", ",".join(CHECKS),
             "--exclude-path-regex", "/events$", "--request-timeout", "20",  # a stream has no end that it could wait for
             "--phases", "examples,coverage,fuzzing", "--max-examples", "60", "--seed", "20261126", "--continue-on-failure",
             "--no-color"]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("st")), *words, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    print(said.decode())
    assert process.returncode == 0
    whole = operations(document(client.app))
    assert f"Tested: {len(whole) - len([one for one in whole if str(one).count('/events')])}" in said.decode()
