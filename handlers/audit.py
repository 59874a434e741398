"""The audit log of an organisation, for its administrators: who changed what, and who was denied access."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from server import describe, hookimpl, identity_of, page, read, requires

routes = web.RouteTableDef()

PAGE = """SELECT id, created_at, org_id, user_id, actor, impersonator, provider, action, target, row_id, changed, reason, times,
                 request_id
          FROM audit_log
          WHERE org_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""


class AuditEntry(BaseModel):
    """A write, or a denial."""

    model_config = ConfigDict(extra="forbid")
    id: UUID
    created_at: AwareDatetime
    org_id: str
    user_id: Annotated[str | None, Field(description="The user who acted, directly or with a key.")]
    actor: Annotated[str, Field(description="The user, `key:` and the id of a key, `anonymous`, `system` or `operator`.")]
    impersonator: Annotated[str | None, Field(description="Who acted as the user (the token's `act`); null if no one did.")]
    provider: Annotated[str | None, Field(description="Of a denial: the provider that authenticated the caller.")]
    action: Literal["insert", "update", "delete", "denied"]
    target: Annotated[str, Field(description="The table; of a denial, method and route.")]
    row_id: str | None
    changed: Annotated[list[str] | None, Field(description="Of an update: the names of the columns that changed.")]
    reason: str | None
    times: Annotated[int, Field(description="Of a denial: the number of equal denials that this entry counts.")]
    request_id: Annotated[str | None, Field(description="`X-Request-Id` of the response; null outside of requests.")]


@routes.get("/api/orgs/{org_id}/audit")
@requires(role="org:admin", organization="org_id")
@describe(returns=list[AuditEntry], page=True, summary="List the organisation's audit entries")
async def list_audit(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
