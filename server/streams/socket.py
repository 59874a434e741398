"""WebSockets: `socket(request)`, over aiohttp's WebSocketResponse."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from aiohttp import ClientConnectionResetError, WSMsgType, hdrs, web

from ..http.errors import ApiError, BadRequest
from ..http.streaming import asks_for_websocket, opens_stream
from ..http.web_socket import TellingSocket
from .changes import Changes, changes_of
from .ends import End
from .events import STREAMS, begun, leave
from .lease import Lease

_CLOSE_SECONDS: Final = 1.5
_VERSION: Final = "13"
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")  # RFC 6455 4.2.1: 16 bytes in base64


class UpgradeRequired(ApiError):
    """426: the route is a WebSocket, and the request does not ask for one (RFC 9110 15.5.22)."""

    status = 426


class LiveSocket(TellingSocket):
    """aiohttp's WebSocketResponse, which sends nothing once its lease has ended."""

    def __init__(self, lease: Lease, **kwargs: Any) -> None:
        super().__init__(timeout=_CLOSE_SECONDS, compress=False, **kwargs)
        self._lease = lease

    @property
    def response(self) -> LiveSocket:
        """The socket itself, as the handler returns it."""
        return self

    def changes(self, table: str) -> Changes:
        """The changes of a table's rows, as `Stream.changes`."""
        return changes_of(self._lease.request, table)

    async def send_frame(self, message: bytes, opcode: WSMsgType, compress: int | None = None) -> None:
        await self._sending(len(message))
        await super().send_frame(message, opcode, compress)

    async def send_str(self, data: str, compress: int | None = None) -> None:
        await self._sending(len(data))
        await super().send_str(data, compress)

    async def send_bytes(self, data: Any, compress: int | None = None) -> None:
        await self._sending(len(data))
        await super().send_bytes(data, compress)

    async def _sending(self, size: int) -> None:
        self._lease.sent += size
        if self._lease.end is not None:
            await asyncio.sleep(0)  # a handler that ignores the error must not stop the event loop
            raise ClientConnectionResetError("the socket has ended")

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """Close the socket; once its lease has ended, with the code and the reason of that."""
        end = self._lease.end
        if end is not None and end.code is not None:
            code, message, drain = end.code, end.reason.encode(), False
        return await super().close(code=code, message=message, drain=drain)


class Opening:
    """What `socket` returns: an asynchronous context manager for a LiveSocket."""

    def __init__(self, request: web.Request, max_bytes: int, protocols: Iterable[str]) -> None:
        self._request, self._registry = request, request.app[STREAMS]
        self._max_bytes, self._protocols = max_bytes, tuple(protocols)
        self._lease: Lease | None = None
        self._socket: LiveSocket | None = None
        self._closing: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> LiveSocket:
        if self._lease is not None:
            raise RuntimeError("a socket can be opened only once")
        self._demand_upgrade()
        self._lease = lease = self._registry.open(self._request, "socket")
        heartbeat = self._registry.bounds.heartbeat
        most = self._max_bytes + 1  # aiohttp refuses a message of this size already
        self._socket = LiveSocket(lease, heartbeat=heartbeat, max_msg_size=most, protocols=self._protocols)
        lease.finish = self._finish
        await begun(self._registry, lease, self._socket)
        return self._socket

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._lease is not None
        ours = await leave(self._registry, self._lease, error)
        if self._closing is not None:  # the client has a moment to confirm
            with suppress(Exception):
                await asyncio.wait({self._closing}, timeout=_CLOSE_SECONDS)
        if self._socket is not None:
            await self._socket.client_has_read()
        return ours

    def _finish(self, end: End) -> None:
        """Begin to close the socket, even if its handler is not done."""
        if end.code is None or self._socket is None or not self._socket.prepared:
            self._request.protocol.force_close()
        else:
            self._closing = asyncio.get_running_loop().create_task(self._socket.close())

    def _demand_upgrade(self) -> None:
        headers, wanted = self._request.headers, {"Upgrade": "websocket", "Connection": "Upgrade"}
        if not asks_for_websocket(self._request) or self._request.method != hdrs.METH_GET:
            raise UpgradeRequired(headers=wanted)
        if headers.get(hdrs.SEC_WEBSOCKET_VERSION) != _VERSION:
            raise UpgradeRequired(headers={**wanted, "Sec-WebSocket-Version": _VERSION})
        if not _KEY.fullmatch(headers.get(hdrs.SEC_WEBSOCKET_KEY, "")):  # aiohttp fails at one that is not ASCII
            raise BadRequest(for_log="websocket-key")


@opens_stream
def socket(request: web.Request, *, max_bytes: int = 65_536, protocols: Iterable[str] = ()) -> Opening:
    """`async with socket(request) as ws:` respond with a WebSocket until the client leaves or access ends.

        async with socket(request) as ws:
            async for message in ws:
                await ws.send_str(message.data)
        return ws

    `ws` is aiohttp's `WebSocketResponse`. The socket is a lease, like `event_stream`; the close frame has the reason:
    4401 (`token-expired`, `session-revoked`, `key-revoked`, `key-expired`), 4408 (`too-long`, `too-slow`) or 1001
    (`draining`). Always receive from it (`async for`, or `receive`): otherwise the client's close frame goes unanswered.

    max_bytes  the largest message that is accepted, in bytes; a larger one closes the socket (1009)
    protocols  the subprotocols to choose from

    Raises, on entry, UpgradeRequired (426) if the request does not ask for a WebSocket, BadRequest for a bad
    handshake, and what `event_stream` raises.
    """
    return Opening(request, max_bytes, protocols)
