"""Whose rows: the caller's scope for the database, and the two ways a handler reaches it."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from ..auth.access import access_of
from ..auth.identity import IDENTITY
from ..http.answers import Rows
from ..http.errors import Forbidden
from ..http.stamp import REQUEST_ID
from .connections import NO_SCOPE, Database, Scope, Writer
from .request_transaction import JOINED, RequestTransaction

DATABASE: Final = web.AppKey("database", Database)


def scope_of(request: web.Request, *, admin: bool = False) -> Scope:
    """(user, organisation, admin organisation) of the caller; empty texts where there is none.

    The admin organisation is there where the route's access requires the role org:admin. `admin=True` asks for it on a
    route that serves others too: it is a 403 `role` unless this caller has the role, whatever the handler believes.
    """
    identity = request.get(IDENTITY)
    if admin and (identity is None or not identity.has(role="org:admin")):
        raise Forbidden("role")
    if identity is None:
        return NO_SCOPE
    org = identity.org_id or ""
    access = access_of(request.match_info.handler)
    if not admin:
        admin = access is not None and access.as_admin
    return (identity.user_id or "", org, org if admin else "")


def writer_of(request: web.Request) -> Writer:
    """(actor, request id): what the audit log notes of who writes; empty texts where there is none."""
    identity = request.get(IDENTITY)
    return (identity.audited_as if identity is not None else "", request.get(REQUEST_ID, ""))


async def read(request: web.Request, sql: str, *args: Any, admin: bool = False) -> Rows:
    """Run one SELECT under the caller's scope in one round trip; its rows as JSON made by Postgres.

    Pass identities as arguments (`identity_of(request).user_id`), never the client's word for them.
    `admin`: as in `scoped`.
    """
    database: Database | RequestTransaction = request.get(JOINED) or request.app[DATABASE]
    return await database.read(scope_of(request, admin=admin), sql, args)


def scoped(request: web.Request, *, admin: bool = False) -> Any:
    """`async with scoped(request) as db:` one transaction under the caller's scope, committed before the answer.

    `admin=True`: as the organisation's administrator, on a route that serves others too; 403 `role` unless the caller
    is one. Where the route's access requires the role org:admin this is so without being asked.
    """
    database: Database | RequestTransaction = request.get(JOINED) or request.app[DATABASE]
    return database.scoped(scope_of(request, admin=admin), writer_of(request))
