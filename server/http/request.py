"""The request of a connection: aiohttp's, made with less work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

from aiohttp import StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.web_protocol import RequestHandler

from .files import WHOLE

Make: TypeAlias = Callable[[RawRequestMessage, StreamReader, RequestHandler, "asyncio.Task[None]"], "Request"]
_OWN: Final = frozenset({"_writer"})


class Request(web.Request):
    """aiohttp's request with direct `get` and `in`: those inherited from Mapping raise and catch an exception per miss.

    Its writer is made when it is first used: a response that is sent in one write needs none.
    """

    ATTRS = web.Request.ATTRS | _OWN
    _writer: AbstractStreamWriter | None = None

    @property
    def _payload_writer(self) -> AbstractStreamWriter:
        if self._writer is None:
            self._writer = StreamWriter(self._protocol, self._loop)
        return self._writer

    @_payload_writer.setter
    def _payload_writer(self, writer: AbstractStreamWriter | None) -> None:
        self._writer = writer

    @property
    def has_begun(self) -> bool:
        """Whether any part of a response may have been written."""
        return self._writer is not None

    def get(self, key: Any, default: Any = None) -> Any:
        return self._state.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._state

    @property
    def http_range(self) -> slice:
        """The part that `Range` asks for; the whole where it must be ignored. Raises ValueError for no valid part.

        Several parts are ignored too, as RFC 9110 14.2 permits: the client gets the whole, and not an error for what is valid.
        """
        wanted = self._headers.get(hdrs.RANGE, "")
        if WHOLE in self._state or "," in wanted:
            return slice(None, None, 1)
        found = super().http_range
        if found.start == 0 and "=-" in wanted:  # RFC 9110 14.1.2: the last 0 bytes cannot be sent
            raise ValueError("a part of no bytes")
        return found


def maker(app: web.Application) -> Make:
    """Returns the function that makes the requests of this application's connections."""
    body_bytes, fields, loop = app._client_max_size, app._client_max_fields, cast("asyncio.AbstractEventLoop", app._loop)
    new = Request.__new__

    def make(
        message: RawRequestMessage, payload: StreamReader, connection: RequestHandler, task: asyncio.Task[None]
    ) -> Request:
        url = message.url
        if url.absolute:  # `GET http://host/path`: aiohttp takes it apart
            none: Any = None
            return Request(message, payload, connection, none, task, loop, client_max_size=body_bytes, client_max_fields=fields)
        # What aiohttp's constructor does for any other request.
        request = new(Request)
        request._message, request._payload, request._protocol, request._task = message, payload, connection, task
        request._headers, request._method, request._version = message.headers, message.method, message.version
        request._rel_url, request._loop, request._cache, request._state = url, loop, {}, {}
        request._client_max_size, request._client_max_fields = body_bytes, fields
        request._transport_sslcontext = connection.ssl_context
        request._transport_peername, request._transport_sockname = connection.peername, connection.sockname
        return request

    return make
