"""Waiting with a bound, at no cost where nothing waits."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await `coroutine` for at most `seconds`; TimeoutError after that.

    Most authentications answer from memory without waiting for anything. Setting and clearing a timer for each of them
    would cost more than the answer, so the timer starts only at the first thing that is really waited for.
    """
    try:
        waiting = coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    bound = asyncio.timeout(seconds)
    _at_once(bound.__aenter__())
    try:
        result = yield from _rest(coroutine, waiting)
    except BaseException as error:
        _at_once(bound.__aexit__(type(error), error, error.__traceback__))  # raises TimeoutError where it was the bound
        raise
    _at_once(bound.__aexit__(None, None, None))
    if bound.expired():  # it was told to stop and went on: too late all the same
        raise TimeoutError
    return result


def _rest(coroutine: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """Drive a coroutine that waits already: hand what it waits for to the loop, and the loop's word back to it."""
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


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that never waits (asyncio.timeout's do not) to its end."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("it waited")
