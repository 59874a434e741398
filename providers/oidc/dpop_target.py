"""Compares the `htu` of a DPoP proof with the URI of a request (RFC 9449 4.3, step 9), without trusting its `Host`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from aiohttp import web

_URI: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{0,5}))?"
    r"(?P<path>/[A-Za-z0-9_~!$&'()*+,;=:@./%-]*)?(?:[?#][!-~]*)?",
    re.IGNORECASE | re.ASCII,  # without ASCII, the Kelvin sign would be a k
)
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PORTS: Final = {"http": 80, "https": 443}
_LONGEST: Final = 4096


class Origin(NamedTuple):
    """Scheme and host in lower case, and the port."""

    scheme: str
    host: str
    port: int


class Target(NamedTuple):
    """A URI without query and fragment, normalised by its syntax and scheme (RFC 3986 6.2.2, 6.2.3)."""

    origin: Origin
    path: str


def read_target(uri: str) -> Target | None:
    """Returns the target of an http or https URI; None for other texts. Dot segments are kept: no accepted request has any."""
    parts = _URI.fullmatch(uri) if len(uri) <= _LONGEST else None
    if parts is None:
        return None
    scheme = parts["scheme"].lower()
    port = int(parts["port"]) if parts["port"] else _PORTS[scheme]
    return Target(Origin(scheme, parts["host"].lower(), port), normal_path(parts["path"] or "/"))


def normal_path(path: str) -> str:
    """Returns a path with escapes in upper case, and without those of unreserved characters (RFC 3986 6.2.2.1, 6.2.2.2)."""
    return _ESCAPE.sub(_normal_escape, path) if "%" in path else path


def _normal_escape(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0].upper()


class Address:
    """The address of this API, as its clients know it."""

    def __init__(self, resource_url: str | None) -> None:
        """`resource_url` is the setting of that name. Raises ValueError if it is not an http or https URL."""
        public = read_target(resource_url) if resource_url is not None else None
        if resource_url is not None and public is None:
            raise ValueError(f"resource.url: {resource_url!r} is not an http or https URL")
        self._origin = public.origin if public is not None else None
        self._prefix = public.path.rstrip("/") if public is not None else ""

    def is_of(self, uri: str, request: web.Request) -> bool:
        """Whether `uri` is that of `request`, at the public address or else at the socket's own."""
        target = read_target(uri)
        if target is None:
            return False
        path = normal_path(request.rel_url.raw_path)
        if self._origin is None:
            return target.path == path and target.origin in served_at(request)
        # A proxy may have removed the path of the public address from the request, or not.
        return target.origin == self._origin and target.path in (path, self._prefix + path)


def served_at(request: web.Request) -> Collection[Origin]:
    """Returns the origins of the socket that accepted the request; none for a Unix socket. On loopback, of all its names."""
    transport = request.transport
    name: Any = transport.get_extra_info("sockname") if transport is not None else None
    if transport is None or not isinstance(name, tuple) or len(name) < 2:
        return ()
    scheme = "https" if transport.get_extra_info("sslcontext") is not None else "http"
    try:
        address = ipaddress.ip_address(str(name[0]).partition("%")[0])
    except ValueError:
        return ()
    address = getattr(address, "ipv4_mapped", None) or address
    hosts = [f"[{address}]" if address.version == 6 else str(address)]
    if address.is_loopback:
        hosts += ["localhost", "127.0.0.1", "[::1]"]
    return {Origin(scheme, host, name[1]) for host in hosts}
