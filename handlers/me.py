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
    body = identity.derived.get("me")
    if body is None:  # it depends on the identity alone, which does not change
        shown = {name: getattr(identity, name) for name in _FIELDS}
        body = identity.derived["me"] = answer({**shown, "claims": identity.claims}).body
    return answer(body)


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
