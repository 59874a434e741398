"""What happened to a request, told once, to whoever listens: logs now; metrics and the audit of denials alike."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

LOG: Final = logging.getLogger("gatepost")


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

    Strangers, and callers beyond their rate, can be turned away as often as they like, so their lines are bounded: so many a
    second, and then one that says how many more there were.
    """

    def __init__(self, *, strangers_per_second: int = 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = strangers_per_second, clock
        self._second, self._lines, self._dropped = 0, 0, 0

    def hears(self, *, known: bool, status: int) -> bool:
        """All of what is turned away, but strangers and callers beyond their rate only so often."""
        return (known and status != 429) or not self._too_many()

    def __call__(self, decision: Decision) -> None:
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("denied", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})

    def _too_many(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            dropped, self._second, self._lines, self._dropped = self._dropped, second, 0, 0
            if dropped:
                LOG.info("more were denied", extra={"fields": {"count": dropped}})
        self._lines += 1
        if self._lines > self._limit:
            self._dropped += 1
            return True
        return False


class RequestLog:
    """A line for each request that was answered after it was let in, where the setting `log.requests` asks for it."""

    def __call__(self, decision: Decision) -> None:
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("request", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})


def log_failure(message: str, error: BaseException, **fields: Any) -> None:
    """Log an exception by its type and the places it passed. Never its text: that may hold a row or a credential."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]
    LOG.error(message, extra={"fields": {**fields, "error": type(error).__name__, "places": places}})
