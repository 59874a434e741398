"""What a handler returns or raises, behind the gate: the log names the handler's mistake, also where the caller is known."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from server import ApiError, TooManyRequests, public, requires, signed_in
from tests.conftest import ALICE, Serve, plugin


def handlers(result: Any) -> object:
    """The same mistake on a locked route, on one that asks for more, and on an open one."""

    async def handler(request: web.Request) -> Any:
        return result

    return plugin(
        web.get("/api/locked", signed_in(handler)),
        web.post("/api/locked", signed_in(handler)),
        web.get("/api/user", requires(user=True)(handler)),
        web.get("/api/open", public(handler)),
    )


@pytest.mark.parametrize("result", [None, {"a": 1}, "text", 403])
async def test_no_response_is_a_500_that_the_log_explains(serve: Serve, caplog: pytest.LogCaptureFixture, result: Any) -> None:
    caplog.set_level("INFO", "gatepost")
    client = await serve({"public_routes": ["/api/health", "/api/open"]}, extra={"odd": handlers(result)})
    for method, path in (("GET", "/api/locked"), ("GET", "/api/user"), ("GET", "/api/open"), ("POST", "/api/locked")):
        caplog.clear()
        got = await client.send(method, path, {**ALICE, "Idempotency-Key": f"k{path}"})
        assert (got.status, got.json()) == (500, {"error": "Internal Server Error"})
        (line,) = caplog.records
        assert line.getMessage() == "a handler returned no response"
        assert line.fields["route"] == path  # type: ignore[attr-defined]
        assert line.fields["type"] == type(result).__name__  # type: ignore[attr-defined]


async def _exits(request: web.Request) -> web.Response:
    raise SystemExit(2)


async def test_a_handler_that_exits_is_a_500_and_the_server_goes_on(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    exits = plugin(web.get("/api/locked", signed_in(_exits)), web.get("/api/open", public(_exits)))
    client = await serve({"public_routes": ["/api/health", "/api/open"]}, extra={"odd": exits})
    for path in ("/api/locked", "/api/open"):
        caplog.clear()
        got = await client.get(path, ALICE)
        assert (got.status, got.json()) == (500, {"error": "Internal Server Error"})
        (line,) = [record for record in caplog.records if record.getMessage() == "handler failed"]
        assert (line.fields["error"], line.fields["route"]) == ("SystemExit", path)  # type: ignore[attr-defined]
    assert (await client.get("/api/me", ALICE)).status == 200


class Busy(ApiError):
    status = 503


@pytest.mark.parametrize(("result", "seconds"), [
    (TooManyRequests(), "1"), (TooManyRequests("slow-down", headers={"retry-after": "7"}), "7"), (Busy(), "1"),
    (Busy(headers={"Retry-After": "9"}), "9"), (web.HTTPTooManyRequests(), "1"), (web.HTTPServiceUnavailable(), "1"),
    (web.HTTPTooManyRequests(headers={"Retry-After": "8"}), "8"), (429, "1"), (503, "1"),
], ids=repr)  # fmt: skip
async def test_every_429_and_503_says_when_to_try_again(serve: Serve, result: Any, seconds: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        if isinstance(result, int):
            return web.Response(status=result)
        raise result

    client = await serve(extra={"odd": plugin(web.get("/api/busy", signed_in(handler)))})
    got = await client.get("/api/busy", ALICE)
    assert (got.status, got.headers.getall("Retry-After")) == (result if isinstance(result, int) else result.status, [seconds])
