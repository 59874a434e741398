"""Finds out which routes stream, and prepares connections for live answers."""

from __future__ import annotations

import inspect
import socket
import struct
import sys
import types
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar

from aiohttp import hdrs, web

from .describe import description_of

F = TypeVar("F", bound=Callable[..., Any])
_MARK: Final = "__opens_stream__"
_DEPTH: Final = 4
"""How many levels of functions that a handler calls are followed, within its own module."""
_SIOCOUTQNSD: Final = 0x894B
_LOW_WATER: Final = 16_384
_DEAD_MILLISECONDS: Final = 45_000

TICKET: Final = web.RequestKey("ticket", bool)
"""Set on a request whose caller is known by a ticket for a stream, not by a header or a cookie."""


def opens_stream(function: F) -> F:
    """Mark a function of the public interface that begins a live answer: a handler that names it streams."""
    setattr(function, _MARK, True)
    return function


def streams(handler: object) -> bool:
    """Does this handler respond with an event stream or a WebSocket? Decided from its code, without running it.

    It does if it is described so (`@describe(events=...)`, `answers={101: None}`), or if its code, or a function of the same
    module that it names, names `event_stream` or `socket` of the public interface.
    """
    description = description_of(handler)
    if description is not None and description.streams:
        return True
    function = inspect.unwrap(handler) if callable(handler) else handler
    return _names_a_stream(getattr(function, "__func__", function), _DEPTH, set())


def _names_a_stream(function: Any, depth: int, seen: set[int]) -> bool:
    function = inspect.unwrap(function) if callable(function) else function
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return False
    seen.add(id(function))
    for value in _values(function):
        if getattr(value, _MARK, False) is True:
            return True
        inner = getattr(value, "__func__", value)
        if depth and getattr(inner, "__module__", None) == function.__module__ and _names_a_stream(inner, depth - 1, seen):
            return True
    return False


def _values(function: types.FunctionType) -> Iterator[Any]:
    """Returns what the names in a function's code refer to: globals, members of modules, variables of enclosing functions."""
    names = set(_names(function.__code__))
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    for name in names:
        value = function.__globals__.get(name)
        yield value
        if isinstance(value, types.ModuleType):
            yield from (vars(value)[member] for member in names & vars(value).keys())


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def asks_for_websocket(request: web.Request) -> bool:
    """Does the request ask to become a WebSocket (RFC 6455 4.2.1)?"""
    return request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket" and request._message.upgrade


def at_once(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine to its end that never waits, such as a write without a drain. Raises RuntimeError if it does."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a coroutine waited that must not")


def tune(transport: Any) -> None:
    """Prepare a connection for a long response: unsent bytes stay where they are counted, and a dead peer is noticed.

    The kernel gives up after 45 seconds in which the peer has confirmed nothing, not after a quarter of an hour.
    """
    connection = transport.get_extra_info("socket")
    for name, value in (("TCP_NOTSENT_LOWAT", _LOW_WATER), ("TCP_USER_TIMEOUT", _DEAD_MILLISECONDS)):
        option = getattr(socket, name, None)
        if connection is not None and option is not None:
            with suppress(OSError):  # a unix socket has no such option
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def unsent(transport: Any) -> int:
    """How many bytes of a connection have not been sent: those of the process, and on Linux those of the kernel."""
    size: int = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if connection is not None and sys.platform == "linux":
        import fcntl  # other systems may not have it

        with suppress(OSError, ValueError):
            size += struct.unpack("i", fcntl.ioctl(connection.fileno(), _SIOCOUTQNSD, b"\0\0\0\0"))[0]
    return size
