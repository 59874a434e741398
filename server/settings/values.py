"""Converts a setting's value, from text or TOML, to the kind that was declared for it."""

from __future__ import annotations

import re
from typing import Any, Final

from .setting import ConfigError, Setting

_TRUTH: Final = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def convert(value: Any, setting: Setting, where: str) -> Any:
    """The value in the declared kind, from text (environment, command line) or a TOML value.

    `where` names the source in the message of the ConfigError that any other value raises. Bounds are not checked here.
    """
    kind = setting.kind
    if kind == "list":
        words = _words(value, where) if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"{where}: must be a list of strings")
        return [word for word in words if word]
    if kind in ("table", "tables"):
        if not (isinstance(value, dict) if kind == "table" else _are_tables(value)):
            key = where.rpartition(" ")[2]
            shape = f"a table: [{key}]" if kind == "table" else f"an array of tables: [[{key}]]"
            raise ConfigError(f"{where}: must be {shape}")
        return value
    if kind == "str":
        if not isinstance(value, str):
            raise ConfigError(f"{where}: must be a string" + (", not a list" if isinstance(value, list) else ""))
        return value
    return _scalar(value, kind, where, setting.secret)


def in_file_alone(key: str, setting: Setting) -> str:
    """What to say where a variable is set for a key whose kind only the settings file can hold."""
    table = f"[[{key}]]" if setting.kind == "tables" else f"[{key}]"
    return f"not read from the environment: write {table} into the settings file, which GATEPOST_CONFIG or --config names"


def _words(text: str, where: str) -> list[str]:
    """The words of a text, between commas. Raises ConfigError for another notation of lists."""
    if text.startswith("[") and text.endswith("]"):
        raise ConfigError(f"{where}: write the words between commas, without brackets and quotes")
    words = [word.strip() for word in text.split(",")]
    if any(len(word.splitlines()) > 1 for word in words):
        raise ConfigError(f"{where}: separate the words by commas, not by lines")
    if any(word and word[0] == word[-1] and word[0] in "\"'" for word in words):
        raise ConfigError(f"{where}: has quotes around a word: leave them out")
    return words


def _scalar(value: Any, kind: str, where: str, secret: bool) -> Any:
    if kind == "bool":
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUTH:
            return _TRUTH[value.lower()]
        raise ConfigError(f"{where}: must be true or false")
    if kind == "int" and isinstance(value, str) and value.startswith("tcp://"):
        raise ConfigError(f"{where}={value}: this is a Kubernetes service link, not a port; set enableServiceLinks: false")
    try:
        if isinstance(value, bool) or (kind == "int" and isinstance(value, float)):
            raise ValueError
        number = int(value) if kind == "int" else float(value)
        if number != number or abs(number) == float("inf"):
            raise ValueError
    except (ValueError, TypeError):
        raise ConfigError(f"{where}: must be a number{'' if secret else f', not {value!r}'}") from None
    return number


def is_host(text: str) -> bool:
    """Whether the text may be the address or the name of a machine: no URL, no port behind it, no brackets, no blank."""
    try:
        return not re.search(r"[\s/\[\]]", text) and text.count(":") != 1 and bool(text.encode("idna"))
    except UnicodeError:
        return False


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(table, dict) for table in value)


def shown(value: Any) -> str:
    """A value as text for people, without the password of a URL in it."""
    if value is None:
        return "(none)"
    if isinstance(value, list):
        return ", ".join(shown(v) if not isinstance(v, dict) else "{" + ", ".join(v) + "}" for v in value) or "(none)"
    return re.sub(r"(//[^/:\s]*):\S*@", r"\1:***@", str(value))
