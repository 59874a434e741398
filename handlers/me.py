"""The caller's identity as the server sees it; does not use the database."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from server import answer, describe, hookimpl, identity_of, signed_in

routes = web.RouteTableDef()
_FIELDS = (
    "provider", "token_type", "user_id", "impersonator", "session_id",
    "org_id", "org_slug", "org_role", "org_permissions", "scopes",
)  # fmt: skip


class Me(BaseModel):
    """The caller; a field is null if the credential does not state it."""

    model_config = ConfigDict(extra="forbid")
    provider: str
    token_type: str
    user_id: str | None
    impersonator: Annotated[str | None, Field(description="Who acts as the user (the token's `act`); null if no one does.")]
    session_id: str | None
    org_id: str | None
    org_slug: str | None
    org_role: str | None
    org_permissions: list[str] | None
    scopes: list[str] | None
    claims: dict[str, Any] | None


@routes.get("/api/me")
@signed_in
@describe(returns=Me, summary="Get the caller's identity", operation_id="get_me")
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
