"""A settings file with every setting in it, switched off and explained: what `init` writes.

It is made of what the server and the loaded plugins declare, so it has no key that they do not know and lacks none.
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
# Every setting of Gatepost with its default, or an example where there is none. A key that nobody knows stops the start.
# The command line and the environment win over this file; the variable stands in brackets, and NAME_FILE names a file.
# Lines that begin with "#" and a blank are remarks; lines that begin with "#" alone are settings, switched off.
"""


def sample(declared: Mapping[str, Setting], named: list[str] | None = None) -> str:
    """The text of the file. `named` are plugins whose tables are in it: the setting `plugins` is switched on for them."""
    tables: dict[str, list[str]] = {}
    for key in declared:
        tables.setdefault(key.rpartition(".")[0], []).append(key)
    # TOML: what belongs to no table comes first, and arrays of tables come last of theirs.
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
    """A value as TOML has it, on one line. Texts are JSON's, which TOML's basic strings hold."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return json.dumps(value, ensure_ascii=False)
