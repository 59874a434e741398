"""The physical limit: aiohttp, uvloop and asyncpg with NO lock at all. It trusts whatever the client claims to be.

The same rows from the same kind of table (without row-level security, read by its owner), a pool as large as the connections,
no reset of a connection between two requests, JSON by msgspec with Postgres's jsonb passed through. What Gatepost costs is
told as a ratio to this, in the same run.

Environment: LIMIT_DATABASE is a Postgres URL, LIMIT_POOL the number of connections. It prints where it serves.
"""

from __future__ import annotations

import asyncio
import os

import asyncpg
import msgspec
import uvloop
from aiohttp import web

QUERY = """SELECT id, user_id, org_id, name, payload, created_at, updated_at FROM data
           WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 20"""
HEADERS = {"Content-Type": "application/json"}
POOL = web.AppKey("pool", asyncpg.Pool)
INSERT = """INSERT INTO data (user_id, org_id, name, payload) VALUES ($1, $2, $3, $4)
            RETURNING id, user_id, org_id, name, payload, created_at, updated_at"""


class New(msgspec.Struct, forbid_unknown_fields=True):
    """A row as the client sends it."""

    name: str
    payload: msgspec.Raw


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(New).decode


def respond(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers=HEADERS)


async def health(request: web.Request) -> web.Response:
    return respond(b'{"status": "ok"}')


async def me(request: web.Request) -> web.Response:
    user = request.headers.get("X-User-Id")
    if user is None:
        return respond(b'{"error": "Unauthorized"}', 401)
    return respond(encode({"user_id": user, "org_id": request.headers.get("X-Org-Id")}))


async def data(request: web.Request) -> web.Response:
    user = request.headers.get("X-User-Id")
    if user is None:
        return respond(b'{"error": "Unauthorized"}', 401)
    async with request.app[POOL].acquire() as connection:
        rows = await connection.fetch(QUERY, user)
    return respond(encode([dict(row) for row in rows]))


async def add(request: web.Request) -> web.Response:
    user = request.headers.get("X-User-Id")
    if user is None:
        return respond(b'{"error": "Unauthorized"}', 401)
    new = decode(await request.read())
    async with request.app[POOL].acquire() as connection:
        row = await connection.fetchrow(INSERT, user, request.headers.get("X-Org-Id"), new.name, bytes(new.payload).decode())
    return respond(encode(dict(row)), 201)


async def prepare(connection: asyncpg.Connection) -> None:
    """jsonb goes through as it is, and a uuid as its text."""
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", format="text", encoder=str, decoder=lambda text: msgspec.Raw(text.encode())
    )


async def no_reset(connection: asyncpg.Connection) -> None:
    """The default is one more round trip for each request."""


async def main() -> None:
    size = int(os.environ["LIMIT_POOL"])
    app = web.Application()
    app[POOL] = await asyncpg.create_pool(
        os.environ["LIMIT_DATABASE"], min_size=size, max_size=size, init=prepare, reset=no_reset
    )
    app.add_routes([web.get("/api/health", health), web.get("/api/me", me), web.get("/api/data", data), web.post("/api/data", add)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"limit serves on 127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
