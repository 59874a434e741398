"""Log output to standard error, as JSON or as plain lines for people."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from .line_limit import LineLimit


def start_logging(format: str) -> None:
    """Send every log line to standard error. `format` is `json` or `human`.

    Lines of libraries keep their message; an exception is logged by its type only, because its text can contain data from
    a client or from Postgres.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if format == "json" else _lines_for_people())
    handler.addFilter(_NoTexts())
    handler.addFilter(LineLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOG.setLevel(logging.INFO)
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # its warnings quote what the client sent


class _JsonLines(logging.Formatter):
    """One JSON object a line. Made without structlog, which takes 1 to 4 MiB of each process."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        level = record.levelname.lower()
        event = {"time": time, "level": level, "logger": record.name, "event": record.getMessage()}
        return msgspec.json.encode(
            {**event, **getattr(record, "fields", {}), "time": time, "level": level}, enc_hook=str
        ).decode()


def _lines_for_people() -> logging.Formatter:
    import structlog  # not at the top: every module imports this one for LOG
    from structlog.stdlib import ProcessorFormatter

    plain = structlog.dev.plain_traceback  # the traceback is text already: any other formatter makes structlog warn
    human = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    chain: list[Any] = [_fields, stamped, structlog.stdlib.add_log_level]
    return ProcessorFormatter(foreign_pre_chain=chain, processors=[ProcessorFormatter.remove_processors_meta, _readable, human])


def _fields(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the line's fields: the server's own lines have a dictionary of them."""
    record: logging.LogRecord = event["_record"]
    return {"logger": record.name, **event, **getattr(record, "fields", {})}


def _readable(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For people: only the time of day, and no logger name for the server's own lines."""
    event["timestamp"] = event.pop("time")[11:19]
    if str(event.get("logger", "")).partition(".")[0] == LOG.name:
        event.pop("logger", None)
    return event


class _NoTexts(logging.Filter):
    """Keeps only the type of exceptions: libraries log them whole, with data from a client or from Postgres."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            record.msg, record.args = _first_words(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.msg, record.args, record.exc_info, record.exc_text = f"{record.msg.split('%')[0]}", (), None, None
            record.fields = {"error": type(error).__name__}
        return True


def _first_words(text: str) -> str:
    """The start of asyncio's line; after it come the `repr` of a task with its exception, or a callback's arguments."""
    first = text.partition("\n")[0]
    return first.partition("(")[0] if first.startswith("Exception in callback") else first


LOG: Final = logging.getLogger("gatepost")
_PLACES: Final = 8
_MOST_TRACEBACK: Final = 16_384
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey some of them
_options: Final = {"tracebacks": False}


def log_tracebacks(whole: bool) -> None:
    """Log exceptions with their tracebacks and texts from now on, or only their types. For development alone."""
    _options["tracebacks"] = whole


def log_failure(message: str, error: BaseException, **fields: Any) -> None:
    """Log an exception by its type and the last eight places of its traceback; in development with the traceback itself.

    There is no traceback if the field `why` is given and the exception has no cause: `why` says all.
    Otherwise its text is not logged, because it can contain a row or a credential. Only an exception that has the attribute
    `log_text` is logged with that text, as the field `why`.
    """
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[-_PLACES:]]
    says_all = "why" in fields and error.__cause__ is None and error.__context__ is None  # such as an outage, on each request
    if _options["tracebacks"] and not says_all:
        fields["exception"] = _CONTROL.sub(_visible, "".join(traceback.format_exception(error))[-_MOST_TRACEBACK:].rstrip())
    if (why := getattr(error, "log_text", None)) is not None:
        fields.setdefault("why", str(why))
    LOG.error(message, extra={"fields": {**fields, "error": type(error).__name__, "places": places}})


def _visible(control: re.Match[str]) -> str:
    return f"\\x{ord(control[0]):02x}"
