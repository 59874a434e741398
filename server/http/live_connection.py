"""A connection that serves a live answer: it accepts no further request, and reports at once when its client leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import StreamReader

from .request_heads import BoundedHeads
from .streaming import tune


class LiveConnection(BoundedHeads):
    """The part of a connection (server.http.protocol.Connection) that live answers use."""

    __slots__ = ("_lost",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lost: Callable[[], None] | None = None

    def begin_live(self, lost: Callable[[], None], body: StreamReader | None) -> None:
        """Serve a live answer from now on; `lost` is called when the connection ends.

        It no longer counts among `limits.connections`: live answers have bounds of their own. What the client sends after the
        request's `body` is dropped, as the response announces (RFC 9112 9.6), and is not held until the answer ends; None: it
        is a WebSocket's.
        """
        self._lost = lost
        if self._manager is not None:
            self._manager.live += 1  # type: ignore[attr-defined]
        if body is not None:
            body.on_eof(self._take_no_more)  # at once if the body is complete
        if self.transport is not None:
            tune(self.transport)

    def _take_no_more(self) -> None:
        self._close = True

    def connection_lost(self, exc: BaseException | None) -> None:
        lost, self._lost = self._lost, None
        manager, handler = self._manager, self._task_handler
        super().connection_lost(exc)
        if lost is None:
            return
        if manager is not None:
            # aiohttp counts the connection until its handler has ended. Were it no longer live then, a thousand streams that
            # end together would fill `limits.connections`, and their clients could not connect again.
            if handler is None:
                manager.live -= 1  # type: ignore[attr-defined]
            else:
                handler.add_done_callback(partial(_no_longer_live, manager))
        lost()


def _no_longer_live(manager: Any, _: object) -> None:
    manager.live -= 1
