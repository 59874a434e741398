"""What the listeners of denials receive about a request that was turned away."""

from __future__ import annotations

import time

from aiohttp import web

from ..auth.identity import Identity
from ..http.client_address import ClientAddress
from ..http.errors import ApiError, BadRequest, Forbidden, Unauthorized
from ..http.stamp import REQUEST_ID
from ..routing.table import RouteRule
from ..telemetry.decisions import Decision


def denial(
    request: web.Request,
    rule: RouteRule | None,
    identity: Identity | None,
    error: ApiError | web.HTTPException,
    started: float,
    addresses: ClientAddress,
) -> Decision:
    """The Decision about a denied request. `started` is when the gate received it, on the clock of time.perf_counter."""
    return Decision(
        request.get(REQUEST_ID, ""),
        request.method,
        rule.template if rule else "(none)",
        identity.provider if identity else None,
        identity.user_id if identity else None,
        identity.org_id if identity else None,
        {401: "unauthorized", 403: "forbidden"}.get(error.status, str(error.status)),
        error.reason if isinstance(error, Unauthorized | Forbidden | BadRequest) else None,
        error.detail if isinstance(error, Unauthorized) else "",
        time.perf_counter() - started,
        addresses.of(request),
        addresses.inbound_request_id(request),
        identity.audited_as if identity else None,
        identity.impersonator if identity else None,
    )
