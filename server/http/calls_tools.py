"""`@calls_tools`: the mark of a handler that calls tools, the routes that are described with `tool=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from aiohttp import web

F = TypeVar("F", bound=Callable[..., Any])
_MARK: Final = "__calls_tools__"
NESTED: Final = web.RequestKey("nested", bool)
"""Set on the request that a tool call makes to the tool's route."""


def calls_tools(handler: F) -> F:
    """Allow this handler to use `call_tool`. Goes above or below the decorator that declares the access; wraps nothing.

    An `Idempotency-Key` of its requests applies to the tool that it calls, not to the handler itself. Such a handler cannot
    be a tool itself: no call leads to another one.
    """
    setattr(handler, _MARK, True)
    return handler


def may_call_tools(handler: object) -> bool:
    """Does this handler have the mark? The wrapper of the access decorator passes it on."""
    return getattr(handler, _MARK, False) is True
