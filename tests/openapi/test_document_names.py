"""The names in the document: of models, operations, tags and schemes. They are stable, and generators can read them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from aiohttp import web
from kits.app import build_app, routes_plugin
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel, ConfigDict, Field

from server import answer, body, describe, signed_in
from server.openapi.document import DOCUMENT
from server.settings.setting import ConfigError
from tests.conftest import ALICE, Serve, plugin

T = TypeVar("T")


def plugin_with(word: str, **fields: Any) -> tuple[web.RouteDef, web.RouteDef]:
    """Two routes of a plugin with models of its own that are named like everybody's: Change, Widget and Error."""

    class Change(BaseModel):
        model_config = ConfigDict(title=word)
        colour: str = "red"

    class Error(BaseModel):
        code: Annotated[int, Field(description=word)]

    class Widget(BaseModel):
        change: Annotated[Change, Field(description=word)]
        errors: list[Error]

    @signed_in
    @describe(body=Change, returns=Widget)
    async def change_data(request: web.Request) -> web.Response:
        return answer([])

    @signed_in
    @describe(body=Widget, answers={201: Change})
    async def make_widget(request: web.Request) -> web.Response:
        return answer([])

    return web.patch(f"/api/{word}/{{id}}", change_data), web.post(f"/api/{word}", make_widget)


def told(*plugins: str, **given: Any) -> dict[str, Any]:
    made = json.loads(build_app({name: routes_plugin(*plugin_with(name)) for name in plugins}, **given)[DOCUMENT].json)
    OpenAPIV31SpecValidator(made).validate()
    return made  # type: ignore[no-any-return]


def ids(document: dict[str, Any]) -> dict[str, str]:
    return {f"{method} {path}": one["operationId"] for path, item in document["paths"].items() for method, one in item.items()}


def test_names_of_models_do_not_depend_on_what_else_is_loaded() -> None:
    alone, first, second = told(), told("first"), told("second")
    for both in (told("first", "second"), told("second", "first")):
        for fewer in (alone, first, second):
            assert {name: both["components"]["schemas"][name] for name in fewer["components"]["schemas"]} == fewer["components"]["schemas"]
            for path, item in fewer["paths"].items():
                for method, one in item.items():
                    for member in ("requestBody", "responses", "parameters"):
                        assert both["paths"][path][method].get(member) == one.get(member)
    assert {"Change", "FirstChange", "FirstWidget", "FirstError", "Error"} <= set(first["components"]["schemas"])
    assert {name for name in alone["components"]["schemas"] if name in told("first", handlers=["health"])["components"]["schemas"]} == {"Error", "BadField", "Health"}


def test_operation_ids_are_unique_and_those_of_built_in_handlers_never_change() -> None:
    alone, both = ids(told()), ids(told("first", "second"))
    assert {key: both[key] for key in alone} == alone
    assert len(set(both.values())) == len(both)
    assert ids(told("first"))["post /api/first"] == "make_widget"
    assert both["post /api/first"] == "first_make_widget"
    assert both["patch /api/second/{id}"] == "second_change_data"
    assert {word for word in alone.values() if "_" not in word} == set()  # a verb and what it is done to


def test_a_handler_can_name_its_operation() -> None:
    @signed_in
    @describe(operation_id="paint")
    async def handler(request: web.Request) -> web.Response:
        return answer([])

    made = json.loads(build_app({"acme": routes_plugin(web.post("/api/paint", handler))})[DOCUMENT].json)
    assert made["paths"]["/api/paint"]["post"]["operationId"] == "paint"
    for wrong in ("", "a b", "a-b", "1a"):
        with pytest.raises(TypeError, match="operation_id"):
            describe(operation_id=wrong)


