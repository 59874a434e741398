"""Rows of an organisation: the one in the path must be the caller's active organisation."""

from __future__ import annotations

import json
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from server import answer, body, entity_tag, hookimpl, identity_of, page, read, requires, scoped

routes = web.RouteTableDef()

COLUMNS = "id, organization_id, created_by, name, payload, created_at, updated_at"
PAGE = f"""SELECT {COLUMNS} FROM org_data
           WHERE organization_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
INSERT = f"INSERT INTO org_data (organization_id, created_by, name, payload) VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"


class NewRow(BaseModel):
    """What a client may say of a new row; the server owns the rest."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(strict=True, min_length=1, max_length=200)]
    payload: dict[str, Any] = {}


@routes.get("/api/orgs/{org_id}/data")
@requires(organization="org_id")
async def list_org_data(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@routes.post("/api/orgs/{org_id}/data")
@requires(organization="org_id")
async def create_org_data(request: web.Request) -> web.Response:
    new, caller = await body(request, NewRow), identity_of(request)
    async with scoped(request) as db:
        row = await db.row(INSERT, caller.org_id, caller.actor, new.name, json.dumps(new.payload))
    return answer(row, 201, {"ETag": entity_tag(row)})


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
