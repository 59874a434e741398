"""Reads the settings file, the files that hold secrets, and the values of environment variables."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .setting import ConfigError

_AROUND: Final = " \t\n\r\f\v\u00a0\u200b\u200c\u200d\u2060\ufeff\u2028\u2029"
"""Blanks, and the characters without width that copying from a page or a file can add."""
_QUOTES: Final = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
_ASSIGNED: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=")
_REFERENCE: Final = re.compile(r"\$(?:\{[^}]*\}|\([^)]*\)|[A-Za-z_][A-Za-z0-9_]*)|\{\{.*\}\}|%[A-Za-z_][A-Za-z0-9_]*%")
_MOST_BYTES: Final = 1_048_576


def stripped(text: str, name: str) -> str:
    """The value of the variable `name` (`CLERK_SECRET_KEY_FILE`: of the file) as it was meant.

    Blanks, line ends and byte order marks around it, which secrets copied from a file have, are removed. Raises ConfigError,
    without the value, for what a shell would have removed or replaced: quotes, the name itself, a reference to a variable.
    """
    text = text.strip(_AROUND)
    own, assigned = name.removesuffix("_FILE"), _ASSIGNED.match(text)
    if assigned is not None and assigned[1] == own:
        raise ConfigError(f"{name}: its value begins with {own}=: leave the name out of it")
    if _is_quoted(text):
        raise ConfigError(f"{name}: its value is in quotes, which no shell has removed: leave them out")
    if _REFERENCE.fullmatch(text):
        raise ConfigError(f"{name}: its value is a reference to a variable, which no shell has replaced by its value")
    if "\0" in text:
        raise ConfigError(f"{name}: has a NUL character in its value")
    return text


def _is_quoted(text: str) -> bool:
    """Whether the text is in quotes, or has one quote that is left of such a pair."""
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return True
    alone = [sign for sign in text if sign in _QUOTES and sign not in "'\u2019"]
    return len(alone) == 1 and (text[0] == alone[0] or text[-1] == alone[0])


def read_file(file: Path | None, environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The name of the settings file and what it holds: the given one, else that of `GATEPOST_CONFIG`, else `gatepost.toml`.

    Without any of them it holds nothing. Raises ConfigError where it cannot be read.
    """
    given = stripped(environ.get("GATEPOST_CONFIG", ""), "GATEPOST_CONFIG")
    named = file or (Path(given) if given else None)
    path = named or Path("gatepost.toml")
    try:
        with path.open("rb") as opened:
            read = opened.read(_MOST_BYTES + 1)
        if len(read) > _MOST_BYTES:
            raise ConfigError(f"{path}: is larger than 1 MiB: is it the settings file?")
        return str(path), tomllib.loads(read.decode("utf-8-sig").replace("\r\n", "\n"))
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError) and not path.is_symlink():
            return "gatepost.toml", {}
        whence = " (GATEPOST_CONFIG names it)" if named is not None and file is None else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{whence}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}{_hint(str(error))}") from error


def _hint(complaint: str) -> str:
    """What the parser's words usually mean, for those that do not say it."""
    if complaint.startswith("Invalid value"):
        return ": a text needs quotes, and true and false are lower case"
    if complaint.startswith("Cannot overwrite a value"):
        return ": the key is given twice"
    if complaint.startswith("Cannot declare"):
        return ": the table is given twice: put its keys under one heading"
    if complaint.startswith(("Expected '=' after a key", "Invalid statement")):
        return ': write key = "value", and the tables as [name] (TOML, not JSON or YAML)'
    if complaint.startswith("Illegal character '\\n'"):
        return ": a text needs a closing quote on its line"
    if complaint.startswith(("Invalid hex value", "Unescaped '\\'")):
        return ": in \"quotes\" a backslash begins an escape: write a path in 'single quotes'"
    return ""


def read_secret(path: str, name: str) -> str:
    """What the file holds that the variable `name` names, without blanks and line ends around it.

    Raises ConfigError where it cannot be read, is empty, or is larger than 1 MiB.
    """
    try:
        with Path(path).open("rb") as file:
            read = file.read(_MOST_BYTES + 1)
        text = read.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = (
            error.strerror if isinstance(error, OSError) else "not UTF-8 text" if isinstance(error, UnicodeError) else "no path"
        )
        raise ConfigError(f"{name}: the file that it names cannot be read ({why})") from error
    if len(read) > _MOST_BYTES:
        raise ConfigError(f"{name}: the file that it names is larger than 1 MiB")
    if not (text := stripped(text, name)):
        raise ConfigError(f"{name}: the file that it names is empty; to leave the setting unset, unset the variable")
    return text
