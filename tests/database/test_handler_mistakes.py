"""A handler's own mistakes in its SQL: 500, with a line that says what is wrong and holds no value of any row."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.product import at_work, labels
from pydantic import BaseModel, Field

from server import answer, read, scoped
from tests.conftest import ALICE, Serve, TestDatabase


class Named(BaseModel):
    from_: datetime.date = Field(serialization_alias="from")


TODAY = datetime.date(2026, 1, 1)
VALUE = "hidden-value"


@pytest.fixture
async def db(db: TestDatabase) -> AsyncIterator[TestDatabase]:
    async with labels(db):
        yield db


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.getMessage() == "handler failed"]  # type: ignore[attr-defined]


MISTAKES: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "a text for a number": ("SELECT $1::int AS x", (VALUE,), "argument $1 of the statement: 'str' object cannot be interpreted as an integer"),
    "a number for a text": ("SELECT $1::text AS x, $2::text AS y", ("x", 5), "argument $2 of the statement: expected str, got int"),
    "a text for a date": ("SELECT $1::date AS x", (VALUE,), "argument $1"),
    "a text for a time": ("SELECT $1::timestamptz AS x", (VALUE,), "argument $1"),
    "a text for a truth": ("SELECT $1::bool AS x", (VALUE,), "argument $1"),
    "a text for a list": ("SELECT $1::int[] AS x", (5,), "argument $1"),
    "a date for a uuid": ("SELECT $1::uuid AS x", (TODAY,), "argument $1"),
    "a date in jsonb": ("SELECT $1::jsonb AS x", ({"at": TODAY},), "argument $1 of the statement: date has no JSON form"),
    "too few arguments": ("SELECT $1::int AS x, $2::int AS y", (1,), "the server expects 2 arguments for this query, 1 was passed"),
    "too many arguments": ("SELECT 1 AS x", (VALUE,), "the server expects 0 arguments"),
    "no such table": ("SELECT * FROM nowhere", (), 'UndefinedTableError (42P01): relation "nowhere" does not exist'),
    "no such column": ("SELECT nothing FROM labels", (), 'UndefinedColumnError (42703): column "nothing" does not exist'),
    "no such function": ("SELECT nothing(1)", (), "UndefinedFunctionError (42883): function nothing(integer) does not exist"),
    "no SQL": (f"SELECT FROM WHERE '{VALUE}'", (), "PostgresSyntaxError (42601): syntax error at character"),
    "a type that does not fit": ("SELECT 1 WHERE 'a'::text = 1", (), "operator does not exist: text = integer"),
    "a table without a grant": ("SELECT * FROM webhook_inbox", (), "InsufficientPrivilegeError (42501): permission denied for table webhook_inbox; a GRANT to the serving role is missing: `python -m server tables NAME` shows what it has"),
}

WORDS_OF_READ = {
    "too few arguments": "the statement names $2, and is given 1 arguments",
    "too many arguments": "could not determine data type of parameter $1",
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("how", ["read", "scoped"])
async def test_it_is_a_500_and_the_log_says_why(
    serve: Serve, db: TestDatabase, mistake: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    sql, args, why = MISTAKES[mistake]

    async def work(request: web.Request) -> Any:
        if how == "read":
            return await read(request, sql, *args)
        async with scoped(request) as db:
            return await db.fetch(sql, *args)

    client = await serve({"database.pool_size": 1}, extra={"acme": at_work(work)})
    got = await client.get("/work", ALICE)
    assert (got.status, got.json()) == (500, {"error": "Internal Server Error"})
    (line,) = lines(caplog)
    assert (WORDS_OF_READ.get(mistake, why) if how == "read" else why) in line["why"]
    assert (line["request_id"], line["route"]) == (got.headers["X-Request-Id"], "/work")
    assert any("test_handler_mistakes.py" in place for place in line["places"])
    assert VALUE not in str([vars(record) for record in caplog.records])
    assert (await client.get("/api/data", ALICE)).status == 200  # the one connection is in order


@pytest.mark.parametrize(
    ("sql", "status", "words"),
    [
        ("INSERT INTO labels (organization_id, name) VALUES ('org_b', 'x')", 403, None),
        ("UPDATE labels SET organization_id = 'org_b'", 500, "permission denied for table labels"),  # a column without a grant
        ("INSERT INTO labels (organization_id, name, id) OVERRIDING SYSTEM VALUE VALUES ('org_a', 'x', 1)", 500, "permission denied"),
        ("INSERT INTO gatepost_meta (checksum) VALUES ('x')", 500, "permission denied for table gatepost_meta"),
        ("SELECT pg_read_file('hidden-value')", 500, "permission denied for function pg_read_file"),
        ("TRUNCATE labels", 500, "permission denied for table labels"),
        ("LOCK TABLE webhook_inbox", 500, "permission denied for table webhook_inbox"),
        ("SET session_replication_role = replica", 500, "permission denied to set parameter"),
        ("CREATE TABLE mine ()", 500, "permission denied for schema public"),
        ("SET ROLE postgres", 500, "permission denied to set role"),
        ("DO $$ BEGIN RAISE EXCEPTION 'hidden-value' USING ERRCODE = 'insufficient_privilege'; END $$", 403, None),
        ("DO $$ BEGIN RAISE EXCEPTION 'hidden-value' USING ERRCODE = '42P01'; END $$", 500, "UndefinedTableError (42P01)"),
        ("DO $$ BEGIN RAISE EXCEPTION 'hidden-value'; END $$", 500, "RaiseError (P0001)"),
    ],
)
async def test_a_403_is_for_rows_alone(
    serve: Serve, db: TestDatabase, sql: str, status: int, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as db:
            await db.execute(sql)

    client = await serve(extra={"acme": at_work(work)})
    got = await client.get("/work", ALICE)
    assert got.status == status
    assert got.json().get("reason") == ("organization" if status == 403 else None)
    assert [words in line["why"] for line in lines(caplog)] == ([True] if words else [])
    assert VALUE not in str([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    ("sql", "args"),
    [
        ("SELECT $1::int AS x", (2**40,)),
        ("SELECT $1::uuid AS x", ("no uuid",)),
        ("SELECT $1::numeric AS x", ("no number",)),
        ("SELECT $1::text AS x", ("half \ud800",)),
        ("SELECT $1::text AS x", ("a\x00b",)),
        ("SELECT $1::text::int AS x", ("no number",)),
        ("SELECT $1::int::smallint AS x", (40_000,)),
        ("SELECT $1::jsonb AS x", ({"x": float("nan")},)),
        ("SELECT $1::jsonb AS x", ({"x": "half \ud800"},)),
        ("SELECT $1::jsonb AS x", ({"x": "a\x00b"},)),
        ("SELECT $1::jsonb AS x", ("no JSON",)),
    ],
)
@pytest.mark.parametrize("how", ["read", "scoped"])
async def test_a_value_that_a_client_may_have_sent_stays_a_422(serve: Serve, db: TestDatabase, how: str, sql: str, args: tuple[Any, ...]) -> None:
    async def work(request: web.Request) -> Any:
        if how == "read":
            return await read(request, sql, *args)
        async with scoped(request) as db:
            return await db.fetch(sql, *args)

    client = await serve({"database.pool_size": 1}, extra={"acme": at_work(work)})
    got = await client.get("/work", ALICE)
    assert (got.status, got.json()) == (422, {"error": "Unprocessable Content", "fields": []})
    assert (await client.get("/api/data", ALICE)).status == 200


async def test_a_dollar_in_a_literal_or_a_comment_is_no_argument(serve: Serve, db: TestDatabase) -> None:
    async def work(request: web.Request) -> Any:
        return "" + await read(request, """SELECT 'costs $5' AS a, $1::text AS "b$2" -- $3\n /* $4 */, 1 AS c$9,
            E'it\\'s $5' AS d, $$ $6 $$ AS e, $q$ ' $7 $q$ AS f""", "x")

    client = await serve(extra={"acme": at_work(work)})
    assert (await client.get("/work", ALICE)).json() == {"result": '[{"a":"costs $5","b$2":"x","c$9":1,"d":"it\'s $5","e":" $6 ","f":" \' $7 "}]'}


async def test_one_transaction_in_two_tasks_is_a_mistake_too(serve: Serve, db: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as db:
            await asyncio.gather(db.fetch("SELECT pg_sleep(0.1)"), db.fetch("SELECT 1"))

    client = await serve({"database.pool_size": 1}, extra={"acme": at_work(work)})
    assert (await client.get("/work", ALICE)).status == 500
    assert "another operation is in progress" in lines(caplog)[0]["why"]
    assert (await client.get("/api/data", ALICE)).status == 200


@pytest.mark.parametrize("how", ["read", "scoped"])
@pytest.mark.parametrize(
    ("sql", "args", "why"),
    [
        ("SELECT %s AS x", ("x",), "syntax error at character 8: arguments are written $1, $2"),
        ("SELECT :name AS x", (), "syntax error at character 8: arguments are written $1, $2"),
        ("SELECT 1 AS x FORM labels", (), "syntax error at character 15"),
    ],
)
async def test_the_place_of_a_syntax_error_is_in_the_handlers_own_sql(
    serve: Serve, db: TestDatabase, how: str, sql: str, args: tuple[Any, ...], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(request: web.Request) -> Any:
        if how == "read":
            return await read(request, sql, *args)
        async with scoped(request) as db:
            return await db.fetch(sql, *args)

    client = await serve(extra={"acme": at_work(work)})
    assert (await client.get("/work", ALICE)).status == 500
    assert lines(caplog)[0]["why"].endswith(why)


@pytest.mark.parametrize(
    ("sql", "status", "why"),
    [
        ("INSERT INTO labels (organization_id, name) VALUES ('org_a', 'a'), ('org_a', 'a')", 409, "unique constraint labels_name"),
        ("INSERT INTO labels (organization_id, name, parent) VALUES ('org_a', 'a', 77)", 409, "foreign key labels_parent_fkey"),
        ("INSERT INTO labels (organization_id, name, size) VALUES ('org_a', 'a', 0)", 422, "CHECK constraint labels_size"),
        ("INSERT INTO labels (organization_id, name) VALUES ('org_a', NULL)", 422, "NotNullViolationError (23502): column name"),
        ("SELECT 100000::smallint", 422, "NumericValueOutOfRangeError (22003)"),
    ],
)
async def test_the_log_names_what_of_the_schema_a_statement_breaks(
    serve: Serve, db: TestDatabase, sql: str, status: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(request: web.Request) -> Any:
        async with scoped(request) as db:
            return await db.execute(sql)

    caplog.set_level("INFO")
    client = await serve(extra={"acme": at_work(work)})
    got = await client.get("/work", ALICE)
    assert got.status == status
    assert "labels" not in str(got.json()), "the client does not see it"
    shown = [record.fields for record in caplog.records if "refused" in record.getMessage()]  # type: ignore[attr-defined]
    assert [line["why"] for line in shown] == [why]


async def test_rows_and_models_are_sent_and_a_forgotten_await_is_named(serve: Serve, db: TestDatabase) -> None:
    async def rows(request: web.Request) -> Any:
        async with scoped(request) as db:
            return [*await db.fetch("SELECT 1 AS one, 'x' AS two"), Named(from_=TODAY)]

    client = await serve(extra={"acme": at_work(rows)})
    assert (await client.get("/work", ALICE)).json()["result"] == [{"one": 1, "two": "x"}, {"from": "2026-01-01"}]

    async def not_awaited() -> None: ...

    forgotten = not_awaited()
    with pytest.raises(TypeError, match=r"^coroutine has no JSON form: is an `await` missing\?"):
        answer({"rows": forgotten})
    forgotten.close()


async def test_a_status_that_is_no_number_is_the_handlers_mistake() -> None:
    with pytest.raises(TypeError, match="a status is a number such as 201, not '201'"):
        answer({}, "201")  # type: ignore[arg-type]
