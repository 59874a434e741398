"""The parts that every operation of the OpenAPI document shares: errors, parameters, headers."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ..http.pagination import DEFAULT_LIMIT, LARGEST_LIMIT
from ..http.response import phrase


class BadField(BaseModel):
    """One field of a request that cannot stand."""

    field: Annotated[str, Field(description="Its place, with dots: `payload.name`.")]
    message: str


class Error(BaseModel):
    """Every error has this form."""

    model_config = ConfigDict(extra="allow")
    error: Annotated[str, Field(description="The status in words.")]
    # A default_factory: the member may be missing, and is never null.
    reason: str = Field(default_factory=str, pattern=r"^[a-z]+(-[a-z]+)*$", description="A word for programs.")
    fields: list[BadField] = Field(default_factory=list, description="Of a 422: every bad field.")


WORDS: Final = {
    400: "What was sent could be read in two ways: a malformed target, JSON with a member twice, two credentials "
    "(`credentials-ambiguous`).",
    401: "No credential (`credential-missing`) or a refused one (`credential-rejected`, `token-expired`, `session-revoked` "
    "and others).",
    403: "The caller is known and may not. `reason` says what is missing: `role`, `permission`, `plan`, `feature`, `scope`, "
    "`organization`, `user` or `reverification`.",
    404: "There is no such row for this caller. Another tenant's row and a missing one look alike.",
    408: "The body took too long.",
    409: "A request with the same `Idempotency-Key` is still under way.",
    411: "A body without a length.",
    412: "The row is not the one that `If-Match` names.",
    413: "The body is too large.",
    415: "The body is not `application/json` in UTF-8, or it is compressed.",
    422: "Some fields cannot stand; all of them are listed.",
    429: "Too many requests.",
    431: "The head of the request is too large.",
    503: "The database, a key set or a provider cannot be asked. Nothing was half done: try again.",
}
_HEADERS_OF: Final = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}

HEADERS: Final = {
    "ETag": "Names this state of the row, for `If-Match`.",
    "Link": 'The next page, `<...>; rel="next"`; missing on the last one.',
    "Location": "Where the new row is.",
    "Retry-After": "Seconds to wait before the next try.",
    "WWW-Authenticate": "The challenge (RFC 6750 3).",
    "X-Request-Id": "Names this request in the server's logs.",
}

PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "limit": {
        "name": "limit", "in": "query", "description": "The most rows of a page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "default": DEFAULT_LIMIT},
    },
    "cursor": {
        "name": "cursor", "in": "query", "description": "Where the page begins: the `cursor` of a `Link`.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 512},
    },
    "If-Match": {
        "name": "If-Match", "in": "header", "description": "Change the row only if this `ETag` is still its own.",
        "schema": {"type": "string"},
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key", "in": "header",
        "description": "A word of the client's own that names this request, so that it may be repeated: nothing is done twice.",
        "schema": {"type": "string"},
    },
}  # fmt: skip


def header_components() -> dict[str, Any]:
    """`components.headers`."""
    return {name: _header(name, words) for name, words in HEADERS.items()}


def header_refs(*names: str) -> dict[str, Any]:
    """A response's `headers`; every response bears the request id."""
    wanted = sorted({*names, "X-Request-Id"})
    return {name: {"$ref": f"#/components/headers/{name}"} if name in HEADERS else _header(name) for name in wanted}


def parameter_ref(name: str) -> dict[str, str]:
    """A reference to one of PARAMETERS."""
    return {"$ref": f"#/components/parameters/{name}"}


def response_components(schema: dict[str, Any]) -> dict[str, Any]:
    """`components.responses`: the errors that many operations share. `schema` is that of Error."""
    return {_named(status): refusal(status, schema) for status in WORDS}


def response_ref(status: int) -> dict[str, str]:
    """A reference to one of them."""
    return {"$ref": f"#/components/responses/{_named(status)}"}


def _named(status: int) -> str:
    return phrase(status).replace(" ", "")


def refusal(status: int, schema: dict[str, Any], words: str | None = None) -> dict[str, Any]:
    """The response of one error status, said in full; `words` are a handler's own."""
    said = {**schema, "properties": {"error": {"const": phrase(status)}}}
    return {
        "description": words or WORDS[status],
        "headers": header_refs(*_HEADERS_OF.get(status, ())),
        "content": {"application/json": {"schema": said}},
    }


def _header(name: str, words: str | None = None) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1} if name == "Retry-After" else {"type": "string"}
    return {"schema": schema} if words is None else {"description": words, "schema": schema}
