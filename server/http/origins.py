"""Whether a request comes from a foreign web page."""

from __future__ import annotations

import ipaddress
from typing import Final

from aiohttp import hdrs, web

from .cors import Cors
from .resource import Resource


class Origins:
    """The origins whose pages may send requests to handlers that ask: those listed, and this server's own."""

    def __init__(self, cors: Cors, resource: Resource | None) -> None:
        """`cors` has the listed ones; `resource` is this server's public address, or None."""
        self.allows, self.own = cors.allows, frozenset() if resource is None else frozenset({resource.origin})


ORIGINS: Final = web.AppKey("origins", Origins)


def is_foreign_origin(request: web.Request) -> bool:
    """Was this request sent by a page of an origin that is neither listed (`cors_origins`) nor this server's own?

    False without the header `Origin`, which only browsers send. `null` and a repeated header are foreign. This server's own
    origin is that of `resource.url`, and, for a socket on loopback, those of `localhost`, `127.0.0.1` and `[::1]` with its
    port. The header `Host` proves nothing: a page of another site can give the address of this machine to a name of its own
    (DNS rebinding).
    """
    origins = request.headers.getall(hdrs.ORIGIN, ())
    if not origins:
        return False
    known = request.app[ORIGINS]
    return not (known.allows(request) or (len(origins) == 1 and origins[0] in known.own | _on_loopback(request)))


def _on_loopback(request: web.Request) -> frozenset[str]:
    sockname = request.transport.get_extra_info("sockname") if request.transport is not None else None
    if not isinstance(sockname, tuple) or not ipaddress.ip_address(sockname[0].partition("%")[0]).is_loopback:
        return frozenset()
    return frozenset(f"http://{host}:{sockname[1]}" for host in ("localhost", "127.0.0.1", "[::1]"))
