"""The client's address behind the operator's proxies. For limits and logs only: an address proves nothing.

`Forwarded` (RFC 7239) is not read: behind a proxy that sets one header and passes the other on unchanged, every client
could choose its own address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from aiohttp import HttpVersion11, hdrs, web

from ..settings.setting import ConfigError
from .this_machine import is_direct

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
UNKNOWN: Final = "unknown"
"""The address of a request whose connection is already closed."""
UNIX: Final = "unix"
"""The address of a client on a unix socket, and the value of `trusted_proxies` that trusts it."""

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_PRIVATE: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
"""Where a proxy's address may be: loopback, RFC 1918, link-local, RFC 6598 (clusters use it), RFC 4193."""
_WITH_PORT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([0-9.]+))(?::[0-9]{1,5})?\Z")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_FORWARDED_FOR: Final = "X-Forwarded-For"
_INBOUND_ID: Final = "X-Request-Id"


class ClientAddress:
    """Determines the client address of a request, relying only on the proxies that the operator trusts."""

    def __init__(self, trusted_proxies: Iterable[str]) -> None:
        """`trusted_proxies` are networks (`10.0.0.0/8`, `2001:db8::7`) or the word `unix`.

        Raises ConfigError for anything else.
        """
        words = list(trusted_proxies)
        self._unix = UNIX in words
        networks = [_network(word) for word in words if word != UNIX]
        self._trusts = lru_cache(maxsize=4096)(lambda address: self._is_trusted(address, networks))
        self.any_trusted = bool(words)
        suspects = networks if words else _PRIVATE
        self._may_be_proxy = lru_cache(maxsize=4096)(lambda address: self._is_trusted(address, suspects))

    def of(self, request: web.Request) -> str:
        """The client's address: an IPv4 or IPv6 address in its usual form, `unix`, or `unknown`.

        This is the peer's address, unless the peer is a trusted proxy. In that case it is the rightmost address in
        X-Forwarded-For that is not trusted: every proxy appends the address of its own peer on the right, and entries to
        the left of an untrusted one are unverified. An entry that is not an address ends the search, and the last valid
        address counts.
        """
        peer = _peer(request)
        if not self.any_trusted or not self._trusts(peer):
            return peer
        found = peer
        for entry in reversed(",".join(request.headers.getall(_FORWARDED_FOR, ())).split(",")):
            if not (text := entry.strip()):
                continue  # empty list members are ignored (RFC 9110 5.6.1.2)
            address = _entry(text)
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return found

    def is_known(self, address: str) -> bool:
        """Whether `address` (from `of`) is really one client's, and not that of a proxy in front of many.

        Without trusted proxies a private or loopback address may be a proxy's; with them, an address that is itself
        trusted is one, and it named no client. A unix socket is always a proxy's.
        """
        return address not in (UNIX, UNKNOWN) and not self._may_be_proxy(address)

    def inbound_request_id(self, request: web.Request) -> str | None:
        """The `X-Request-Id` that a trusted proxy sent (1 to 64 of `A-Za-z0-9._-`), or None. For logs, beside our own id."""
        if not self.any_trusted or not self._trusts(_peer(request)):
            return None
        values = request.headers.getall(_INBOUND_ID, ())
        return values[0] if len(values) == 1 and _REQUEST_ID.match(values[0]) else None

    def _is_trusted(self, address: str, networks: Sequence[Network]) -> bool:
        if address in (UNIX, UNKNOWN):
            return address == UNIX and self._unix
        return any(ipaddress.ip_address(address) in network for network in networks)


ADDRESSES: Final = web.AppKey("addresses", ClientAddress)
_NO_PROXIES: Final = ClientAddress(())


def client_address(request: web.Request) -> str:
    """The client's address, with proxies resolved according to the setting `trusted_proxies`. For limits and logs only.

    Returns an IPv4 or IPv6 address, `unix` for a unix socket, or `unknown` if the connection is already closed.
    """
    return request.app.get(ADDRESSES, _NO_PROXIES).of(request)


def client_network(request: web.Request) -> str:
    """What counts as one client in limits: its IPv4 address, or the /64 network of its IPv6 address.

    Based on `client_address`, so it can also be `unix` or `unknown`.
    """
    return network_of(client_address(request))


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What counts as one client in limits: an IPv4 address, or the /64 network that one IPv6 customer usually has."""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _peer(request: web.Request) -> str:
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    if isinstance(name, tuple):
        return _plain(name[0]) or UNKNOWN
    return UNIX if isinstance(name, str | bytes) else UNKNOWN


def _entry(text: str) -> str | None:
    """The address in one entry, which some proxies write with brackets or a port. None if it is not an address."""
    with_port = _WITH_PORT.match(text)
    return _plain((with_port[1] or with_port[2]) if with_port else text)


@lru_cache(maxsize=4096)
def _plain(text: str) -> str | None:
    """An address in canonical form, without a zone; an IPv4-mapped IPv6 address becomes IPv4. None for anything else."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _network(word: str) -> Network:
    try:
        network = ipaddress.ip_network(word)
    except ValueError as error:
        raise ConfigError(f"trusted_proxies: {word!r} is neither a network ({error}) nor the word unix") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        inner = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(inner) if inner else 0, network.prefixlen - 96))
    return network


_LOCAL_HOST: Final = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?\Z", re.IGNORECASE)
_OF_PROXIES: Final = (hdrs.FORWARDED, hdrs.VIA, "X-Real-IP")


def is_local(request: web.Request) -> bool:
    """Whether a development credential is accepted from this request.

    It must come from a loopback peer (TCP, not a unix socket) over HTTP/1.1 or newer, name a loopback host, and have no
    header of a proxy: a web page can send requests to 127.0.0.1 under its own host name (DNS rebinding), and behind a proxy
    on this machine every client looks like loopback. A proxy that leaves no trace in the request is found by its sockets
    (on Linux): the client must be a program of the user who runs the server, and must not serve others.
    """
    headers = request.headers
    if request.version < HttpVersion11:  # a proxy's usual version, no client's
        return False
    if any(name in headers for name in _OF_PROXIES) or any(name.lower().startswith("x-forwarded-") for name in headers):
        return False
    hosts = headers.getall(hdrs.HOST, [])
    if len(hosts) != 1 or not _LOCAL_HOST.match(hosts[0]) or not _LOCAL_HOST.match(request.host):
        return False
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    if transport is None or not isinstance(peer, tuple):
        return False  # a unix socket: only a proxy uses those
    try:
        loopback = ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback
    except ValueError:
        return False
    return loopback and is_direct(transport)
