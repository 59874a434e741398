"""The outermost layer of every request: its id, malformed targets, cross-origin headers, and errors as JSON.

Preflights are handled here, before the gate: the response is the same for every path, and no handler runs.
"""

from __future__ import annotations

import time

from aiohttp import hdrs, web

from ..auth.identity import IDENTITY
from ..http.backlog import Backlog
from ..http.cors import Cors
from ..http.error_bodies import STANDARD, ErrorBodies
from ..http.errors import ApiError, BadRequest, ServiceUnavailable, Unavailable
from ..http.files import answer_errors, discard_body
from ..http.response import NO_STORE, JsonResponse
from ..http.retry_after import RETRIED, set_retry_after
from ..http.stamp import OPENED, REQUEST_ID, forbid_storing, new_request_id, stamp
from ..http.targets import malformed
from ..rate_limits.callers import LEASE, mark
from ..routing.resolver import Resolver
from ..routing.table import RouteRule
from ..telemetry.decisions import Listener
from ..telemetry.log import LOG, log_failure
from ..telemetry.metrics import NO_ROUTE, Metrics
from .admission import Gate
from .challenges import Challenges, add_providers, with_providers
from .denials import admission, by_handler
from .refusals import REPORTED, failure_of, is_of_the_body, log_error, log_response

_VERSIONS = frozenset({(1, 0), (1, 1)})