def schemas_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of the document but the examples."""
    if isinstance(value, dict):
        yield value
        for key, one in value.items():
            if key not in ("example", "examples"):
                yield from schemas_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from schemas_in(one)


def test_no_reference_has_neighbours_and_nothing_unused_is_declared() -> None:
    made = told("first")
    assert [one for one in schemas_in(made) if "$ref" in one and len(one) > 1] == []
    text = json.dumps(made)
    for kind in ("schemas", "parameters", "headers", "responses"):
        assert made["components"][kind]
        assert [name for name in made["components"][kind] if f'"#/components/{kind}/{name}"' not in text] == []
    small = told(handlers=["health"])
    assert list(small["components"]["schemas"]) == ["BadField", "Error", "Health"]
    assert small["components"]["parameters"] == {}


def test_a_client_does_not_send_what_was_not_set() -> None:
    made = told("first")
    for schema in made["components"]["schemas"].values():
        assert [one for one in schemas_in(schema) if "default" in one and "properties" not in one] == []
        assert "title" not in schema
    change = made["components"]["schemas"]["Change"]
    assert "required" not in change
    assert change["properties"]["payload"] == {"type": "object", "additionalProperties": True}


def test_every_tag_is_declared() -> None:
    made = told("first")
    used = {tag for item in made["paths"].values() for one in item.values() for tag in one["tags"]}
    assert {one["name"] for one in made["tags"]} == used
    assert all(one["description"] for one in made["tags"])


# Odd types -------------------------------------------------------------------------------------------------------------


class Leaf(BaseModel):
    kind: Literal["leaf"]
    default: Annotated[int, Field(alias="$ref")] = 5


class Node(BaseModel):
    kind: Literal["node"]
    children: list[Annotated[Leaf | Node, Field(discriminator="kind")]] = []


class Listing(BaseModel, Generic[T]):
    items: list[T]
    properties: dict[str, T] = {}


@pytest.mark.parametrize("kind", [Node, Leaf, Listing[Leaf], Listing[Listing[Node]], list[Node], dict[str, Leaf | None], Leaf | Node])
def test_odd_types_stay_what_they_are(kind: Any) -> None:
    @signed_in
    @describe(body=kind, answers={201: kind})
    async def handler(request: web.Request) -> web.Response:
        return answer([])

    made = json.loads(build_app({"acme": routes_plugin(web.post("/api/odd", handler))}, handlers=["health"])[DOCUMENT].json)
    OpenAPIV31SpecValidator(made).validate()
    schemas = made["components"]["schemas"]
    for one in schemas_in(made):
        if isinstance(one.get("$ref"), str):
            assert one["$ref"].rpartition("/")[2] in {*schemas, *made["components"]["headers"], *made["components"]["responses"], *made["components"]["parameters"]}
        if "mapping" in one:
            assert {place.rpartition("/")[2] for place in one["mapping"].values()} <= set(schemas)
    assert all(name.startswith("Acme") for name in set(schemas) - {"Error", "BadField", "Health"})
    for name in schemas:
        if "Leaf" in name and "Listing" not in name:
            assert set(schemas[name]["properties"]) == {"kind", "$ref"}


def test_two_models_of_one_name_in_one_plugin() -> None:
    one, other = plugin_with("one"), plugin_with("other")
    made = json.loads(build_app({"acme": routes_plugin(*one, *other)}, handlers=["health"])[DOCUMENT].json)
    OpenAPIV31SpecValidator(made).validate()
    names = {name for name in made["components"]["schemas"] if "Change" in name}
    assert len(names) >= 2
    assert all(name.startswith("Acme") for name in names)
    assert len(set(ids(made).values())) == 5


# The product's own -----------------------------------------------------------------------------------------------------


def test_the_products_name_is_in_the_document() -> None:
    given = {"openapi__title": "Orders", "openapi__version": "2.1", "openapi__description": "All of *it*.",
             "openapi__contact": {"name": "Support", "email": "help@example.com"},
             "openapi__license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
             "openapi__servers": ["https://api.example.com/", "http://localhost:8080/v1"]}  # fmt: skip
    made = told(**given)
    assert made["info"] == {
        "title": "Orders", "version": "2.1", "description": "All of *it*.",
        "contact": {"name": "Support", "email": "help@example.com"}, "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
    }  # fmt: skip
    assert made["servers"] == [{"url": "https://api.example.com"}, {"url": "http://localhost:8080/v1"}]
    usual = told()
    assert (usual["info"]["title"], usual["info"]["version"], usual["servers"]) == ("Gatepost", "1", [{"url": "/"}])
    assert set(usual["info"]) == {"title", "version", "description"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("title", "  ", "openapi.title: must not be empty"),
        ("version", "", "openapi.version: is empty"),
        ("contact", {"email": "nobody"}, "openapi.contact: email must be an e-mail address"),
        ("contact", {"url": "https://example.com"}, "openapi.contact: unknown member 'url'"),
        ("contact", {"name": 5}, "openapi.contact: name must be a string"),
        ("license", {"identifier": "MIT"}, "openapi.license: name is missing"),
        ("license", {"name": "MIT", "identifier": " "}, "openapi.license: identifier must be a string that is not empty"),
        ("license", "MIT", "must be a table"),
        ("servers", ["api.example.com"], "openapi.servers: must be URLs"),
        ("servers", ["ftp://example.com"], "openapi.servers: must be URLs"),
        ("servers", ["https://"], "openapi.servers: must be URLs"),
        ("servers", ["https://u:p@example.com"], "openapi.servers: must be URLs"),
        ("servers", ["https://example.com/?a=1"], "openapi.servers: must be URLs"),
        ("servers", ["https://example.com:99999"], "openapi.servers: must be URLs"),
    ],
)
def test_a_mistake_in_it_prevents_startup(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_app(**{f"openapi__{key}": value})


async def test_a_default_still_holds_where_it_is_not_in_the_document(serve: Serve) -> None:
    class Painted(BaseModel):
        colour: str = "red"

    @signed_in
    @describe(body=Painted, returns=Painted)
    async def paint(request: web.Request) -> web.Response:
        return answer((await body(request, Painted)).model_dump())

    client = await serve(extra={"acme": plugin(web.post("/api/paint", paint))})
    assert (await client.post("/api/paint", ALICE, {})).json() == {"colour": "red"}
