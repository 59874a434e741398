"""The caller's own rows, with or without an active organisation, and their changes as they happen.

Administrators of an organisation may delete its rows.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from uuid import UUID

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from server import (
    answer,
    answer_row,
    body,
    check_if_match,
    describe,
    entity_tag,
    hookimpl,
    identity_of,
    page,
    read,
    requires,
    row_id,
    scoped,
    write,
)  # fmt: skip

from .live import WATCH, DeletedRow, send_changes

routes = web.RouteTableDef()
Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]

COLUMNS = "id, user_id, org_id, name, payload, created_at, updated_at"
PAGE = f"""SELECT {COLUMNS} FROM data
           WHERE user_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
ONE = f"SELECT {COLUMNS} FROM data WHERE user_id = $1 AND id = $2"
INSERT = f"INSERT INTO data (user_id, org_id, name, payload) VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"
UPDATE = f"""UPDATE data SET name = coalesce($3, name), payload = coalesce($4, payload)
             WHERE user_id = $1 AND id = $2 RETURNING {COLUMNS}"""
DELETE = f"DELETE FROM data WHERE org_id = $1 AND id = $2 RETURNING {COLUMNS}"


class NewRow(BaseModel):
    """A new row as the client sends it; the server sets the other columns."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    payload: dict[str, Any] = {}


class Change(BaseModel):
    """The fields to change; at least one of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})
    name: Name = Field(default_factory=str)  # a default that does not appear in the JSON schema, where it would be invalid
    payload: dict[str, Any] = {}

    @model_validator(mode="after")
    def _something(self) -> Change:
        if not self.model_fields_set:
            raise ValueError("name or payload must be given")
        return self


class DataRow(BaseModel):
    """A user's own row."""

    model_config = ConfigDict(extra="forbid")
    id: UUID
    user_id: str
    org_id: Annotated[str | None, Field(description="The organisation that was active when the row was created.")]
    name: str
    payload: dict[str, Any]
    created_at: AwareDatetime
    updated_at: AwareDatetime


class Deleted(BaseModel):
    """The row was deleted."""

    model_config = ConfigDict(extra="forbid")
    success: Literal[True]


def found(row: str | None) -> str:
    """Returns the row's JSON. Raises HTTPNotFound if this caller has no such row, even if another caller has it."""
    if row is None:
        raise web.HTTPNotFound
    return row


@routes.get("/api/data")
@requires(user=True)
@describe(returns=list[DataRow], page=True, summary="List the caller's rows")
async def list_data(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).user_id, *at.args))


@routes.get("/api/data/events")
@requires(user=True)
@describe(events=DataRow | DeletedRow, summary="Watch the caller's rows", text=WATCH)
async def watch_data(request: web.Request) -> web.StreamResponse:
    return await send_changes(request, "data")


@routes.post("/api/data")
@requires(user=True)
@describe(body=NewRow, answers={201: DataRow}, headers=["Location", "ETag"], summary="Create a row")
async def create_data(request: web.Request) -> web.Response:
    new, caller = await body(request, NewRow), identity_of(request)
    row = found(await write(request, INSERT, caller.user_id, caller.org_id, new.name, new.payload))
    return answer(row, 201, {"Location": f"/api/data/{json.loads(row)['id']}", "ETag": entity_tag(row)})


@routes.get("/api/data/{id}")
@requires(user=True)
@describe(returns=DataRow, if_none_match=True, headers=["ETag"], summary="Get one of the caller's rows")
async def get_data(request: web.Request) -> web.Response:
    rows = await read(request, ONE, identity_of(request).user_id, row_id(request))
    return answer_row(request, found(rows.only()))


@routes.patch("/api/data/{id}")
@requires(user=True)
@describe(body=Change, returns=DataRow, if_match=True, headers=["ETag"], summary="Change one of the caller's rows")
async def change_data(request: web.Request) -> web.Response:
    change, user_id = await body(request, Change), identity_of(request).user_id
    payload = change.payload if "payload" in change.model_fields_set else None
    name = change.name if "name" in change.model_fields_set else None
    async with scoped(request) as db:
        before = found(await db.row(ONE + " FOR UPDATE", user_id, row_id(request)))
        check_if_match(request, before)
        row = found(await db.row(UPDATE, user_id, row_id(request), name, payload))
    return answer(row, headers={"ETag": entity_tag(row)})


@routes.delete("/api/data/{id}")
@requires(role="org:admin")
@describe(returns=Deleted, if_match=True, summary="Delete a row of the active organisation")
async def delete_data(request: web.Request) -> web.Response:
    async with scoped(request) as db:
        row = found(await db.row(DELETE, identity_of(request).org_id, row_id(request)))
        check_if_match(request, row)  # the row as it was; a 412 rolls the deletion back
    return answer('{"success": true}')


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
