"""The routes that the conformance tests of the Model Context Protocol expect as tools, as far as an HTTP API has such."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from kits.app import routes_plugin
from server import Conflict, answer, body, describe, signed_in


class Address(BaseModel):
    street: str | None = None
    city: str | None = None


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    address: Address | None = None


@signed_in
@describe(answers={200: str}, content_type="text/plain", tool="test_simple_text", summary="Tests a simple text response")
async def simple_text(request: web.Request) -> web.Response:
    return web.Response(text="This is a simple text response for testing.")


@signed_in
@describe(returns=dict[str, Any], tool="test_error_handling", summary="Tests an error response")
async def error_handling(request: web.Request) -> web.Response:
    raise Conflict(detail="This tool intentionally returns an error for testing")


@signed_in
@describe(body=Person, returns=Person, tool="json_schema_2020_12_tool", summary="Tests JSON Schema 2020-12")
async def json_schema(request: web.Request) -> web.Response:
    return answer((await body(request, Person)).model_dump_json())


CONFORMANCE = routes_plugin(
    web.get("/api/simple-text", simple_text), web.get("/api/error-handling", error_handling), web.post("/api/json-schema", json_schema)
)
