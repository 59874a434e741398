"""A WebSocket whose client learns why a message of it was refused, also while the client is still sending that message."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web
from aiohttp.http_websocket import WebSocketError

_LINGER_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.02


class TellingSocket(web.WebSocketResponse):
    """aiohttp's WebSocketResponse, except that a connection on which a message was refused is closed in two steps.

    The rest of the message is still coming then. If the connection were closed at once, the kernel would reset it, and the
    client would lose the close frame. So only sending ends; what arrives is dropped until the client closes the connection,
    for at most 1.5 seconds.
    """

    _lingers: Any = None

    def _close_transport(self) -> None:
        transport: Any = self._req.transport if self._req is not None else None
        refused = self._reader is not None and isinstance(self._reader.exception(), WebSocketError)
        if transport is None or not refused or not transport.can_write_eof():
            super()._close_transport()
        elif self._lingers is None:
            self._lingers = transport
            transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.close)

    async def client_has_read(self) -> None:
        """Wait until the client has closed a connection on which its message was refused, or its time is over."""
        for _ in range(round(_LINGER_SECONDS / _POLL_SECONDS) + 1):
            if self._lingers is None or self._lingers.is_closing():
                return
            await asyncio.sleep(_POLL_SECONDS)
