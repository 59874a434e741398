"""FastAPI with sse-starlette, as their documentation shows it: a token is verified when the stream opens, and never again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from peer_shared import ISSUER, KEY, Hub, serve
from sse_starlette import EventSourceResponse

hub = Hub()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await hub.open()
    yield
    await hub.close()


def caller(credential: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> dict[str, Any]:
    try:
        return jwt.decode(credential.credentials, KEY, algorithms=["RS256"], issuer=ISSUER, options={"verify_aud": False})
    except jwt.PyJWTError as error:
        raise HTTPException(401) from error


Caller = Annotated[dict[str, Any], Depends(caller)]
app = FastAPI(lifespan=lifespan)


@app.get("/events")
async def events(claims: Caller) -> EventSourceResponse:
    async def stream() -> AsyncIterator[dict[str, str]]:
        async for row in hub.rows(claims["o"]["id"]):
            yield {"event": "created", "data": row}

    return EventSourceResponse(stream(), ping=15)


@app.post("/rows/{org}/{name}")
async def add(org: str, name: str) -> float:
    return await hub.add(org, name)


if __name__ == "__main__":
    serve(app, "fastapi")
