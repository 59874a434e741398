"""Reports that the process is alive; a public route."""

from __future__ import annotations

from typing import Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from server import answer, describe, hookimpl, public

routes = web.RouteTableDef()

_HEADERS: Final = {"Cache-Control": "no-store"}  # a cached answer would say nothing about the process


class Health(BaseModel):
    """The process is alive."""

    model_config = ConfigDict(extra="forbid")
    status: Literal["ok"]


@routes.get("/api/health")
@public
@describe(returns=Health, summary="Is the server alive?", operation_id="get_health")
async def health(request: web.Request) -> web.Response:
    """Does not use the database: a slow Postgres must not cause the process to be killed."""
    return answer('{"status": "ok"}', headers=_HEADERS)


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
