"""To-do lists of organisations: a caller active in one sees its list, adds to-dos and completes them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from server import answer, body, identity_of, page, read, requires, write

routes = web.RouteTableDef()

PAGE = """SELECT id, organization_id, created_by, title, completed_at, created_at FROM todos
          WHERE organization_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
INSERT = """INSERT INTO todos (organization_id, created_by, title) VALUES ($1, $2, $3)
            RETURNING id, organization_id, created_by, title, completed_at, created_at"""
COMPLETE = """UPDATE todos SET completed_at = coalesce(completed_at, now()) WHERE organization_id = $1 AND id = $2
              RETURNING id, organization_id, created_by, title, completed_at, created_at"""


class NewTodo(BaseModel):
    """What a client may say of a new to-do."""

    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(strict=True, min_length=1, max_length=200)]


@routes.get("/api/orgs/{org_id}/todos")
@requires(organization="org_id")
async def list_todos(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@routes.post("/api/orgs/{org_id}/todos")
@requires(organization="org_id", user=True)
async def create_todo(request: web.Request) -> web.Response:
    new, caller = await body(request, NewTodo), identity_of(request)
    return answer(await write(request, INSERT, caller.org_id, caller.user_id, new.title), 201)


@routes.post("/api/orgs/{org_id}/todos/{id}/complete")
@requires(organization="org_id", user=True)
async def complete_todo(request: web.Request) -> web.Response:
    try:
        todo = UUID(request.match_info["id"])
    except ValueError:
        raise web.HTTPNotFound from None
    row = await write(request, COMPLETE, identity_of(request).org_id, todo)
    if row is None:
        raise web.HTTPNotFound
    return answer(row)
