"""Tells a program on this machine from a proxy on this machine, by what the kernel shows of their sockets (Linux)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from . import sock_diag

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_BURST_SECONDS: Final = 0.25
_LISTEN: Final = "0A"
_MAPPED: Final = "00000000" * 2 + ("FFFF0000" if sys.byteorder == "little" else "0000FFFF")
"""How the tables write the first twelve bytes of an IPv4-mapped IPv6 address."""
_verdicts: Final[WeakKeyDictionary[asyncio.BaseTransport, bool]] = WeakKeyDictionary()
_clients: Final[deque[int]] = deque(maxlen=4)
"""The processes whose connections were judged last: the next connection is probably from one of them."""


class _Sockets(NamedTuple):
    """The TCP sockets of this network namespace. Addresses as in the tables: `0100007F:1F90`."""

    ends: dict[tuple[str, str], sock_diag.End]
    """By local and remote address."""
    listening: list[tuple[str, int]]
    """Address and inode."""


class _Burst:
    """The sockets of the program that was found to be no proxy a moment ago.

    A program may open hundreds of connections at once, and judging one takes milliseconds. Those that were already open when
    the first was judged are not judged again: they belonged to a program that served no other.
    """

    def __init__(self) -> None:
        self._sockets: set[int] = set()
        self._until = 0.0

    def keep(self, sockets: set[int]) -> None:
        """Remember the sockets of a program that has just been judged."""
        self._sockets, self._until = sockets, time.monotonic() + _BURST_SECONDS

    def has(self, inode: int) -> bool:
        """Whether this socket was among them a moment ago. The kernel does not reuse an inode so soon."""
        return inode in self._sockets and time.monotonic() < self._until


_burst: Final = _Burst()


def is_direct(transport: asyncio.BaseTransport) -> bool:
    """Whether a loopback TCP connection comes straight from a program that this process's user runs, and not from a proxy.

    The client's socket must belong to the same user, and its process must not be a proxy: one that listens beyond
    loopback, or that has connections from other processes, even if another process accepted them. Our own process is no
    proxy. A process that cannot be examined counts as one. Each connection is judged once.

    True where the kernel shows no sockets, as outside Linux: there the caller's other checks must do.
    """
    verdict = _verdicts.get(transport)
    if verdict is None:
        verdict = _verdicts[transport] = _judge(transport.get_extra_info("sockname"), transport.get_extra_info("peername"))
    return verdict


def public_listeners() -> list[str]:
    """The addresses beyond loopback, such as `0.0.0.0:8080`, on which this process listens for TCP connections."""
    found = set()
    for one in _own_sockets():
        with suppress(OSError):  # a kind of socket that has no such option or name
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                host, port = one.getsockname()[:2]
                if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
                    found.add(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return sorted(found)


def _judge(server: Any, client: Any) -> bool:
    """`server` and `client` are the names of the two ends, as the socket module has them."""
    ours, theirs = _written(server), _written(client)
    if ours is None or theirs is None:
        return True
    end, sockets = sock_diag.end(client, server), None
    if end is not None and end.uid == os.geteuid() and _burst.has(end.inode):
        return True
    own = _held("self")
    if end is None:
        if _is_ours(theirs, ours):
            return True
        sockets = _read()
        end = sockets.ends.get((theirs, ours))
        if end is None:
            # The connection has ended. True only if the tables do not even show our own sockets: then they show none.
            return own.isdisjoint([one.inode for one in sockets.ends.values()] + [inode for _, inode in sockets.listening])
    if end.inode in own:  # a client within the server, as in tests
        return True
    if end.uid != os.geteuid():
        return False
    held = _held_with(end.inode)
    if held is None:
        return False
    serving = sock_diag.serving()
    simple = serving is not None and held.isdisjoint(serving)
    direct = simple or not _is_proxy(held, own, sockets or _read())
    if direct:
        _burst.keep(held)
    return direct


def _is_proxy(held: set[int], own: set[int], sockets: _Sockets) -> bool:
    """Whether the process with the sockets `held` serves others than itself and us (`own`), or could from other machines.

    Its connections may have been accepted by another process, which listens.
    """
    listening = {local for local, inode in sockets.listening if inode in held}
    if not all(_is_loopback(local) for local in listening):
        return True
    ports = {_port(local) for local, _ in sockets.listening}
    accepted = [way for way, end in sockets.ends.items() if end.inode in held and _port(way[0]) in ports]
    clients = [sockets.ends.get((remote, local)) for local, remote in accepted]
    return any(client is None or client.inode not in held | own for client in clients)


def _read() -> _Sockets:
    sockets = _Sockets({}, [])
    for path in _TABLES:
        with suppress(OSError), open(path, encoding="ascii") as table:
            for line in list(table)[1:]:
                _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == _LISTEN:
                    sockets.listening.append((local.removeprefix(_MAPPED), int(inode)))
                else:
                    way = local.removeprefix(_MAPPED), remote.removeprefix(_MAPPED)
                    sockets.ends[way] = sock_diag.End(int(uid), int(inode))
    return sockets


def _is_ours(local: str, remote: str) -> bool:
    """Whether this process has the socket with these two addresses: a client within the server, as in tests."""
    for one in _own_sockets():
        with suppress(OSError):  # not connected
            if _written(one.getsockname()) == local and _written(one.getpeername()) == remote:
                return True
    return False


def _own_sockets() -> Iterator[socket.socket]:
    """A copy of each IP socket of this process, closed after use."""
    for number in _numbers("/dev/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6):
                    yield one


def _held_with(inode: int) -> set[int] | None:
    """The sockets of the other process of this user that holds `inode`; None if none does. Recent clients are tried first.

    A process that has changed its user belongs to root in /proc, and its sockets cannot be read.
    """
    user, me = os.geteuid(), os.getpid()
    for pid in [*_clients, *sorted(_numbers("/proc"), reverse=True)]:
        with suppress(OSError):
            if pid != me and os.stat(f"/proc/{pid}").st_uid == user and inode in (held := _held(str(pid))):
                if pid not in _clients:
                    _clients.appendleft(pid)
                return held
    return None


def _held(pid: str) -> set[int]:
    """The inodes of a process's sockets; empty if they cannot be read."""
    inodes = set()
    for number in _numbers(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{number}")
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    return inodes


def _numbers(folder: str) -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]
    return []


def _written(name: Any) -> str | None:
    """A socket's name as the tables write it. None for anything but an IP address and a port."""
    try:
        packed = ipaddress.ip_address(name[0].partition("%")[0]).packed
        words = [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
        return ("".join(f"{word:08X}" for word in words) + f":{name[1]:04X}").removeprefix(_MAPPED)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _port(local: str) -> str:
    return local.rpartition(":")[2]


@lru_cache(maxsize=256)
def _is_loopback(local: str) -> bool:
    text = local.partition(":")[0]
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(words)).is_loopback
