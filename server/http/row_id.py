"""The id of a row in a path."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z", re.IGNORECASE)


def row_id(request: web.Request, name: str = "id") -> str:
    """The UUID in the path's parameter `{id}` (or `{name}`), as the client wrote it.

    Raises HTTPNotFound (404 `not_found`) when it is no UUID: then it names no row.
    """
    text = request.match_info[name]
    if not _UUID.match(text):
        raise web.HTTPNotFound
    return text
