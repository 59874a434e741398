"""`Idempotency-Key`: a client that does not know whether its POST succeeded can repeat it, and it takes effect once.

The response is stored in the same transaction as the effect: both are committed or neither is. A repeated request gets the
stored response, after the gate has admitted it again. The header is that of draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from aiohttp import hdrs, web
from multidict import CIMultiDict

from ..auth.access import access_of, check
from ..auth.caller import caller_key
from ..auth.identity import IDENTITY, Identity
from ..database.request_transaction import JOINED, RequestTransaction, Rollback, one_transaction
from ..database.scope import DATABASE, scope_of, writer_of
from ..http.body_bytes import raw_body
from ..http.body_stream import IDEMPOTENCY_KEY
from ..http.calls_tools import may_call_tools
from ..http.describe import description_of, is_secret, mark_secret
from ..http.errors import BadRequest, Conflict, Unprocessable
from ..http.protocol import Handler
from ..http.response import STANDARD_HEADERS
from ..routing.table import RouteRule

KEY: Final = IDEMPOTENCY_KEY
KEEP_SECONDS: Final = web.AppKey("idempotency_keep_seconds", float)
MOST_BYTES: Final = 262_144  # of a response that is stored; the same number is in schema.sql
_KEPT_HEADERS: Final = (hdrs.CONTENT_TYPE, hdrs.ETAG, hdrs.LINK, hdrs.LOCATION)
_BARE: Final = re.compile(r"[!#-~][!-~]{0,254}\Z")
_QUOTED: Final = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])+)"\Z')  # a String of RFC 8941 3.3.3, here without spaces
_FIND: Final = """SELECT fingerprint, status, headers::text, body, withheld, expires_at <= now() AS expired
                  FROM idempotency_keys WHERE hash = $1"""
_DELETE: Final = "DELETE FROM idempotency_keys WHERE hash = $1"
_SAVE: Final = """INSERT INTO idempotency_keys (hash, user_id, org_id, fingerprint, status, headers, body, withheld, expires_at)
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9))"""
H = TypeVar("H", bound=Callable[..., Awaitable[web.StreamResponse]])


def answers_secret(handler: H) -> H:
    """Mark a handler whose response contains a secret that is shown once: the response is never stored, a repeat gets 409.

    Goes above or below the decorator that declares the access.
    """
    mark_secret(handler)
    return handler


def respond(request: web.Request, match: web.UrlMappingMatchInfo, rule: RouteRule) -> Awaitable[web.StreamResponse]:
    """The response of the route's handler to a request that the gate has admitted. Raises as `once`."""
    if request._method == hdrs.METH_POST and KEY in request._headers:
        return once(request, match.handler, rule.template)
    return match.handler(request)


async def once(request: web.Request, handler: Handler, template: str) -> web.StreamResponse:
    """Respond to a POST that has an `Idempotency-Key`: from its handler the first time, then from the stored response.

    For a request that the gate has admitted; `template` is the route's path. Raises an ApiError, which becomes the
    response: 400 for an invalid key or a handler that streams its body, what `raw_body` raises except 411 (a handler that
    needs a body raises it itself), 409 while a request with the same key is in progress or if its response was not stored,
    422 if the key was used for a different request, and 503, after which nothing has been stored. Where the handler calls
    tools, the key is left to them.
    """
    if may_call_tools(request.match_info.handler):
        return await handler(request)  # the key is that of the tool's route
    key, identity = _key(request), request[IDENTITY]
    scope = scope_of(request)
    if not (identity.user_id or identity.org_id):
        raise BadRequest("idempotency-key-unowned")  # no tenant, so no row can belong to this caller
    described = description_of(request.match_info.handler)
    if described is not None and described.body_stream:  # to compare it with a repeat's, the body would have to be kept
        raise BadRequest("idempotency-key-unsupported")
    body = await raw_body(request) if request.body_exists else b""
    name, fingerprint = _name(identity, request.method, template, key), _fingerprint(request, key, body)
    response: Any = None
    lock = int.from_bytes(name[:8], "big", signed=True)
    async with one_transaction(request.app[DATABASE], scope, lock, writer_of(request), caller_key(identity)) as joined:
        if joined is None:
            raise _in_progress()
        stored = await _find(joined, name)
        if stored is not None:
            return _replay(request, stored, fingerprint)
        response = await _run(request, handler, joined)
        if not isinstance(response, web.StreamResponse) or response.status >= 400:
            raise Rollback
        await _save(joined, name, identity.user_id, identity.org_id, fingerprint, *_stored_form(request, response))
    return response  # the dispatcher turns anything but a response into a 500


