"""The OpenAPI 3.1 document: every route that is served, with its access, from the declarations that serve it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from aiohttp import web

from ..http.describe import Description, description_of
from ..plugins.providers import LoadedProvider
from ..routing.table import RouteRule, RouteTable
from .components import PARAMETERS, Error, header_components, response_components
from .operation import operation, path_of
from .schemas import Schemas
from .security import schemes_of

_ABOUT: Final = """Every route is locked until a provider says who is calling, and every row until Postgres agrees.

Each operation says who may call it; the extension `x-gatepost-access` says the same to programs. Every error is JSON:
`{"error": PHRASE, "reason": SLUG}`. Lists are arrays, newest first; the next page is in `Link`."""


class Document(NamedTuple):
    """The document as it is sent: UTF-8, without a secret and without a setting."""

    json: bytes
    etag: str


DOCUMENT: Final = web.AppKey("openapi_document", Document)


class _Route(NamedTuple):
    method: str
    rule: RouteRule
    handler: object
    description: Description | None

    @property
    def where(self) -> str:
        return f"{self.method} {self.rule.template}"


def openapi_document(request: web.Request) -> Document:
    """The OpenAPI document of the server that answers this request, made once at its start: `json` (bytes) and `etag`."""
    return request.app[DOCUMENT]


def make(table: RouteTable, providers: Iterable[LoadedProvider]) -> Document:
    """The document of these routes; the same for the same routes and providers. Raises ConfigError.

    HEAD is left out: it is wherever GET is.
    """
    raw = json.dumps(document(table, providers), ensure_ascii=False, separators=(",", ":")).encode()
    return Document(raw, f'"{hashlib.sha256(raw).hexdigest()[:32]}"')


def document(table: RouteTable, providers: Iterable[LoadedProvider]) -> dict[str, Any]:
    """The same as a dictionary."""
    routes = _routes(table)
    schemes, schemas = schemes_of(providers), _schemas(routes)
    named = schemas.components()
    paths: dict[str, dict[str, Any]] = {}
    for route, name in zip(routes, _names(routes), strict=True):
        made = operation(route.method, route.rule, name, route.handler, schemas, schemes)
        _put(paths, route, made)
    used = {name for operations in paths.values() for made in operations.values() for one in made["security"] for name in one}
    return {
        "openapi": "3.1.1",
        "info": {"title": "Gatepost", "description": _ABOUT, "version": "1"},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": named,
            "parameters": PARAMETERS,
            "headers": header_components(),
            "responses": response_components(schemas.of(Error, "serialization")),
            "securitySchemes": {name: scheme for name, scheme in schemes.items() if name in used},
        },
    }


def _routes(table: RouteTable) -> list[_Route]:
    found = [_Route(r.method, rule, r.handler, description_of(r.handler)) for r, rule in table.rules.items()]
    return sorted((one for one in found if one.method != "HEAD"), key=lambda one: (one.rule.template, one.method))


def _schemas(routes: list[_Route]) -> Schemas:
    schemas = Schemas()
    schemas.add("the server", Error, "serialization")
    for route in routes:
        said = route.description or Description()
        if said.body is not None:
            schemas.add(route.where, said.body, "validation")
        for kind in said.answers.values():
            if kind is not None:
                schemas.add(route.where, kind, "serialization")
    return schemas


def _names(routes: list[_Route]) -> list[str]:
    """An `operationId` for each: the handler's name, with its module's before it and a number after it where need be."""
    short = [str(getattr(route.handler, "__name__", "handler")) for route in routes]
    often, last = Counter(short), Counter[str]()
    names: dict[str, None] = {}  # in order, and quick to ask
    for name, route in zip(short, routes, strict=True):
        module = str(getattr(route.handler, "__module__", "")).rpartition(".")[2]
        wanted = name if often[name] == 1 else f"{module}_{name}"
        free = wanted
        while free in names:
            last[wanted] += 1
            free = f"{wanted}_{last[wanted] + 1}"
        names[free] = None
    return list(names)


def _put(paths: dict[str, dict[str, Any]], route: _Route, made: dict[str, Any]) -> None:
    """Two templates that differ in their patterns alone are one path here: the later one gets another parameter name."""
    path, method = path_of(route.rule.template), route.method.lower()
    parameters = [one for one in made.get("parameters", ()) if one.get("in") == "path"]
    while method in paths.get(path, ()):
        last = parameters[-1]
        path = path.replace(f"{{{last['name']}}}", f"{{{last['name']}_}}")
        last["name"] += "_"
    paths.setdefault(path, {})[method] = made
