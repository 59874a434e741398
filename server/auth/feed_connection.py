"""Opens the connection of the revocation feed: one attempt with the full time limit, and short attempts at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

SHORT_SECONDS: Final = 0.5
"""Seconds between the short attempts, and the time limit of each."""

Connect = Callable[[], AbstractAsyncContextManager[Any]]
Attempt = asyncio.Task[tuple[AbstractAsyncContextManager[Any], Any]]


@asynccontextmanager
async def soonest(connect: Connect) -> AsyncIterator[Any]:
    """Returns the connection of the attempt that succeeds first. Raises what the patient attempt raises, if all fail.

    During a failover an attempt may hang, in a proxy or at a primary that is gone, for the whole time limit of `connect()`,
    while a new one would reach the new primary at once. But a loaded machine may need that whole time. So one patient attempt
    waits, and meanwhile a short one is made every half second: at most two connections at a time.
    """
    patient = asyncio.create_task(_attempt(connect))
    attempts = {patient}
    try:
        first = await _first(attempts, patient, connect)
        await _end(attempts - {first})
        attempts = {first}
        yield first.result()[1]
    finally:
        await _end(attempts)


async def _attempt(connect: Connect) -> tuple[AbstractAsyncContextManager[Any], Any]:
    opening = connect()
    return opening, await opening.__aenter__()


async def _short_attempt(connect: Connect) -> tuple[AbstractAsyncContextManager[Any], Any]:
    async with asyncio.timeout(SHORT_SECONDS):
        return await _attempt(connect)


async def _first(attempts: set[Attempt], patient: Attempt, connect: Connect) -> Attempt:
    """Make short attempts until an attempt succeeds. After the patient one has failed, the last short one is waited for."""
    loop = asyncio.get_running_loop()
    next_at = loop.time() + SHORT_SECONDS
    while True:
        pending = {one for one in attempts if not one.done()}
        waiting = max(0.0, next_at - loop.time()) if pending == {patient} else None  # a short one ends in time by itself
        done, _ = await asyncio.wait(pending, timeout=waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            if not one.cancelled() and one.exception() is None:
                return one
        if not pending - done:
            patient.result()
        if pending - done == {patient} and loop.time() >= next_at:
            attempts.intersection_update({patient})
            attempts.add(asyncio.create_task(_short_attempt(connect)))
            next_at = loop.time() + SHORT_SECONDS


async def _end(attempts: set[Attempt]) -> None:
    """Give up the attempts that are under way, and close the connections of the others."""
    for one in attempts:
        one.cancel()
    for opened in await asyncio.gather(*attempts, return_exceptions=True):
        if not isinstance(opened, BaseException):
            await opened[0].__aexit__(None, None, None)
