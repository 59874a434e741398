"""Live to-dos: members see what the others add, tick off and delete, as it happens."""

from __future__ import annotations

from aiohttp import web

from server import describe, event_stream, hookimpl, requires

from .api import Deleted, Todo

routes = web.RouteTableDef()


@routes.get("/api/orgs/{org_id}/todos/events")
@requires(organization="org_id")
@describe(events=Todo | Deleted, summary="Watch the organisation's to-dos")
async def watch_todos(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        async for change in stream.changes("todos"):
            data = {} if change.event == "resync" else change.row or {"id": change.id}
            await stream.send(data, event=change.event)
    return stream.response


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
