"""Is the process alive? The one thing that strangers may ask."""

from __future__ import annotations

from aiohttp import web

from server import answer, hookimpl, public

routes = web.RouteTableDef()


@routes.get("/api/health")
@public
async def health(request: web.Request) -> web.Response:
    """Touches no database: a slow Postgres must not get the process killed."""
    return answer('{"status": "ok"}')


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
