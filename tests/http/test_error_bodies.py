"""Error bodies in the form of RFC 9457, and in a form that a plugin gives them: every error of the port has it, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from kits.app import LOCAL, Client, Reply, ask, build_app, routes_plugin, serving, stub
from pydantic import BaseModel
from typing_extensions import TypedDict

from server import Conflict, ErrorDetails, answer, hookimpl, public, requires, signed_in
from server.settings.setting import ConfigError

PROBLEM = "application/problem+json"


class Envelope(BaseModel):
    errors: dict[str, list[str]]
    code: int


def envelope(error: ErrorDetails) -> Envelope:
    said = {one["field"]: [one["message"]] for one in error.fields} or {"body": [error.detail or error.reason or error.error]}
    return Envelope(errors=said, code=error.status)


def shaping(shape: Any) -> object:
    return SimpleNamespace(register_error_body=hookimpl(lambda: shape, specname="register_error_body"))


async def boom(request: web.Request) -> web.Response:
    raise RuntimeError("secret")


async def conflict(request: web.Request) -> web.Response:
    raise web.HTTPConflict(text="The name is taken.")


async def taken(request: web.Request) -> web.Response:
    raise Conflict("name-taken", fields=[{"field": "name", "message": "is taken"}], more={"hint": 1, "status": "not mine"})


async def nothing(request: web.Request) -> Any:
    return None


async def unchanged(request: web.Request) -> web.Response:
    raise web.HTTPNotModified


async def fine(request: web.Request) -> web.Response:
    return answer({"a": 1})


async def file(request: web.Request) -> web.StreamResponse:
    return web.FileResponse("/nonexistent", headers={"Content-Disposition": "attachment"})


def app_of(shape: Any = None, **given: Any) -> web.Application:
    routes = routes_plugin(
        web.get("/x/boom", signed_in(boom)), web.get("/x/conflict", signed_in(conflict)), web.get("/x/taken", signed_in(taken)),
        web.get("/x/nothing", signed_in(nothing)), web.get("/x/unchanged", public(unchanged)), web.get("/x/fine", public(fine)),
        web.get("/x/file", signed_in(file)), web.get("/x/fresh", requires(reverification="strict")(fine)),
    )  # fmt: skip
    plugins = {"x": routes} | ({} if shape is None else {"y": shaping(shape)})
    return build_app(plugins, public_routes=["/api/health", "/x/(.*)"], handlers=["health", "me", "data"], **given)


JSON = ("Content-Type", "application/json")
REQUESTS: dict[str, tuple[int, Callable[[Client], Any]]] = {
    "the parser": (400, lambda client: client.ask("GET", "/x/fine", [("Host", LOCAL), ("Bad Header", "x")])),
    "a head that is too large": (431, lambda client: client.ask("GET", "/x/fine", [("Host", LOCAL), ("X", "x" * 20_000)])),
    "too many headers": (431, lambda client: client.ask("GET", "/x/fine", [("Host", LOCAL), *[("X", "x")] * 200])),
    "a malformed target": (400, lambda client: client.ask("GET", "/x/%2e%2e/fine")),
    "two credentials": (400, lambda client: client.ask("GET", "/api/me", [("Host", LOCAL), stub(), ("X-API-Key", "x")])),
    "no credential": (401, lambda client: client.ask("GET", "/api/me")),
    "a bad credential": (401, lambda client: client.ask("GET", "/api/me", [("Host", LOCAL), ("Authorization", "Bearer x")])),
    "a missing role": (403, lambda client: client.ask("DELETE", "/api/data/1", [("Host", LOCAL), stub(org_id="o")])),
    "an old sign-in": (403, lambda client: client.ask("GET", "/x/fresh", [("Host", LOCAL), stub()])),
    "an unknown path": (404, lambda client: client.ask("GET", "/nowhere", [("Host", LOCAL), stub()])),
    "a wrong method": (405, lambda client: client.ask("PUT", "/api/me", [("Host", LOCAL), stub()])),
    "no length": (411, lambda client: client.ask("POST", "/api/data", [("Host", LOCAL), stub(), JSON])),
    "a body that is too large": (413, lambda client: client.ask("POST", "/api/data", [("Host", LOCAL), stub(), JSON, ("Content-Length", "9999999")])),
    "no JSON": (415, lambda client: client.ask("POST", "/api/data", [("Host", LOCAL), stub()], b"{}")),
    "bad JSON": (400, lambda client: client.ask("POST", "/api/data", [("Host", LOCAL), stub(), JSON], b"{")),
    "wrong fields": (422, lambda client: client.ask("POST", "/api/data", [("Host", LOCAL), stub(), JSON], b'{"nam": 1}')),
    "an exception": (500, lambda client: client.ask("GET", "/x/boom", [("Host", LOCAL), stub()])),
    "an HTTPException": (409, lambda client: client.ask("GET", "/x/conflict", [("Host", LOCAL), stub()])),
    "a Conflict": (409, lambda client: client.ask("GET", "/x/taken", [("Host", LOCAL), stub()])),
    "no response": (500, lambda client: client.ask("GET", "/x/nothing", [("Host", LOCAL), stub()])),
    "a file that is not there": (404, lambda client: client.ask("GET", "/x/file", [("Host", LOCAL), stub()])),
}
SAME = ("www-authenticate", "retry-after", "cache-control", "vary", "x-content-type-options", "server", "allow", "connection", "content-security-policy")


async def all_of(app: web.Application) -> dict[str, Reply]:
    found = {}
    async with serving(app) as port:
        for name, (status, send) in REQUESTS.items():
            async with Client(port) as client:
                found[name] = await send(client)
            assert found[name].status == status, name
    return found


async def test_every_error_of_the_port_has_the_form_and_only_the_body_changes() -> None:
    plain, problems, shaped = await all_of(app_of()), await all_of(app_of(errors__format="problem")), await all_of(app_of(envelope))
    for name, one in plain.items():
        before = one.json
        assert one.headers["content-type"] == "application/json", name
        problem = problems[name]
        assert problem.headers["content-type"] == PROBLEM, name
        expected = {"type": "about:blank", "title": before["error"], "status": one.status}
        expected |= {member: before[member] for member in ("detail", "reason", "fields", "hint", "clerk_error") if member in before}
        assert problem.json == expected, name
        assert shaped[name].headers["content-type"] == "application/json", name
        assert set(shaped[name].json) == {"errors", "code"}, name
        assert shaped[name].json["code"] == one.status
        for other in (problem, shaped[name]):
            assert {header: other.headers.get(header) for header in SAME} == {header: one.headers.get(header) for header in SAME}, name
            assert int(other.headers["content-length"]) == len(other.body)
            assert "content-disposition" not in other.headers
    assert shaped["an HTTPException"].json["errors"] == {"body": ["The name is taken."]}
    assert shaped["wrong fields"].json["errors"].keys() == {"name", "nam"}
    assert "clerk_error" in problems["an old sign-in"].json


async def test_what_is_no_error_stays_as_it_is() -> None:
    for given in ({"errors__format": "problem"}, {}):
        async with serving(app_of(None if given else envelope, **given)) as port:
            reply = await ask(port, "GET", "/x/fine")
            assert (reply.headers["content-type"], reply.json) == ("application/json", {"a": 1})
            assert (await ask(port, "GET", "/x/unchanged")).status == 304
            head = await ask(port, "HEAD", "/x/conflict", stub())
            assert (head.status, head.body) == (409, b"")
            assert head.headers["content-type"] == (PROBLEM if given else "application/json")


async def test_a_custom_form_as_a_problem() -> None:
    async with serving(app_of(envelope, errors__format="problem")) as port:
        reply = await ask(port, "GET", "/api/me")
        assert (reply.headers["content-type"], reply.json["code"]) == (PROBLEM, 401)


async def test_a_shape_that_fails_at_run_time_is_replaced_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    broken: list[int] = []

    def shape(error: ErrorDetails) -> Envelope:
        if error.status in broken:
            raise RuntimeError("secret")
        return envelope(error)

    app = app_of(shape)
    broken += [409, 401]
    async with serving(app) as port:
        for _ in range(3):
            assert (await ask(port, "GET", "/x/conflict", stub())).json == {"error": "Conflict", "detail": "The name is taken."}
            reply = await ask(port, "GET", "/api/me")
            assert reply.json == {"error": "Unauthorized", "reason": "credential-missing"}
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await ask(port, "GET", "/nowhere", stub())).json["code"] == 404
    lines = [record for record in caplog.records if "register_error_body" in record.getMessage()]
    assert [line.fields["status"] for line in lines] == [409, 401]  # type: ignore[attr-defined]
    assert "secret" not in caplog.text


async def test_the_bodies_of_denials_are_made_once() -> None:
    made: list[ErrorDetails] = []

    def shape(error: ErrorDetails) -> Envelope:
        made.append(error)
        return envelope(error)

    app = app_of(shape)
    made.clear()
    async with serving(app) as port:
        for _ in range(5):
            assert (await ask(port, "GET", "/api/me")).status == 401
    assert len(made) == 1


class Wrong(TypedDict):
    code: int


def unannotated(error: Any):  # type: ignore[no-untyped-def]
    return {}


async def later(error: ErrorDetails) -> Envelope:
    return envelope(error)


def a_list(error: ErrorDetails) -> list[int]:
    return [error.status]


def not_what_it_says(error: ErrorDetails) -> Wrong:
    return {"code": "none"}  # type: ignore[typeddict-item]


def needs_a_reason(error: ErrorDetails) -> Wrong:
    return {"code": len(error.reason)}  # type: ignore[arg-type]


def only_some(error: ErrorDetails) -> Wrong:
    return {"code": {400: 1, 401: 2}[error.status]}


def no_schema(error: ErrorDetails) -> Callable[[], int]:
    return lambda: 1


def nothing_at_all(error: ErrorDetails) -> None:
    return None


def unknown(error: ErrorDetails) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
    return None


@pytest.mark.parametrize(
    ("shape", "said"),
    [(unannotated, "annotate"), (later, "not async"), (a_list, "JSON object"), (not_what_it_says, "400"), (needs_a_reason, "400"), (only_some, "402"),
     (no_schema, "JSON Schema|fails"), (nothing_at_all, "annotate"), (unknown, "annotation"), (lambda error: {}, "annotate"), ("text", "function"), (None, "function")],
)  # fmt: skip
def test_mistakes_are_refused_at_startup(shape: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"plugin 'y': register_error_body.*(?:{said})") as caught:
        build_app({"y": shaping(shape)})
    assert "\n" not in str(caught.value)


def test_two_plugins_cannot_both_shape_errors() -> None:
    with pytest.raises(ConfigError, match="register_error_body: two plugins have it, 'a' and 'b'"):
        build_app({"a": shaping(envelope), "b": shaping(envelope)})


def test_the_format_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match=r"errors\.format"):
        build_app(errors__format="xml")


async def test_models_inside_the_hook_and_methods_are_shapes_too() -> None:
    def hook() -> Any:
        class Inner(TypedDict):
            message: str

        def shape(error: ErrorDetails) -> Inner:
            return Inner(message=error.error)

        return shape

    class Shaper:
        def __call__(self, error: ErrorDetails) -> Envelope:
            return envelope(error)

    for shape, members in ((hook(), {"message"}), (Shaper(), {"errors", "code"}), (Shaper().__call__, {"errors", "code"})):
        async with serving(app_of(shape)) as port:
            assert set((await ask(port, "GET", "/api/me")).json) == members
