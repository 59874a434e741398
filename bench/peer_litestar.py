"""Litestar with its own JWTAuth and ServerSentEvent: a token is verified when the stream opens, and never again. It sends no keepalives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from litestar import Litestar, Request, get, post
from litestar.connection import ASGIConnection
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.security.jwt import JWTAuth, Token
from peer_shared import ISSUER, KEY, Hub, serve

hub = Hub()


@dataclass
class Caller:
    org: str


async def caller(token: Token, connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
    return Caller(token.extras["o"]["id"])


auth = JWTAuth[Caller](
    retrieve_user_handler=caller, token_secret=KEY, algorithm="RS256", accepted_issuers=[ISSUER], exclude=["^/rows", "^/schema"]
)


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    await hub.open()
    yield
    await hub.close()


@get("/events")
async def events(request: Request[Caller, Token, Any]) -> ServerSentEvent:
    async def stream() -> AsyncIterator[ServerSentEventMessage]:
        async for row in hub.rows(request.user.org):
            yield ServerSentEventMessage(event="created", data=row)

    return ServerSentEvent(stream())


@post("/rows/{org:str}/{name:str}", status_code=200)
async def add(org: str, name: str) -> float:
    return await hub.add(org, name)


app = Litestar([events, add], lifespan=[lifespan], on_app_init=[auth.on_app_init], openapi_config=None)

if __name__ == "__main__":
    serve(app, "litestar")
