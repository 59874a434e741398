"""A product's own table beside the built-in ones, and handlers that run the SQL of a test in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from server import answer, hookimpl, signed_in

LABELS = """
CREATE TABLE labels (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id text NOT NULL,
    name text NOT NULL,
    parent bigint REFERENCES labels,
    size smallint NOT NULL DEFAULT 1 CONSTRAINT labels_size CHECK (size > 0),
    at jsonb,
    more jsonb[],
    later text CONSTRAINT labels_later UNIQUE DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT labels_name UNIQUE (organization_id, name)
);
ALTER TABLE labels ENABLE ROW LEVEL SECURITY;
ALTER TABLE labels FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON labels FOR ALL TO {role}
    USING (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''))
    WITH CHECK (organization_id = NULLIF(current_setting('gatepost.org_id', true), ''));
GRANT SELECT, DELETE, INSERT (organization_id, name, parent, size, at, more, later), UPDATE (name, parent, size, at) ON labels TO {role};
SELECT gatepost_audit('labels', 'organization_id');
"""

Work = Callable[[web.Request], Awaitable[Any]]


@asynccontextmanager
async def labels(db: Any) -> AsyncIterator[Any]:
    """The database with the table `labels`, an organisation's, whose names are unique in it."""
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(LABELS.format(role=db.server.serving_role))
        try:
            yield db
        finally:
            await admin.execute("DROP TABLE labels")


def at_work(work: Work, method: str = "GET") -> object:
    """A plugin whose one route, /work, does this work for any signed-in caller, and answers what it returns."""

    @signed_in
    async def handler(request: web.Request) -> web.Response:
        return answer({"result": await work(request)})

    class Plugin:
        @staticmethod
        @hookimpl
        def register_handlers() -> list[web.RouteDef]:
            return [web.get("/work", handler), web.post("/work", handler)]

    return Plugin
