"""Logs why a request got an error that the gate has not reported: from a handler, or before the gate."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from ..http.errors import ApiError
from ..http.stamp import REQUEST_ID
from ..routing.table import RouteRule
from ..telemetry.log import LOG

REPORTED: Final = web.RequestKey("reported", bool)
"""Set on a request whose error has its line in the log, or was left out there because there are too many of its kind."""
_NOT_UNDERSTOOD: Final = frozenset({400, 408, 411, 413, 415, 422})
"""The statuses of errors in the request's own content: its body, its parameters, their size."""
_CAUSES: Final = {
    404: "not-found",
    408: "body-time",
    411: "body-length",
    412: "precondition",
    413: "body-size",
    415: "body-type",
    422: "fields",
    426: "upgrade",
}
"""The reason in the log for a status whose error names none."""
_HANDLER: Final = "handler"


def failure_of(error: BaseException) -> BaseException:
    """Returns `error` if it is a failure of the handler, such as a SystemExit, which for example argparse raises.

    Raises `error` if it ends more than the handler: a cancellation or KeyboardInterrupt.
    """
    if isinstance(error, Exception | SystemExit):
        return error
    raise error


def is_of_the_body(request: web.Request, error: BaseException) -> bool:
    """Whether `error` was raised because the request's body is malformed, or the client closed the connection within it."""
    if isinstance(error, ConnectionResetError):
        return error is request.content.exception()
    return isinstance(error, web.RequestPayloadError)


def log_error(request: web.Request, rule: RouteRule | None, error: ApiError) -> None:
    """Log an error that was raised, unless the gate has reported it. `rule`: that of the request's route, if it has one."""
    if REPORTED in request:
        return
    cause = error.reason or error.for_log or _CAUSES.get(error.status, _HANDLER)
    why = error.for_log or getattr(error, "log_text", "")  # the latter names what of the schema a statement breaks
    more: dict[str, Any] = {"why": why} if why and why != cause else {}
    if error.fields:
        more["fields"] = len(error.fields)  # their names can be the client's
    _log(request, rule, error.status, cause, more, known=bool(error.for_log) or error.status in _NOT_UNDERSTOOD)


def log_response(request: web.Request, rule: RouteRule | None, response: web.StreamResponse) -> None:
    """Log an error response that a handler returned, unless its cause has been reported."""
    if REPORTED in request:
        return
    why = getattr(response, "for_log", "")
    cause = _CAUSES.get(response.status, _HANDLER)
    _log(request, rule, response.status, cause, {"why": why} if why else {}, known=bool(why))


def _log(request: web.Request, rule: RouteRule | None, status: int, cause: str, more: dict[str, Any], *, known: bool) -> None:
    """One line. What handlers decide, such as a row that is not there, is an event of its own: it must not crowd out others."""
    request[REPORTED] = True
    fields = {"request_id": request[REQUEST_ID], "method": request.method, "status": status}
    fields |= {"route": rule.template if rule is not None else "(none)", "reason": cause, **more}
    fault = status >= 500 and status != HTTPStatus.SERVICE_UNAVAILABLE
    LOG.log(logging.ERROR if fault else logging.INFO, "refused" if known else "handler refused", extra={"fields": fields})
