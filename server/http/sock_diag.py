"""Asks the kernel about single TCP sockets (Linux, sock_diag(7)): much cheaper than reading all from the tables in /proc."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DONE: Final = 3
_ONE: Final = 0x1  # NLM_F_REQUEST
_ALL: Final = 0x301  # and NLM_F_DUMP
_LISTEN: Final = 10
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI")
_PORTS: Final = struct.Struct(">HH16s16s")
_ANY: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # no interface, no cookie
_FOUND: Final = struct.Struct("=BBBB48sIIIII")


class End(NamedTuple):
    """Who has one end of a TCP connection: the user's number, and the socket's inode."""

    uid: int
    inode: int


def end(local: Any, remote: Any) -> End | None:
    """The socket with these two names (as the socket module has them), or None if there is none or the kernel does not say."""
    with suppress(OSError, AttributeError, ValueError, IndexError, TypeError):  # AttributeError: elsewhere than on Linux
        ours, theirs = _packed(local[0]), _packed(remote[0])
        family = socket.AF_INET if len(ours) == 4 else socket.AF_INET6
        names = _PORTS.pack(local[1], remote[1], ours, theirs)
        for state, _, uid, inode in _ask(family, 0xFFF, names, _ONE):
            if state != _LISTEN and inode:
                return End(uid, inode)
    return None


def serving() -> set[int] | None:
    """The inodes of all TCP sockets that listen, and of those connected at a port on which one listens.

    The latter tell a process that serves a connection which another one accepted, as a proxy with a process for each does.
    None if the kernel does not say.
    """
    with suppress(OSError, AttributeError):
        families, names = (socket.AF_INET, socket.AF_INET6), _PORTS.pack(0, 0, b"", b"")
        found = [one for family in families for one in _ask(family, 0xFFF, names, _ALL)]
        ports = {port for state, port, _, _ in found if state == _LISTEN}
        return {inode for _, port, _, inode in found if port in ports}
    return None


def _packed(text: str) -> bytes:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed


def _ask(family: int, states: int, names: bytes, flags: int) -> Iterator[tuple[int, int, int, int]]:
    """(state, local port, user, inode) of each socket that was asked about. Raises OSError."""
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + names + _ANY
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(0.2)
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, flags, 1, 0) + body)
        while True:
            data, at = kernel.recv(65536), 0
            while at + _HEADER.size <= len(data):
                size, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind != _BY_FAMILY:
                    raise OSError("the kernel does not say")
                _, state, _, _, names, _, _, _, uid, inode = _FOUND.unpack_from(data, at + _HEADER.size)
                yield state, int.from_bytes(names[:2]), uid, inode
                at += (size + 3) & ~3
            if flags == _ONE:
                return
