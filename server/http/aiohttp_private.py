"""The private attributes of aiohttp that the server uses, in one list: a test checks that the installed aiohttp has them all.

Private classes and functions (`aiohttp.web_protocol._ErrInfo`) are imported by name: an aiohttp without them fails at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

PRIVATE_NAMES: Final[Mapping[type, tuple[str, ...]]] = {
    RequestHandler: ("_loop", "_manager", "_messages", "_paused", "_request_count", "_upgraded", "_waiter"),
    web.Application: ("_make_handler", "_make_request", "_set_loop"),
    web.BaseRequest: ("_client_max_size", "_message", "_post", "_state"),
    web.Request: ("_match_info",),
    web.Response: (
        "_body", "_chunked", "_compression", "_cookies", "_eof_sent", "_headers", "_keep_alive", "_reason", "_state", "_status",
        "_zlib_executor", "_zlib_executor_size",
    ),
    web.Server: ("_connections", "_kwargs", "_loop"),
    web.TCPSite: ("_server",),
    web.UrlMappingMatchInfo: ("_apps", "_current_app", "_frozen", "_route"),
}  # fmt: skip
"""By class, the names of attributes that are read, set or replaced on it or on an instance."""
