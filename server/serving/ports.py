"""Ports that several processes share, and the end of one: what has been let in must not be lost when it closes."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

from ..settings.setting import ConfigError


def hold_port(host: str, port: int) -> socket.socket:
    """A socket that holds the port for the workers and takes no connection. Raises ConfigError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:  # without SO_REUSEPORT: another server's port is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise ConfigError(f"port: cannot serve on {host}:{port} ({error.strerror or error})") from error
    return holder


class Listening(Protocol):
    """A listening socket, as far as asyncio shows it."""

    def fileno(self) -> int: ...


# Linux, linux/filter.h: load byte 13 of the TCP header, drop the packet (0) if SYN is among its flags, else keep it whole.
_SYN_IS_DROPPED: Final = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER: Final = 26


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("code", ctypes.POINTER(_Instruction)))


def begin_no_more(listening: Iterable[Listening]) -> None:
    """From now on these ports begin no connection; those whose handshake has begun still come. Where it works: on Linux,
    some kernels of which let root alone do it. Elsewhere what begins in the last moment before a port closes is reset.

    Whoever begins one waits for a second, tries again as TCP does, and then comes to another process or is refused.
    """
    code = (_Instruction * len(_SYN_IS_DROPPED))(*(_Instruction(*words) for words in _SYN_IS_DROPPED))
    program = _Filter(len(code), ctypes.cast(code, ctypes.POINTER(_Instruction)))
    for one in listening:
        with suppress(OSError), socket.socket(fileno=os.dup(one.fileno())) as port:
            port.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


def take_waiting(listening: Iterable[Listening]) -> list[socket.socket]:
    """The connections that the kernel has made and nobody has accepted: closing the port would reset them."""
    taken = []
    for one in listening:
        with suppress(OSError), socket.socket(fileno=os.dup(one.fileno())) as port:
            port.setblocking(False)
            while True:  # until the queue is empty, which is an error of this kind
                taken.append(port.accept()[0])
    for connection in taken:
        connection.setblocking(False)
    return taken
