"""Every error that a client gets has one line in the log, with its reason, under the request id of the response."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Any

import pytest
from aiohttp import web
from kits.app import LOCAL, Client, Reply, ask, build_app, provider_plugin, routes_plugin, serving, stub

from server import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    PreconditionFailed,
    TooManyRequests,
    Unavailable,
    Unprocessable,
    answer,
    body,
    public,
    signed_in,
    socket,
)
from server.http.backlog import BACKLOG
from server.serving.operations import Operations


class Teapot(ApiError):
    status = 418


def lines(caplog: pytest.LogCaptureFixture, reply: Reply) -> list[tuple[str, dict[str, Any]]]:
    found = [(one.getMessage(), one.fields) for one in caplog.records if hasattr(one, "fields")]  # type: ignore[attr-defined]
    return [(event, fields) for event, fields in found if fields.get("request_id") == reply.headers["x-request-id"]]


RAISED = {
    "a row": (NotFound, "not-found"),
    "a conflict": (lambda: Conflict("name-taken"), "name-taken"),
    "a conflict without a reason": (Conflict, "handler"),
    "a precondition": (PreconditionFailed, "precondition"),
    "fields": (lambda: Unprocessable([{"field": "a", "message": "b"}]), "fields"),
    "a rate": (lambda: TooManyRequests("mine", headers={"Retry-After": "3"}), "mine"),
    "a bad request": (lambda: BadRequest("too-odd"), "too-odd"),
    "a status of its own": (lambda: Teapot("teapot"), "teapot"),
    "a right": (lambda: Forbidden("mine"), "mine"),
    "aiohttp's 400": (web.HTTPBadRequest, "handler"),
    "aiohttp's 401": (web.HTTPUnauthorized, "handler"),
    "aiohttp's 403": (web.HTTPForbidden, "handler"),
    "aiohttp's 404": (web.HTTPNotFound, "not-found"),
    "aiohttp's 409": (lambda: web.HTTPConflict(text="is taken"), "handler"),
    "aiohttp's 500": (web.HTTPInternalServerError, "handler"),
    "aiohttp's 503": (web.HTTPServiceUnavailable, "handler"),
    "an outage": (lambda: Unavailable("away"), "away"),
    "a fault": (lambda: KeyError("x"), "KeyError"),
}


@pytest.mark.parametrize("case", RAISED)
@pytest.mark.parametrize("opened", [False, True], ids=["locked", "public"])
async def test_an_error_that_a_handler_raises(case: str, opened: bool, caplog: pytest.LogCaptureFixture) -> None:
    make, reason = RAISED[case]

    async def handler(request: web.Request) -> Any:
        raise make()

    caplog.set_level(logging.INFO)
    route = web.get("/api/x", (public if opened else signed_in)(handler))
    async with serving(build_app({"x": routes_plugin(route)}, public_routes=["/api/x"] if opened else [])) as port:
        reply = await ask(port, "GET", "/api/x", stub())
    ((event, fields),) = lines(caplog, reply)
    assert reason in (fields.get("reason"), fields.get("why"), fields.get("error")), (event, fields)
    assert "is taken" not in json.dumps(fields)  # what a handler says to a client can be a row


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
@pytest.mark.parametrize("opened", [False, True], ids=["locked", "public"])
async def test_an_error_that_a_handler_returns(status: int, opened: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> Any:
        return answer({"error": "x"}, status, for_log="the account is closed")

    caplog.set_level(logging.INFO)
    route = web.get("/api/x", (public if opened else signed_in)(handler))
    async with serving(build_app({"x": routes_plugin(route)}, public_routes=["/api/x"] if opened else [])) as port:
        reply = await ask(port, "GET", "/api/x", stub())
    assert reply.json == {"error": "x"}
    ((event, fields),) = lines(caplog, reply)
    assert "the account is closed" in (fields.get("why"), fields.get("detail")), (event, fields)
    level = next(one.levelno for one in caplog.records if one.getMessage() == event)
    assert level == (logging.ERROR if status == 500 else logging.INFO)


async def test_what_the_server_itself_refuses(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> Any:
        return answer(await body(request, dict[str, int]))

    async def live(request: web.Request) -> Any:
        async with socket(request) as ws:
            return ws

    async def file(request: web.Request) -> Any:
        return web.FileResponse("is-not-there.pdf")

    async def nothing(request: web.Request) -> Any:
        return None

    caplog.set_level(logging.INFO)
    routes = [web.post("/api/x", signed_in(handler)), web.get("/api/live", signed_in(live)), web.get("/api/file", signed_in(file)), web.get("/api/nothing", public(nothing))]
    kind = ("Content-Type", "application/json")
    app = build_app({"x": routes_plugin(*routes)}, public_routes=["/api/nothing"], limits__body_bytes=1000)
    cases: list[tuple[int, str, str, list[tuple[str, str]], bytes, str]] = [
        (404, "GET", "/api/none", [stub()], b"", "no such path"),
        (405, "PUT", "/api/x", [stub()], b"", "the path has no such method"),
        (401, "GET", "/api/none", [], b"", "credential-missing"),
        (415, "POST", "/api/x", [stub()], b"{}", "body-type"),
        (413, "POST", "/api/x", [stub(), kind], b" " * 2000, "body-size"),
        (411, "POST", "/api/x", [stub(), kind], b"", "body-length"),
        (422, "POST", "/api/x", [stub(), kind], b'{"a": "b"}', "fields"),
        (400, "POST", "/api/x", [stub(), kind], b"{", "json-malformed"),
        (426, "GET", "/api/live", [stub()], b"", "upgrade"),
        (404, "GET", "/api/file", [stub()], b"", "not-found"),
        (500, "GET", "/api/nothing", [], b"", "NoneType"),
    ]
    async with serving(app) as port:
        for status, method, path, headers, raw, reason in cases:
            reply = await ask(port, method, path, *headers, body=raw)
            assert reply.status == status, (path, reply)
            ((event, fields),) = lines(caplog, reply)
            assert reason in (fields.get("reason"), fields.get("detail"), fields.get("type")), (event, fields)
        app[BACKLOG].bodies += app[BACKLOG].most + 1
        reply = await ask(port, "GET", "/api/none", stub())
        assert reply.status == 503
        assert [(event, fields["reason"]) for event, fields in lines(caplog, reply)] == [("refused", "overload")]


async def test_a_provider_that_is_away_is_named_under_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        reads = ("X-Away",)

        async def authenticate(self, request: web.Request) -> Any:
            raise Unavailable("its service answered 502")

    caplog.set_level(logging.INFO)
    async with serving(build_app({"x": provider_plugin(away=Away())}, providers=["away"])) as port:
        reply = await ask(port, "GET", "/api/me", ("X-Away", "a"))
    assert reply.status == 503
    ((event, fields),) = lines(caplog, reply)
    assert (event, fields["outcome"], fields["detail"]) == ("denied", "503", "away: its service answered 502")


async def test_a_limit_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(build_app(limits__caller="1/minute")) as port:
        replies = [await ask(port, "GET", "/api/me", stub()) for _ in range(2)]
    assert [one.status for one in replies] == [200, 429]
    ((event, fields),) = lines(caplog, replies[1])
    assert (event, fields["detail"]) == ("denied", "limits.caller")
    assert lines(caplog, replies[0]) == []


async def test_too_many_connections_are_no_incomplete_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(build_app(limits__connections=1)) as port, Client(port) as first:
        assert (await first.ask("GET", "/api/health", [("Host", LOCAL)])).status == 200
        async with Client(port) as second:
            reply = await second.reply()
    assert reply.status == 503
    assert [(event, fields["error"]) for event, fields in lines(caplog, reply)] == [("request refused", "limits.connections")]


async def test_the_operations_port(caplog: pytest.LogCaptureFixture, unused_tcp_port: int) -> None:
    async def reasons() -> list[str]:
        return ["the database is unavailable"]

    async def families() -> list[Any]:
        raise RuntimeError

    caplog.set_level(logging.INFO)
    operations = Operations(reasons, families)
    await operations.start("127.0.0.1", unused_tcp_port)
    try:
        counts: Counter[str] = Counter()
        for status, method, path, why in (
            (404, "GET", "/x", "no such path"), (405, "POST", "/livez", "the path has no such method"),
            (503, "GET", "/readyz", "the database is unavailable"), (500, "GET", "/metrics", "RuntimeError"),
        ):  # fmt: skip
            reply = await ask(unused_tcp_port, method, path)
            assert reply.status == status
            ((event, fields),) = lines(caplog, reply)
            assert why in (fields.get("reason"), fields.get("error"))
            counts[event] += 1
        assert counts == {"operations request refused": 3, "operations page failed": 1}
        assert lines(caplog, await ask(unused_tcp_port, "GET", "/livez")) == []
    finally:
        await operations.stop()
        await asyncio.sleep(0)


async def test_a_webhook_and_an_agent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    kind = ("Content-Type", "application/json")
    async with serving(build_app(handlers=["health", "mcp"])) as port:
        agent = await ask(port, "POST", "/api/mcp", stub(), kind, body=b"[]")
        foreign = await ask(port, "POST", "/api/mcp", stub(), kind, ("Origin", "https://evil.example"), body=b"{}")
        unknown = await ask(port, "POST", "/api/mcp", stub(), kind, body=b'{"jsonrpc": "2.0", "id": 1}')
    for reply, status, why in ((agent, 400, "a batch"), (foreign, 403, "a foreign origin"), (unknown, 400, "not a JSON-RPC 2.0")):
        assert reply.status == status, reply
        ((event, fields),) = lines(caplog, reply)
        assert why in fields.get("why", "") + fields.get("detail", ""), (event, fields)