class Dispatcher:
    """Passes each request to the gate and returns its response with the standard headers.

    Every exception becomes a JSON error response.
    """

    def __init__(
        self,
        lookup: Resolver,
        cors: Cors,
        gate: Gate,
        metrics: Metrics,
        backlog: Backlog,
        served: Listener | None = None,
        errors: ErrorBodies = STANDARD,
        challenges: Challenges | None = None,
    ) -> None:
        """While `backlog` is full requests are refused with 503. `errors` makes the bodies of errors.

        `challenges` completes the challenges of refusals; None: they are sent as they were raised.
        `served` receives a Decision for every request that was routed and admitted; None: no Decision is made.
        """
        self._lookup, self._cors, self._gate, self._backlog, self._served = lookup, cors, gate, backlog, served
        self._errors, self._challenges = errors, challenges
        self._rules = gate.rules
        self._uncached: set[str] = set()
        self._nowhere = metrics.tally("(any)", NO_ROUTE)
        self.draining = False
        """Set when the server is about to stop: each connection is then closed after its last response (RFC 9112 9.6)."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The response to a request, also when its handler fails or returns something that is not a response."""
        started = time.perf_counter()
        request_id, backlog = new_request_id(), self._backlog
        request._state[REQUEST_ID] = request_id
        try:
            if backlog.bodies + backlog.responses > backlog.most:
                raise ServiceUnavailable(for_log="overload")
            match = self._lookup.at_once(request)
            if match is None or request._version not in _VERSIONS:
                response = await self._resolve_and_admit(request, started)
            else:
                request._match_info = match
                response = await self._gate.admit(request, match, started)
        except BaseException as error:
            response = self._response_to(request, failure_of(error), started)
        if type(response) is not JsonResponse or response._eof_sent or response._payload_writer is not None:
            response = self._sendable(response, request)
        match = request._match_info
        rule = self._rules.get(match._route) if match is not None else None
        status = response._status
        if status >= 400:
            self._log_error(request, rule, response, started)
        if type(response) is JsonResponse or not response.prepared:
            self._finish(request, response, request_id, rule)
        seconds = time.perf_counter() - started
        (self._nowhere if rule is None else rule.tally).add(status, seconds)
        if self._served is not None and rule is not None:
            self._report(request, response, rule, seconds)
        return response

    def _response_to(self, request: web.Request, error: BaseException, started: float) -> web.StreamResponse:
        """The response to whatever was raised further in. `started`: when the request was received, by time.perf_counter."""
        if isinstance(error, ApiError):
            if error.status == 403:
                self._gate.report(request, error, started)
            return self._refusal(request, error)
        if isinstance(error, web.HTTPException):
            self._gate.report(request, error, started)
            return self._challenged(request, with_providers(self._errors.of_http(error), self._gate.challenges))
        if is_of_the_body(request, error):  # a handler that reads the body by aiohttp's own means
            return self._refusal(request, BadRequest(for_log="body-malformed"))
        request[REPORTED] = True
        if isinstance(error, Unavailable):
            log_failure("unavailable", error, request_id=request[REQUEST_ID], why=str(error))
            return self._errors.response(ServiceUnavailable(error.retry_after))
        log_failure("handler failed", error, request_id=request[REQUEST_ID], route=self._gate.template_of(request))
        return self._errors.of(500)

    async def _resolve_and_admit(self, request: web.Request, started: float) -> web.StreamResponse:
        if request.version not in _VERSIONS or malformed(request.raw_path):
            raise BadRequest(for_log="target-malformed" if request.version in _VERSIONS else "http-version")
        if request.method == hdrs.METH_OPTIONS and (preflight := self._cors.preflight(request)) is not None:
            return preflight
        match = request._match_info = await self._lookup.resolve(request)
        return await self._gate.admit(request, match, started)

    def _report(self, request: web.Request, response: web.StreamResponse, rule: RouteRule, seconds: float) -> None:
        """Pass an admitted request to the listener `served`."""
        identity = request.get(IDENTITY)
        if self._served is None or (identity is None and OPENED not in request):
            return  # the gate has reported it already
        self._served(admission(request, rule, identity, response.status, seconds))

    def _refusal(self, request: web.Request, error: ApiError) -> web.StreamResponse:
        """The response to an error, which is logged; the gate has logged its own refusals."""
        add_providers(request, error, self._gate.challenges)
        log_error(request, self._gate.rule_of(request), error)
        return self._challenged(request, self._errors.response(error))

    def _log_error(self, request: web.Request, rule: RouteRule | None, response: web.StreamResponse, started: float) -> None:
        """Report and log an error response whose cause has not been reported: one that a handler returned."""
        if response.status in RETRIED:
            set_retry_after(response)
        if response.status == 403:
            self._gate.report(request, by_handler(response), started)
        log_response(request, rule, response)

    def _challenged(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if self._challenges is not None and response.status in (401, 403):
            self._challenges.complete(request, response, self._gate.rule_of(request))
        return response

    async def before_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Called by aiohttp before it sends the head of a response.

        A stream or a socket that its handler begins itself passes here before it is returned, and only now is it known what
        a file's response is: the whole file, a part of it, 304, or 404.
        """
        if type(response) is JsonResponse:
            return
        rule, request_id = self._gate.rule_of(request), request[REQUEST_ID]
        if isinstance(response, web.FileResponse):
            answer_errors(response, request, self._errors)
            if response.status >= 400:
                log_response(request, rule, response)
        if response.headers.get("X-Request-Id") != request_id:
            self._finish(request, response, request_id, rule)
            if response.keep_alive is False and response.status != 101:
                response.headers[hdrs.CONNECTION] = "close"
        elif isinstance(response, web.FileResponse):
            stamp(response, request_id, public=_is_open(rule, request))
        discard_body(response)

    def _finish(self, request: web.Request, response: web.StreamResponse, request_id: str, rule: RouteRule | None) -> None:
        state, public = request._state, rule is not None and rule.public
        replaced = False  # as nearly always: a locked route's JSON, whose handler has set nothing about caches
        if public or type(response) is not JsonResponse or response.stamp(request_id, NO_STORE) != "":
            replaced = stamp(response, request_id, public=public and state.get(IDENTITY) is None)
        if public and rule.optional and IDENTITY in state:  # type: ignore[union-attr]
            forbid_storing(response)  # the handler's Cache-Control is meant for callers who are not known
        elif replaced and rule is not None:
            self._uncache(rule.template)
        if (lease := state.get(LEASE)) is not None:
            mark(response, lease)
        if self.draining and not request.protocol._messages:  # otherwise pipelined requests would get no response
            response.force_close()
        if hdrs.ORIGIN in request._headers:
            self._cors.mark(request, response)

    def _uncache(self, template: str) -> None:
        """Log once for each route that its handler's own `Cache-Control` was replaced."""
        if template not in self._uncached:
            self._uncached.add(template)
            LOG.warning(
                "a handler's Cache-Control was replaced: it must be private or no-store on a locked route, no-store on errors",
                extra={"fields": {"route": template}},
            )

    def _sendable(self, response: object, request: web.Request) -> web.StreamResponse:
        """A handler's result as a response that can be sent: 500 for what is no response, or was sent for another request."""
        if isinstance(response, web.HTTPException):  # returned instead of raised
            return self._errors.of_http(response)
        if not isinstance(response, web.StreamResponse):
            return self._faulty(request, "a handler returned no response", type=type(response).__name__)
        if type(response) is JsonResponse or not _is_new(response, request):
            return self._faulty(request, "a response object was used for two requests")
        return response

    def _faulty(self, request: web.Request, event: str, **fields: str) -> web.StreamResponse:
        """Log what is wrong with a handler's result. Returns the 500."""
        request[REPORTED] = True
        of_request = {"request_id": request[REQUEST_ID], "route": self._gate.template_of(request)}
        LOG.error(event, extra={"fields": fields | of_request})
        return self._errors.of(500)


def _is_open(rule: RouteRule | None, request: web.Request) -> bool:
    """Is the response for everybody: that of a public route to a caller who is not known?"""
    return rule is not None and rule.public and request.get(IDENTITY) is None


def _is_new(response: web.StreamResponse, request: web.Request) -> bool:
    """Whether the response was not prepared before, or for this request alone."""
    return not response.prepared or response._req is request or request.writer.output_size > 0
