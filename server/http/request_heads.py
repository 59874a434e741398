"""Bounds the head of a request, and makes a request of the bytes that arrive."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from .parser_errors import END_OF_HEAD, OrderedErrors

_LINE_EXTRA = len("  HTTP/1.1\r\n") + len("\r\n")
"""What a head has beside method, path and header lines: the rest of the request line, and the empty line at its end."""


class BoundedHeads(OrderedErrors):
    """Limits the size and the duration of an incomplete request head: 431 or 408, and the connection is closed."""

    __slots__ = ("_busy_bytes", "_head_bytes", "_head_limit", "_head_seconds", "_head_timer")

    def __init__(self, *args: Any, head_bytes: int, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, max_line_size=head_bytes, max_field_size=head_bytes, **kwargs)
        self._head_limit, self._head_seconds = head_bytes, head_seconds
        self._head_bytes = self._busy_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if (
            self._task_handler is not None or self._head_timer is not None or self._busy_bytes or self._messages
            or self._close or self._force_close or self._upgraded or len(data) > self._head_limit
            or data.count(END_OF_HEAD) > 1
        ):  # fmt: skip
            self._receive(data)
            return
        # As nearly always: the beginning of a request, on a connection that waits for one.
        messages, upgraded, tail = self._parse(data)
        if messages:
            self._accept(messages, upgraded, tail)
            self.begin()
        elif data:
            self._head_grows(len(data))

    def _receive(self, data: bytes) -> None:
        idle = self._request_count == 0 or self._task_handler is None
        waiting = len(self._messages)
        super().data_received(data)
        received = len(self._messages) - waiting
        size = self._head_bytes + self._busy_bytes + len(data)
        if received > 0 and (size > self._head_limit or not data):  # without data they come from what was kept: not counted
            sent = self._size_sent(data) if idle else 0
            for number in range(waiting, waiting + received):
                self._weigh_head(number, sent if number == waiting else 0)
        if not idle:
            # Part of the current request's body or of the next head: counted now, checked when the head is complete.
            self._busy_bytes = len(data) if received > 0 else self._busy_bytes + len(data)
        elif received > 0:
            if self._head_bytes or self._busy_bytes or self._head_timer is not None:
                self.head_done()
        elif data:
            self._head_grows(len(data))
        self.begin()

    def _head_grows(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._head_limit:
            self.refuse(431)
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_seconds, self.refuse, 408)

    def _size_sent(self, data: bytes) -> int:
        """The bytes of a head that ends in `data`, blanks around values included; 0 where its end may have begun earlier."""
        end = -1 if data.startswith((b"\n", b"\r\n")) else data.find(END_OF_HEAD)
        return 0 if end < 0 else self._head_bytes + end + len(END_OF_HEAD)

    def _weigh_head(self, number: int, sent: int) -> None:
        """Refuse a complete head that is over the limit: one of `sent` bytes, or else of the size of its parts.

        The bytes counted so far can include bodies.
        """
        message = self._messages[number][0]
        if not isinstance(message, _ErrInfo):  # the C parser has its own class of messages
            line = len(message.method) + len(message.path) + _LINE_EXTRA
            parts = line + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if max(parts, sent) > self._head_limit:
                self._messages[number] = (_ErrInfo(status=431, exc=LineTooLong(b""), message=""), EMPTY_PAYLOAD)

    def head_done(self) -> None:
        self._head_bytes = self._busy_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def refuse(self, status: int) -> None:
        """Send an error response without a request, and close."""
        raise NotImplementedError
