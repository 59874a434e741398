"""Errors of the HTTP parser, in the order of the requests: each takes its turn behind the requests that came before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from ..telemetry.log import LOG
from .request_tasks import RequestTasks
from .stamp import new_request_id

END_OF_HEAD: Final = b"\r\n\r\n"
_ENCODED: Final = b"transfer-encoding"
_MOST_FRUITLESS: Final = 32
"""A body with more empty lines than this in the same bytes is parsed at once: each part costs a call of the parser."""


class OrderedErrors(RequestTasks):
    """aiohttp's connection, with one error response for a malformed request, after the responses to the requests before it."""

    __slots__ = ("_malformed", "_rest")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rest = b""
        """Bytes behind a full queue of requests. aiohttp calls `data_received(b"")` when the queue has space."""
        self._malformed = False
        """Whether bytes were no request: what follows is dropped, because the connection closes after the error response."""

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        if data.count(END_OF_HEAD) > 1 and not self._upgraded and _ENCODED not in data.lower():
            self._feed_pipelined(data)
        else:
            self._feed(data)

    def _resume_after_refused_upgrade(self) -> None:
        """Parse what came after a request with `Upgrade` that is answered like any other: here errors keep their order, too.

        aiohttp would do it within `finish_response`, where an error of the URL parser costs the response itself.
        """
        if self._upgraded and not self._messages and self._payload_parser is None and self._parser is not None:
            self._parser.set_upgraded(False)
            self._upgraded = False
            tail, self._message_tail = self._message_tail, b""
            if tail:
                self.data_received(tail)
            if self._buffer_paused:
                self._resume_reading_if_drained()

    def _feed(self, data: bytes) -> None:
        """As aiohttp's `data_received`, which wakes a task that is not there (see RequestTasks)."""
        if self._upgraded or self._payload_parser is not None:
            super().data_received(data)
            return
        if self._force_close or self._close or self._malformed or self._parser is None:
            return
        self._accept(*self._parse(data))

    def _parse(self, data: bytes) -> tuple[Sequence[Any], bool, bytes]:
        """Returns the complete messages, whether the last one asks for another protocol, and what follows it."""
        try:
            messages, upgraded, tail = self._parser.feed_data(data)  # type: ignore[union-attr]
            if messages and messages[-1][0].upgrade and not upgraded:
                _close_behind(messages, data)
            return messages, upgraded, tail
        except Exception as error:  # not only HttpProcessingError: the URL parser itself fails on `http://[::1]@/`
            self._malformed = True
            error.__traceback__ = error.__context__ = error.__cause__ = None  # their frames hold the bytes, in a cycle with it
            text = error.message if isinstance(error, HttpProcessingError) else ""
            return [(_ErrInfo(status=400, exc=error, message=text), EMPTY_PAYLOAD)], False, b""

    def _accept(self, messages: Sequence[Any], upgraded: bool, tail: bytes) -> None:
        if messages:
            self._request_count += len(messages)
            self._messages.extend(messages)
            if isinstance(messages[-1][0], _ErrInfo):
                self._end_unfinished_body()
        if len(self._messages) >= self._max_msg_queue_size and not self._buffer_paused:
            self._pause_reading_for_buffer()
        if upgraded:
            self._upgraded, self._message_tail = True, tail or self._message_tail

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
        """Parse request by request: the parser drops the requests that come before a malformed one in the same bytes.

        Not where a body has an encoding: a head whose framing proves wrong in the same bytes is refused whole.
        """
        if len(self._messages) >= self._max_msg_queue_size:
            self._rest = data
            return
        start = fruitless = 0
        while fruitless < _MOST_FRUITLESS and (end := data.find(END_OF_HEAD, start)) >= 0:
            end += len(END_OF_HEAD)
            seen = self._request_count
            self._feed(data[start:end])
            if self._close or (self._messages and isinstance(self._messages[-1][0], _ErrInfo)):
                return  # the connection closes after this error
            start = end
            if self._upgraded:
                break  # the rest waits until that request has had its response
            if len(self._messages) >= self._max_msg_queue_size:  # each call of the parser makes one more, whatever its limit
                self._rest = data[start:]
                return
            fruitless += self._request_count == seen
        if start < len(data):
            self._feed(data[start:])


def _close_behind(messages: list[Any], data: bytes) -> None:
    """Close the connection after the response to a request that asks for a protocol that aiohttp does not know, such as h2c.

    aiohttp's parser drops what follows it in the same bytes, or its body: the rest would be taken for a request of its own.
    """
    message, payload = messages[-1]
    end = data.find(END_OF_HEAD)
    ends_here = END_OF_HEAD.endswith(data) if end < 0 else end + len(END_OF_HEAD) == len(data)
    if payload is not EMPTY_PAYLOAD or not ends_here:
        messages[-1] = message._replace(should_close=True), payload


def log_refused(status: int, error: str) -> str:
    """Log why bytes were refused before they were a request. Returns the request id for the response."""
    request_id = new_request_id()
    LOG.info("request refused", extra={"fields": {"request_id": request_id, "status": status, "error": error}})
    return request_id
