"""What happened to a request, told once, to whoever listens: logs now; metrics and the audit of denials alike."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

LOG: Final = logging.getLogger("gatepost")


class Decision(NamedTuple):
    """The gate's word on one request. `route` is the template, never the path; `detail` is for logs alone."""

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
    actor: str | None = None


Listener: TypeAlias = Callable[[Decision], None]


class DenialLog:
    """A line for each request that was turned away, with the full reason. Allowed requests make no line.

    Strangers can be turned away as often as they like, so their lines are bounded: so many a second, and then one that
    says how many more there were.
    """

    def __init__(self, *, strangers_per_second: int = 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = strangers_per_second, clock
        self._second, self._lines, self._dropped = 0, 0, 0

    def __call__(self, decision: Decision) -> None:
        if decision.provider is None and self._too_many():
            return
        fields = {name: value for name, value in decision._asdict().items() if value not in (None, "")}
        LOG.info("denied", extra={"fields": {**fields, "seconds": round(decision.seconds, 6)}})

    def _too_many(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            dropped, self._second, self._lines, self._dropped = self._dropped, second, 0, 0
            if dropped:
                LOG.info("more strangers denied", extra={"fields": {"count": dropped}})
        self._lines += 1
        if self._lines > self._limit:
            self._dropped += 1
            return True
        return False


def log_failure(message: str, error: BaseException, **fields: Any) -> None:
    """Log an exception by its type and the places it passed. Never its text: that may hold a row or a credential."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]
    LOG.error(message, extra={"fields": {**fields, "error": type(error).__name__, "places": places}})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), "level": record.levelname.lower()}
        return json.dumps({**line, "logger": record.name, "event": record.getMessage(), **fields}, default=str)


class _Human(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value!r}" for name, value in getattr(record, "fields", {}).items())
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{when} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()


class _NoTexts(logging.Filter):
    """Foreign libraries log exceptions whole, with whatever a client or Postgres put into them: keep the type only."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.msg, record.args, record.exc_info, record.exc_text = f"{record.msg.split('%')[0]}", (), None, None
            record.fields = {"error": type(error).__name__}
        return True


def start_logging(env: str) -> None:
    """Logs go to standard error: JSON lines in production, plain lines elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if env == "production" else _Human())
    handler.addFilter(_NoTexts())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOG.setLevel(logging.INFO)
