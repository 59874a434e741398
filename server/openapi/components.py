"""The components that all operations of the OpenAPI document share: errors, parameters and headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ..http.pagination import DEFAULT_LIMIT, LARGEST_LIMIT
from ..http.response import phrase

ErrorContent: TypeAlias = Callable[[int], dict[str, Any]]
"""Returns the member `content` of the responses with an error status."""

WORDS: Final = {
    400: "The request is malformed or ambiguous: an invalid target, JSON with a duplicate member, or two credentials "
    "(`credentials-ambiguous`).",
    401: "The credential is missing (`credential-missing`) or was refused (`credential-rejected`, `token-expired`, "
    "`session-revoked` and others).",
    403: "The caller is known but not allowed to do this. `reason` names what is missing: `role`, `permission`, `plan`, "
    "`feature`, `scope`, `organization`, `user` or `reverification`; or it is `impersonation`, if another acts for the user.",
    404: "No such row exists for this caller. Another tenant's row and a missing row get the same response.",
    408: "The body was not received in time.",
    409: "A request with the same `Idempotency-Key` is still in progress.",
    411: "The request has neither `Content-Length` nor `Transfer-Encoding`.",
    412: "The current `ETag` of the row does not match `If-Match`.",
    413: "The body is too large.",
    415: "The body is not `application/json` in UTF-8, or it is compressed.",
    422: "One or more fields are invalid; every invalid field is listed.",
    426: "The request does not ask for a WebSocket.",
    429: "Too many requests.",
    431: "The request head is too large.",
    503: "The database, a key set or a provider is unavailable. Nothing was partially applied; retry.",
}
_HEADERS_OF: Final = {401: ["WWW-Authenticate"], 426: ["Upgrade"], 429: ["Retry-After"], 503: ["Retry-After"]}

HEADERS: Final = {
    "ETag": "Identifies the current version of the row, for `If-Match` and `If-None-Match`.",
    "Link": 'The next page: `<...>; rel="next"`. Absent on the last page.',
    "Location": "The URL of the new row.",
    "Retry-After": "Seconds to wait before retrying.",
    "Upgrade": "The protocol to ask for: `websocket` (RFC 9110 7.8).",
    "WWW-Authenticate": "The challenge (RFC 6750 3).",
    "X-Request-Id": "Identifies this request in the server's logs.",
}

PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "limit": {
        "name": "limit", "in": "query",
        "description": "The maximum number of rows in a page. It may have fewer, and still a `Link`.",
        "schema": {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "default": DEFAULT_LIMIT},
    },
    "cursor": {
        "name": "cursor", "in": "query", "description": "Where the page begins: the `cursor` of a `Link` header.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 512},
    },
    "If-Match": {
        "name": "If-Match", "in": "header", "description": "Change the row only if its `ETag` still has this value.",
        "schema": {"type": "string"},
    },
    "If-None-Match": {
        "name": "If-None-Match", "in": "header",
        "description": "The `ETag` of the version that the client has: if it is still the current one, the response is a 304.",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key", "in": "header",
        "description": "A client-chosen key that makes the request safe to retry.",
        "schema": {"type": "string"},
    },
    "ticket": {
        "name": "ticket", "in": "query",
        "description": "The credential of a client that cannot send headers: from `POST /api/stream-tickets`, valid once.",
        "schema": {"type": "string", "pattern": "^st_"},
    },
    "Last-Event-ID": {
        "name": "Last-Event-ID", "in": "header",
        "description": "The `id` of the last event that the client has received.",
        "schema": {"type": "string"},
    },
}  # fmt: skip


def header_components() -> dict[str, Any]:
    """The document's `components.headers`."""
    return {name: _header(name, words) for name, words in HEADERS.items()}


def header_refs(*names: str) -> dict[str, Any]:
    """A response's `headers`: those named, and `X-Request-Id`, which every response has."""
    included = sorted({*names, "X-Request-Id"})
    return {name: {"$ref": f"#/components/headers/{name}"} if name in HEADERS else _header(name) for name in included}


def parameter_ref(name: str) -> dict[str, str]:
    """A reference to one of PARAMETERS."""
    return {"$ref": f"#/components/parameters/{name}"}


def response_components(content: ErrorContent) -> dict[str, Any]:
    """The document's `components.responses`: the errors that many operations share."""
    return {_named(status): refusal(status, content) for status in WORDS}


def response_ref(status: int) -> dict[str, str]:
    """A reference to the shared response of this error status."""
    return {"$ref": f"#/components/responses/{_named(status)}"}


def _named(status: int) -> str:
    return phrase(status).replace(" ", "")


def refusal(status: int, content: ErrorContent, words: str | None = None) -> dict[str, Any]:
    """The full response object for one error status. `words` replaces the standard description."""
    return {
        "description": words or WORDS[status],
        "headers": header_refs(*_HEADERS_OF.get(status, ())),
        "content": content(status),
    }


def _header(name: str, words: str | None = None) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1} if name == "Retry-After" else {"type": "string"}
    return {"schema": schema} if words is None else {"description": words, "schema": schema}
