"""`Rows.only`: the row of a SELECT of at most one, as a plugin's handler reads it."""

from __future__ import annotations

from aiohttp import web

from server import answer, read, signed_in
from tests.conftest import ALICE, BOB, Serve, TestDatabase, plugin

COLUMNS = "name, payload"


@signed_in
async def named(request: web.Request) -> web.Response:
    rows = await read(request, f"SELECT {COLUMNS} FROM data WHERE name = $1", request.match_info["name"])
    row = rows.only()
    if row is None:
        raise web.HTTPNotFound
    return answer(row)


async def test_one_row_none_and_several(serve: Serve, db: TestDatabase) -> None:
    """The row's JSON as Postgres made it; another caller's row is no row; of several rows none is chosen."""
    client = await serve(extra={"named": plugin(web.get("/named/{name}", named))})
    text = '[1, {"b": "\\u001e, }{"}, "ü"]'
    await db.rows("INSERT INTO data (user_id, name, payload) VALUES ('alice', 'one', jsonb_build_object('a', $1::jsonb)),"
                  " ('alice', 'twice', '{}'), ('alice', 'twice', '{}'), ('bob', 'bobs', '{}')", text)  # fmt: skip
    got = await client.get("/named/one", ALICE)
    assert got.json() == {"name": "one", "payload": {"a": [1, {"b": "\x1e, }{"}, "ü"]}}
    assert [(await client.get(f"/named/{name}", ALICE)).status for name in ("none", "bobs", "twice")] == [404, 404, 500]
    assert (await client.get("/named/bobs", BOB)).json() == {"name": "bobs", "payload": {}}
    assert (await client.get("/named/one", BOB)).status == 404
