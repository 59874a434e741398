"""The rows of an organisation, which must be the caller's active organisation, and their changes as they happen."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from server import answer, body, describe, entity_tag, hookimpl, identity_of, page, read, requires, write

from .live import WATCH, DeletedRow, send_changes

routes = web.RouteTableDef()

COLUMNS = "id, organization_id, created_by, name, payload, created_at, updated_at"
PAGE = f"""SELECT {COLUMNS} FROM org_data
           WHERE organization_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
INSERT = f"INSERT INTO org_data (organization_id, created_by, name, payload) VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"


class NewOrgRow(BaseModel):
    """A new row as the client sends it; the server sets the other columns."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(strict=True, min_length=1, max_length=200)]
    payload: dict[str, Any] = {}


class OrgRow(BaseModel):
    """An organisation's row."""

    model_config = ConfigDict(extra="forbid")
    id: UUID
    organization_id: str
    created_by: Annotated[str, Field(description="A user's id, or `key:` and the id of an organisation's key.")]
    name: str
    payload: dict[str, Any]
    created_at: AwareDatetime
    updated_at: AwareDatetime


@routes.get("/api/orgs/{org_id}/data")
@requires(organization="org_id")
@describe(returns=list[OrgRow], page=True, summary="List the organisation's rows")
async def list_org_data(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@routes.get("/api/orgs/{org_id}/data/events")
@requires(organization="org_id")
@describe(events=OrgRow | DeletedRow, summary="Watch the organisation's rows", text=WATCH)
async def watch_org_data(request: web.Request) -> web.StreamResponse:
    return await send_changes(request, "org_data")


@routes.post("/api/orgs/{org_id}/data")
@requires(organization="org_id")
@describe(body=NewOrgRow, answers={201: OrgRow}, headers=["ETag"], summary="Create a row of the organisation")
async def create_org_data(request: web.Request) -> web.Response:
    new, caller = await body(request, NewOrgRow), identity_of(request)
    row = await write(request, INSERT, caller.org_id, caller.actor, new.name, new.payload)
    if row is None:  # a trigger has dropped it
        raise web.HTTPNotFound
    return answer(row, 201, {"ETag": entity_tag(row)})


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
