"""The outermost layer of every request: its id, malformed targets, cross-origin answers, and errors as JSON.

Preflights are answered here, before the gate: the same for every path, and nothing runs.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from .access import OPENED, Handler
from .answers import new_request_id, stamp
from .caller_limit import mark
from .cors import Cors
from .errors import ApiError, BadRequest, ServiceUnavailable, error_response, from_http
from .gate import REQUEST_ID
from .identity import Unavailable
from .observe import log_failure
from .targets import malformed

_VERSIONS = frozenset({(1, 0), (1, 1)})


class Errors:
    """Turns whatever is raised into the contract's JSON, and stamps every answer. Nothing passes it unturned."""

    def __init__(self, cors: Cors) -> None:
        self._cors = cors
        self.draining = False
        """Set when the server is about to stop: each connection then ends with its next answer (RFC 9112 9.6)."""

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request[REQUEST_ID] = new_request_id()
        response: web.StreamResponse | None = None
        try:
            if malformed(request.raw_path) or request.version not in _VERSIONS:
                raise BadRequest
            if request.method == hdrs.METH_OPTIONS:
                response = self._cors.preflight(request)
            if response is None:
                response = await handler(request)
        except ApiError as error:
            response = error.response()
        except web.HTTPException as error:
            response = from_http(error)
        except Unavailable as outage:
            log_failure("unavailable", outage, request_id=request_id, why=str(outage))
            response = ServiceUnavailable(outage.retry_after).response()
        except Exception as error:
            log_failure("handler failed", error, request_id=request_id, route=request.match_info.route.name or "")
            response = error_response(500)
        return self.finish(request, response, request_id)

    def finish(self, request: web.Request, response: web.StreamResponse | None, request_id: str) -> web.StreamResponse:
        if not isinstance(response, web.StreamResponse):
            response = error_response(500)
        if response.prepared:
            return response
        stamp(response, request_id, cacheable=OPENED in request and response.status < 300)
        mark(request, response)
        if self.draining:
            response.force_close()
        if hdrs.ORIGIN in request.headers:
            self._cors.mark(request, response)
        return response
