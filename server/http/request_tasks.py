"""A connection with one task for each request, and none between requests.

aiohttp has a task for each connection. It waits for a request, makes a task for it and waits for that: three turns of the
event loop for one request. Here the task of a request is made as soon as the request has been parsed.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Final

from aiohttp import HttpVersion11, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, RequestHandler, _ErrInfo

_EAGER: Final = sys.version_info >= (3, 12)
_TASK: Final[Any] = asyncio.Task  # eager tasks are unknown to the types of Python 3.11


class RequestTasks(RequestHandler):
    """aiohttp's connection with another `start`: it serves one request, and begins the task of the next one that waits.

    A request begins when the one before it has ended, in a task of its own and in a copy of the connection's context.
    """

    __slots__ = ("_context",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._context: Context = copy_context()
        super().connection_made(transport)  # begins a task of `start`, which finds no request yet
        if self._task_handler is not None and self._task_handler.done():
            self._task_handler = None

    def begin(self) -> None:
        """Serve the requests that have arrived, if none is in progress."""
        if self._task_handler is None and self._messages and not self._force_close:
            # Not in the current context: asyncio's transport has that of the handler that last read from a paused connection.
            context = self._context.copy()
            if _EAGER:
                _TASK(self.start(), loop=self._loop, context=context, eager_start=True)  # which sets _task_handler
            else:
                self._task_handler = self._loop.create_task(self.start(), context=context)

    async def start(self) -> None:
        """Serve one request."""
        task: Any = self._task_handler
        if task is None:  # begun at once, as Python 3.12 can
            task = self._task_handler = asyncio.current_task()
        manager: Any = self._manager
        if self._force_close or manager is None or not self._messages:
            self._task_handler = None
            return
        message, payload = self._messages.popleft()
        self._parser.message_consumed()  # type: ignore[union-attr]
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        handler = manager.request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        try:
            request = manager.make(message, payload, self, task)
        except Exception as error:  # the host of `http://xn--a/` cannot be decoded
            handler = self._make_error_handler(_ErrInfo(status=400, exc=error, message=""))
            request = manager.make(ERROR, payload, self, task)
        self._current_request = request
        keeps, self._request_in_progress = False, True
        try:
            try:
                response = await handler(request)
            except Exception as error:
                response = self.handle_error(request, 500, error)
            finally:
                self._current_request = None
            if (sent := self.send_whole(request, response)) is None:
                response, lost = await self.finish_response(request, response, None)
            else:
                lost = not sent or (self._paused and await self.is_lost(request))
            if not lost:
                self._keepalive = bool(response._keep_alive)
                if payload is not EMPTY_PAYLOAD:
                    await self._drop(payload)
                    if message.chunked and message.version < HttpVersion11:
                        self.close()  # a proxy of HTTP/1.0 may see another end of this body (RFC 9112 6.1)
                keeps = True
        except ConnectionError:
            pass  # the client has left
        except Exception as error:
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = None  # a cycle otherwise
            self._go_on(keeps)

    def send_whole(self, request: Any, response: web.StreamResponse) -> bool | None:
        """Send a response in one write if that is possible; None: call `finish_response`. False: the client has disconnected.

        If `_paused` is set afterwards, `is_lost` must be awaited.
        """
        return None

    async def is_lost(self, request: web.BaseRequest) -> bool:
        """Wait until the client has taken the response. True if the connection ends first."""
        raise NotImplementedError

    async def _drop(self, payload: Any) -> None:
        """Read and drop the rest of a body that its handler did not want, for a second at most; then close."""
        if not payload.is_eof():
            if self._lingering_time and not self._force_close:
                with suppress(TimeoutError, web.RequestPayloadError):  # such as a body that is not what its encoding says
                    async with asyncio.timeout(self._lingering_time):
                        while not payload.is_eof():
                            await payload.readany()
            if not payload.is_eof() and not self._force_close:
                self.close()
        payload.set_exception(_PAYLOAD_ACCESS_ERROR)

    def _go_on(self, keeps: bool) -> None:
        """After a request: begin the next one if it has arrived, wait for it, or close the connection."""
        self._task_handler, self._request_in_progress = None, False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        if self._force_close:
            return
        if not keeps or not self._keepalive or self._close:
            if self.transport is not None:
                self.transport.close()
            return
        self._next_keepalive_close_time = close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
        if self._messages:  # not begun at once: a client that sends many requests takes turns with the others
            self._task_handler = self._loop.create_task(self.start(), context=self._context.copy())

    def _process_keepalive(self) -> None:
        """Close the connection if it has waited for a request for `keepalive_timeout` seconds."""
        self._keepalive_handle = None
        if self._force_close or not self._keepalive:
            return
        if self._loop.time() < self._next_keepalive_close_time:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        elif self._task_handler is None:
            self.force_close()
