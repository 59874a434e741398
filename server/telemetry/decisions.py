"""The outcome of a request, reported once to every listener: the logs and the audit of denials."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeAlias

from .log import LOG


class Decision(NamedTuple):
    """The outcome of one request.

    route               the template, never the path
    outcome             `unauthorized`, `forbidden` or another status if the gate denied it; otherwise the response's status
    detail              for logs only
    seconds             how long the request took
    client              the address behind the trusted proxies
    inbound_request_id  the request id that the nearest trusted proxy sent
    actor               who acted, as the audit log names them
    impersonator        the other person or program that acted as the user, by the token's `act`; None if no one did
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
    impersonator: str | None = None


Listener: TypeAlias = Callable[[Decision], None]


class DenialListener(Protocol):
    """Receives the requests that the gate denied."""

    def hears(self, *, known: bool, status: int) -> bool:
        """Whether it wants this denial. Called once per denial, before a Decision is built: a denial must stay cheap."""

    def __call__(self, decision: Decision) -> None:
        """Record one denial."""


_LINES_UNKNOWN: Final = 20
"""Lines a second about unknown callers, and callers over their rate."""
_LINES_KNOWN: Final = 100


class DenialLog:
    """Logs one line for each denied request, with the full reason. Admitted requests are not logged here.

    A denied client can retry as often as it likes, and a line costs more than the denial. The number of lines per second is
    therefore limited: one limit for unknown callers and callers over their rate, a higher one for known callers. Another line
    then says how many more were denied.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._unknown, self._known = _Bound(_LINES_UNKNOWN, clock), _Bound(_LINES_KNOWN, clock)

    def hears(self, *, known: bool, status: int) -> bool:
        """True for every denial within the limit of lines per second."""
        return (self._known if known and status != 429 else self._unknown).allows()

    def __call__(self, decision: Decision) -> None:
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("denied", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})


class _Bound:
    """At most `limit` lines a second. The first line of a later second also logs how many were left out."""

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
    """Logs one line for each admitted request, if the setting `log.requests` is on."""

    def __call__(self, decision: Decision) -> None:
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("request", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})
