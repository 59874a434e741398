"""Shutting a server down without losing a request: what has been received is answered, and idle connections are closed."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_POLL_SECONDS: Final = 0.01
_FORCE_SECONDS: Final = 0.01
"""aiohttp reads a timeout of 0 as no timeout at all."""


def is_idle(connection: RequestHandler) -> bool:
    """Whether no request is under way: none is queued, none is being handled, and at most a part of a head has come."""
    waiter = connection._waiter
    return not connection._messages and (connection._request_count == 0 or (waiter is not None and not waiter.done()))


class DrainingServer(web.Server):
    """aiohttp's server, which goes on reading while it drains.

    aiohttp's own tells every connection to close first, and such a connection drops what it receives: a request whose body
    is still coming would never be answered, and would hold the process until the timeout.
    """

    def pre_shutdown(self) -> None:
        """Close the idle connections. Bytes that were written to them are still sent."""
        for connection in self.connections:
            if is_idle(connection):
                connection.force_close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Wait until every request is answered and sent, at most `timeout` seconds (None: no limit), then end the rest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if timeout is not None else float("inf")
        self.pre_shutdown()
        while self._connections and loop.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            self.pre_shutdown()
        await super().shutdown(_FORCE_SECONDS)
