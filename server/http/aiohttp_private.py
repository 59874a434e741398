"""The private attributes of aiohttp that the server uses, in one list: a test checks that the installed aiohttp has them all.

Private classes and functions (`aiohttp.web_protocol._ErrInfo`) are imported by name: an aiohttp without them fails at import.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

from aiohttp import StreamReader, web
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import RequestHandler

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

PRIVATE_NAMES: Final[Mapping[type, tuple[str, ...]]] = {
    RequestHandler: (
        "_buffer_paused", "_close", "_current_request", "_drain_helper", "_force_close", "_handler_waiter", "_keepalive",
        "_keepalive_handle", "_keepalive_timeout", "_lingering_time", "_loop", "_make_error_handler", "_manager",
        "_max_msg_queue_size", "_message_tail", "_messages", "_msg_queue_resume_size", "_next_keepalive_close_time",
        "_parser", "_pause_reading_for_buffer", "_paused", "_payload_parser", "_process_keepalive", "_request_count",
        "_request_in_progress", "_resume_reading_if_drained", "_task_handler", "_upgraded",
    ),
    StreamReader: ("_eof",),
    StreamWriter: ("_compress", "_eof"),
    web.AbstractRoute: ("_handler",),
    web.Application: ("_make_handler", "_make_request", "_set_loop"),
    web.BaseRequest: (
        "_cache", "_client_max_fields", "_client_max_size", "_headers", "_loop", "_message", "_method", "_payload",
        "_payload_writer", "_post", "_protocol", "_read_bytes", "_rel_url",
        "_state", "_task", "_transport_peername", "_transport_sockname", "_transport_sslcontext",
        "_version",
    ),
    web.FileResponse: ("_prepare_open_file",),
    web.Request: ("_match_info",),
    web.Response: (
        "_body", "_chunked", "_compression", "_cookies", "_eof_sent", "_headers", "_keep_alive", "_must_be_empty_body",
        "_payload_writer", "_reason", "_req", "_state", "_status",
        "_zlib_executor", "_zlib_executor_size",
    ),
    web.Server: ("_connections", "_kwargs", "_loop"),
    web.TCPSite: ("_server",),
    web.UrlMappingMatchInfo: ("_apps", "_current_app", "_frozen", "_route"),
    web.WebSocketResponse: ("_close_transport", "_reader", "_req"),
}  # fmt: skip
"""By class, the names of attributes that are read, set or replaced on it or on an instance."""


def replace_handler(route: web.AbstractRoute, handler: Handler) -> None:
    """Let `route` call another handler: for a server that shows how its gate decides and runs no real handler."""
    route._handler = handler  # type: ignore[assignment]
