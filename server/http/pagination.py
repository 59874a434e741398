"""Pagination of lists, newest first: `?limit`, an opaque `?cursor`, and a `Link` to the next page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from .answers import Rows, answer
from .describe import hold_to
from .errors import Unprocessable

DEFAULT_LIMIT: Final = 50
LARGEST_LIMIT: Final = 200
_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
_CURSOR_BYTES: Final = 512


class Page:
    """A position in a list. Use it with a query such as `... AND (created_at, id) < ($n, $n+1) ORDER BY created_at DESC,
    id DESC LIMIT $n+2`, with `*page.args` as the last arguments. The rows must have `created_at` and `id`.

    A cursor contains a position and nothing else: the query's scope decides whose rows are listed, never the cursor.
    """

    def __init__(self, request: web.Request, limit: int, created_at: datetime, key: Any) -> None:
        self._request = request
        self.limit = limit
        # One more row than the limit shows whether there is a next page.
        self.args = (created_at, key, limit + 1)

    def answer(self, rows: Rows) -> web.Response:
        """A 200 with the rows, and `Link: <...>; rel="next"` if there are more."""
        if rows.number <= self.limit:
            return answer(rows)
        kept, end = rows.first(self.limit)
        last = json.loads(end)
        after = _encode(last["created_at"], last["id"])
        here = self._request.rel_url.raw_path
        return answer(kept, headers={"Link": f'<{here}?limit={self.limit}&cursor={after}>; rel="next"'})


def page(request: web.Request, key: Callable[[Any], Any] = UUID) -> Page:
    """Read `?limit` (1 to 200 rows, default 50) and `?cursor`. Without a cursor, the page is the first one.

    `key` converts the id in the cursor and raises ValueError for an invalid one: UUID, int or str.
    Raises Unprocessable (422) for an invalid limit or cursor, and TypeError if the handler is described (`describe`)
    without `page`.
    """
    hold_to(request, "page", True)
    query = request.query
    bad: list[dict[str, str]] = []
    limit, created_at, after = DEFAULT_LIMIT, _END_OF_TIME, None
    if "limit" in query:
        texts = query.getall("limit")
        limit = int(texts[0]) if len(texts) == 1 and texts[0].isascii() and texts[0].isdigit() and len(texts[0]) < 5 else 0
        if not 1 <= limit <= LARGEST_LIMIT:
            bad.append({"field": "limit", "message": f"must be a whole number from 1 to {LARGEST_LIMIT}"})
    if "cursor" in query:
        try:
            created_at, after = _decode(query.getall("cursor"), key)
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):  # UUID(5), a time out of range
            bad.append({"field": "cursor", "message": "must be the cursor of a Link header"})
    if bad:
        raise Unprocessable(bad)
    return Page(request, limit, created_at, after)


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
