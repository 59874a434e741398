"""The one timer of all live answers: heartbeats, expired credentials, slow readers, and handlers that do not end."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..http.streaming import at_once, unsent
from ..telemetry.log import LOG
from .ends import TOO_LONG, TOO_SLOW, End, expired
from .frames import HEARTBEAT
from .lease import Lease
from .settings import StreamBounds

TICK_SECONDS: Final = 0.5
_LINGER_SECONDS: Final = 2.0
"""How many seconds a closed connection may take to send what is still buffered."""
_AFTERWARDS_SECONDS: Final = 5.0
"""How many seconds a handler may go on after it has left the block of its live answer."""
_STUBBORN: Final = 10
_SPARE: Final = 64
_LOOK_BEATS: Final = 4
"""After this many heartbeats (a minute) the provider is asked again about a credential whose end no event reports."""


class Clock:
    """Holds the open leases in the order in which they were opened, and the ended ones that are not gone yet."""

    def __init__(
        self, bounds: StreamBounds, end: Callable[[Lease, End], None], look: Callable[[Lease], None], tick: Callable[[], None]
    ) -> None:
        """`end` ends a lease, `look` is called for each about once a minute, `tick` twice a second."""
        self._bounds, self._end, self._look, self._each_tick = bounds, end, look, tick
        self._open: dict[Lease, None] = {}
        self._ending: dict[Lease, float] = {}
        """When each ended lease ended, by the event loop's clock."""
        self._slots: list[set[Lease]] = [set() for _ in range(max(1, round(bounds.heartbeat / TICK_SECONDS)))]
        self._next_slot, self._ticks = itertools.cycle(range(len(self._slots))), 0
        self._writing: set[Lease] = set()
        self.wrote: Callable[[Lease], None] = self._writing.add
        """To be called when bytes were written: watch whether the reader takes them."""
        self._expiries: list[tuple[float, int, Lease]] = []
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None

    @property
    def number(self) -> int:
        """How many leases are open, or have ended and are not gone yet."""
        return len(self._open) + len(self._ending)

    @property
    def number_open(self) -> int:
        return len(self._open)

    def leases(self) -> list[Lease]:
        """The open leases."""
        return list(self._open)

    def add(self, lease: Lease) -> None:
        """Begin to watch a lease."""
        self._open[lease] = None
        lease.slot = next(self._next_slot)
        self._slots[lease.slot].add(lease)
        if lease.kind == "socket":
            self._writing.add(lease)
        self._plan_expiry(lease)
        self._start()

    def expire_at(self, lease: Lease, moment: float | None) -> None:
        """Set when the credential of a lease ends (Unix seconds); None: never."""
        if moment != lease.expires_at:
            lease.expires_at = moment
            self._plan_expiry(lease)

    def ended(self, lease: Lease) -> None:
        """Take note that the lease has ended: cancel its handler until it is gone."""
        self._remove(lease)
        self._ending[lease] = asyncio.get_running_loop().time()
        lease.cancels = 1
        lease.task.cancel()
        self._start()

    def left(self, lease: Lease) -> None:
        """Take note that the handler has left the block."""
        self._remove(lease)
        if lease in self._ending:
            lease.left_at = asyncio.get_running_loop().time()

    def _remove(self, lease: Lease) -> None:
        self._open.pop(lease, None)
        self._slots[lease.slot].discard(lease)
        self._writing.discard(lease)

    def _start(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        if self._open or self._ending:
            self._start()
        self._each_tick()
        self._expire()
        for lease in list(itertools.takewhile(lambda one: now - one.opened_at >= self._bounds.longest, self._open)):
            self._end(lease, TOO_LONG)
        for lease in list(self._writing):
            self._measure(lease, now)
        self._beat()
        for lease in list(self._ending):
            self._press(lease, now)

    def _beat(self) -> None:
        self._ticks += 1
        looks = self._ticks // len(self._slots) % _LOOK_BEATS == 0
        for lease in list(self._slots[self._ticks % len(self._slots)]):
            if lease.kind == "events" and lease.transport.get_write_buffer_size() == 0:
                with suppress(ConnectionError):
                    at_once(lease.request.writer.write(HEARTBEAT, drain=False))  # type: ignore[call-arg]
            if looks:
                self._look(lease)

    # Expiry

    def _plan_expiry(self, lease: Lease) -> None:
        if len(self._expiries) > 2 * len(self._open) + _SPARE:  # those of leases that have ended
            self._expiries = [one for one in self._expiries if one[2] in self._open and one[0] == one[2].expires_at]
            heapq.heapify(self._expiries)
        if lease.expires_at is not None:
            heapq.heappush(self._expiries, (lease.expires_at, next(self._count), lease))
            if self._expiries[0][2] is lease:
                self._set_expiry_timer()

    def _set_expiry_timer(self) -> None:
        """Wake up at the next expiry. The system clock may be changed meanwhile, so each tick checks again."""
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        self._expiry_timer = None
        if self._expiries:
            seconds = min(max(0.0, self._expiries[0][0] - time.time()), 3600.0)
            self._expiry_timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        now, moved = time.time(), False
        while self._expiries and (self._expiries[0][0] <= now or self._expiries[0][2].end is not None):
            moment, _, lease = heapq.heappop(self._expiries)
            moved = True
            if lease.end is None and lease.expires_at == moment and lease.identity is not None:
                self._end(lease, expired(lease.identity))
        if moved or (self._expiry_timer is not None and self._expiry_timer.when() <= asyncio.get_running_loop().time()):
            self._set_expiry_timer()

    # Slow readers, and handlers that do not end

    def _measure(self, lease: Lease, now: float) -> None:
        """End the lease of a reader that has been behind for too long; close its connection if it reads nothing at all."""
        if lease.transport.is_closing():
            self._writing.discard(lease)
            return
        if lease.transport.get_write_buffer_size() == 0:
            lease.behind_since = None
            if lease.kind == "events":
                self._writing.discard(lease)
            return
        left = unsent(lease.transport)
        if left < self._bounds.unsent and not lease.request.protocol.writing_paused:
            lease.behind_since = None
            return
        taken = (lease.sent if lease.kind == "socket" else lease.request.writer.output_size) - left
        if lease.behind_since is None:
            lease.behind_since, lease.taken_then = now, taken
        elif now - lease.behind_since >= self._bounds.slow:
            if taken <= lease.taken_then:
                lease.transport.abort()
            self._end(lease, TOO_SLOW)

    def _press(self, lease: Lease, now: float) -> None:
        """Close the connection of an ended lease, and cancel its handler repeatedly until it ends."""
        since = self._ending[lease]
        late = now - since >= (self._bounds.slow if lease.end is TOO_SLOW else _LINGER_SECONDS)
        if late:
            lease.transport.abort()
        if lease.task.done():
            if lease.lost or late:  # a transport that is closing may still hold what its client does not take
                del self._ending[lease]
            return
        patience = _AFTERWARDS_SECONDS if lease.left_at is not None else 1.0
        if now - (lease.left_at or since) >= patience * lease.cancels:
            lease.cancels += 1
            lease.task.cancel()
            if lease.cancels == _STUBBORN:
                LOG.error("a handler does not end when its stream has ended", extra={"fields": {"route": lease.route}})
