"""To-do lists of organisations: members see and tick off, administrators delete."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from server import answer, body, describe, hookimpl, identity_of, page, read, requires, write

routes = web.RouteTableDef()

COLUMNS = "id, organization_id, created_by, title, done, created_at"
PAGE = f"""SELECT {COLUMNS} FROM todos
           WHERE organization_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
INSERT = f"INSERT INTO todos (organization_id, created_by, title) VALUES ($1, $2, $3) RETURNING {COLUMNS}"
UPDATE = f"UPDATE todos SET done = $3 WHERE organization_id = $1 AND id = $2 RETURNING {COLUMNS}"
DELETE = "DELETE FROM todos WHERE organization_id = $1 AND id = $2 RETURNING id"


class NewTodo(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: Annotated[str, Field(strict=True, min_length=1, max_length=200)]


class Change(BaseModel):
    model_config = ConfigDict(extra="forbid")
    done: Annotated[bool, Field(strict=True)]


class Todo(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: UUID
    organization_id: str
    created_by: str
    title: str
    done: bool
    created_at: AwareDatetime


class Deleted(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: UUID


@routes.get("/api/orgs/{org_id}/todos")
@requires(organization="org_id")
@describe(returns=list[Todo], page=True, summary="List the organisation's to-dos, newest first")
async def list_todos(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@routes.post("/api/orgs/{org_id}/todos")
@requires(organization="org_id", user=True)
@describe(body=NewTodo, answers={201: Todo}, summary="Add a to-do")
async def add_todo(request: web.Request) -> web.Response:
    new, caller = await body(request, NewTodo), identity_of(request)
    return answer(await write(request, INSERT, caller.org_id, caller.user_id, new.title), 201)


@routes.patch("/api/orgs/{org_id}/todos/{id}")
@requires(organization="org_id")
@describe(body=Change, returns=Todo, summary="Tick a to-do off, or on again")
async def change_todo(request: web.Request) -> web.Response:
    todo, change = id_of(request), await body(request, Change)
    return found(await write(request, UPDATE, identity_of(request).org_id, todo, change.done))


@routes.delete("/api/orgs/{org_id}/todos/{id}")
@requires(organization="org_id", role="org:admin")
@describe(returns=Deleted, summary="Delete a to-do")
async def delete_todo(request: web.Request) -> web.Response:
    todo = id_of(request)
    return found(await write(request, DELETE, identity_of(request).org_id, todo))


def id_of(request: web.Request) -> UUID:
    try:
        return UUID(request.match_info["id"])
    except ValueError:
        raise web.HTTPNotFound from None


def found(row: str | None) -> web.Response:
    if row is None:
        raise web.HTTPNotFound
    return answer(row)


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
