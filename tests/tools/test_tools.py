"""Routes as tools: what is refused at startup, and the schemas of arguments and results."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from kits.app import build_app, routes_plugin
from kits.tool_routes import PRODUCT
from pydantic import BaseModel, ConfigDict, Field

from server import answers_secret, calls_tools, describe, signed_in
from server.settings.setting import ConfigError
from server.tools.calls import TOOLS


async def _handler(request: web.Request) -> web.Response:
    return web.Response()


def tool(name: Any = "one", summary: Any = "One", **more: Any) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    return signed_in(describe(tool=name, summary=summary, **more)(handler))


def tools_of_app(*routes: web.RouteDef) -> dict[str, Any]:
    return {name: one.tool for name, one in build_app({"acme": routes_plugin(*routes)})[TOOLS].by_name.items()}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str
    name: str


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    friends: list[Dog] = []


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Owner(BaseModel):
    name: Annotated[str, Field(description="The owner's name.")]
    pets: list[Pet]
    home: Dog | None = None


# Startup ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a,b", "ä", "x" * 129, "a/b", "a\n", "a:b", 5, "a(b)", "<script>"])
def test_names_that_no_client_would_take(name: Any) -> None:
    with pytest.raises(TypeError, match="letters, digits"):
        tool(name)


@pytest.mark.parametrize("name", ["a", "a.b", "a-b_c", "A1", "x" * 128])
def test_names(name: str) -> None:
    assert list(tools_of_app(web.get("/api/one", tool(name)))) == [name]


@pytest.mark.parametrize("summary", [None, "", "two\nlines", "hidden\u200btext", "\U000e0041 tag", "a\x1b[31mred", "right\u202eleft"])
def test_a_summary_is_one_line_that_people_can_read(summary: Any) -> None:
    """Agents read it: it must not hold what the developer who reviews it does not see."""
    with pytest.raises(TypeError, match="needs summary="):
        tool(summary=summary)


@pytest.mark.parametrize(
    "more", [{"body_stream": "image/png"}, {"events": Body}, {"answers": {101: None}}, {"content_type": "image/png", "returns": bytes}]
)
def test_what_a_tool_cannot_take_or_return(more: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="a tool"):
        tool(**more)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ([web.get("/api/a", tool()), web.get("/api/b", tool())], "GET /api/b: the tool 'one' already exists: GET /api/a"),
        ([web.get("/api/a", calls_tools(tool()))], "calls tools"),
        ([web.post("/api/a", answers_secret(tool()))], "holds a secret"),
        ([web.patch("/api/a/{id}", tool(body=Body))], "two arguments of the tool are named 'id'"),
        ([web.get("/api/a/{limit}", tool(page=True, returns=list[str]))], "two arguments of the tool are named 'limit'"),
        ([web.put("/api/a/{if_match}", tool(if_match=True))], "two arguments of the tool are named 'if_match'"),
        ([web.put("/api/a/{body}", tool(body=list[int]))], "two arguments of the tool are named 'body'"),
    ],
)
def test_contradictions_prevent_startup_with_one_line(routes: list[web.RouteDef], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        tools_of_app(*routes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_tools_there_are_none() -> None:
    assert build_app()[TOOLS].by_name == {}


# Schemas ---------------------------------------------------------------------------------------------------------------


def test_every_schema_is_valid_and_complete() -> None:
    for one in build_app({"product": PRODUCT})[TOOLS].by_name.values():
        for schema in filter(None, (one.tool.input_schema, one.tool.output_schema)):
            Draft202012Validator.check_schema(schema)
            Draft202012Validator(schema).is_valid({})  # every reference leads somewhere
            assert "#/components" not in str(schema)


def test_nested_models_come_along() -> None:
    one = tools_of_app(web.post("/api/owners", tool(body=Owner, answers={201: Owner})))["one"]
    assert one.input_schema["required"] == ["name", "pets"]
    assert "additionalProperties" not in one.input_schema
    valid = {"name": "x", "pets": [{"kind": "dog", "friends": [{"kind": "dog"}]}, {"kind": "cat", "lives": 9}]}
    checked = Draft202012Validator(one.input_schema)
    assert checked.is_valid(valid)
    assert not checked.is_valid({"name": "x", "pets": [{"kind": "cow"}]})
    assert one.output_schema is not None
    assert one.output_schema["type"] == "object"
    assert Draft202012Validator(one.output_schema).is_valid(valid)


def test_a_body_of_another_form_is_one_argument() -> None:
    for kind in (list[int], Pet, dict[str, int], str):
        one = tools_of_app(web.post("/api/x", tool(body=kind)))["one"]
        assert one.input_schema["properties"].keys() == {"body"}
        assert one.input_schema["required"] == ["body"]
    optional = tools_of_app(web.post("/api/x", tool(body=list[int], body_optional=True)))["one"]
    assert "required" not in optional.input_schema


@pytest.mark.parametrize(
    ("more", "has"),
    [({}, False), ({"answers": {204: None}}, False), ({"answers": {200: Body, 204: None}}, False), ({"answers": {200: Body, 201: Cat}}, False),
     ({"answers": {200: Body, 201: Body}}, True), ({"answers": {200: Body, 304: None}}, True), ({"returns": int}, True),
     ({"returns": str, "content_type": "text/csv"}, False), ({"returns": Body, "content_type": "application/geo+json"}, True)],
)  # fmt: skip
def test_a_result_has_a_schema_where_it_is_always_the_same(more: dict[str, Any], has: bool) -> None:
    one = tools_of_app(web.get("/api/x", tool(**more)))["one"]
    assert (one.output_schema is not None) is has


def test_the_loop_is_not_needed_to_build() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert build_app({"product": PRODUCT})[TOOLS].by_name
