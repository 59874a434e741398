"""The caller's profile and the members of the active organisation, as Clerk's webhooks reported them."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict

from server import answer, describe, hookimpl, identity_of, page, read, requires

routes = web.RouteTableDef()

# A row that another issuer's report about the account has made holds no profile.
PROFILE = """SELECT id, external_id, username, first_name, last_name, image_url, email, email_verified, public_metadata,
                    created_at, updated_at FROM users WHERE id = $1 AND deleted_at IS NULL
                AND num_nonnulls(created_at, external_id, username, first_name, last_name, email) > 0"""
# Of other members only names and pictures are shown: no e-mail address and no metadata.
PAGE = """SELECT m.id, m.organization_id, m.user_id, m.role, m.permissions, u.username, u.first_name, u.last_name, u.image_url,
                 m.created_at, m.updated_at
          FROM memberships AS m LEFT JOIN users AS u ON u.id = m.user_id
          WHERE m.organization_id = $1 AND m.deleted_at IS NULL AND (m.created_at, m.id) < ($2, $3)
          ORDER BY m.created_at DESC, m.id DESC LIMIT $4"""


class Profile(BaseModel):
    """What Clerk has reported about the caller."""

    model_config = ConfigDict(extra="forbid")
    id: str
    external_id: str | None
    username: str | None
    first_name: str | None
    last_name: str | None
    image_url: str | None
    email: str | None
    email_verified: bool
    public_metadata: dict[str, Any]
    created_at: AwareDatetime | None
    updated_at: AwareDatetime | None


class Member(BaseModel):
    """What Clerk has reported about a member of the organisation."""

    model_config = ConfigDict(extra="forbid")
    id: str
    organization_id: str
    user_id: str
    role: str | None
    permissions: list[str]
    username: str | None
    first_name: str | None
    last_name: str | None
    image_url: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime | None


@routes.get("/api/me/profile")
@requires(user=True)
@describe(
    returns=Profile,
    refusals={404: "Clerk has not reported this user."},
    summary="Get the caller's profile",
    operation_id="get_profile",
)
async def profile(request: web.Request) -> web.Response:
    rows = await read(request, PROFILE, identity_of(request).user_id)
    if not rows.number:
        raise web.HTTPNotFound  # Clerk has not reported this user (yet)
    return answer(rows.first(1)[1])


@routes.get("/api/orgs/{org_id}/members")
@requires(organization="org_id")
@describe(returns=list[Member], page=True, summary="List the organisation's members")
async def list_members(request: web.Request) -> web.Response:
    at = page(request, key=str)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
