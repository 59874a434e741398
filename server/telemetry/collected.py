"""Collects the warnings of a run, for a command that prints them itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from .log import LOG


class _Collector(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        own = record.name == LOG.name or record.name.startswith(f"{LOG.name}.")
        if not own or record.levelno != logging.WARNING:
            return True
        fields = ", ".join(f"{name}: {value}" for name, value in getattr(record, "fields", {}).items())
        self.lines.append(record.getMessage() + (f" ({fields})" if fields else ""))
        return False


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """A context in which the server's warnings are added to the list that it yields, and are not logged."""
    collector, handlers = _Collector(), logging.getLogger().handlers[:]
    for handler in handlers:
        handler.addFilter(collector)
    try:
        yield collector.lines
    finally:
        for handler in handlers:
            handler.removeFilter(collector)
