"""Names the setting that was meant by an unknown key or variable."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

from .setting import Setting, env_name

_PREFIX: Final = "GATEPOST_"


def near_key(key: str, known: Mapping[str, Setting]) -> str:
    """The end of a sentence on an unknown key of the file: the nearest known one; "" if there is none.

    A table like none that is known is taken for that of a plugin that is not loaded.
    """
    table, dot, _ = key.partition(".")
    if dot and not difflib.get_close_matches(table, {one.partition(".")[0] for one in known}, n=1, cutoff=0.7):
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
    close = [name] if name in known else difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest known one is '{close[0]}'" if close else ""
