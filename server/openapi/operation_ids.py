"""The operations' ids, which are the names of functions in generated clients: unique, and stable when routes are added."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..http.describe import Description
from ..routing.table import RouteRule
from .schemas import prefix_of

_WORD: Final = re.compile(r"[A-Za-z0-9]+")


class DocumentedRoute(NamedTuple):
    """A route as the document shows it."""

    method: str
    rule: RouteRule
    handler: object
    description: Description | None

    @property
    def where(self) -> str:
        """The route in an error message."""
        return f"{self.method} {self.rule.template}"


def operation_ids(routes: Sequence[DocumentedRoute]) -> list[str]:
    """An `operationId` for each route: the one that it is described with, else the name of its handler.

    Where a plugin has several handlers of one name, or one handler for several routes: method and path. Where a plugin's id
    is one of a built-in handler or of another plugin, it begins with the plugin's name; a built-in handler's id never changes.
    """
    own = [_own(route) for route in routes]
    often = Counter(zip((route.rule.plugin for route in routes), own, strict=True))
    wanted = [
        name if often[route.rule.plugin, name] == 1 else _method_and_path(route)
        for route, name in zip(routes, own, strict=True)
    ]
    owners: dict[str, set[str]] = {}
    for route, name in zip(routes, wanted, strict=True):
        owners.setdefault(name, set()).add(route.rule.plugin)
    ids: dict[str, None] = {}
    for route, name in zip(routes, wanted, strict=True):
        plugin = route.rule.plugin
        free = longer = f"{_snake(prefix_of(plugin))}_{name}" if plugin and len(owners[name]) > 1 else name
        number = 1
        while free in ids:
            number += 1
            free = f"{longer}_{number}"
        ids[free] = None
    return list(ids)


def _own(route: DocumentedRoute) -> str:
    described = route.description.operation_id if route.description is not None else None
    name = described or str(getattr(route.handler, "__name__", ""))
    return name if name.isidentifier() and name.isascii() else _method_and_path(route)


def _method_and_path(route: DocumentedRoute) -> str:
    """Such as `get_todos_id` for `GET /api/todos/{id}`."""
    path = re.sub(r"\{(\w+)(?::(?:[^{}]|\{[^{}]*\})+)?\}", r"\1", route.rule.template)
    words = _WORD.findall(path)
    return "_".join([route.method.lower(), *(words[1:] if words[:1] == ["api"] else words)])


def _snake(text: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", text).lower()
