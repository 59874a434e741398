"""The outermost layer of every request: its id, malformed targets, cross-origin headers, and errors as JSON.

Preflights are handled here, before the gate: the response is the same for every path, and no handler runs.
"""

from __future__ import annotations

import time

from aiohttp import hdrs, web

from ..auth.identity import IDENTITY
from ..http.backlog import Backlog
from ..http.cors import Cors
from ..http.errors import ApiError, BadRequest, ServiceUnavailable, Unavailable, error_response, from_http
from ..http.response import JsonResponse
from ..http.stamp import OPENED, REQUEST_ID, new_request_id, stamp
from ..http.targets import malformed
from ..rate_limits.callers import LEASE, mark
from ..routing.resolver import Resolver
from ..routing.table import RouteRule
from ..telemetry.decisions import Decision, Listener
from ..telemetry.log import LOG, log_failure
from ..telemetry.metrics import NO_ROUTE, Metrics
from .admission import Gate

_VERSIONS = frozenset({(1, 0), (1, 1)})


class Dispatcher:
    """Passes each request to the gate and returns its response with the standard headers.

    Every exception becomes a JSON error response.
    """

    def __init__(
        self, lookup: Resolver, cors: Cors, gate: Gate, metrics: Metrics, backlog: Backlog, served: Listener | None = None
    ) -> None:
        """While `backlog` is full requests are refused with 503.

        `served` receives a Decision for every request that was routed and admitted; None: no Decision is made.
        """
        self._lookup, self._cors, self._gate, self._backlog, self._served = lookup, cors, gate, backlog, served
        self._nowhere = metrics.tally("(any)", NO_ROUTE)
        self.draining = False
        """Set when the server is about to stop: each connection is then closed after its last response (RFC 9112 9.6)."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The response to a request, also when its handler fails or returns something that is not a response."""
        started = time.perf_counter()
        request_id = new_request_id()
        request[REQUEST_ID] = request_id
        try:
            if self._backlog.full:
                raise ServiceUnavailable
            match = self._lookup.at_once(request)
            if match is None or request.version not in _VERSIONS:
                response = await self._by_the_long_way(request)
            else:
                request._match_info = match
                response = await self._gate.admit(request, match)
        except ApiError as error:
            response = error.response()
        except web.HTTPException as error:
            response = from_http(error)
        except web.RequestPayloadError:  # a handler that reads the body by aiohttp's own means
            response = BadRequest().response()
        except Unavailable as outage:
            log_failure("unavailable", outage, request_id=request_id, why=str(outage))
            response = ServiceUnavailable(outage.retry_after).response()
        except Exception as error:
            route = request.match_info.route.name if request._match_info is not None else None
            log_failure("handler failed", error, request_id=request_id, route=route or "")
            response = error_response(500)
        if type(response) is not JsonResponse or response.prepared:
            response = _sendable(response, request)
        rule = self._gate.rule_of(request)
        if type(response) is JsonResponse or not response.prepared:
            self._finish(request, response, request_id, rule)
        seconds = time.perf_counter() - started
        (self._nowhere if rule is None else rule.tally).add(response.status, seconds)
        if self._served is not None and rule is not None:
            self._tell(request, response, rule, seconds)
        return response

    async def _by_the_long_way(self, request: web.Request) -> web.StreamResponse:
        if request.version not in _VERSIONS or malformed(request.raw_path):
            raise BadRequest
        if request.method == hdrs.METH_OPTIONS and (preflight := self._cors.preflight(request)) is not None:
            return preflight
        match = request._match_info = await self._lookup.resolve(request)
        return await self._gate.admit(request, match)

    def _tell(self, request: web.Request, response: web.StreamResponse, rule: RouteRule, seconds: float) -> None:
        identity = request.get(IDENTITY)
        if self._served is None or (identity is None and OPENED not in request):
            return  # the gate has reported it already
        provider = user_id = org_id = impersonator = None
        if identity is not None:
            provider, user_id, org_id = identity.provider, identity.user_id, identity.org_id
            impersonator = identity.impersonator
        first = (request[REQUEST_ID], request.method, rule.template, provider, user_id, org_id)
        self._served(Decision(*first, str(response.status), None, "", seconds, impersonator=impersonator))

    def _finish(self, request: web.Request, response: web.StreamResponse, request_id: str, rule: RouteRule | None) -> None:
        # A 304 updates a cached 200: with `no-store` it would forbid caching it (RFC 9111 4.3.4).
        cacheable = rule is not None and rule.public and (response.status < 300 or response.status == 304)
        # What a known caller gets is theirs alone.
        cacheable = cacheable and not (rule is not None and rule.optional and IDENTITY in request)
        stamp(response, request_id, cacheable=cacheable)
        if (lease := request.get(LEASE)) is not None:
            mark(response, lease)
        if self.draining and not request.protocol._messages:  # otherwise pipelined requests would get no response
            response.force_close()
        if hdrs.ORIGIN in request.headers:
            self._cors.mark(request, response)


def _sendable(response: object, request: web.Request) -> web.StreamResponse:
    """A handler's result as a response that can be sent: 500 for what is no response, or was sent for another request."""
    if isinstance(response, web.HTTPException):  # returned instead of raised
        return from_http(response)
    if not isinstance(response, web.StreamResponse):
        LOG.error("a handler returned no response", extra={"fields": {"type": type(response).__name__}})
        return error_response(500)
    if type(response) is JsonResponse or not _is_new(response, request):
        LOG.error("a response object was used for two requests", extra={"fields": {"request_id": request[REQUEST_ID]}})
        return error_response(500)
    return response


def _is_new(response: web.StreamResponse, request: web.Request) -> bool:
    """Whether the response was not prepared before, or for this request alone."""
    return not response.prepared or response._req is request or request.writer.output_size > 0
