"""One declared setting, and the error for a mistake in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

KINDS: Final = ("str", "int", "float", "bool", "list", "table", "tables")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a settings table: it can be checked, explained, and redacted.

    kind       `str`, `int`, `float`, `bool`, `list` (of strings), `table`, or `tables` (an array of tables; file only)
    default    the value where none is set
    env        the environment variable; None: `GATEPOST_<PLUGIN>_<KEY>`
    secret     the value is never printed. Any value may come from a file that `<ENV>_FILE` names
    help       one line for the settings page and for the file that `init` writes
    required   without a value the server refuses to start, naming the key
    example    what `init` shows where there is no default
    at_least   the smallest value of an `int` or `float`
    more_than  a bound that an `int` or `float` must exceed
    at_most    the largest value of an `int` or `float`
    choices    the only values of a `str`, or the only words of a `list`

    A value outside the bounds or choices prevents startup. None, where nothing is set, is never checked. Raises ValueError
    for an unknown kind, for bounds or choices that the kind cannot have, and for a default that is not allowed.
    """

    kind: str = "str"
    default: Any = None
    env: str | None = None
    secret: bool = False
    help: str = ""
    required: bool = False
    example: Any = None
    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    choices: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a setting's kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        bounded = any(bound is not None for bound in (self.at_least, self.more_than, self.at_most))
        if bounded and self.kind not in ("int", "float"):
            raise ValueError(f"a setting of the kind {self.kind!r} cannot have at_least, more_than or at_most")
        if self.choices and self.kind not in ("str", "list"):
            raise ValueError(f"a setting of the kind {self.kind!r} cannot have choices")
        if self.default is not None and not _is_of(self.kind, self.default):
            raise ValueError(f"a setting of the kind {self.kind!r} cannot have the default {self.default!r}")
        if not self.allows(self.default):
            raise ValueError(f"a setting's default must be {self.allowed}, not {self.default!r}")

    @property
    def allowed(self) -> str:
        """The bounds or choices in words, such as `1 to 256` or `one of auto, json, human`; "" for any value."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least} to {self.at_most}"
        bounds = (("at least", self.at_least), ("more than", self.more_than), ("at most", self.at_most))
        return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)

    def allows(self, value: Any) -> bool:
        """Is this value, of the declared kind, within the bounds and choices?"""
        if value is None:
            return True
        if self.choices:
            return set([value] if isinstance(value, str) else value) <= set(self.choices)
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
        )


def _is_of(kind: str, value: object) -> bool:
    """Is this a value of the kind? A number without a fraction is a float, too; a bool is no number."""
    types: Mapping[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
        "list": (list, tuple), "table": (Mapping,), "tables": (list, tuple),
    }  # fmt: skip
    return isinstance(value, types[kind]) and (kind == "bool" or not isinstance(value, bool))


def env_name(key: str, setting: Setting) -> str:
    """The environment variable of a key: what it declares, else GATEPOST_ and the key in capitals."""
    return setting.env or "GATEPOST_" + key.replace(".", "_").upper()


class ConfigError(Exception):
    """A mistake in the configuration: the server refuses to start, with this one line and exit status 2."""


class StartFailed(Exception):
    """Startup failed for a reason that is not a mistake in the settings: exit status 1."""
