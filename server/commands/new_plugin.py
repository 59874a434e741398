"""Write a plugin to start from: a package with handlers, its table, its settings and its tests."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sys
from pathlib import Path
from typing import Final

from ..settings.core import BUILT_IN, OPTIONAL, SERVER_TABLES
from ..settings.setting import ConfigError

_TEMPLATES: Final = Path(__file__).resolve().parent / "plugin_files"
_FILES: Final = {
    "@NAME@/__init__.py": "package",
    "@NAME@/handlers.py": "handlers",
    "schema.sql": "schema",
    "gatepost.toml": "gatepost",
    "pyproject.toml": "pyproject",
    "tests/test_@NAME@.py": "tests",
}
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_LONGEST: Final = 40
_OURS: Final = frozenset(
    {"server", "providers", "handlers", "tests", "gatepost", "oidc", "stub", *BUILT_IN, *OPTIONAL, *SERVER_TABLES}
)


def write_plugin(name: str, folder: Path) -> list[str]:
    """Write the files of the plugin `name` into `folder`; returns their paths below it.

    Raises ConfigError for a name that a package cannot have, if one of the files exists already (then nothing is written),
    and if one cannot be written.
    """
    _refuse_name(name)
    words = {
        "@NAME@": name,
        "@TABLE@": f"{name}_items",
        "@PATH@": name.replace("_", "-"),
        "@DISTRIBUTION@": name.replace("_", "-"),
    }
    files = {_filled(path, words): _filled((_TEMPLATES / f"{source}.tmpl").read_text("utf-8"), words)
             for path, source in _FILES.items()}  # fmt: skip
    present = [path for path in (name, *files) if os.path.lexists(folder / path)]
    if present:
        raise ConfigError(f"init: {', '.join(present)} already exists; nothing was written")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"init: --plugin {name}: a package of this name is installed; choose another name")
    for path, text in files.items():
        _write(folder / path, text)
    return list(files)


def _refuse_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(
            f"init: --plugin {name!r}: a name has lower-case letters, digits and single underscores, at most {_LONGEST}, such "
            "as todo_lists"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in sys.stdlib_module_names:
        raise ConfigError(
            f"init: --plugin {name}: this is a Python keyword or a module of its standard library; choose another name"
        )
    if name in _OURS:
        raise ConfigError(f"init: --plugin {name}: Gatepost uses this name itself; choose another name")


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub("|".join(words), lambda match: words[match[0]], text)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"init: {path} cannot be written ({error.strerror})") from error
