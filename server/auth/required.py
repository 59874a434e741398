"""Checks the values that a handler's declaration of its access names, when its module is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from .identity import TOKEN_TYPES
from .names import names_something

_SLUG: Final = re.compile(r"[^\s,\x00-\x1f\x7f]{1,200}\Z")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]+\Z")


def one_word(name: str, value: object) -> str:
    """The value of the argument `name`, if it is one word of the right form. Raises ValueError."""
    if not isinstance(value, str) or not _SLUG.match(value):
        raise ValueError(f"@requires({name}={value!r}): must be a word without spaces or commas")
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
