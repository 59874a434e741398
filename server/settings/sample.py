"""Writes a settings file with every setting explained and commented out: what `init` creates.

It is made from the declarations of the server and the loaded plugins, so it has exactly the keys that they know.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from .setting import Setting
from .sources import env_name

_WIDTH: Final = 120
_TOP: Final = """\
# Every setting of Gatepost with its default, or an example where there is none. An unknown key prevents startup.
# The command line and the environment override this file. Each variable is in brackets; NAME_FILE names a file to read.
# Lines that begin with "# " are comments; lines that begin with "#" alone are settings, commented out.
"""


def sample(declared: Mapping[str, Setting], named: list[str] | None = None) -> str:
    """The text of the file for the `declared` settings by key. `named` are the plugins that its setting `plugins` loads."""
    tables: dict[str, list[str]] = {}
    for key in declared:
        tables.setdefault(key.rpartition(".")[0], []).append(key)
    # TOML: top-level keys come before any table, and arrays of tables after the plain keys of theirs.
    parts = [_TOP.rstrip()]
    for table in sorted(tables, key=bool):
        keys = sorted(tables[table], key=lambda key: declared[key].kind == "tables")
        plain = [key for key in keys if declared[key].kind != "tables"]
        if table and plain:
            parts.append(f"\n[{table}]")
        for key in keys:
            parts.append("\n".join(_entry(key, declared[key], named if key == "plugins" else None)))
    return "\n".join(parts) + "\n"


def _entry(key: str, setting: Setting, live: list[str] | None) -> Iterator[str]:
    if "." not in key or setting.kind == "tables":
        yield ""
    name = "" if setting.kind in ("table", "tables") else f" ({env_name(key, setting)})"
    yield from textwrap.wrap(
        (setting.help or key) + name, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
    short, value = key.rpartition(".")[2], setting.example if setting.default in (None, (), []) else setting.default
    if setting.kind == "tables":
        for table in value or [{}]:
            yield f"#[[{key}]]"
            yield from (f"#{member} = {_toml(inner)}" for member, inner in table.items())
    elif live:
        yield f"{short} = {_toml(live)}"
    else:
        yield f"#{short} = {_toml(_EMPTY.get(setting.kind, '') if value is None else value)}"


_EMPTY: Final[Mapping[str, Any]] = {"list": [], "table": {}, "int": 0, "float": 0.0, "bool": False}


def _toml(value: Any) -> str:
    """A value in TOML, on one line. JSON's strings are valid TOML basic strings."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return json.dumps(value, ensure_ascii=False)
