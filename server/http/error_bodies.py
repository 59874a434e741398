"""The form of all error bodies of one application: the standard one, that of RFC 9457, or a plugin's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict

from ..telemetry.log import log_failure
from .error_shape import ErrorDetails, checked
from .errors import ApiError
from .response import JSON, NO_STORE, JsonResponse, _head, phrase
from .retry_after import RETRIED

PROBLEM: Final = "application/problem+json"
_KEPT: Final = ("Allow", "Content-Range", "Retry-After", "Upgrade", "WWW-Authenticate")
"""The headers of an HTTPException that its error response keeps."""
_AIOHTTPS: Final = {status.value: status.phrase for status in HTTPStatus}
"""The reason phrases of aiohttp's exceptions, from which it makes their texts."""
_AIOHTTPS_TEXTS: Final = (
    "Maximum request body size",
    "No WebSocket UPGRADE hdr",
    "No CONNECTION upgrade hdr",
    "Unsupported version: ",
    "Handshake error: ",
)
"""The beginnings of aiohttp's other texts, some of which repeat what the client sent."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class ErrorBodies:
    """Makes the response to each error of an application. Without arguments, the standard one."""

    def __init__(self, form: str = "gatepost", shape: tuple[str, Any] | None = None) -> None:
        """`form` is the setting `errors.format`; `shape` is (the plugin's name, what its `register_error_body` returned).

        Raises ConfigError for a shape that does not say what it returns, or fails for an example of an error.
        """
        self.media_type = PROBLEM if form == "problem" else JSON
        self.model: Any = None
        """The type of the bodies, for the OpenAPI document, if a plugin makes them."""
        self.plugin = "" if shape is None else shape[0]
        self._make: Callable[[ErrorDetails], bytes] | None = _problem if form == "problem" else None
        self._otherwise = self._make  # where a plugin's function fails
        self._failed: set[int] = set()
        if shape is not None:
            self.model, self._make = checked(*shape)
        # Bodies that depend on the status and the reason alone are made once.
        self._simple = lru_cache(maxsize=512)(self._simple_body)

    def response(self, error: ApiError) -> JsonResponse:
        """The response to this error; a 500 where it cannot be built."""
        try:
            if self._make is None:
                made = error.response()
                if made.dictionary is None:  # as nearly always
                    return made
            else:
                made = error.response(self._simple(error.status, error.reason) if error.is_plain else self._body(error))
            made.retype(self.media_type)
        except Exception as failure:  # what a handler put into it: a line end in a header, a member that has no JSON form
            log_failure("an error response could not be built", failure, status=error.status)
            return self.of(500)
        return made

    def of(self, status: int, headers: Mapping[str, str] | None = None) -> JsonResponse:
        """The response to an error about which nothing more is known than its status."""
        return self.response(_Plain(status, None, headers))

    def of_http(self, raised: web.HTTPException) -> web.Response:
        """The response for an HTTPException that a handler or the router raised; aiohttp would close the connection.

        A status below 400, such as a redirect, keeps its headers and cookies but not its text. An error becomes JSON: its text
        is the `detail`, and of its headers only those of _KEPT stay.
        """
        raised.__traceback__ = None  # the router's match may hold this error: a cycle that would keep the request and its body
        if raised.status >= 400:
            return self.response(_Plain(raised.status, _said(raised), _kept(raised)))
        about_the_text = ("content-type", "content-length")
        headers = [(name, value) for name, value in raised.headers.items() if name.lower() not in about_the_text]
        plain = web.Response(status=raised.status, headers=CIMultiDict(headers))
        plain.cookies.update(raised.cookies)
        return plain

    def _simple_body(self, status: int, reason: str | None) -> bytes:
        error = _Plain(status)
        error.reason = reason
        return self._body(error)

    def _body(self, error: ApiError) -> bytes:
        """The body in this form; that of the setting where a plugin's function fails, which is logged once for each status."""
        assert self._make is not None
        status, fields = error.status, error.fields or []
        details = ErrorDetails(status, phrase(status), error.reason, error.detail, fields, error.more or {})
        try:
            return self._make(details)
        except Exception as failure:
            if status not in self._failed:
                self._failed.add(status)
                log_failure("the function of register_error_body failed", failure, status=status)
            return self._otherwise(details) if self._otherwise else error.standard_body()


class _Plain(ApiError):
    """An error of any status."""

    def __init__(self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        super().__init__(detail=detail, headers=headers)


def _said(raised: web.HTTPException) -> str | None:
    """What the handler says with an HTTPException: its text, or a reason phrase of its own. None for aiohttp's own words."""
    try:
        text = raised.text
    except (LookupError, TypeError, UnicodeDecodeError):  # a body that is no text
        return None
    if text is None or text.startswith(_AIOHTTPS_TEXTS):
        return None
    if text != f"{raised.status}: {raised.reason}":
        return text
    return raised.reason if raised.reason != _AIOHTTPS.get(raised.status, "") else None


def _kept(raised: web.HTTPException) -> dict[str, str]:
    kept = {name: raised.headers[name] for name in _KEPT if name in raised.headers}
    kept = {name: value for name, value in kept.items() if not _CONTROL.search(value)}
    if raised.status in RETRIED:
        kept.setdefault("Retry-After", "1")
    if raised.status == 401:
        kept.setdefault("WWW-Authenticate", "Bearer")
    if raised.status == 413:
        kept["Connection"] = "close"
    return kept


def _problem(details: ErrorDetails) -> bytes:
    """RFC 9457: `about:blank` says that the status is all that the type tells. The other members are extensions."""
    members = {"type": "about:blank", "title": details.error, "status": details.status, "detail": details.detail}
    members |= {"reason": details.reason, "fields": details.fields if details.fields or details.status == 422 else None}
    return json.dumps(dict(details.more) | {name: value for name, value in members.items() if value is not None}).encode()


def last_words(response: JsonResponse, request_id: str, lines: bytes = b"") -> bytes:
    """An error response as bytes, to a connection that is then closed because no request could be parsed.

    `lines` are further header lines, each ending in CRLF.
    """
    body = bytes(response._body)
    last = b"Connection: close\r\nContent-Length: %d\r\nX-Request-Id: %b\r\n%b\r\n" % (len(body), request_id.encode(), lines)
    return _head(response.status, NO_STORE, response.media_type) + last + body


STANDARD: Final = ErrorBodies()
"""The standard form: `{"error": PHRASE, "reason": SLUG, ...}`."""
