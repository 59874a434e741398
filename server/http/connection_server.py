"""The server of the API's connections, and how an application gets it."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

from aiohttp import web, web_fileresponse
from aiohttp.web_protocol import RequestHandler

from .backlog import BACKLOG, Backlog
from .descriptors import bound_accept_errors, room_for
from .draining import DrainingServer
from .error_bodies import STANDARD, ErrorBodies
from .files import respect_if_range
from .path_prefix import PathPrefix
from .protocol import Connection, Handler, HandOver, Hold
from .request import Make, maker


class ConnectionServer(DrainingServer):
    """aiohttp's server, which makes a Connection for each client and drains when it shuts down."""

    sharing: HandOver | None = None
    """The connection balancer, if several workers share a port."""
    make: Make
    """Makes the request of a message."""
    backlog: Backlog
    """What the connections hold for their clients."""
    hold: Hold
    """Counts a request whose response is not taken yet for its caller; returns the function that ends this."""
    errors: ErrorBodies
    """Makes the responses to what cannot be parsed."""
    live = 0
    """The number of connections that serve a live answer."""

    def __init__(self, handler: Any, *, make: Make, backlog: Backlog, hold: Hold, errors: ErrorBodies, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.make, self.backlog, self.hold, self.errors = make, backlog, hold, errors

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    async def take(self, connection: socket.socket) -> None:
        """Serve an open connection that another worker has handed over."""
        made = partial(Connection, self, loop=self._loop, handed=True, **self._kwargs)
        await self._loop.connect_accepted_socket(made, connection)


def install(
    app: web.Application,
    handle: Handler,
    *,
    head_bytes: int,
    head_seconds: float,
    headers: int,
    idle_seconds: float,
    connections: int,
    descriptors: int,
    backlog: Backlog,
    hold: Hold = lambda request: lambda: None,
    errors: ErrorBodies = STANDARD,
    prefix: PathPrefix | None = None,
) -> None:
    """Make everything that serves `app` (our own runner, a test server, gunicorn's worker) use ConnectionServer.

    head_bytes, head_seconds  the largest size and the longest duration of a request head
    headers, connections      the maximum number of header lines of a request, and of open connections
    idle_seconds              how long a connection without a request stays open
    descriptors               file descriptors that the process needs besides those of its connections
    backlog                   counts and bounds what is held for all clients; it is kept as `app[BACKLOG]`
    hold                      counts a request while its response is not taken yet
    errors                    makes the bodies of errors
    prefix                    the path below which clients find the API; None: there is none
    """
    app[BACKLOG] = backlog
    # With sendfile(2) the bytes of a file pass by the transport: a client that takes none of them would never be cut.
    web_fileresponse.NOSENDFILE = True  # type: ignore[misc]
    respect_if_range()

    def make_handler(*, loop: asyncio.AbstractEventLoop | None = None, **kwargs: Any) -> ConnectionServer:
        app._set_loop(loop)
        app.freeze()
        # The timeouts are ours, not the runner's defaults (AppRunner keeps idle connections for an hour).
        kwargs = {name: value for name, value in kwargs.items() if name not in ("access_log_class", "access_log_format")}
        kwargs |= {"access_log": None, "keepalive_timeout": idle_seconds, "lingering_time": 1.0, "debug": False}
        kwargs |= {"head_bytes": head_bytes, "head_seconds": head_seconds, "max_headers": headers}
        kwargs |= {"most": room_for(connections, descriptors), "backlog": backlog, "hold": hold, "errors": errors}
        bound_accept_errors()
        make: Any = maker(app)
        if prefix is not None:
            make = prefix.maker(make)
        return ConnectionServer(handle, make=make, loop=loop, **kwargs)

    object.__setattr__(app, "_make_handler", make_handler)
