"""How log lines look and where they go: standard error, JSON for machines or plain lines for people."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import msgspec


def start_logging(format: str) -> None:
    """Send every log line to standard error. `format` is `json` or `human`.

    Of a library's lines the message stays; an exception is named by its type alone, for its text may hold whatever a
    client or Postgres has put there.
    """
    import structlog  # only where lines are written: every room imports this one for LOG
    from structlog.stdlib import ProcessorFormatter

    last = _as_json if format == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    chain: list[Any] = [_fields, stamped, structlog.stdlib.add_log_level]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[ProcessorFormatter.remove_processors_meta, _readable if format != "json" else _plain, last],
        )
    )
    handler.addFilter(_NoTexts())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOG.setLevel(logging.INFO)


def _fields(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What came along with the line: our own lines carry a dictionary."""
    record: logging.LogRecord = event["_record"]
    return {"logger": record.name, **event, **getattr(record, "fields", {})}


def _plain(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event


def _readable(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For people: the time of day, and no name of a logger that is ours."""
    event["timestamp"] = event.pop("time")[11:19]
    if str(event.get("logger", "")).partition(".")[0] == LOG.name:
        event.pop("logger", None)
    return event


def _as_json(logger: Any, method: str, event: Mapping[str, Any]) -> str:
    first = {name: event[name] for name in ("time", "level", "logger", "event") if name in event}
    return msgspec.json.encode({**first, **event}, enc_hook=str).decode()


class _NoTexts(logging.Filter):
    """Foreign libraries log exceptions whole, with whatever a client or Postgres put into them: keep the type only."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            record.msg, record.args = _first_words(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.msg, record.args, record.exc_info, record.exc_text = f"{record.msg.split('%')[0]}", (), None, None
            record.fields = {"error": type(error).__name__}
        return True


def _first_words(text: str) -> str:
    """What happened, of asyncio's line: behind it come the `repr` of a task with its exception, or a callback's arguments."""
    first = text.partition("\n")[0]
    return first.partition("(")[0] if first.startswith("Exception in callback") else first


LOG: Final = logging.getLogger("gatepost")


def log_failure(message: str, error: BaseException, **fields: Any) -> None:
    """Log an exception by its type and the places it passed. Never its text: that may hold a row or a credential."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-8:]]
    LOG.error(message, extra={"fields": {**fields, "error": type(error).__name__, "places": places}})
