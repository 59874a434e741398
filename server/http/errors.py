"""Error responses as exceptions: their status, JSON body and headers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from .error_texts import bounded, plain_text
from .response import JsonResponse, phrase
from .retry_after import RETRIED, with_retry_after


class ApiError(Exception):
    """An error response, to be raised by a handler. The class sets the status; a subclass may set another one, 400 to 599.

    reason   a code for programs, such as `key-limit`: lower-case words joined by hyphens; the body's member `reason`
    detail   a sentence for people, as plain text; the body's member `detail`. 1000 characters are sent
    fields   the invalid fields, each as `{"field": "a.b", "message": "..."}`; the body's member `fields`. 100 are sent
    headers  further headers of the response
    more     further members of the body
    for_log  the cause, only for the log: a 4xx or 5xx that has it is logged with it
    """

    status = 500
    detail: str | None = None
    fields: list[dict[str, str]] | None = None
    more: Mapping[str, Any] | None = None

    def __init_subclass__(cls) -> None:
        if not 400 <= cls.status <= 599:
            raise TypeError(f"{cls.__name__}: the status of an error is 400 to 599, not {cls.status!r}")

    def __init__(
        self,
        reason: str | None = None,
        *,
        detail: str | None = None,
        fields: Iterable[Mapping[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
        for_log: str = "",
    ) -> None:
        super().__init__(reason or phrase(self.status))
        self.reason = reason
        self.detail = plain_text(detail) if detail else None
        self.fields = None if fields is None else bounded(fields)
        self.headers = with_retry_after(headers) if self.status in RETRIED else headers
        self.more = more
        self.for_log = for_log

    @property
    def is_plain(self) -> bool:
        """Does the body depend on the status and the reason alone?"""
        return self.detail is None and self.fields is None and not self.more

    def members(self) -> dict[str, Any]:
        """The members of the standard body, without those that have no value."""
        members = {"error": phrase(self.status), "reason": self.reason, "detail": self.detail, "fields": self.fields}
        return {name: value for name, value in members.items() if value is not None} | dict(self.more or {})

    def standard_body(self) -> bytes:
        """The body as JSON: `{"error": PHRASE, "reason": SLUG, ...}`."""
        return _body(self.status, self.reason) if self.is_plain else json.dumps(self.members()).encode()

    def response(self, body: bytes | None = None) -> JsonResponse:
        """The response to send. `body` replaces the standard body."""
        return JsonResponse(self.standard_body() if body is None else body, self.status, self.headers)


class BadRequest(ApiError):
    """400: the request is malformed or ambiguous."""

    status = 400


class Unauthorized(ApiError):
    """401 with a challenge (RFC 6750 3); `own` and `headers` are a provider's challenge in its place, and further headers."""

    status = 401

    def __init__(
        self,
        reason: str = "credential-missing",
        for_log: str = "",
        *,
        own: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # Not by ApiError's constructor, whose other arguments an Unauthorized does not have: most refusals are made here.
        Exception.__init__(self, reason or phrase(self.status))
        self.reason, self.for_log, self.has_own_challenge = reason, for_log, own is not None
        self._usual = own is None and not headers
        self.headers = {"WWW-Authenticate": own or challenge(reason)}
        if headers:
            self.headers |= headers

    def add_challenge(self, challenge: str) -> None:
        """Add a challenge after the one that it has (RFC 9110 11.6.1)."""
        headers = dict(self.headers or {})
        self.headers = headers | {"WWW-Authenticate": f"{headers['WWW-Authenticate']}, {challenge}"}
        self._usual = False

    def response(self, body: bytes | None = None) -> JsonResponse:
        if not self._usual:
            return super().response(body)
        return JsonResponse(_body(401, self.reason) if body is None else body, 401, lines=_challenge_line(self.reason or ""))


class Forbidden(ApiError):
    """403: the caller is known, and not allowed to do this."""

    status = 403


class NotFound(ApiError):
    """404: there is no such thing for this caller. Raise it in the same way for what belongs to another caller."""

    status = 404


class RequestTimeout(ApiError):
    status = 408

    def __init__(self) -> None:
        super().__init__(headers={"Connection": "close"})


class Conflict(ApiError):
    """409: the request contradicts the present state, such as a name that is taken."""

    status = 409


class LengthRequired(ApiError):
    status = 411


class PreconditionFailed(ApiError):
    """412: a condition of the request, such as `If-Match`, does not hold."""

    status = 412


class ContentTooLarge(ApiError):
    status = 413

    def __init__(self) -> None:
        super().__init__(headers={"Connection": "close"})


class UnsupportedMediaType(ApiError):
    status = 415


class Unprocessable(ApiError):
    """422 with every invalid field: `fields` is a list of `{"field": "a.b", "message": "..."}`.

    reason, detail   as for ApiError
    """

    status = 422

    def __init__(
        self, fields: Iterable[Mapping[str, str]] = (), *, reason: str | None = None, detail: str | None = None
    ) -> None:
        super().__init__(reason, detail=detail, fields=fields)


class TooManyRequests(ApiError):
    """429. Set the header `Retry-After`, in seconds; it is 1 otherwise."""

    status = 429


class ServiceUnavailable(ApiError):
    status = 503

    def __init__(self, retry_after: int = 1, *, for_log: str = "") -> None:
        super().__init__(headers={"Retry-After": str(max(1, retry_after))}, for_log=for_log)


def challenge(reason: str) -> str:
    """The `WWW-Authenticate` of a 401. Without a credential it contains no error code (RFC 6750 3.1)."""
    return "Bearer" if reason == "credential-missing" else 'Bearer error="invalid_token"'


@lru_cache(maxsize=256)
def _challenge_line(reason: str) -> bytes:
    return f"WWW-Authenticate: {challenge(reason)}\r\n".encode()


@lru_cache(maxsize=512)
def _body(status: int, reason: str | None) -> bytes:
    return json.dumps({"error": phrase(status)} | ({} if reason is None else {"reason": reason})).encode()


class Unavailable(Exception):
    """The database, a key set or a provider's service is unavailable: 503.

    `retry_after` is in seconds and becomes the `Retry-After` header. The message goes to the log only.
    """

    def __init__(self, message: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message)
        given: object = retry_after  # set by plugins: it can be anything
        self.retry_after = given if isinstance(given, int) else 1
