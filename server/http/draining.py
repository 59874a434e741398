"""Shuts a server down without losing a request: received requests get responses, idle connections are closed."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_POLL_SECONDS: Final = 0.01
_FORCE_SECONDS: Final = 0.01
"""Not 0: aiohttp treats a timeout of 0 as no timeout."""


def is_idle(connection: RequestHandler) -> bool:
    """Whether no request is in progress: none is queued or being handled; part of a head may have been received."""
    return not connection._messages and (connection._request_count == 0 or connection._task_handler is None)


class DrainingServer(web.Server):
    """aiohttp's server, except that it continues to read while it drains.

    aiohttp's own server first marks every connection as closing, and such a connection drops what it receives: a request
    whose body is still being sent would never get a response, and would hold up the process until the timeout.
    """

    def pre_shutdown(self) -> None:
        """Close the idle connections. Bytes already written to them are still sent."""
        for connection in self.connections:
            if is_idle(connection):
                connection.force_close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Wait until every response is sent, at most `timeout` seconds (None: no limit), then close what remains."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if timeout is not None else float("inf")
        self.pre_shutdown()
        while self._connections and loop.time() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            self.pre_shutdown()
        await super().shutdown(_FORCE_SECONDS)
