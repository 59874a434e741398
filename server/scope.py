"""Whose rows: the caller's scope for the database, and the two ways a handler reaches it."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from .access import IDENTITY, access_of
from .answers import Rows
from .database import NO_SCOPE, Database, Scope

DATABASE: Final = web.AppKey("database", Database)


def scope_of(request: web.Request) -> Scope:
    """(user, organisation, admin organisation) of the caller; empty texts where there is none."""
    identity = request.get(IDENTITY)
    if identity is None:
        return NO_SCOPE
    org = identity.org_id or ""
    access = access_of(request.match_info.handler)
    admin = org if access is not None and access.as_admin else ""
    return (identity.user_id or "", org, admin)


async def read(request: web.Request, sql: str, *args: Any) -> Rows:
    """Run one SELECT under the caller's scope in one round trip; its rows as JSON made by Postgres.

    Pass identities as arguments (`identity_of(request).user_id`), never the client's word for them.
    """
    return await request.app[DATABASE].read(scope_of(request), sql, args)


def scoped(request: web.Request) -> Any:
    """`async with scoped(request) as db:` one transaction under the caller's scope, committed before the answer."""
    return request.app[DATABASE].scoped(scope_of(request))
