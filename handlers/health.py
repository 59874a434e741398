"""Whether the process is alive: the one public route for anonymous callers."""

from __future__ import annotations

from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from server import answer, describe, hookimpl, public

routes = web.RouteTableDef()


class Health(BaseModel):
    """The process is alive."""

    model_config = ConfigDict(extra="forbid")
    status: Literal["ok"]


@routes.get("/api/health")
@public
@describe(returns=Health, summary="Is the server alive?")
async def health(request: web.Request) -> web.Response:
    """Touches no database: a slow Postgres must not get the process killed."""
    return answer('{"status": "ok"}')


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
