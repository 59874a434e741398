"""Which request gets the next connection: each caller has a bounded share, and waiting callers take turns."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, TypeVar

C = TypeVar("C")
_LOOKED_AT: Final = 16
"""Callers among whom `take_along` looks for a read, so that its price does not grow with the number of callers."""


class Read(NamedTuple):
    """A SELECT that waits, and may be sent together with others of the same statement.

    again   it was sent together with others, and that failed: it is served before all others, and sent by itself
    """

    statement: str
    values: tuple[Any, ...]
    again: bool = False


class Shares:
    """How many connections each caller has: lent, being opened, or promised to a request that was woken."""

    def __init__(self, most: int) -> None:
        """`most` is the largest number for one caller. None, the server itself, has no bound and is not counted."""
        self._most = most
        self._counts: dict[str, int] = {}

    def is_at_bound(self, caller: str | None) -> bool:
        """Whether this caller must not have another connection now."""
        return caller is not None and self._counts.get(caller, 0) >= self._most

    def take(self, caller: str | None) -> bool:
        """Count one more connection, unless the caller is at the bound; returns whether it was counted."""
        if caller is not None:
            count = self._counts.get(caller, 0)
            if count >= self._most:
                return False
            self._counts[caller] = count + 1
        return True

    def add(self, caller: str | None) -> None:
        """Count one more connection of a caller who is known not to be at the bound."""
        if caller is not None:
            self._counts[caller] = self._counts.get(caller, 0) + 1

    def remove(self, caller: str | None) -> None:
        """Count one connection less."""
        if caller is not None:
            left = self._counts[caller] - 1
            if left:
                self._counts[caller] = left
            else:
                del self._counts[caller]


class Waiter(Generic[C]):
    """One waiting request.

    turn    its result is a connection, or None: the request may take or open one itself; or the text that its read returned
    read    what it would read; None: something else
    taken   another request's connection reads for it, so it is in no queue
    counted that connection is another caller's, so the read counts as one of this caller's connections
    since, deadline   when it began to wait, and when its wait ends with TimeoutError, on the event loop's clock
    caller  whose request it is; None for one of the server itself
    """

    __slots__ = ("caller", "counted", "deadline", "read", "since", "taken", "turn")

    def __init__(
        self, turn: asyncio.Future[C | str | None], since: float, caller: str | None, deadline: float, read: Read | None = None
    ) -> None:
        self.turn, self.since, self.caller, self.deadline, self.read = turn, since, caller, deadline, read
        self.taken = self.counted = False


class Turns(Generic[C]):
    """A caller with many waiting requests does not delay one with a single request by more than its own turn."""

    def __init__(self, shares: Shares) -> None:
        """`shares` says which callers must not have another connection now."""
        self._shares = shares
        self.queues: OrderedDict[object, deque[Waiter[C]]] = OrderedDict()
        """A queue for each waiting caller, the next caller's first; empty: no request waits."""
        self._next_deadline = math.inf

    def __iter__(self) -> Iterator[Waiter[C]]:
        """The waiting requests, queue after queue."""
        return (waiter for queue in self.queues.values() for waiter in queue if not waiter.turn.done())

    def add(self, waiter: Waiter[C], *, first: bool = False) -> None:
        """Let a request wait behind the others of its caller. One of the server itself has a queue of its own.

        first   before all others instead, its caller's and those of other callers
        """
        key = waiter.caller or waiter
        queue = self.queues.setdefault(key, deque())
        if first:
            queue.appendleft(waiter)
            self.queues.move_to_end(key, last=False)
        else:
            queue.append(waiter)
        if waiter.deadline < self._next_deadline:
            self._next_deadline = waiter.deadline

    def first(self) -> Waiter[C] | None:
        """Returns the request that is served next; None if all waiting callers are at their bound.

        It skips three callers at most: each at its bound holds half of the connections, rounded down.
        """
        for queue in self.queues.values():
            for waiter in queue:
                if waiter.turn.done():
                    continue  # it was cancelled, and will be removed
                if self._shares.is_at_bound(waiter.caller):
                    break
                return waiter
        return None

    def take_along(self, statement: str, most: int, holder: str | None) -> list[Waiter[C]]:
        """Remove at most `most` requests that wait to read with this statement, and return them.

        Callers take turns here, too, and a caller's first request is still its first to be served. `holder` is the caller whose
        connection reads for them: each read for another caller counts as one of that caller's connections until `end_carrying`.
        """
        found: list[Waiter[C]] = []
        while len(found) < most and (waiter := self._first_with(statement)) is not None:
            self.remove(waiter, served=True)
            waiter.taken = True
            if waiter.caller != holder:
                self._shares.add(waiter.caller)
                waiter.counted = True
            found.append(waiter)
        return found

    def end_carrying(self, waiters: list[Waiter[C]]) -> None:
        """Count the reads of these requests, which were taken along, no longer."""
        for waiter in waiters:
            if waiter.counted:
                waiter.counted = False
                self._shares.remove(waiter.caller)

    def _first_with(self, statement: str) -> Waiter[C] | None:
        for queue in islice(self.queues.values(), _LOOKED_AT):
            waiter = next((one for one in queue if not one.turn.done()), None)
            read = None if waiter is None or self._shares.is_at_bound(waiter.caller) else waiter.read
            if read is not None and read.statement == statement and not read.again:
                return waiter
        return None

    def put_back(self, waiters: list[Waiter[C]], seconds: float) -> list[Waiter[C]]:
        """Let requests that were taken along wait again, where they were: before all others. Returns them without those that
        were cancelled meanwhile.

        `seconds` is for how long they were taken: it does not count towards their wait. They are not taken along again.
        """
        self.end_carrying(waiters)
        back = [waiter for waiter in waiters if not waiter.turn.done()]
        for waiter in reversed(back):
            waiter.taken, waiter.read = False, None
            waiter.deadline += seconds
            self.add(waiter, first=True)
        return back

    def end_expired(self, now: float) -> None:
        """Raise TimeoutError in the requests whose deadline has passed. A timer for each would cost more than most waits."""
        if now < self._next_deadline:
            return
        self._next_deadline = math.inf
        for waiter in list(self):
            if now >= waiter.deadline:
                self.remove(waiter, served=False)
                waiter.turn.set_exception(TimeoutError())
            elif waiter.deadline < self._next_deadline:
                self._next_deadline = waiter.deadline

    def remove(self, waiter: Waiter[C], *, served: bool) -> None:
        """Remove a request that is served or gives up. A caller that was served goes behind the other callers."""
        key = waiter.caller or waiter
        queue = self.queues[key]
        queue.remove(waiter)
        if not queue:
            del self.queues[key]
        elif served:
            self.queues.move_to_end(key)
