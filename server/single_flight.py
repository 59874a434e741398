"""Runs a call once for all who want its result at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Shares calls by key: while a call is in progress, every other caller with its key waits for it and gets its outcome.

    The call runs in a task of its own, so a waiter that is cancelled cancels neither the call nor the other waiters. Nothing
    is remembered once it has ended: the next `run` with that key starts another.
    """

    def __init__(self, name: str = "shared call") -> None:
        """`name` is the name of the tasks, for debugging."""
        self._name = name
        self._calls: dict[K, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        """How many calls are under way."""
        return len(self._calls)

    def __contains__(self, key: object) -> bool:
        """Is a call with this key under way?"""
        return key in self._calls

    async def run(self, key: K, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the call in progress with this key, or of `call()`, which is started where there is none.

        Raises what the call raises, for every waiter; RuntimeError where `close` cancelled it.
        """
        task = self._calls.get(key)
        if task is None:
            task = self._calls[key] = asyncio.create_task(call(), name=self._name)
            task.add_done_callback(lambda done: self._ended(key, done))
        await asyncio.wait((task,))
        if task.cancelled():
            raise RuntimeError(f"{self._name}: cancelled")
        return task.result()

    async def close(self) -> None:
        """Cancel the calls in progress and wait for their end."""
        tasks = list(self._calls.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        if self._calls.get(key) is task:
            del self._calls[key]
        if not task.cancelled():
            task.exception()  # retrieved, even where every waiter has gone away
