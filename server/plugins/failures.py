"""Words for what goes wrong while a plugin is loaded."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Collection, Mapping
from typing import Final

from ..messages import error_line, nearest_name, one_line
from ..settings.near import with_variables
from ..settings.setting import Setting

_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def where_raised(error: BaseException, known: Collection[str] = ()) -> str:
    """Returns ` (app.py, line 3)`: the last line of a plugin's own module on the way to the error; "" where there is none.

    A SyntaxError names its place itself, and a ValueError that names a setting (`known`) is about no line of Python.
    """
    if isinstance(error, SyntaxError) or error.__traceback__ is None or _names_setting(error, known):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        foreign = frame.filename.startswith((_OURS, "<")) or f"{os.sep}site-packages{os.sep}" in frame.filename
        if not foreign and not frame.filename.startswith(os.path.dirname(os.__file__) + os.sep):
            return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""


def unknown_hook(error: Exception, known: Collection[str]) -> str:
    """Returns pluggy's message on a hook that does not exist, with the one of `known` that was probably meant."""
    text = one_line(error)
    name = re.search(r"unknown hook '(\w+)'", text)
    near = nearest_name(name[1], known) if name else None
    return text + (f"; did you mean {near}?" if near else "")


def explained(error: Exception, known: Mapping[str, Setting]) -> str:
    """Returns the error in one line; behind the settings that it names, their environment variables.

    A ValueError that begins with one of the `known` settings is for the operator, and needs no name of its type.
    """
    return with_variables(one_line(error) if _names_setting(error, known) else error_line(error), known)


def _names_setting(error: BaseException, known: Collection[str]) -> bool:
    first = re.match(r"[a-z_]+\.[a-z_]+", str(error))
    return type(error) is ValueError and first is not None and first[0] in known
