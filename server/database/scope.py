"""The caller's database scope, and the functions `read`, `write` and `scoped`, with which handlers use it."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from ..auth.access import access_of
from ..auth.caller import caller_key
from ..auth.identity import IDENTITY
from ..http.answers import Rows
from ..http.errors import Forbidden
from ..http.stamp import REQUEST_ID
from .connections import NO_SCOPE, Database, Scope, Writer
from .request_transaction import JOINED, RequestTransaction

DATABASE: Final = web.AppKey("database", Database)


def scope_of(request: web.Request, *, admin: bool = False) -> Scope:
    """(user, organisation, admin organisation) of the caller; empty texts where there is none.

    The admin organisation is set where the route's access requires the role org:admin. `admin=True` sets it on a route
    that serves other callers too, and raises Forbidden (403 `role`) unless this caller has the role.
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
    """(actor, request id): what the audit log records about the writer; empty texts where there is none.

    An impersonator follows the actor after a line feed, which neither of the two can contain: schema.sql says why.
    """
    identity = request.get(IDENTITY)
    if identity is None:
        return ("", request.get(REQUEST_ID, ""))
    actor = identity.audited_as
    if identity.impersonator is not None:
        actor = f"{actor}\n{identity.impersonator}"
    return (actor, request.get(REQUEST_ID, ""))


def caller_key_of(request: web.Request) -> str | None:
    """The caller for whom the request's connections are counted; None on a public route."""
    identity = request.get(IDENTITY)
    return caller_key(identity) if identity is not None else None


async def read(request: web.Request, sql: str, *args: Any, admin: bool = False) -> Rows:
    """Run one SELECT under the caller's scope in one round trip; returns its rows as a JSON array that Postgres makes.

    `sql` uses `$1`, `$2`, … for `args`. Take identities from `identity_of(request)`, never from what the client sends.
    `.only()` on what it returns is the JSON of the row, for a SELECT of at most one; None without a row.
    With the arguments of a `page` it stops reading at `limits.page_bytes` bytes. The SELECT must change nothing: under load it
    may be run twice.
    `admin`: as in `scoped`. Raises ValueError for SQL that is no SELECT, Unavailable (503) without a database, Forbidden.
    """
    database: Database | RequestTransaction = request.get(JOINED) or request.app[DATABASE]
    return await database.read(scope_of(request, admin=admin), sql, args, caller_key_of(request))


async def write(request: web.Request, sql: str, *args: Any, admin: bool = False) -> str | None:
    """Run one write under the caller's scope in one round trip; returns its row as JSON that Postgres makes, or None.

    `sql` is one INSERT, UPDATE, DELETE or MERGE with RETURNING, of at most one row; None means that it wrote no row. A second
    row raises StatementError (a 500), and nothing is written. The row is committed when this returns, so use `scoped` if
    something after it may still refuse the request, and for more than one statement. `args`, `admin` and what it raises are as
    in `scoped` and its `db.row`; ValueError for SQL that is no write.
    """
    database: Database | RequestTransaction = request.get(JOINED) or request.app[DATABASE]
    return await database.write(scope_of(request, admin=admin), writer_of(request), sql, args, caller_key_of(request))


def scoped(request: web.Request, *, admin: bool = False) -> Any:
    """`async with scoped(request) as db:` one transaction under the caller's scope, committed at the end of the block.

    `db` has `fetch`, `fetchrow`, `fetchval`, `execute` and `row`. The transaction is rolled back when the block raises.
    `admin=True`: as the organisation's administrator, on a route that serves other callers too. Where the route's access
    requires the role org:admin that is the default. Raises Forbidden (403 `role`) unless the caller is an administrator,
    Unavailable (503) without a database.
    """
    database: Database | RequestTransaction = request.get(JOINED) or request.app[DATABASE]
    return database.scoped(scope_of(request, admin=admin), writer_of(request), caller_key_of(request))
