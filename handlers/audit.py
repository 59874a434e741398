"""The audit log of an organisation, for its administrators: who did what, or was denied it."""

from __future__ import annotations

from aiohttp import web

from server import hookimpl, identity_of, page, read, requires

routes = web.RouteTableDef()

PAGE = """SELECT id, created_at, org_id, user_id, actor, provider, action, target, row_id, changed, reason, times, request_id
          FROM audit_log
          WHERE org_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""


@routes.get("/api/orgs/{org_id}/audit")
@requires(role="org:admin", organization="org_id")
async def list_audit(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
