"""Checks a handler, and the values that its declaration of access names, when its module is imported."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

from .identity import TOKEN_TYPES
from .names import names_something

_SLUG: Final = re.compile(r"[^\s,\x00-\x1f\x7f]{1,200}\Z")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+\Z")
_VALUES: Final = frozenset({"int", "str", "float", "bool", "bytes", "dict", "list", "UUID", "date", "datetime"})
"""Annotations of parameters that other frameworks fill from the path, the query or the body."""


def check_handler(handler: Any) -> None:
    """Raise TypeError, with what to write, unless this is an `async def` function whose only parameter is the request."""
    name = getattr(handler, "__qualname__", None) or repr(handler)
    if not callable(handler):
        raise TypeError(f"{name} is not a handler: the decorator goes above an `async def` function")
    if not inspect.iscoroutinefunction(handler):
        raise TypeError(f"{name}: a handler is an `async def` function")
    signature = inspect.signature(handler)
    try:
        given = signature.bind("the request").arguments
    except TypeError:  # a method, most often: its wrapper would be called without the object
        raise TypeError(f"{name}: a handler takes the request and nothing else") from None
    kind = signature.parameters[next(iter(given))].annotation
    word = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    if word.partition("[")[0] in _VALUES or hasattr(kind, "model_fields"):
        raise TypeError(
            f"{name}: a handler takes the request, not `{next(iter(given))}: {word}`: read the path with request.match_info, "
            "a body with body(request, Model), the query with query(request, Model)"
        )


def one_word(name: str, value: object) -> str:
    """The value of the argument `name`, if it is one word of the right form. Raises ValueError."""
    if not isinstance(value, str) or not _SLUG.match(value):
        path = "the name of a path parameter, such as 'org_id': " if name == "organization" else ""
        raise ValueError(f"@requires({name}={value!r}): must be {path}a word without spaces or commas")
    if name == "scopes" and not _SCOPE.match(value):
        raise ValueError(f"@requires(scopes=[{value!r}]): a scope must not contain such characters (RFC 6749 3.3)")
    if name in ("role", "permission") and not names_something(value):
        raise ValueError(f"@requires({name}={value!r}): must name something after org:")
    return value


def several(name: str, values: Iterable[str], decorator: str = "requires") -> list[str]:
    """The values as a list of at least one. Raises ValueError."""
    listed = [] if isinstance(values, str) else list(values)
    if not listed:
        raise ValueError(f"@{decorator}({name}={values!r}): must be a list of at least one word")
    return listed


def token_types(decorator: str, values: Iterable[str]) -> frozenset[str]:
    """The values of `accepts=`, if all are token types. Raises ValueError."""
    types = frozenset(several("accepts", values, decorator))
    if unknown := types - TOKEN_TYPES:
        raise ValueError(f"@{decorator}(accepts=...): unknown token type: {', '.join(sorted(map(str, unknown)))}")
    return types
