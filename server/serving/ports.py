"""A port that several processes share, and closing one without losing the connections that the kernel has made."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from ..settings.setting import ConfigError


def hold_port(host: str, port: int) -> socket.socket:
    """A bound socket that reserves the port for the workers and accepts no connection. Raises ConfigError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:  # without SO_REUSEPORT: fails if another server has the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise cannot_bind("port: cannot serve", host, port, error) from error
    return holder


def cannot_bind(what: str, host: str, port: int, error: OSError, setting: str = "--port or GATEPOST_PORT") -> ConfigError:
    """Returns the error for an address that cannot be listened on: what failed, the address, why, and what to do.

    what     the key of the setting and what it is for
    setting  how another port is chosen
    """
    if isinstance(error, socket.gaierror):
        return ConfigError(f"{what} on {host}:{port}: the host is not known: give an address of this machine")
    why = os.strerror(error.errno) if error.errno else str(error)
    todo = {
        errno.EADDRINUSE: f": another program has this port; choose another with {setting}",
        errno.EACCES: f": ports below 1024 need privileges; choose another with {setting}",
        errno.EADDRNOTAVAIL: ": this machine has no such address",
    }.get(error.errno or 0, "")
    return ConfigError(f"{what} on {host}:{port} ({why}){todo}")


class Listening(Protocol):
    """A listening socket, as asyncio shows it."""

    def fileno(self) -> int: ...


def take_waiting(listening: Iterable[Listening]) -> list[socket.socket]:
    """Accept the connections that wait in the queues of these ports: closing a port would reset them."""
    taken = []
    for one in listening:
        with suppress(OSError), socket.socket(fileno=os.dup(one.fileno())) as port:
            port.setblocking(False)
            while True:  # until the queue is empty, which raises
                taken.append(port.accept()[0])
    for connection in taken:
        connection.setblocking(False)
    return taken
