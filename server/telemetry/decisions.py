"""What happened to a request, told once, to whoever listens: logs now; metrics and the audit of denials alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from .log import LOG


class Decision(NamedTuple):
    """What became of one request. `route` is the template, never the path; `detail` is for logs alone.

    outcome   `unauthorized`, `forbidden` or another status where the gate turned it away; else the answer's status
    `client` is the address behind the trusted proxies, `inbound_request_id` what the nearest of them named the request.
    """

    request_id: str
    method: str
    route: str
    provider: str | None
    user_id: str | None
    org_id: str | None
    outcome: str
    reason: str | None
    detail: str
    seconds: float
    client: str = ""
    inbound_request_id: str | None = None
    actor: str | None = None


Listener: TypeAlias = Callable[[Decision], None]


class DenialListener(Protocol):
    """Who is told of requests that the gate turned away."""

    def hears(self, *, known: bool, status: int) -> bool:
        """Is it told of this one at all? Asked once for each, before anything is put together: refusing must stay cheap."""

    def __call__(self, decision: Decision) -> None:
        """Take it."""


class DenialLog:
    """A line for each request that was turned away, with the full reason. Allowed requests make no line.

    Whoever is turned away can come again as often as they like, and a line costs more than the refusal. So lines are bounded:
    so many a second for strangers and callers beyond their rate, more for known callers; then one says how many there were.
    """

    def __init__(
        self, *, strangers_per_second: int = 20, known_per_second: int = 100, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._strangers, self._known = _Bound(strangers_per_second, clock), _Bound(known_per_second, clock)

    def hears(self, *, known: bool, status: int) -> bool:
        """All of what is turned away, but only so often."""
        return (self._known if known and status != 429 else self._strangers).allows()

    def __call__(self, decision: Decision) -> None:
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("denied", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})


class _Bound:
    """So many lines a second; the first one of a later second is told with how many there were more."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._second, self._lines = 0, 0

    def allows(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            dropped, self._second, self._lines = self._lines - self._limit, second, 0
            if dropped > 0:
                LOG.info("more were denied", extra={"fields": {"count": dropped}})
        self._lines += 1
        return self._lines <= self._limit


class RequestLog:
    """A line for each request that was answered after it was let in, where the setting `log.requests` asks for it."""

    def __call__(self, decision: Decision) -> None:
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("request", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})
