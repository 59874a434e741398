"""Pagination of lists, newest first: `?limit`, an opaque `?cursor`, and a `Link` to the next page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlencode
from uuid import UUID

import msgspec
from aiohttp import web

from .answers import Rows, answer
from .describe import description_of, hold_to
from .error_texts import MOST_FIELDS
from .errors import Unprocessable
from .query_model import PAGE_PARAMETERS
from .query_values import validated

DEFAULT_LIMIT: Final = 50
LARGEST_LIMIT: Final = 200
_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
_CURSOR_BYTES: Final = 512
PAGE_BYTES: Final = web.AppKey("page_bytes", int)
"""The largest body of a page, in bytes; a single row may be larger."""


class RowLimit(int):
    """The number of rows that a page's query returns at most.

    By an argument of this type `read` recognizes a page's query: it stops reading at `page_bytes` bytes.
    """

    page_bytes: int


@lru_cache(maxsize=1024)
def _row_limit(rows: int, page_bytes: int) -> RowLimit:
    limit = RowLimit(rows)
    limit.page_bytes = page_bytes
    return limit


def page_bytes_of(args: Sequence[Any]) -> int:
    """The bound in bytes of the page that a query with these arguments reads; 0 if it is not a page's query."""
    for one in args:
        if type(one) is RowLimit:
            return one.page_bytes
    return 0


class _Position(msgspec.Struct):
    """The members of a row's JSON that a cursor contains."""

    created_at: str
    id: str | int


_position: Final = msgspec.json.Decoder(_Position)


class Page:
    """A position in a list. Use it with a query such as `... AND (created_at, id) < ($n, $n+1) ORDER BY created_at DESC,
    id DESC LIMIT $n+2`, with `*page.args` as the last arguments. The rows must have `created_at` and `id`.

    `read` then returns at most one row more than `limit`, and fewer rows if these have more than `limits.page_bytes` bytes.
    Pass what it returns to `answer`, which decides where the page ends.

    A cursor contains a position and nothing else: the query's scope decides whose rows are listed, never the cursor.
    """

    def __init__(self, request: web.Request, limit: int, created_at: datetime, key: Any) -> None:
        self._request = request
        self.limit = limit
        self._bytes = request.app[PAGE_BYTES]
        # One more row than the limit shows whether there is a next page.
        self.args = (created_at, key, _row_limit(limit + 1, self._bytes))

    def answer(self, rows: Rows) -> web.Response:
        """A 200 with the rows, and `Link: <...>; rel="next"` if there are more. `Link` keeps the other query parameters.

        The page ends at `limit` rows, or before the row with which the body would have more than `limits.page_bytes` bytes,
        but has at least one row, if there is one.
        """
        number = rows.fitting(self.limit, self._bytes)
        if number == rows.number:
            return answer(rows)
        kept, end = rows.first(number)
        last = _position.decode(end)
        after = _encode(last.created_at, last.id)
        here, others = self._request.rel_url.raw_path, _others(self._request)
        return answer(kept, headers={"Link": f'<{here}?{others}limit={self.limit}&cursor={after}>; rel="next"'})


def page(request: web.Request, key: Callable[[Any], Any] = UUID) -> Page:
    """Read `?limit` (1 to 200 rows, default 50) and `?cursor`. Without a cursor, the page is the first one.

    `key` converts the id in the cursor and raises ValueError for an invalid one: UUID, int or str.
    Raises Unprocessable (422) for an invalid limit or cursor, with the other invalid query parameters if the handler is
    described with a model of them, and TypeError if the handler is described (`describe`)
    without `page`.
    """
    hold_to(request, "page", True)
    limit, position, bad = _read(request, key)
    if bad:
        description = description_of(request.match_info.handler)
        if description is not None and description.query is not None:
            bad += validated(request, description.query)[1]
        raise Unprocessable(bad[:MOST_FIELDS])
    created_at, after = position
    return Page(request, limit, created_at, after)


def page_faults(request: web.Request) -> list[dict[str, str]]:
    """What is invalid in `?limit` and `?cursor`, whatever kind of id the cursor has."""
    return _read(request, str)[2]


def _read(request: web.Request, key: Callable[[Any], Any]) -> tuple[int, tuple[datetime, Any], list[dict[str, str]]]:
    """Returns (the limit, the cursor's position, what is invalid in them)."""
    query = request.query
    bad: list[dict[str, str]] = []
    limit, position = DEFAULT_LIMIT, (_END_OF_TIME, None)
    if "limit" in query:
        texts = query.getall("limit")
        limit = int(texts[0]) if len(texts) == 1 and texts[0].isascii() and texts[0].isdigit() and len(texts[0]) < 5 else 0
        if not 1 <= limit <= LARGEST_LIMIT:
            bad.append({"field": "limit", "message": f"must be a whole number from 1 to {LARGEST_LIMIT}"})
    if "cursor" in query:
        try:
            position = _decode(query.getall("cursor"), key)
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):  # UUID(5), a time out of range
            bad.append({"field": "cursor", "message": "must be the cursor of a Link header"})
    return limit, position, bad


def _others(request: web.Request) -> str:
    """The query parameters that are not the page's, to be written before them: `done=true&`. Escaped anew: they are ASCII."""
    if not request.query_string:
        return ""
    kept = [(name, text) for name, text in request.query.items() if name not in PAGE_PARAMETERS]
    return f"{urlencode(kept, quote_via=quote)}&" if kept else ""


def _encode(created_at: str, key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([created_at, key]).encode()).decode().rstrip("=")


def _decode(texts: list[str], key: Callable[[Any], Any]) -> tuple[datetime, Any]:
    if len(texts) != 1 or len(texts[0]) > _CURSOR_BYTES:
        raise ValueError
    raw = base64.b64decode(texts[0].encode("ascii") + b"=" * (-len(texts[0]) % 4), altchars=b"-_", validate=True)
    created_at, after = json.loads(raw)
    if not isinstance(created_at, str) or not isinstance(after, str | int) or isinstance(after, bool):
        raise ValueError
    moment = datetime.fromisoformat(created_at)
    if moment.tzinfo is None or "\x00" in str(after):
        raise ValueError
    return moment.astimezone(UTC), key(after)
