"""A product's routes as tools: of every access, with every kind of argument."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kits.app import routes_plugin
from server import (
    answer,
    body,
    caller_of,
    check_if_match,
    client_address,
    describe,
    entity_tag,
    event_stream,
    identity_of,
    limited,
    page,
    public,
    query,
    read,
    requires,
    scoped,
    signed_in,
)

seen: list[dict[str, Any]] = []
"""What handlers have seen of their requests; emptied by the tests."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewThing(Strict):
    name: Annotated[str, Field(strict=True, min_length=1, max_length=50, description="What it is called.")]
    payload: dict[str, Any] | None = None
    size: Annotated[int | None, Field(strict=True)] = None


class Thing(Strict):
    id: str
    name: str


class Listed(Thing):
    created_at: AwareDatetime


class Search(Strict):
    words: Annotated[list[str], Field(min_length=1, description="What to look for.")]
    exact: bool = False
    most: int | None = None


class Echo(Strict):
    path: dict[str, str]
    query: list[list[str]]
    body: Any


async def _echo(request: web.Request) -> web.Response:
    seen.append({"headers": dict(request.headers), "address": client_address(request), "path": request.raw_path})
    sent = await request.json() if request.can_read_body else None
    return answer({"path": dict(request.match_info), "query": [list(one) for one in request.query.items()], "body": sent})


@signed_in
@describe(returns=dict[str, Any], tool="whoami", summary="Say who is calling")
async def whoami(request: web.Request) -> web.Response:
    one = identity_of(request)
    return answer({"user_id": one.user_id, "org_id": one.org_id, "token_type": one.token_type, "impersonator": one.impersonator})


@requires(user=True)
@describe(body=NewThing, answers={201: Thing}, headers=["Location"], tool="add_thing", summary="Add a thing")
async def add_thing(request: web.Request) -> web.Response:
    new, caller = await body(request, NewThing), identity_of(request)
    async with scoped(request) as db:
        row = await db.row("INSERT INTO data (user_id, org_id, name) VALUES ($1, $2, $3) RETURNING id, name", caller.user_id, caller.org_id, new.name)
    return answer(row, 201, {"Location": "/api/things/new"})


@requires(user=True)
@describe(returns=list[Listed], page=True, tool="list_things", summary="List your things")
async def list_things(request: web.Request) -> web.Response:
    at = page(request)
    sql = "SELECT id, name, created_at FROM data WHERE user_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"
    return at.answer(await read(request, sql, identity_of(request).user_id, *at.args))


@signed_in
@describe(returns=Echo, tool="get_thing", summary="Get a thing")
async def get_thing(request: web.Request) -> web.Response:
    return await _echo(request)


@signed_in
@describe(returns=Echo)
async def secret_thing(request: web.Request) -> web.Response:
    """No tool; its path is one that the template of get_thing could produce too."""
    seen.append({"secret": True})
    return answer({"path": {}, "query": [], "body": "secret"})


@signed_in
@describe(query=Search, returns=Echo, tool="find.things", summary="Find things")
async def find_things(request: web.Request) -> web.Response:
    query(request, Search)
    return await _echo(request)


@signed_in
@describe(body=list[int], returns=Echo, tool="sum-up", summary="Add numbers")
async def sum_up(request: web.Request) -> web.Response:
    numbers = await body(request, list[int])
    return answer({"path": {}, "query": [], "body": sum(numbers)})


@signed_in
@describe(returns=Thing, if_match=True, headers=["ETag"], tool="replace_thing", summary="Replace a thing")
async def replace_thing(request: web.Request) -> web.Response:
    check_if_match(request, "now")
    return answer({"id": request.match_info["id"], "name": "now"}, 200, {"ETag": entity_tag("now")})


@requires(role="org:admin")
@describe(answers={204: None}, tool="delete_all", summary="Delete everything")
async def delete_all(request: web.Request) -> web.Response:
    seen.append({"deleted": True})
    return web.Response(status=204)


@requires(organization="org_id")
@describe(returns=Echo, tool="org_report", summary="The organisation's report")
async def org_report(request: web.Request) -> web.Response:
    return await _echo(request)


@requires(scopes=["things:write"])
@describe(body=NewThing, body_optional=True, returns=Echo, tool="scoped_thing", summary="Needs a scope")
async def scoped_thing(request: web.Request) -> web.Response:
    return await _echo(request)


@requires(accepts=["m2m_token"])
@describe(returns=Echo, tool="machines_only", summary="For machines")
async def machines_only(request: web.Request) -> web.Response:
    return await _echo(request)


@requires(impersonation=False)
@describe(returns=Echo, tool="in_person", summary="Not under impersonation")
async def in_person(request: web.Request) -> web.Response:
    return await _echo(request)


@signed_in
@limited(rate="3/minute", concurrency=1)
@describe(returns=dict[str, Any], tool="rarely", summary="Three times a minute")
async def rarely(request: web.Request) -> web.Response:
    return answer({})


@signed_in
@describe(answers={200: str}, content_type="text/plain", tool="as_text", summary="Some text")
async def as_text(request: web.Request) -> web.Response:
    return web.Response(text="schön")


@signed_in
@describe(returns=dict[str, Any], tool="broken", summary="Fails")
async def broken(request: web.Request) -> web.Response:
    raise RuntimeError("canary: what went wrong inside")


@signed_in
@describe(returns=dict[str, Any], tool="streaming", summary="Streams although it says it does not")
async def streaming(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    return response


@signed_in
@describe(returns=dict[str, Any], tool="live", summary="A stream although it says it is none")
async def live(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("hello")
    return stream.response


@signed_in
@describe(returns=dict[str, Any], tool="file", summary="A file although it says it is none")
async def file(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(__file__)


@signed_in
@describe(returns=dict[str, Any], tool="writes", summary="Writes to its connection")
async def writes(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    return answer({})


@signed_in
@describe(returns=dict[str, Any], tool="no_json", summary="Text although it says it is JSON")
async def no_json(request: web.Request) -> web.Response:
    return answer('{"not": json')


@public
@describe(returns=dict[str, Any], tool="open_door", summary="Public")
async def open_door(request: web.Request) -> web.Response:
    return answer({"known": caller_of(request) is not None})


PRODUCT = routes_plugin(
    web.get("/api/whoami", whoami),
    web.post("/api/things", add_thing),
    web.get("/api/things", list_things),
    web.get("/api/things/search", find_things),
    web.get("/api/things/secret", secret_thing),
    web.get("/api/things/{id}", get_thing),
    web.put("/api/things/{id}", replace_thing),
    web.delete("/api/things", delete_all),
    web.post("/api/sums", sum_up),
    web.get("/api/orgs/{org_id}/report", org_report),
    web.post("/api/scoped", scoped_thing),
    web.get("/api/machines", machines_only),
    web.get("/api/in-person", in_person),
    web.get("/api/rarely", rarely),
    web.get("/api/text", as_text),
    web.get("/api/broken", broken),
    web.get("/api/streaming", streaming),
    web.get("/api/live", live),
    web.get("/api/file", file),
    web.get("/api/writes", writes),
    web.get("/api/no-json", no_json),
    web.get("/api/public/open", open_door),
)
