"""Counts a response that its client reads slowly as a request in progress, so that a caller can hold only a few of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aiohttp import web

from ..auth.caller import caller_key
from ..auth.identity import IDENTITY
from ..http.protocol import Hold
from ..rate_limits.concurrency import Concurrency
from ..rate_limits.routes import TURN


def holder(concurrency: Concurrency) -> Hold:
    """Returns a function that counts a request's caller once more, and that returns the function to undo this.

    Unknown callers are counted only on a route that has a limit of its own.
    """

    def hold(request: web.BaseRequest) -> Callable[[], None]:
        if (turn := request.get(TURN)) is not None:
            turns, caller = turn
            turns.hold(caller)
            return partial(turns.leave, caller)
        identity = request.get(IDENTITY)
        if identity is None:
            return _nothing
        caller = caller_key(identity)
        concurrency.hold(caller)
        return partial(concurrency.leave, caller)

    return hold


def releaser(concurrency: Concurrency) -> Callable[[web.Request], Callable[[], None]]:
    """Returns a function that stops counting a request's caller, and that returns the function to count it again.

    For live answers, which are not requests in progress and have a limit of their own. A route's own limit still counts them.
    """

    def release(request: web.Request) -> Callable[[], None]:
        identity = request.get(IDENTITY)
        if identity is None:
            return _nothing
        caller = caller_key(identity)
        concurrency.leave(caller)
        return partial(concurrency.hold, caller)

    return release


def _nothing() -> None:
    """Undo for a request without a caller: nothing was counted."""
