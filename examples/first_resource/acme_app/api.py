"""Notes: everybody has their own."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from server import answer, body, hookimpl, identity_of, page, read, requires, scoped

routes = web.RouteTableDef()

PAGE = """SELECT id, text, created_at FROM notes
          WHERE user_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
ONE = "SELECT id, text, created_at FROM notes WHERE user_id = $1 AND id = $2"
INSERT = "INSERT INTO notes (user_id, text) VALUES ($1, $2) RETURNING id, text, created_at"


class NewNote(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: Annotated[str, Field(strict=True, min_length=1, max_length=2000)]


@routes.get("/api/notes")
@requires(user=True)
async def list_notes(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).user_id, *at.args))


@routes.post("/api/notes")
@requires(user=True)
async def create_note(request: web.Request) -> web.Response:
    new = await body(request, NewNote)
    async with scoped(request) as db:
        row = await db.row(INSERT, identity_of(request).user_id, new.text)
    return answer(row, 201)


@routes.get("/api/notes/{id}")
@requires(user=True)
async def get_note(request: web.Request) -> web.Response:
    try:
        note = UUID(request.match_info["id"])
    except ValueError:
        raise web.HTTPNotFound from None
    async with scoped(request) as db:
        row = await db.row(ONE, identity_of(request).user_id, note)
    if row is None:
        raise web.HTTPNotFound
    return answer(row)


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
