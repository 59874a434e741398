"""Reads the id of a row from a request's path."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z", re.IGNORECASE)


def row_id(request: web.Request, name: str = "id") -> str:
    """The UUID in the path parameter `{id}` (or `{name}`), as the client wrote it.

    Raises HTTPNotFound (404 `not_found`) if it is not a UUID, because no row has such an id.
    """
    text = request.match_info[name]
    if not _UUID.match(text):
        raise web.HTTPNotFound
    return text
