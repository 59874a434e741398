"""Errors of the HTTP parser, in the order of the requests: each takes its turn behind the requests that came before it."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

_END_OF_HEAD: Final = b"\r\n\r\n"
_MOST_PARTS: Final = 32


class OrderedErrors(RequestHandler):
    """aiohttp's connection, with one error response for a malformed request, after the responses to the requests before it."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        if data.count(_END_OF_HEAD) > 1 and not self._upgraded:
            self._feed_pipelined(data)
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as error:  # a target on which the URL parser itself fails, such as `http://[::1]@/`
            self._messages.append((_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD))  # its turn comes in order
            self._request_count += 1
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._end_unfinished_body()

    def _end_unfinished_body(self) -> None:
        """If the last message is an error within a body, the reader of the body gets it: a second response would be wrong."""
        if len(self._messages) > 1:
            payload = self._messages[-2][1]
        elif self._current_request is not None:
            payload = self._current_request._payload
        else:
            return
        if payload is EMPTY_PAYLOAD or payload._eof or payload.exception() is not None:
            return
        self._messages.pop()
        payload.set_exception(web.RequestPayloadError("malformed body"))
        payload.feed_eof()
        self.close()

    def _feed_pipelined(self, data: bytes) -> None:
        """Parse request by request: the parser drops the requests that come before a malformed one in the same bytes."""
        parts = data.split(_END_OF_HEAD, _MOST_PARTS)
        for part in parts[:-1]:
            self._feed(part + _END_OF_HEAD)
            if self._close or (self._messages and isinstance(self._messages[-1][0], _ErrInfo)):
                return  # the connection closes after this error
        if parts[-1]:
            self._feed(parts[-1])
