"""Words for what goes wrong while a plugin is loaded."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from aiohttp import web

from ..auth.access import public, requires, signed_in
from ..http.describe import describe
from ..http.limited import limited
from ..messages import error_line, nearest_name, one_line
from ..settings.near import with_variables
from ..settings.setting import Setting
from . import hookspecs

_DECORATORS: Final[Mapping[str, Callable[..., Any]]] = {
    one.__name__: one for one in (public, signed_in, requires, limited, describe)
} | {"answers_secret": signed_in}
"""The decorators of the public interface by name. `answers_secret` takes what `signed_in` takes: the handler alone."""
FAILURES: Final = (Exception, SystemExit, asyncio.CancelledError)
"""What a plugin's code raises where it fails. It must neither end the process without a word nor leave a traceback."""
_ONLY_ROUTES: Final = "no static routes, no applications"
_SERVING: Final = (web.Application, web.StaticDef, web.AbstractResource)
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
    text = re.sub(r"in plugin <module '([\w.]+)' from .*>", r"in the module \1", text)
    return text + (f"; did you mean {near}?" if near else "")


def where_to_name(unknown: str) -> str:
    """Returns what to do about an unknown name among `providers` or `handlers`."""
    if re.search(r"[\s;|]", unknown.strip()):
        return ". Write commas between the names"
    return ". What is not built in comes with a plugin, which 'plugins' must name"


def registration_error(error: Exception) -> str:
    """Returns pluggy's objection to a plugin in one line; for a hook with unknown parameters, which it has and which exist."""
    text = one_line(error)
    wrong = re.search(r"hook '(\w+)' .*Argument\(s\) \{(.*?)\} are declared", text)
    if wrong is None:
        return text
    known = ", ".join(inspect.signature(getattr(hookspecs, wrong[1])).parameters)
    unknown = wrong[2].replace("'", "")
    return f"{wrong[1]} has no argument {unknown}: " + (f"it may take {known}" if known else "it takes none")


def import_error(error: BaseException) -> str:
    """Returns what an import raised in one line; a decorator of ours that is called wrongly, with how to write it."""
    used = re.match(r"(\w+)\(\) (.*)", str(error)) if isinstance(error, TypeError) else None
    decorator = _DECORATORS.get(used[1]) if used else None
    if used is None or decorator is None:
        return error_line(error)
    known = [
        name for name, parameter in inspect.signature(decorator).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    ]
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", used[2]):
        near = nearest_name(unknown[1], known)
        return f"@{used[1]} has no argument {unknown[1]!r}" + (
            f"; did you mean {near}?" if near else f": it takes {', '.join(known)}"
        )
    if "missing" in used[2]:
        return f"@{used[1]} is written without parentheses"
    return f"@{used[1]} needs its arguments by name, in parentheses, such as @{used[1]}({known[0]}=...)"


def wrong_result(given: object) -> str:
    """Returns what a hook has returned in place of what it must, and the probable slip."""
    if inspect.iscoroutine(given):
        given.close()
        return "it is `async def`: write `def`, hooks are not awaited"
    each = given if isinstance(given, list | tuple) else [given]
    if any(isinstance(one, _SERVING) for one in each):
        return _ONLY_ROUTES
    if isinstance(given, web.RouteDef):
        return "it returned one route: put it into a list"
    if given is None:
        return "it returned None: is its `return` missing?"
    if any(callable(one) for one in each):
        return "it returned functions: put each into a route, as in web.get(path, handler)"
    return _ONLY_ROUTES if any(hasattr(one, "path") for one in each) else f"it returned a {type(given).__name__}"


def explained(error: BaseException, known: Mapping[str, Setting]) -> str:
    """Returns the error in one line; behind the settings that it names, their environment variables.

    A ValueError that begins with one of the `known` settings is for the operator, and needs no name of its type.
    """
    return with_variables(one_line(error) if _names_setting(error, known) else error_line(error), known)


def _names_setting(error: BaseException, known: Collection[str]) -> bool:
    first = re.match(r"[a-z_]+\.[a-z_]+", str(error))
    return type(error) is ValueError and first is not None and first[0] in known
