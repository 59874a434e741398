"""Reads the settings file, the files that hold secrets, and the values of environment variables."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .setting import ConfigError


def stripped(text: str, name: str) -> str:
    """The value of a variable without blanks and line ends around it, which secrets copied from a file have."""
    text = text.strip().removeprefix("\ufeff")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise ConfigError(f"{name}: has quotes around its value, which no shell has removed: leave them out")
    return text


def read_file(file: Path | None, environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The name of the settings file and what it holds: the given one, else that of `GATEPOST_CONFIG`, else `gatepost.toml`.

    Without any of them it holds nothing. Raises ConfigError where it cannot be read.
    """
    named = file or (Path(environ["GATEPOST_CONFIG"]) if environ.get("GATEPOST_CONFIG") else None)
    path = named or Path("gatepost.toml")
    try:
        return str(path), tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError):
            return "gatepost.toml", {}
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def read_secret(path: str, name: str) -> str:
    """What the file holds that the variable `name` names, without blanks and line ends around it. Raises ConfigError."""
    try:
        return Path(path).read_text("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{name}: the file that it names cannot be read ({why})") from error
