"""The OpenAPI 3.1 document: every route that is served, with its access, from the declarations that serve it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from aiohttp import web

from ..http.describe import Description, description_of
from ..http.error_bodies import ErrorBodies
from ..plugins.providers import LoadedProvider
from ..routing.table import RouteTable
from .components import PARAMETERS, header_components, response_components
from .error_model import ErrorModel
from .info import tags_of
from .live_answers import add_live
from .operation import operation, path_of
from .operation_ids import DocumentedRoute, operation_ids
from .schema_text import used
from .schemas import Schemas
from .security import schemes_of


class Document(NamedTuple):
    """The document as it is sent: UTF-8, without a secret and without a setting."""

    json: bytes
    etag: str


DOCUMENT: Final = web.AppKey("openapi_document", Document)


def openapi_document(request: web.Request) -> Document:
    """The OpenAPI document of the server that answers this request, made once at its start: `json` (bytes) and `etag`."""
    return request.app[DOCUMENT]


def make(table: RouteTable, providers: Iterable[LoadedProvider], info: Mapping[str, Any], errors: ErrorBodies) -> Document:
    """The document of these routes; the same for the same routes and providers. Raises ConfigError.

    `info` has its members `info` and `servers` (`info_of`); `errors` makes the bodies of errors.
    HEAD is left out: it is wherever GET is.
    """
    raw = json.dumps(document(table, providers, info, errors), ensure_ascii=False, separators=(",", ":")).encode()
    return Document(raw, f'"{hashlib.sha256(raw).hexdigest()[:32]}"')


def document(
    table: RouteTable, providers: Iterable[LoadedProvider], info: Mapping[str, Any], errors: ErrorBodies
) -> dict[str, Any]:
    """The same as a dictionary."""
    routes = _routes(table)
    schemes, schemas = schemes_of(providers), _schemas(routes)
    content = ErrorModel(errors, schemas)
    named = schemas.components()
    paths: dict[str, dict[str, Any]] = {}
    tagged: list[tuple[dict[str, Any], str]] = []
    for route, name in zip(routes, operation_ids(routes), strict=True):
        made = operation(route.method, route.rule, name, route.handler, schemas, schemes, content)
        _put(paths, route, made)
        tagged.append((made, route.rule.plugin))
    needed = {name for made, _ in tagged for one in made["security"] for name in one}
    whole = {
        "openapi": "3.1.1",
        **info,
        "tags": tags_of(tagged),
        "paths": paths,
        "components": {
            "schemas": named,
            "parameters": PARAMETERS,
            "headers": header_components(),
            "responses": response_components(content),
            "securitySchemes": {name: scheme for name, scheme in schemes.items() if name in needed},
        },
    }
    return {**whole, "components": used(whole)}


def _routes(table: RouteTable) -> list[DocumentedRoute]:
    found = [DocumentedRoute(r.method, rule, r.handler, description_of(r.handler)) for r, rule in table.rules.items()]
    return sorted((one for one in found if one.method != "HEAD"), key=lambda one: (one.rule.template, one.method))


def _schemas(routes: list[DocumentedRoute]) -> Schemas:
    schemas = Schemas()
    for route in routes:
        said, plugin = route.description or Description(), route.rule.plugin
        for kind in (said.body, said.query):
            if kind is not None:
                schemas.add(route.where, kind, "validation", plugin)
        for kind in said.answers.values():
            if kind is not None:
                schemas.add(route.where, kind, "serialization", plugin)
        add_live(route.where, said, schemas, plugin)
    return schemas


def _put(paths: dict[str, dict[str, Any]], route: DocumentedRoute, made: dict[str, Any]) -> None:
    """Two templates that differ in their patterns alone are one path here: the later one gets another parameter name."""
    path, method = path_of(route.rule.template), route.method.lower()
    parameters = [one for one in made.get("parameters", ()) if one.get("in") == "path"]
    while method in paths.get(path, ()):
        last = parameters[-1]
        path = path.replace(f"{{{last['name']}}}", f"{{{last['name']}_}}")
        last["name"] += "_"
    paths.setdefault(path, {})[method] = made
