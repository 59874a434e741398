"""A plugin of types that generators stumble over: cyclic, generic, discriminated, aliases that are keywords, enumerations."""

from __future__ import annotations

import datetime as dt
import enum
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel, computed_field

from server import answer, describe, hookimpl, page, query, signed_in

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    class_ = "class"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool = True


class Tree(BaseModel):
    name: str
    children: list[Tree] = []
    parent: Tree | None = None


class Listing(BaseModel, Generic[T]):
    items: list[T]
    total: int


class Address(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    from_: Annotated[str, Field(alias="from")]
    class_: Annotated[str | None, Field(alias="class")] = None
    import_: Annotated[int, Field(alias="import")] = 1


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pet: Annotated[Cat | Dog, Field(discriminator="kind", description="A pet.")]
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []
    tree: Annotated[Tree, Field(description="A tree.")]
    colour: Annotated[Colour, Field(description="Any.")] = Colour.RED
    colours: set[Colour] = set()
    level: Level = Level.LOW
    number: Literal[1, 2, "three", None] = 1
    when: dt.datetime
    day: dt.date | None = None
    time: dt.time | None = None
    span: dt.timedelta | None = None
    price: Decimal = Decimal("1.50")
    data: bytes = b"x"
    id: UUID
    pair: tuple[int, str] = (1, "x")
    many: tuple[int, ...] = ()
    words: dict[str, list[Colour]] = {}
    by_number: dict[int, Address] = {}
    anything: Any = None
    maybe: Address | None = None
    default: str = "default"
    ref: Annotated[str, Field(alias="$ref")] = "x"
    either: int | str | None = None
    url: AnyUrl | None = None
    const: Literal["x"] = "x"


class Seen(Everything):
    @computed_field
    @property
    def double(self) -> int:
        return 2


class Words(RootModel[list[str]]):
    pass


class Filter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Annotated[list[Colour], Field(description="d")] = []
    levels: Annotated[set[Level] | None, Field(description="d")] = None
    level: Annotated[Level | None, Field(description="d")] = None
    class_: Annotated[str | None, Field(description="d", alias="class")] = None
    from_: Annotated[dt.date | None, Field(description="d", alias="from")] = None
    price: Annotated[Decimal | None, Field(description="d")] = None
    data: Annotated[bytes | None, Field(description="d")] = None
    word: Annotated[Literal["a", "b"], Field(description="d")] = "a"
    number: Annotated[Literal[1, 2] | None, Field(description="d")] = None
    required: Annotated[str, Field(description="d")]
    old: Annotated[str | None, Field(description="d", deprecated=True)] = None
    either: Annotated[int | bool | None, Field(description="d")] = None
    when: Annotated[dt.datetime | None, Field(description="d")] = None
    ids: Annotated[list[UUID], Field(description="d", max_length=5)] = []
    strict: Annotated[int | None, Field(description="d", strict=True)] = None


routes = web.RouteTableDef()


@routes.get("/api/odd")
@signed_in
@describe(query=Filter, page=True, returns=list[Seen])
async def list_odd(request: web.Request) -> web.Response:
    page(request)
    return answer(query(request, Filter).model_dump_json(exclude_unset=True, by_alias=True))


@routes.post("/api/odd")
@signed_in
@describe(body=Everything, answers={201: Seen})
async def add_odd(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.post("/api/odd/bulk")
@signed_in
@describe(body=Annotated[list[Everything], Field(min_length=1)], answers={201: Listing[Seen]})
async def add_odds(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.patch("/api/odd/{class}")
@signed_in
@describe(body=Cat | Dog, returns=Listing[Tree])
async def change_odd(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.put("/api/odd/{from}/x-{import}")
@signed_in
@describe(body=Words, returns=dict[str, Listing[Listing[Address]]])
async def put(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.delete("/api/odd/{class}")
@signed_in
@describe(answers={204: None}, operation_id="delete")
async def import_(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.get("/api/odd/events")
@signed_in
@describe(events=Everything)
async def watch_odds(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.get("/api/odd/either/events")
@signed_in
@describe(events=Seen | Cat)
async def watch_either(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.get("/api/odd/ticks")
@signed_in
@describe(events=str)
async def watch_ticks(request: web.Request) -> web.Response:
    return answer({}, 201)


@routes.get("/api/odd/socket")
@signed_in
@describe(answers={101: None})
async def open_odd_socket(request: web.Request) -> web.Response:
    return answer({}, 201)


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
