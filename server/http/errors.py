"""Error responses as exceptions: their status, JSON body and headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from .response import JsonResponse, phrase


class ApiError(Exception):
    """An error response, to be raised. The class sets the status.

    reason   a code for programs, such as `key-limit`; the body's member `reason`
    headers  further headers of the response
    more     further members of the body
    """

    status = 500

    def __init__(
        self, reason: str | None = None, *, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(reason or phrase(self.status))
        self.reason = reason
        self.headers = headers
        self.more = more

    def response(self) -> JsonResponse:
        """The response to send."""
        return error_response(self.status, self.reason, self.headers, self.more)


class BadRequest(ApiError):
    status = 400


class Unauthorized(ApiError):
    """401 with a challenge (RFC 6750 3). `detail` goes to the log only."""

    status = 401

    def __init__(self, reason: str = "credential-missing", detail: str = "") -> None:
        super().__init__(reason, headers={"WWW-Authenticate": challenge(reason)})
        self.detail = detail

    def response(self) -> JsonResponse:
        return JsonResponse(_body(401, self.reason), 401, lines=_challenge_line(self.reason or ""))


class Forbidden(ApiError):
    status = 403


class RequestTimeout(ApiError):
    status = 408

    def __init__(self) -> None:
        super().__init__(headers={"Connection": "close"})


class Conflict(ApiError):
    status = 409


class LengthRequired(ApiError):
    status = 411


class PreconditionFailed(ApiError):
    status = 412


class ContentTooLarge(ApiError):
    status = 413

    def __init__(self) -> None:
        super().__init__(headers={"Connection": "close"})


class UnsupportedMediaType(ApiError):
    status = 415


class Unprocessable(ApiError):
    """422 with every invalid field: `fields` is a list of `{"field": "a.b", "message": "..."}`."""

    status = 422

    def __init__(self, fields: list[dict[str, str]]) -> None:
        super().__init__(more={"fields": fields})


class TooManyRequests(ApiError):
    status = 429


class ServiceUnavailable(ApiError):
    status = 503

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(headers={"Retry-After": str(max(1, retry_after))})


def challenge(reason: str) -> str:
    """The `WWW-Authenticate` of a 401. Without a credential it contains no error code (RFC 6750 3.1)."""
    return "Bearer" if reason == "credential-missing" else 'Bearer error="invalid_token"'


@lru_cache(maxsize=256)
def _challenge_line(reason: str) -> bytes:
    return f"WWW-Authenticate: {challenge(reason)}\r\n".encode()


def error_response(
    status: int, reason: str | None = None, headers: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None
) -> JsonResponse:
    """An error response with the body `{"error": PHRASE, "reason": SLUG, ...}`."""
    body = _body(status, reason) if not more else json.dumps({**_members(status, reason), **more}).encode()
    return JsonResponse(body, status, headers)


def _members(status: int, reason: str | None) -> dict[str, Any]:
    return {"error": phrase(status)} if reason is None else {"error": phrase(status), "reason": reason}


@lru_cache(maxsize=512)
def _body(status: int, reason: str | None) -> bytes:
    return json.dumps(_members(status, reason)).encode()


def from_http(raised: web.HTTPException) -> web.Response:
    """The response for an HTTPException that a handler or the router raised; aiohttp would close the connection.

    A status below 400, such as a redirect, keeps its headers and cookies but not its text. An error becomes JSON and keeps
    only `Allow`, `Retry-After` and `WWW-Authenticate`.
    """
    if raised.status < 400:
        about_the_text = ("content-type", "content-length")
        headers = [(name, value) for name, value in raised.headers.items() if name.lower() not in about_the_text]
        plain = web.Response(status=raised.status, headers=CIMultiDict(headers))
        plain.cookies.update(raised.cookies)
        return plain
    kept = {name: raised.headers[name] for name in ("Allow", "Retry-After", "WWW-Authenticate") if name in raised.headers}
    if raised.status == 503:
        kept.setdefault("Retry-After", "1")
    if raised.status == 401:
        kept.setdefault("WWW-Authenticate", "Bearer")
    if raised.status == 413:
        kept["Connection"] = "close"
    return error_response(raised.status, headers=kept)


class Unavailable(Exception):
    """The database, a key set or a provider's service is unavailable: 503.

    `retry_after` is in seconds and becomes the `Retry-After` header. The message goes to the log only.
    """

    def __init__(self, message: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message)
        given: object = retry_after  # set by plugins: it can be anything
        self.retry_after = given if isinstance(given, int) else 1
