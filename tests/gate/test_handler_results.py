"""What a handler returns or raises, behind the gate: the log names the handler's mistake, also where the caller is known."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from server import public, requires, signed_in
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
