"""A timeout that costs nothing when there is nothing to wait for."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from ..http.streaming import at_once

T = TypeVar("T")


@types.coroutine
def within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await `coroutine` for at most `seconds` and return its result. Raises TimeoutError after that.

    Most authentications are decided from memory, without waiting. Setting and clearing a timer for each of them would cost
    more than the decision, so the timer starts only when the coroutine first waits.
    """
    try:
        waiting = coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    bound = asyncio.timeout(seconds)
    at_once(bound.__aenter__())
    try:
        result = yield from _rest(coroutine, waiting)
    except BaseException as error:
        at_once(bound.__aexit__(type(error), error, error.__traceback__))  # raises TimeoutError if the time is up
        raise
    at_once(bound.__aexit__(None, None, None))
    if bound.expired():  # the coroutine caught the cancellation and returned: still too late
        raise TimeoutError
    return result


def _rest(coroutine: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """Drive a coroutine that is already waiting: pass what it awaits to the event loop, and the outcome back."""
    while True:
        thrown: BaseException | None = None
        try:
            sent = yield waiting
        except BaseException as error:
            thrown = error
        try:
            waiting = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
