"""Whose address a request comes from, where proxies stand between. For limits and logs only: an address proves nothing.

`Forwarded` (RFC 7239) is not read: a proxy that writes one header and passes the other on as the client sent it would let
anybody choose their address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

from aiohttp import hdrs, web

from ..settings.setting import ConfigError

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
UNKNOWN: Final = "unknown"
"""The address of a request whose connection is gone already."""
UNIX: Final = "unix"
"""The address of whoever comes over a unix socket, and the word that trusts it."""

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_WITH_PORT: Final = re.compile(r"(?:\[([^\[\]]+)\]|([0-9.]+))(?::[0-9]{1,5})?\Z")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_FORWARDED_FOR: Final = "X-Forwarded-For"
_INBOUND_ID: Final = "X-Request-Id"


class ClientAddress:
    """Reads addresses off requests, believing the proxies that the operator trusts, and nobody else."""

    def __init__(self, trusted_proxies: Iterable[str]) -> None:
        """`trusted_proxies` are networks (`10.0.0.0/8`, `2001:db8::7`) or the word `unix`. Raises ConfigError."""
        words = list(trusted_proxies)
        self._unix = UNIX in words
        networks = [_network(word) for word in words if word != UNIX]
        self._trusts = lru_cache(maxsize=4096)(lambda address: self._is_trusted(address, networks))
        self._anybody = bool(words)

    def of(self, request: web.Request) -> str:
        """The client's address: an IPv4 or IPv6 address in its usual form, `unix`, or `unknown`.

        It is the peer's, unless the peer is a trusted proxy: then the rightmost address of X-Forwarded-For that is not a
        trusted one, since every proxy adds on the right whom it has heard, and all left of that is hearsay. An entry that is
        no address ends the walk, and the last good one counts.
        """
        peer = _peer(request)
        if not self._anybody or not self._trusts(peer):
            return peer
        found = peer
        for entry in reversed(",".join(request.headers.getall(_FORWARDED_FOR, ())).split(",")):
            if not (text := entry.strip()):
                continue  # an empty member of a list means nothing (RFC 9110 5.6.1.2)
            address = _entry(text)
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return found

    def inbound_request_id(self, request: web.Request) -> str | None:
        """The `X-Request-Id` that a trusted proxy sent, if there is one and it is plain; for logs, beside our own."""
        if not self._anybody or not self._trusts(_peer(request)):
            return None
        said = request.headers.getall(_INBOUND_ID, ())
        return said[0] if len(said) == 1 and _REQUEST_ID.match(said[0]) else None

    def _is_trusted(self, address: str, networks: list[Network]) -> bool:
        if address in (UNIX, UNKNOWN):
            return address == UNIX and self._unix
        return any(ipaddress.ip_address(address) in network for network in networks)


ADDRESSES: Final = web.AppKey("addresses", ClientAddress)
_NOBODY_TRUSTED: Final = ClientAddress(())


def client_address(request: web.Request) -> str:
    """The address of the client behind this request, as the setting `trusted_proxies` lets it be known.

    An IPv4 or IPv6 address, `unix` for a unix socket, `unknown` where the connection is gone. For limits and logs only.
    """
    return request.app.get(ADDRESSES, _NOBODY_TRUSTED).of(request)


def client_network(request: web.Request) -> str:
    """What counts as one client in limits: its IPv4 address, or the /64 that one customer of IPv6 has.

    It is that of `client_address`, so also `unix` or `unknown`.
    """
    return network_of(client_address(request))


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What counts as one client in limits: an IPv4 address, or the /64 that one customer of IPv6 has."""
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
    """The address of one entry: bare, or as some proxies write it, with brackets or a port."""
    dressed = _WITH_PORT.match(text)
    return _plain((dressed[1] or dressed[2]) if dressed else text)


@lru_cache(maxsize=4096)
def _plain(text: str) -> str | None:
    """An address in its one usual form, without its zone, an IPv4 address out of its IPv6 cover; None for anything else."""
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
        raise ConfigError(f"trusted_proxies: {word!r} is not a network ({error}), and not the word unix") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        inner = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(inner) if inner else 0, network.prefixlen - 96))
    return network


_LOCAL_HOST: Final = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?\Z", re.IGNORECASE)


def is_local(request: web.Request) -> bool:
    """May a development credential be taken from this request?

    Only from a loopback peer that asks for a loopback host, and only when no proxy stands between: a page in a
    browser can send requests to 127.0.0.1 under a name of its own (DNS rebinding), and a proxy on this machine
    makes the whole world look like loopback.
    """
    headers = request.headers
    if hdrs.FORWARDED in headers or any(name.lower().startswith("x-forwarded-") for name in headers):
        return False
    hosts = headers.getall(hdrs.HOST, [])
    if len(hosts) != 1 or not _LOCAL_HOST.match(hosts[0]) or not _LOCAL_HOST.match(request.host):
        return False
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    if isinstance(peer, str | bytes):
        return True  # a unix socket: only this machine can reach it
    try:
        return peer is not None and ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback
    except ValueError:
        return False
