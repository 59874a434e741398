"""Successful responses: JSON made by Postgres or by a handler, and entity tags."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from inspect import isawaitable
from typing import Any, Final

import msgspec
from aiohttp import web
from pydantic import BaseModel

from .describe import hold_to
from .errors import PreconditionFailed
from .response import JsonResponse

ROW_END: Final = "\x1e"
"""Separates the rows' JSON as Postgres sends it: a control character, which JSON cannot contain unescaped."""

_READING: Final = frozenset({"GET", "HEAD"})


class Rows(str):
    """A JSON array made by Postgres, as text. `number` is the number of its rows."""

    __slots__ = ("_separated", "number")
    number: int
    _separated: str

    def __new__(cls, separated: str) -> Rows:
        self = super().__new__(cls, f"[{separated.replace(ROW_END, ',')}]")
        self._separated = separated
        self.number = separated.count(ROW_END) + 1 if separated else 0
        return self

    def only(self) -> str | None:
        """The JSON of the row, for a SELECT of at most one; None without a row. Raises ValueError if there are several."""
        if self.number > 1:
            raise ValueError(f"the SELECT returned {self.number} rows; only() is for at most one")
        return self._separated or None

    def separate(self) -> list[str]:
        """The rows' JSON, one by one."""
        return self._separated.split(ROW_END) if self._separated else []

    def first(self, rows: int) -> tuple[str, str]:
        """Returns (the first `rows` rows as a JSON array, the last of these as a JSON object)."""
        end = len(self._separated)
        for _ in range(self.number - rows):
            end = self._separated.rfind(ROW_END, 0, end)
        return f"{self[: end + 1]}]", self._separated[self._separated.rfind(ROW_END, 0, end) + 1 : end]

    def fitting(self, rows: int, octets: int) -> int:
        """How many of the first `rows` rows fit into a JSON array of `octets` bytes (UTF-8); at least one, if there is one."""
        if len(self) * (1 if self.isascii() else 4) <= octets:
            return min(self.number, rows)
        left = octets - 1
        for number, row in enumerate(self._separated.split(ROW_END)[:rows]):
            left -= (len(row) if row.isascii() else len(row.encode())) + 1
            if left < 0:
                return max(number, 1)
        return min(self.number, rows)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "values")):  # the latter: a row of `db.fetch`
        return dict(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    hint = ": is an `await` missing?" if isawaitable(value) else ""
    raise TypeError(f"{type(value).__name__} has no JSON form{hint}")


encode_json: Final = msgspec.json.Encoder(enc_hook=_plain).encode
"""Returns a value as JSON bytes. Raises TypeError for one that has no JSON form."""


def answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, for_log: str = "") -> JsonResponse:
    """A JSON response. `str` and `bytes` are sent as they are: `read` and `scoped` return JSON text. Anything else is encoded,
    rows of `db.fetch` and pydantic models (by their aliases) included.

    A `memoryview` is sent as it is, too, and is not counted as held for the client: for content that all responses share.

    `headers` are added to the standard headers or replace them. `for_log` is why an error is returned, for the log alone.
    Raises TypeError for data that has no JSON form.
    """
    raw = data if isinstance(data, (bytes, memoryview)) else data.encode() if isinstance(data, str) else encode_json(data)
    response = JsonResponse(raw, status, headers)
    if for_log:
        response.for_log = for_log
    return response


def entity_tag(text: str) -> str:
    """A strong entity tag (RFC 9110 8.8.3) for a row's JSON text."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def check_if_match(request: web.Request, text: str) -> None:
    """Raise PreconditionFailed (412) if the request has an `If-Match` that does not match `text`, the row's current JSON.

    Tags are compared strongly: a weak one (`W/"..."`) never matches. `*` matches any row, but not as one of several tags.

    An `If-None-Match` that matches is a 412 as well: the request is to be done only if the client does not have this version.

    RFC 9110 13.1.1, 13.1.2. Raises TypeError if the handler is described (`describe`) without `if_match`.
    """
    hold_to(request, "if_match", True)
    tags = _tags(request, "If-Match")
    if tags and tags != {"*"} and entity_tag(text) not in tags:
        raise PreconditionFailed
    if _has(request, entity_tag(text)):
        raise PreconditionFailed


def answer_row(request: web.Request, row: str) -> JsonResponse:
    """The response to a GET of one row, given as JSON text: 200 with the row and its `ETag`.

    304 without a body if `If-None-Match` has the tag, or is `*`: the client has this version. Tags are compared weakly
    (`W/"..."` matches), because a proxy that compresses a response makes its tag weak. With any other method than
    GET and HEAD the row is sent: the request has taken effect by then, and a condition is for `check_if_match`, before that.

    RFC 9110 13.1.2. Raises TypeError if the handler is described (`describe`) without `if_none_match`.
    """
    hold_to(request, "if_none_match", True)
    tag = entity_tag(row)
    if _has(request, tag) and request.method in _READING:
        return JsonResponse(b"", 304, {"ETag": tag})
    return answer(row, headers={"ETag": tag})


def _has(request: web.Request, tag: str) -> bool:
    """Does `If-None-Match` say that the client has the version with this tag?"""
    tags = _tags(request, "If-None-Match")
    return tags == {"*"} or tag in {one.removeprefix("W/") for one in tags}


def _tags(request: web.Request, name: str) -> set[str]:
    """The entity tags of a header field, which may have several lines; empty without the field."""
    return {tag.strip() for line in request.headers.getall(name, ()) for tag in line.split(",")}
