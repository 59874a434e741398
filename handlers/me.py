"""Who am I? The caller's own identity as the server sees it; no database."""

from __future__ import annotations

from aiohttp import web

from server import answer, hookimpl, identity_of, signed_in

routes = web.RouteTableDef()
_FIELDS = (
    "provider", "token_type", "user_id", "session_id", "org_id", "org_slug", "org_role", "org_permissions", "scopes",
)  # fmt: skip


@routes.get("/api/me")
@signed_in
async def me(request: web.Request) -> web.Response:
    identity = identity_of(request)
    shown = {name: getattr(identity, name) for name in _FIELDS}
    shown["claims"] = None if identity.claims is None else dict(identity.claims)
    return answer(shown)


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
