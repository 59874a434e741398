"""Query parameters: validated by a model, in the document, and kept by the `Link` of a page."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import re
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
import pytest
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from server import answer, describe, identity_of, page, query, read, requires, signed_in
from server.http.query_values import MOST_PARAMETERS
from server.openapi.document import DOCUMENT
from tests.conftest import ALICE, ALICE_ALONE, Client, Got, Serve, TestDatabase, plugin

ID = "0b8e0d5e-6f0a-4b7e-9a53-3d6a1c6f9a11"


class Status(enum.Enum):
    OPEN = "open"
    DONE = "done"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    status: Annotated[list[Status], Field(description="Any of these.", max_length=3)] = []
    least: Annotated[int | None, Field(ge=0, strict=True)] = None
    before: datetime.date | None = None
    price: decimal.Decimal | None = None
    share: float | None = None
    done: bool | None = None
    level: Level | None = None
    number: Literal[1, 2] | None = None
    sort: Literal["created_at", "title"] = "created_at"
    since: Annotated[str | None, Field(alias="from", max_length=10)] = None
    old: Annotated[str | None, Field(deprecated=True)] = None
    when: datetime.datetime | None = None
    data: bytes | None = None
    either: int | bool | None = None
    ids: frozenset[uuid.UUID] = frozenset()


class Loose(BaseModel):
    word: str = ""


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    word: str


def shows(model: type[BaseModel], **words: Any) -> Any:
    @describe(query=model, **words)
    async def handler(request: web.Request) -> web.Response:
        if words.get("page"):
            page(request)
        return answer(query(request, model).model_dump_json(by_alias=True, exclude_unset=True))

    return signed_in(handler)


async def undescribed(request: web.Request) -> web.Response:
    return answer(query(request, Filter).model_dump_json(exclude_unset=True))


class Sized(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: int = 5
    offset: int = 0


@pytest.fixture
async def asked(serve: Serve) -> Client:
    return await serve(
        extra={
            "acme": plugin(
                web.get("/api/strict", shows(Filter)),
                web.get("/api/paged", shows(Filter, page=True)),
                web.get("/api/loose", shows(Loose)),
                web.get("/api/open", shows(Open)),
                web.get("/api/sized", shows(Sized)),
                web.get("/api/undescribed", signed_in(undescribed)),
            )
        }
    )


def bad(got: Got) -> set[str]:
    assert got.status == 422, (got.status, got.raw)
    assert got.json()["error"] == "Unprocessable Content"
    return {one["field"] for one in got.json()["fields"]}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", {}),
        ("status=open", {"status": ["open"]}),
        ("status=open&least=3&status=done", {"status": ["open", "done"], "least": 3}),
        ("done=true&before=2026-11-28&price=12.50", {"done": True, "before": "2026-11-28", "price": "12.50"}),
        ("level=2&number=1", {"level": 2, "number": 1}),
        ("sort=title&from=a%20%2B+b", {"sort": "title", "from": "a + b"}),
        ("from=%C3%A9", {"from": "é"}),
        ("old=x&when=2026-11-28T12:00:00Z&data=abc&either=true", {"old": "x", "when": "2026-11-28T12:00:00Z", "data": "abc", "either": True}),
        (f"ids={ID}&ids={ID}", {"ids": [ID]}),
    ],
)
async def test_parameters_become_the_model(asked: Client, text: str, seen: dict[str, Any]) -> None:
    got = await asked.get(f"/api/strict?{text}", ALICE)
    assert (got.status, got.json()) == (200, seen)
    assert (await asked.get(f"/api/undescribed?{text}", ALICE)).status == 200


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("status=late", {"status.0"}),
        ("status=open&status=late&least=-1&before=soon&x=1", {"status.1", "least", "before", "x"}),
        ("status=open&status=open&status=open&status=open", {"status"}),
        ("least=1&least=2&sort=title&sort=title", {"least", "sort"}),
        ("least=x&least=2", {"least"}),
        ("least=99999999999999999999", {"least"}),
        ("share=nan", {"share"}),
        ("share=1e999", {"share"}),
        ("done=perhaps&number=3&level=7", {"done", "number", "level"}),
        ("since=x", {"since"}),
        ("from=12345678901", {"from"}),
        ("limit=5&cursor=x", {"limit", "cursor"}),
        ("least=&done", {"least", "done"}),
    ],
)
async def test_every_bad_parameter_is_listed(asked: Client, text: str, fields: set[str]) -> None:
    assert bad(await asked.get(f"/api/strict?{text}", ALICE)) == fields


async def test_each_is_listed_once(asked: Client) -> None:
    got = await asked.get("/api/strict?least=x&least=y&least=z", ALICE)
    assert got.json()["fields"] == [{"field": "least", "message": "must be given once"}]


async def test_unknown_ones_are_as_the_model_says(asked: Client) -> None:
    assert (await asked.get("/api/loose?x=1&x=2&limit=9&word=a", ALICE)).json() == {"word": "a"}
    assert (await asked.get("/api/open?x=1&y=1&y=2&word=a", ALICE)).json() == {"word": "a", "x": "1", "y": ["1", "2"]}
    assert bad(await asked.get("/api/open?x=1", ALICE)) == {"word"}


async def test_limit_and_cursor_of_a_page_are_not_the_models(asked: Client) -> None:
    assert (await asked.get("/api/paged?limit=7&least=1", ALICE)).json() == {"least": 1}
    assert bad(await asked.get("/api/paged?limit=0&cursor=x", ALICE)) == {"limit", "cursor"}
    assert bad(await asked.get("/api/paged?limit=7&offset=1", ALICE)) == {"offset"}
    # Without a page they are parameters like others.
    assert (await asked.get("/api/sized?limit=7", ALICE)).json() == {"limit": 7}
    assert bad(await asked.get("/api/sized?limit=7&cursor=1", ALICE)) == {"cursor"}


async def test_bounds(asked: Client) -> None:
    most = "&".join(["status=late"] * MOST_PARAMETERS)
    got = await asked.get(f"/api/strict?{most}", ALICE)
    assert len(got.json()["fields"]) <= 100
    got = await asked.get(f"/api/loose?{most}&x=1", ALICE)
    assert got.json()["fields"] == [{"field": "", "message": "must not have more than 500 query parameters"}]
    got = await asked.get(f"/api/strict?{'x' * 9000}=1", ALICE)
    assert [len(name) for name in bad(got)] == [200]
    assert (await asked.get("/api/strict?from=%00", ALICE)).status == 400
    assert (await asked.get("/api/strict?from=%FF", ALICE)).status == 400


# Pages -----------------------------------------------------------------------------------------------------------------


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: list[str] = []


@requires(user=True)
@describe(query=Named, page=True)
async def named_rows(request: web.Request) -> web.Response:
    at, wanted = page(request), query(request, Named)
    sql = """SELECT id, name, created_at FROM data WHERE user_id = $1 AND name = ANY($2)
             AND (created_at, id) < ($3, $4) ORDER BY created_at DESC, id DESC LIMIT $5"""
    return at.answer(await read(request, sql, identity_of(request).user_id, wanted.name, *at.args))


def following(got: Got) -> str:
    found = re.fullmatch(r'<(/[!-;=?-~]*)>; rel="next"', got.headers["Link"])
    assert found, got.headers["Link"]
    return found[1]


async def test_the_next_page_of_a_filtered_list_is_filtered(serve: Serve, db: TestDatabase) -> None:
    odd = 'é" <b>,; rel="x"'
    client = await serve(extra={"acme": plugin(web.get("/api/named", named_rows))})
    for number, name in enumerate([odd, "b", "c"] * 3):
        await db.rows("INSERT INTO data (user_id, name, payload) VALUES ('alice', $1, jsonb_build_object('n', $2::int))", name, number)
    path = str(URL("/api/named").with_query([("name", odd), ("limit", "2"), ("name", "b")]))
    seen = []
    while path:
        got = await client.get(path, {**ALICE_ALONE, "Host": "localhost:1"})
        assert got.status == 200, got.raw
        seen += [row["name"] for row in got.json()]
        path = following(got) if "Link" in got.headers else ""
        assert "localhost" not in path
    assert sorted(seen) == sorted([odd, "b"] * 3)


@pytest.mark.parametrize("page_first", [True, False])
async def test_faults_of_the_page_are_listed_with_the_others(serve: Serve, page_first: bool) -> None:
    """A 422 lists every bad field, whichever of the two the handler reads first."""

    @signed_in
    @describe(query=Named, page=True)
    async def rows(request: web.Request) -> web.Response:
        for read_it in (page, lambda it: query(it, Named))[:: 1 if page_first else -1]:
            read_it(request)
        return answer({})

    client = await serve(extra={"acme": plugin(web.get("/api/rows", rows))})
    for text, fields in (
        ("limit=0&cursor=x&other=1", {"limit", "cursor", "other"}),
        ("limit=0&name=a", {"limit"}),
        ("limit=5&other=1", {"other"}),
    ):
        got = await client.get(f"/api/rows?{text}", ALICE)
        assert (got.status, sorted(one["field"] for one in got.json()["fields"])) == (422, sorted(fields)), text
    assert (await client.get("/api/rows?limit=5&name=a&name=b", ALICE)).status == 200


async def test_a_built_in_list_keeps_what_it_does_not_know(client: Client, db: TestDatabase) -> None:
    await db.rows("INSERT INTO data (user_id, name) SELECT 'alice', 'x' FROM generate_series(1, 3)")
    got = await client.get("/api/data?a=1%0d%0a&limit=1", ALICE)
    assert got.status == 400
    got = await client.get("/api/data?a='<x>'&%6Cimit=1&b", ALICE)
    link = following(got)
    assert link.startswith("/api/data?a=%27%3Cx%3E%27&b=&limit=1&cursor=")
    assert following(await client.get(link, ALICE)).startswith("/api/data?a=%27%3Cx%3E%27&b=&limit=1&cursor=")


# The document ----------------------------------------------------------------------------------------------------------


async def test_they_are_in_the_document(asked: Client) -> None:
    told = json.loads(asked.app[DOCUMENT].json)
    paged = told["paths"]["/api/paged"]["get"]
    found = {one["name"]: one for one in paged["parameters"] if "name" in one}
    assert list(found) == ["status", "least", "before", "price", "share", "done", "level", "number", "sort", "from", "old", "when", "data", "either", "ids"]
    assert found["old"]["deprecated"] is True
    assert {one["in"] for one in found.values()} == {"query"}
    assert not any(one.get("required") for one in found.values())
    assert [one.get("$ref", "").rpartition("/")[2] for one in paged["parameters"]][-2:] == ["limit", "cursor"]
    assert found["status"] == {
        "name": "status", "in": "query", "description": "Any of these.",
        "schema": {"type": "array", "items": {"$ref": "#/components/schemas/AcmeStatus"}, "maxItems": 3},
    }  # fmt: skip
    assert found["least"]["schema"] == {"type": "integer", "minimum": 0}
    assert found["sort"]["schema"] == {"type": "string", "enum": ["created_at", "title"]}
    assert "422" in paged["responses"]
    assert "Filter" not in json.dumps(told)  # its fields are parameters, and no schema of a body
    assert told["paths"]["/api/open"]["get"]["parameters"][0]["required"] is True


class Inner(BaseModel):
    word: str


class Itself(BaseModel):
    inner: Itself | None = None


class Words(pydantic.RootModel[list[str]]):
    pass


class Path(BaseModel):
    word: str = Field(validation_alias=pydantic.AliasPath("a", 0))


class Several(BaseModel):
    word: str = Field(validation_alias=pydantic.AliasChoices("a", "b"))


def one_field(kind: Any) -> Any:
    return pydantic.create_model("Made", field=(kind, ...))


@pytest.mark.parametrize(
    "model",
    [Itself, Words, Path, Several, dict, list[str], Inner(word="x"), one_field(Inner), one_field(list[Inner]), one_field(dict[str, str]),
     one_field(list[list[str]]), one_field(Iterable[int]), one_field(list[str] | str), one_field(Inner | None), one_field(pydantic.Json[Any])],
    ids=str,
)  # fmt: skip
def test_a_model_that_is_none_of_query_parameters_is_an_error_at_import(model: Any) -> None:
    with pytest.raises(TypeError):
        describe(query=model)


@pytest.mark.parametrize("name", ["limit", "cursor"])
def test_a_model_cannot_take_the_pages_parameters(name: str) -> None:
    model = pydantic.create_model("Made", **{name: (int, 1)})  # type: ignore[call-overload]
    describe(query=model)
    with pytest.raises(TypeError, match=name):
        describe(query=model, page=True)


async def test_a_handler_is_held_to_its_description(serve: Serve) -> None:
    async def lies(request: web.Request) -> web.Response:
        return answer(query(request, Loose).model_dump_json())

    made = plugin(
        web.get("/api/honest", signed_in(describe(query=Loose)(lies))),
        web.get("/api/lie", shows_as(lies, query=Filter)),
        web.get("/api/silent", shows_as(lies, page=True)),
    )
    client = await serve(extra={"acme": made})
    assert [(await client.get(f"/api/{path}", ALICE)).status for path in ("honest", "lie", "silent")] == [200, 500, 500]


def shows_as(handler: Any, **words: Any) -> Any:
    async def same(request: web.Request) -> web.Response:
        return await handler(request)  # type: ignore[no-any-return]

    return signed_in(describe(**words)(same))
