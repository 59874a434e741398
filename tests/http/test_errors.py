"""What a handler says with an error: its detail, its fields, its headers; and what it cannot do with them."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import pytest
from aiohttp import web
from kits.app import LOCAL, Client, Reply, ask, build_app, routes_plugin, serving, stub

from server import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    PreconditionFailed,
    TooManyRequests,
    Unprocessable,
    public,
    signed_in,
)

PUBLIC = ["/api/x(.*)", "/api/health"]
LONG = "x" * 100_000


def raising(make: Any, *, returned: bool = False) -> web.Application:
    async def handler(request: web.Request) -> Any:
        error = make()
        if returned:
            return error
        raise error

    return build_app({"x": routes_plugin(web.get("/api/x", public(handler)), web.post("/api/locked", signed_in(handler)))}, handlers=["health"], public_routes=PUBLIC)


async def answer_to(make: Any, *, returned: bool = False, method: str = "GET") -> Reply:
    async with serving(raising(make, returned=returned)) as port, Client(port) as client:
        first = await client.ask(method, "/api/x", [("Host", LOCAL)])
        assert (await client.ask("GET", "/api/health", [("Host", LOCAL)])).status == 200  # the connection is in order
        return first


HTTP_ERRORS = [
    one for one in vars(web).values()
    if isinstance(one, type) and issubclass(one, web.HTTPError) and one.status_code >= 400
    and one not in (web.HTTPMethodNotAllowed, web.HTTPRequestEntityTooLarge, web.HTTPUnavailableForLegalReasons)
]  # fmt: skip


@pytest.mark.parametrize("kind", HTTP_ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("returned", [False, True], ids=["raised", "returned"])
async def test_the_text_of_an_http_error_is_the_detail(kind: Any, returned: bool) -> None:
    async with serving(raising(lambda: kind(text="The name is taken."), returned=returned)) as port:
        reply = await ask(port, "GET", "/api/x")
        assert reply.status == kind.status_code
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["cache-control"] == "no-store"
        assert set(reply.json) == {"error", "detail"}
        assert reply.json["detail"] == "The name is taken."
    async with serving(raising(kind, returned=returned)) as port:
        assert set((await ask(port, "GET", "/api/x")).json) == {"error"}


@pytest.mark.parametrize(
    ("make", "detail"),
    [
        (lambda: web.HTTPConflict(reason="Name taken"), "Name taken"),
        (lambda: web.HTTPConflict(reason="Name taken", text="It is."), "It is."),
        (lambda: web.HTTPConflict(text=""), None),
        (lambda: web.HTTPConflict(text="409: Conflict"), None),
        (lambda: web.HTTPMethodNotAllowed("GET", ["PUT"]), None),
        (lambda: web.HTTPRequestEntityTooLarge(10, 20), None),
        (lambda: web.HTTPBadRequest(text="No WebSocket UPGRADE hdr: what the client sent"), None),
        (lambda: web.HTTPRequestEntityTooLarge(10, 20, text="At most ten."), "At most ten."),
        (lambda: web.HTTPConflict(text='a "quoted"\nsecond line\tand a tab'), 'a "quoted"\nsecond line\tand a tab'),
        (lambda: web.HTTPConflict(text="a\r\nSet-Cookie: x=1\x00\x1b[31m\x7f\x9b\u2028"), "a \nSet-Cookie: x=1  [31m   "),
        (lambda: web.HTTPConflict(text="<script>alert(1)</script>", content_type="text/html"), "<script>alert(1)</script>"),
        (lambda: web.HTTPConflict(text="\u2603 \U0001f418 \u05d0"), "\u2603 \U0001f418 \u05d0"),
        (lambda: web.HTTPConflict(text=LONG), "x" * 999 + "\u2026"),
    ],
)  # fmt: skip
async def test_the_detail_is_bounded_plain_text(make: Any, detail: str | None) -> None:
    for returned in (False, True):
        reply = await answer_to(make, returned=returned)
        assert reply.json.get("detail") == detail
        assert reply.headers["content-type"] == "application/json"
        assert "set-cookie" not in reply.headers
        assert len(reply.body) < 6100


class Teapot(web.HTTPClientError):
    status_code = 418


async def test_an_error_whose_body_is_bytes() -> None:
    def make(body: bytes) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Teapot(body=body)

    assert (await answer_to(lambda: make(b"short and stout"))).json["detail"] == "short and stout"
    reply = await answer_to(lambda: make(b"\xff\xfe\x00"))
    assert (reply.status, list(reply.json)) == (418, ["error"])


async def test_headers_of_an_http_error() -> None:
    def make() -> web.HTTPException:
        error = web.HTTPUnauthorized(
            headers={"WWW-Authenticate": "Acme", "X-Own": "1", "Content-Type": "text/html", "Content-Length": "3", "Location": "/x"}
        )
        error.set_cookie("a", "b")
        return error

    reply = await answer_to(make)
    assert reply.headers["www-authenticate"] == "Acme"
    assert reply.headers["content-type"] == "application/json"
    assert not {"x-own", "set-cookie", "location"} & set(reply.headers)
    reply = await answer_to(lambda: web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": "bytes */9"}))
    assert (reply.status, reply.headers["content-range"]) == (416, "bytes */9")
    reply = await answer_to(lambda: web.HTTPServiceUnavailable(headers={"Retry-After": "60"}, text="Maintenance until noon."))
    assert (reply.headers["retry-after"], reply.json["detail"]) == ("60", "Maintenance until noon.")
    reply = await answer_to(lambda: web.HTTPUnauthorized(headers={"WWW-Authenticate": "Acme\r\nSet-Cookie: x=1"}))
    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert b"Set-Cookie" not in reply.raw


EXPORTED: list[tuple[Any, int]] = [
    (BadRequest, 400), (Forbidden, 403), (NotFound, 404), (Conflict, 409), (PreconditionFailed, 412), (TooManyRequests, 429),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "status"), EXPORTED, ids=lambda value: getattr(value, "__name__", str(value)))
async def test_the_errors_of_the_public_interface(kind: Any, status: int) -> None:
    reply = await answer_to(kind)
    assert (reply.status, set(reply.json)) == (status, {"error"})
    whole = {"detail": "Taken.", "fields": [{"field": "name", "message": "is taken"}]}
    reply = await answer_to(lambda: kind("name-taken", **whole, headers={"X-Own": "1"}, more={"suggestion": "other"}))
    assert reply.json == {"error": reply.json["error"], "reason": "name-taken", **whole, "suggestion": "other"}
    assert reply.headers["x-own"] == "1"


async def test_a_422_has_fields_and_a_custom_error_has_its_status() -> None:
    class Locked(ApiError):
        """423: somebody else is changing it."""

        status = 423

    reply = await answer_to(lambda: Locked("edited", detail="By Ann."))
    assert (reply.status, reply.json) == (423, {"error": "Locked", "reason": "edited", "detail": "By Ann."})
    reply = await answer_to(lambda: Unprocessable([{"field": "name", "message": "is taken"}], reason="name-taken", detail="No."))
    assert (reply.status, reply.json) == (
        422, {"error": "Unprocessable Content", "reason": "name-taken", "detail": "No.", "fields": [{"field": "name", "message": "is taken"}]})  # fmt: skip
    assert (await answer_to(Unprocessable)).json == {"error": "Unprocessable Content", "fields": []}


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600, 799])
def test_a_custom_errors_status_is_400_to_599(status: int) -> None:
    with pytest.raises(TypeError, match="400 to 599"):
        type("Odd", (ApiError,), {"status": status})


async def test_fields_are_bounded() -> None:
    reply = await answer_to(lambda: Conflict(fields=({"field": LONG, "message": LONG} for _ in range(1000))))
    assert len(reply.json["fields"]) == 100
    assert {len(text) for one in reply.json["fields"] for text in one.values()} == {200}


@pytest.mark.parametrize(
    "make",
    [lambda: Conflict(headers={"X": "a\r\nSet-Cookie: x=1"}), lambda: Conflict(more={"it": object()}), lambda: Conflict(fields=[{"field": "\udcff", "message": "x"}])],
    ids=["a line end in a header", "a member without a JSON form", "half a character"],
)
async def test_an_error_that_cannot_be_built_is_a_500(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    reply = await answer_to(make)
    assert reply.status in (500, 409)
    assert b"Set-Cookie" not in reply.raw
    json.loads(reply.body)
    if reply.status == 500:
        assert [record for record in caplog.records if record.getMessage() == "an error response could not be built"]


async def test_what_an_error_says_about_its_content_does_not_count() -> None:
    for make in (lambda: Conflict(headers={"Content-Type": "text/html", "Content-Length": "3"}), lambda: Conflict(headers={"content-type": "text/html"})):
        reply = await answer_to(make)
        assert (reply.headers["content-type"], reply.json) == ("application/json", {"error": "Conflict"})


async def test_the_head_of_an_error() -> None:
    reply = await answer_to(lambda: web.HTTPConflict(text="No."), method="HEAD")
    assert (reply.status, reply.body, reply.headers["content-type"]) == (409, b"", "application/json")


async def test_why_a_request_was_refused_is_in_the_log_under_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(raising(lambda: BadRequest("too-odd", for_log="more than the caller learns"))) as port:
        reply = await ask(port, "POST", "/api/locked", stub())
        assert reply.json == {"error": "Bad Request", "reason": "too-odd"}
        malformed = await ask(port, "GET", "/api/%2e%2e/x")
    lines = [record.fields for record in caplog.records if record.getMessage() == "refused"]  # type: ignore[attr-defined]
    assert [(one["request_id"], one["method"], one["route"], one["status"], one["reason"]) for one in lines] == [
        (reply.headers["x-request-id"], "POST", "/api/locked", 400, "too-odd"),
        (malformed.headers["x-request-id"], "GET", "(none)", 400, "target-malformed"),
    ]
    assert lines[0]["why"] == "more than the caller learns"
    assert malformed.json == {"error": "Bad Request"}


async def test_what_the_gate_refuses_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(build_app()) as port:
        assert (await ask(port, "GET", "/api/me", ("X-API-Key", "a"), ("Authorization", "b"))).status == 400
    assert [record.getMessage() for record in caplog.records if record.name == "gatepost"].count("denied") == 1
    assert [record.getMessage() for record in caplog.records if record.name == "gatepost"].count("refused") == 0
