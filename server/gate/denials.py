"""Makes the Decision that is reported about a request."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

from ..auth.identity import Identity
from ..http.client_address import ClientAddress
from ..http.errors import ApiError, Forbidden
from ..http.stamp import REQUEST_ID
from ..routing.table import RouteRule
from ..telemetry.decisions import Decision

BY_HANDLER: Final = Forbidden("handler")
_ROUTER: Final = {404: "no such path", 405: "the path has no such method"}


def denial(
    request: web.Request,
    rule: RouteRule | None,
    identity: Identity | None,
    error: ApiError | web.HTTPException,
    started: float,
    addresses: ClientAddress,
) -> Decision:
    """Returns the Decision about a refused request. `started`: when the gate received it, on the clock of time.perf_counter."""
    return Decision(
        request_id=request.get(REQUEST_ID, ""),
        method=request.method,
        route=rule.template if rule else "(none)",
        provider=identity.provider if identity else None,
        user_id=identity.user_id if identity else None,
        org_id=identity.org_id if identity else None,
        outcome={401: "unauthorized", 403: "forbidden"}.get(error.status, str(error.status)),
        reason=error.reason if isinstance(error, ApiError) else None,
        detail=error.for_log if isinstance(error, ApiError) else _ROUTER.get(error.status, ""),
        seconds=time.perf_counter() - started,
        client=addresses.of(request),
        inbound_request_id=addresses.inbound_request_id(request),
        actor=identity.audited_as if identity else None,
        impersonator=identity.impersonator if identity else None,
    )


def admission(request: web.Request, rule: RouteRule, identity: Identity | None, status: int, seconds: float) -> Decision:
    """Returns the Decision about an admitted request that took so many `seconds`; `status` is that of its response."""
    return Decision(
        request_id=request[REQUEST_ID],
        method=request.method,
        route=rule.template,
        provider=identity.provider if identity else None,
        user_id=identity.user_id if identity else None,
        org_id=identity.org_id if identity else None,
        outcome=str(status),
        reason=None,
        detail="",
        seconds=seconds,
        impersonator=identity.impersonator if identity else None,
    )


def by_handler(response: web.StreamResponse) -> Forbidden:
    """A 403 that a handler returned, with what the handler says about it for the log."""
    why = getattr(response, "for_log", "")
    return Forbidden("handler", for_log=why) if why else BY_HANDLER
