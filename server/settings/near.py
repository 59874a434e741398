"""Names the setting that was meant by an unknown key or variable."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from ..messages import nearest_name
from .setting import Setting, env_name

_PREFIX: Final = "GATEPOST_"


def near_key(key: str, known: Mapping[str, Setting]) -> str:
    """The end of a sentence on an unknown key of the file: the nearest known one; "" if there is none.

    A table like none that is known is taken for that of a plugin that is not loaded.
    """
    table, dot, rest = key.partition(".")
    tables = {one.partition(".")[0] for one in known if "." in one}
    if key in tables:
        return f": it is a table: write its keys below [{key}], each as name = value"
    if rest in known and "." not in rest:  # in TOML, what follows a heading belongs to its table
        return f": {rest!r} belongs above the first [table] of the file"
    if dot and nearest_name(table, tables, cutoff=0.7) is None:
        return f": no plugin that is loaded has a table [{table}]. Is its plugin named in 'plugins'?"
    names = {env_name(one, setting): one for one, setting in known.items()}
    return _nearest(names.get(key, key), known)


def near_variable(name: str, known: Collection[str]) -> str:
    """The end of a sentence on an unknown variable: the known one that only lacks the prefix, or the nearest; "" if none."""
    bare = name.removeprefix(_PREFIX)
    if bare.removesuffix("_FILE") in known:
        return f"; the nearest known one is '{bare}'"
    return _nearest(name, known)


def with_variables(text: str, known: Mapping[str, Setting]) -> str:
    """The text with the environment variable behind each known key in it, where it does not name that variable itself."""
    for key, setting in known.items():
        name = env_name(key, setting)
        if "." in key and key in text and name not in text and setting.kind not in ("table", "tables"):
            text = re.sub(rf"(?<![\w.\"']){re.escape(key)}(?![\w.])", f"{key} ({name})", text, count=1)
    return text


def _nearest(name: str, known: Collection[str]) -> str:
    # Without the prefix, which nearly all variables have: it would make any two of them alike.
    bare = {one.removeprefix(_PREFIX) if name.startswith(_PREFIX) else one: one for one in known}
    near = nearest_name(name.removeprefix(_PREFIX), sorted(bare), cutoff=0.5)
    return f"; the nearest known one is '{bare[near]}'" if near else ""
