"""jsonb arrives as what it is, and what has a JSON form is taken for it; JSON text still is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kits.product import at_work, labels

from server import body, identity_of, scoped
from server.database import json_values
from server.testing.clerk import LoopbackClerk
from tests.conftest import ALICE, Serve, TestDatabase


@pytest.fixture
async def db(db: TestDatabase) -> AsyncIterator[TestDatabase]:
    async with labels(db):
        yield db


VALUES: list[Any] = [
    {}, {"a": [1, 2.5, None, True, "x", {"ü": "\u2028"}]}, [], [1, [2]], 1, 1.5, True, False, {"big": 2**70}, {"": ""},
]  # fmt: skip


async def test_it_arrives_as_what_it_is(serve: Serve, db: TestDatabase) -> None:
    async def work(request: web.Request) -> Any:
        found = []
        async with scoped(request) as sql:
            for number, value in enumerate(VALUES):
                row = await sql.fetchrow(
                    "INSERT INTO labels (organization_id, name, at, more) VALUES ('org_a', $1, $2, $3) RETURNING at, more, id",
                    str(number), value, [{"in": value}, None, 1],
                )  # fmt: skip
                assert row is not None
                assert row["more"] == [{"in": value}, None, 1]
                assert await sql.fetchval("SELECT at FROM labels WHERE id = $1 AND at @> $2", row["id"], value) == value
                assert json.loads(await sql.row("SELECT at FROM labels WHERE id = $1", row["id"]) or "")["at"] == value
                found.append(row["at"])
        assert found == VALUES
        assert [type(one) for one in found] == [type(one) for one in VALUES]
        return found

    client = await serve(extra={"acme": at_work(work)})
    assert (await client.get("/work", ALICE)).json()["result"] == VALUES


async def test_json_text_is_taken_as_before(serve: Serve, db: TestDatabase) -> None:
    """A str is JSON text: a plug-in that passes json.dumps(...) works as it did, and a JSON string needs its quotes."""

    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            return [
                await sql.fetchval("SELECT $1::jsonb", '{"a": [1]}'),
                await sql.fetchval("SELECT $1::jsonb", json.dumps("a text")),
                await sql.fetchval("SELECT coalesce($1, at) FROM (VALUES ('{}'::jsonb)) AS t (at)", '{"b": 1}'),
                await sql.fetchval("SELECT coalesce($1, at) FROM (VALUES ('{}'::jsonb)) AS t (at)", None),
                await sql.fetchval("SELECT 'null'::jsonb"),
                await sql.fetchval("SELECT to_json(1)"),  # the type json stays text: what Postgres made is sent as it is
                await sql.fetchval("SELECT $1::json->>'a'", '{"a": 5}'),
            ]

    client = await serve(extra={"acme": at_work(work)})
    assert (await client.get("/work", ALICE)).json()["result"] == [{"a": [1]}, "a text", {"b": 1}, {}, None, "1", "5"]


async def test_a_body_goes_in_and_comes_out(serve: Serve, db: TestDatabase) -> None:
    async def work(request: web.Request) -> Any:
        sent = await body(request, dict[str, Any])
        async with scoped(request) as sql:
            return await sql.fetchval("SELECT $1::jsonb", sent)

    client = await serve(extra={"acme": at_work(work)})
    for sent in ({"name": "ü\u2028\U0001f600", "n": [1.5, {"deep": [[]]}]}, {}):
        assert (await client.post("/work", ALICE, sent)).json()["result"] == sent
        keyed = {**ALICE, "Idempotency-Key": json.dumps(len(sent))}
        assert (await client.post("/work", keyed, sent)).json()["result"] == sent  # also in the transaction of a repeatable request


async def test_the_claims_of_a_caller_are_json(serve: Serve, db: TestDatabase) -> None:
    """Nested ones too, for json.dumps and for a jsonb parameter; and no handler changes them for the next request."""

    async def work(request: web.Request) -> Any:
        claims: Any = identity_of(request).claims
        with pytest.raises(TypeError):
            claims["meta"]["list"] = 1
        async with scoped(request) as sql:
            return [json.loads(json.dumps(claims)), await sql.fetchval("SELECT $1::jsonb", claims)]

    async with LoopbackClerk() as clerk:
        client = await serve({"providers": ["clerk"], **clerk.settings()}, extra={"acme": at_work(work)})
        meta = {"list": [1, {"deep": ["x"]}], "none": None}
        headers = {"Authorization": f"Bearer {clerk.token('alice', meta=meta)}"}
        for _ in range(2):  # the second time from memory
            got = await client.get("/work", headers)
            assert [one["meta"] for one in got.json()["result"]] == [meta, meta]
        assert (await client.get("/api/me", headers)).json()["claims"]["meta"] == meta


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # how fast the machine is says nothing
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=8))
def test_what_is_encoded_is_decoded_as_it_was(value: Any) -> None:
    if not isinstance(value, str):
        try:
            raw = json_values.encode(value)
        except ValueError:  # half a surrogate pair
            assert "\\ud" in json.dumps(value)
            return
        assert json_values.decode(raw) == value


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}, {"a": "\ud800"}, "\udfff"])
def test_what_no_json_can_hold_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError):
        json_values.encode(value)


@pytest.mark.parametrize("value", [{"a": object()}, {1, 2}, b"{}", {"a": Decimal(1)}, {("a",): 1}])
def test_what_has_no_json_form_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        json_values.encode(value)


def test_any_mapping_is_an_object() -> None:
    assert json_values.encode(MappingProxyType({"a": MappingProxyType({})})) == b'\x01{"a":{}}'


@pytest.mark.parametrize("digits", ["1" + "0" * 400, "1e400", "-1e400", "9" * 5000, "0." + "1" * 400])
def test_a_number_that_is_too_large_for_a_float_still_arrives(digits: str) -> None:
    """SQL can write it: it must not make the tenant's other rows unreadable."""
    found = json_values.decode(b'\x01{"n":' + digits.encode() + b"}")["n"]
    assert Decimal(found) == Decimal(digits) or abs(Decimal(found) - Decimal(digits)) < Decimal("1e-10")


async def test_one_that_is_nested_too_deeply_fails_alone(serve: Serve, db: TestDatabase) -> None:
    """SQL can write it. The connection is in order afterwards. How deep is too deep depends on the Python."""
    try:
        json_values.decode(b"\x01" + b"[" * 2000 + b"]" * 2000)
    except Exception:
        status = 500
    else:
        status = 200

    async def work(request: web.Request) -> Any:
        async with scoped(request) as sql:
            return await sql.fetchval("SELECT (repeat('[', 2000) || repeat(']', 2000))::jsonb")

    client = await serve({"database.pool_size": 1}, extra={"acme": at_work(work)})
    assert (await client.get("/work", ALICE)).status == status
    assert (await client.get("/api/data", ALICE)).status == 200
    assert (await client.get("/work", ALICE)).status == status
