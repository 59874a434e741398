"""One live answer: whose it is, and how long it may last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ..auth.identity import Identity
from ..http.stamp import REQUEST_ID
from ..telemetry.log import LOG
from .ends import End


class Lease:
    """A live answer that is open. The registry (`server.streams.registry.Streams`) makes and ends it.

    request     the request that opened it; `identity` is its caller, None on a public route
    kind        `events` or `socket`
    caller      the caller for `streams.per_caller`; None: it is not counted there
    route       the route's template
    task        the task of the handler, which is cancelled when the lease ends
    opened_at   when it was opened, by the event loop's clock
    expires_at  when the credential ends (Unix seconds), or None
    end         why it has ended; None while it is open
    finish      sends the client the reason of the end, and closes the connection
    """

    __slots__ = (
        "behind_since", "caller", "cancels", "end", "expires_at", "finish", "identity", "kind", "left_at", "lost", "opened_at",
        "release", "request", "route", "sent", "slot", "taken_then", "task", "transport",
    )  # fmt: skip

    def __init__(
        self, request: web.Request, identity: Identity | None, kind: str, route: str, caller: str | None, opened_at: float
    ) -> None:
        self.request, self.identity, self.kind, self.route, self.caller = request, identity, kind, route, caller
        self.opened_at = opened_at
        self.expires_at = None if identity is None else identity.expires_at
        task, transport = asyncio.current_task(), request.transport
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self.transport: Any = transport
        self.finish: Callable[[End], None] = _nothing
        self.release: Callable[[], None] = _nothing
        """Counts the request among those in progress again."""
        self.end: End | None = None
        self.cancels = self.slot = 0
        self.lost = False
        """Whether the connection has ended."""
        self.behind_since: float | None = None
        self.left_at: float | None = None
        """When the reader fell behind, and when the handler left the block, by the event loop's clock."""
        self.sent = self.taken_then = 0
        """Bytes of a socket's messages so far, and bytes that the client had taken when it fell behind."""

    def forget(self) -> None:
        """Drop the references back to the lease: the handler is done with it."""
        self.finish = _nothing


def _nothing(*_: object) -> None:
    """Do nothing."""


def log_end(lease: Lease, seconds: float) -> None:
    """Log one line about a live answer that has ended after `seconds`."""
    identity = lease.identity
    fields = {
        "request_id": lease.request[REQUEST_ID],
        "route": lease.route,
        "kind": lease.kind,
        "reason": lease.end.reason if lease.end is not None else None,
        "seconds": round(seconds, 3),
        "provider": identity.provider if identity is not None else None,
        "user_id": identity.user_id if identity is not None else None,
        "org_id": identity.org_id if identity is not None else None,
    }
    LOG.info("stream ended", extra={"fields": {name: value for name, value in fields.items() if value is not None}})
