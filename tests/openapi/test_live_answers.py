"""Event streams and WebSockets in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest
from aiohttp import web

from server import answer, describe, public, requires, signed_in
from server.http.describe import description_of
from tests.openapi.test_openapi import operations, with_plugin


class Deleted(pydantic.BaseModel):
    id: int


class Todo(Deleted):
    title: str



def described(**words: Any) -> Any:
    async def same(request: web.Request) -> web.Response:
        return answer([])

    return describe(**words)(same)


def test_a_stream_is_described_by_the_data_of_its_events() -> None:
    stream = requires(user=True)(described(events=Todo | Deleted, summary="Watch", refusals={429: "Too many streams."}))
    told = with_plugin(web.get("/api/todos/events", stream))
    one = operations(told)["GET", "/api/todos/events"]
    success = one["responses"]["200"]
    schema = success["content"]["text/event-stream"]["schema"]
    assert [one["$ref"].rpartition("/")[2] for one in schema["anyOf"]] == ["AcmeTodo", "AcmeDeleted", "StreamNotice"]
    assert list(success["content"]) == ["text/event-stream"]
    assert "`resync`" in success["description"]
    assert "`end`" in success["description"]
    assert set(one["responses"]) == {"200", "400", "401", "403", "429", "431", "503"}
    assert one["responses"]["429"]["description"] == "Too many streams."
    names = [reference["$ref"].rpartition("/")[2] for reference in one["parameters"]]
    assert names == ["Last-Event-ID", "ticket"]
    assert told["components"]["parameters"]["ticket"]["in"] == "query"


def test_texts_may_be_events_and_a_public_stream_takes_no_ticket() -> None:
    told = with_plugin(web.get("/api/ticks", public(described(events=str))), public_routes=["/api/ticks", "/api/health"])
    one = operations(told)["GET", "/api/ticks"]
    assert one["responses"]["200"]["content"]["text/event-stream"]["schema"]["anyOf"][0] == {"type": "string"}
    assert set(one["responses"]) == {"200", "400", "429", "431", "503"}
    assert [reference["$ref"].rpartition("/")[2] for reference in one["parameters"]] == ["Last-Event-ID"]


def test_a_socket_is_a_101_and_needs_an_upgrade() -> None:
    told = with_plugin(web.get("/api/socket", signed_in(described(answers={101: None}))))
    one = operations(told)["GET", "/api/socket"]
    assert set(one["responses"]) == {"101", "200", "400", "401", "426", "429", "431", "503"}
    assert "content" not in one["responses"]["101"]
    refusal = told["components"]["responses"]["UpgradeRequired"]
    assert set(refusal["headers"]) == {"Upgrade", "X-Request-Id"}
    assert [reference["$ref"].rpartition("/")[2] for reference in one["parameters"]] == ["ticket"]


def test_nothing_of_it_is_in_a_document_without_live_answers() -> None:
    told = with_plugin(web.get("/api/todos", signed_in(described(returns=list[Todo]))))
    assert {"ticket", "Last-Event-ID"} & set(told["components"].get("parameters", {})) == set()
    assert "UpgradeRequired" not in told["components"]["responses"]


def test_a_description_knows_whether_its_handler_streams() -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"events": Todo}, True), ({"answers": {101: None}}, True), ({"returns": Todo}, False), ({}, False),
    ]  # fmt: skip
    for words, streams in cases:
        description = description_of(signed_in(described(**words)))
        assert description is not None
        assert description.streams is streams


@pytest.mark.parametrize(
    "words",
    [
        {"events": Todo, "returns": Todo}, {"events": Todo, "answers": {201: None}}, {"events": Todo, "page": True},
        {"events": Todo, "content_type": "text/plain"}, {"events": Todo, "answers": {101: None}},
        {"answers": {101: Literal["x"]}}, {"answers": {101: None, 200: Todo}}, {"answers": {100: None}},
    ],
    ids=str,
)  # fmt: skip
def test_a_live_answer_is_described_as_nothing_else(words: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        describe(**words)