async def _find(joined: RequestTransaction, name: bytes) -> Mapping[str, Any] | None:
    """Returns the row stored under this name, or None. An expired one is deleted, so that the name can be used again."""
    stored = await joined.outermost.fetchrow(_FIND, name)
    if stored is not None and stored["expired"]:
        await joined.outermost.execute(_DELETE, name)
        return None
    return stored


async def _save(joined: RequestTransaction, *row: Any) -> None:
    try:
        await joined.run_last(_SAVE, *row)
    except Conflict:
        # Another request stored it first. The lock prevents this unless the database's default isolation reads an old snapshot.
        raise _in_progress() from None


async def _run(request: web.Request, handler: Handler, joined: RequestTransaction) -> Any:
    """Run the handler with all its database work in the transaction; returns what it returns."""
    request[JOINED] = joined
    try:
        return await handler(request)
    except web.HTTPException as raised:
        if raised.status >= 400:
            raise
        # A response that was raised, such as a redirect: its effects are committed. Only its meaningful headers are kept.
        return web.Response(
            status=raised.status, headers={n: raised.headers[n] for n in _KEPT_HEADERS[1:] if n in raised.headers}
        )
    finally:
        del request[JOINED]


def _replay(request: web.Request, stored: Mapping[str, Any], fingerprint: bytes) -> web.Response:
    """Returns the stored response. The handler's access (lock 2) is checked here, because its wrapper does not run."""
    access = access_of(request.match_info.handler)
    if access is not None:
        check(access, request[IDENTITY], request.match_info)
    if stored["fingerprint"] != fingerprint:
        raise _OtherRequest
    if stored["withheld"] is not None:
        raise Conflict(f"idempotency-{stored['withheld']}-not-kept")
    headers: CIMultiDict[str] = STANDARD_HEADERS.copy()
    headers.update(json.loads(stored["headers"]))
    headers["Idempotency-Replayed"] = "true"
    return web.Response(body=stored["body"], status=stored["status"], headers=headers)


def _stored_form(request: web.Request, response: web.StreamResponse) -> tuple[int, str, bytes | None, str | None, float]:
    """Returns what is stored of a response: (status, headers, body, why there is no body, lifetime in seconds)."""
    seconds = request.app[KEEP_SECONDS]
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    if is_secret(request.match_info.handler):
        return response.status, "{}", None, "secret", seconds
    body = response.body if isinstance(response, web.Response) else None
    if body is None and isinstance(response, web.Response):
        body = b""
    if response.prepared or not isinstance(body, bytes | bytearray) or len(body) > MOST_BYTES:
        return response.status, "{}", None, "answer", seconds  # too large, or streamed: the key still prevents a second run
    return response.status, json.dumps(headers), bytes(body), None, seconds


def _key(request: web.Request) -> str:
    """The client's key: 1 to 255 visible ASCII characters. Bare or as a quoted string, it is the same key."""
    given = request.headers.getall(KEY)
    if len(given) == 1:
        if _BARE.match(given[0]):
            return given[0]
        if quoted := _QUOTED.match(given[0]):
            key = re.sub(r"\\(.)", r"\1", quoted[1])
            if len(key) <= 255:
                return key
    raise BadRequest("idempotency-key-malformed")


def _name(identity: Identity, method: str, template: str, key: str) -> bytes:
    """The row's name: SHA-256 of the caller, the route and the client's key, so no key leads to another caller's row.

    An organisation's API key has no user: the key itself is then the caller, so two such keys are two callers. A user and who
    impersonates them are two callers too: neither gets the other's response in place of an effect.
    """
    caller = [identity.provider, identity.user_id, identity.org_id, None if identity.user_id else identity.key_id]
    if identity.impersonator is not None:
        caller.append(identity.impersonator)
    return hashlib.sha256(json.dumps([*caller, method, template, key]).encode()).digest()


def _fingerprint(request: web.Request, key: str, body: bytes) -> bytes:
    """SHA-256 of what must be equal in a repeated request: path, query, content type and body; the client's key is the salt."""
    head = [key, request.rel_url.raw_path_qs, request.headers.getall(hdrs.CONTENT_TYPE, [])]
    return hashlib.sha256(json.dumps(head).encode() + b"\0" + body).digest()


def _in_progress() -> Conflict:
    return Conflict("idempotency-in-progress", headers={"Retry-After": "1"})


class _OtherRequest(Unprocessable):
    """The key was already used for a different request."""

    def __init__(self) -> None:
        super().__init__([{"field": KEY, "message": "was already used for a different request"}])
        self.reason = "idempotency-key-reused"
