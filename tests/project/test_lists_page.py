"""The page of lists is true: its handlers are added to the tutorial's, and called."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any, Literal

import pytest
from kits.pages import blocks
from kits.todo import EXAMPLE, todo_table

import server
from tests.conftest import Client, Serve, TestDatabase, plugin, stub

PAGE = "docs/guides/lists.md"
NORTH = "/api/orgs/north/todos"
ALICE, BOB, SOUTH = stub("alice", org_id="north"), stub("bob", org_id="north"), stub("carol", org_id="south")


@pytest.fixture
async def todos(db: TestDatabase) -> AsyncIterator[None]:
    async with todo_table(db):
        yield


@pytest.fixture
async def client(serve: Serve, todos: None, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A server with the tutorial's handlers and the page's."""
    text = (EXAMPLE / "todo_app" / "api.py").read_text("utf-8").replace("from __future__ import annotations", "")
    module = ModuleType("gp_lists_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pydantic looks up the names of annotations
    scope = module.__dict__
    scope |= {"Literal": Literal, **{name: getattr(server, name) for name in server.__all__}}
    exec(compile(text, "api.py", "exec", dont_inherit=True), scope)
    for block in blocks("python", page=PAGE):
        exec(compile(block.text, PAGE, "exec", dont_inherit=True), scope)
    return await serve(extra={"todo_app": plugin(*scope["routes"])})


async def titles(client: Client, path: str) -> list[str]:
    got = await client.get(path, ALICE)
    assert got.status == 200, got.raw
    return [row["title"] for row in got.json()]


async def filled(client: Client) -> None:
    for caller, words in ((ALICE, ["Milk", "Bread", "Butter milk"]), (BOB, ["apples", "100% juice"])):
        got = await client.post(f"{NORTH}/bulk", caller, [{"title": word} for word in words])
        assert (got.status, sorted(row["title"] for row in got.json())) == (201, sorted(words)), got.raw
        assert {row["organization_id"] for row in got.json()} == {"north"}
    assert (await client.post("/api/orgs/south/todos", SOUTH, {"title": "of the south"})).status == 201


async def test_filters(client: Client) -> None:
    await filled(client)
    search = f"{NORTH}/search"
    assert sorted(await titles(client, search)) == ["100% juice", "Bread", "Butter milk", "Milk", "apples"]
    assert sorted(await titles(client, f"{search}?title=MILK")) == ["Butter milk", "Milk"]
    assert await titles(client, f"{search}?title=%25") == ["100% juice"]
    assert sorted(await titles(client, f"{search}?created_by=bob&created_by=carol")) == ["100% juice", "apples"]
    assert await titles(client, f"{search}?done=true") == []
    seen, path = [], f"{search}?created_by=alice&done=false&limit=2"
    while path:
        got = await client.get(path, ALICE)
        seen += [row["title"] for row in got.json()]
        path = got.headers.get("Link", "<>").partition(">")[0].removeprefix("<")
        assert not path or path.startswith(f"{search}?created_by=alice&done=false&limit=2&cursor=")
    assert sorted(seen) == ["Bread", "Butter milk", "Milk"]
    got = await client.get(f"{search}?done=maybe&done=true&x=1&title={'x' * 201}", ALICE)
    assert (got.status, sorted(one["field"] for one in got.json()["fields"])) == (422, ["done", "title", "x"])


async def test_sorting_and_offset_pages(client: Client) -> None:
    await filled(client)
    assert await titles(client, f"{NORTH}/sorted?sort=title&limit=2&offset=1") == ["apples", "Bread"]
    assert await titles(client, f"{NORTH}/sorted?sort=title&limit=2&offset=4") == ["Milk"]
    for wrong in ("sort=title;drop", "limit=0", "offset=-1", "offset=10001", "cursor=x"):
        assert (await client.get(f"{NORTH}/sorted?{wrong}", ALICE)).status == 422


async def test_bulk_insert_says_which_items_are_invalid(client: Client, db: TestDatabase) -> None:
    good: dict[str, Any] = {"title": "x"}
    got = await client.post(f"{NORTH}/bulk", ALICE, [good, good, good, {"title": ""}, {"title": "y", "created_by": "bob"}, 5])
    assert (got.status, [one["field"] for one in got.json()["fields"]]) == (422, ["3.title", "4.created_by", "5"])
    (shown,) = [json.loads(block.text) for block in blocks("json", page=PAGE)]
    assert shown["fields"][0] == got.json()["fields"][0]
    got = await client.post(f"{NORTH}/bulk", ALICE, [{"title": ""}] * 300)
    assert (got.status, len(got.json()["fields"])) == (422, 100)
    for wrong in ([], [good] * 501, good):
        assert (await client.post(f"{NORTH}/bulk", ALICE, wrong)).status == 422
    assert await db.count("todos") == 0
    got = await client.post(f"{NORTH}/bulk", ALICE, [good] * 500)
    assert (got.status, len(got.json())) == (201, 500)
