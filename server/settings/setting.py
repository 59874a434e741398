"""One declared setting, and the error for a mistake in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a plugin's table, so that it can be checked, explained and redacted.

    kind is `str`, `int`, `float`, `bool`, `list` (of texts), `table` or `tables` (array of tables; file only).
    env is the variable's name; None: GATEPOST_<PLUGIN>_<KEY>. secret values are never printed, and may be given as a
    file's name in <ENV>_FILE. required: without a value the start stops, naming the key. example is shown in the file that
    `init` writes, where there is no default.
    """

    kind: str = "str"
    default: Any = None
    env: str | None = None
    secret: bool = False
    help: str = ""
    required: bool = False
    example: Any = None


class ConfigError(Exception):
    """A mistake in the configuration: the start stops with this one line and exit status 2."""
