"""The statements that a connection keeps: used again, dropped when the schema changes under them, bounded in number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.database import driver
from server.database.driver import Connection, connect


@pytest.fixture
async def connection(db: Any) -> AsyncIterator[Connection]:
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("CREATE TABLE shape (a text); INSERT INTO shape VALUES ('one'); GRANT SELECT ON shape TO PUBLIC")
        try:
            opened = await connect(**db.server.connect_args(db.server.serving_role, db.name))
            yield opened
            await opened.close()
        finally:
            await admin.execute("DROP TABLE shape")


async def prepared(connection: Connection) -> int:
    """How many prepared statements Postgres holds for this connection, without that of this query."""
    return int(await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement !~ 'pg_prepared'"))


async def test_a_statement_is_prepared_once(connection: Connection) -> None:
    for number in range(20):
        assert await connection.read("SELECT $1::int + 1", number) == number + 1
    assert await prepared(connection) == 1


async def test_the_schema_may_change_under_it(connection: Connection, db: Any) -> None:
    sql = "SELECT to_json(shape)::text FROM shape"
    assert await connection.read(sql) == '{"a":"one"}'
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("ALTER TABLE shape ADD b int DEFAULT 2")
    assert await connection.read(sql) == '{"a":"one","b":2}'
    star = "SELECT * FROM shape"
    assert await connection.read(star) == "one"
    async with db.server.as_admin(db.name) as admin:
        await admin.execute("ALTER TABLE shape DROP a")
    assert await connection.read(star) == 2  # its result has another shape: Postgres refuses the old plan, we ask anew
    assert await connection.read(star) == 2


async def test_there_are_never_too_many(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_MOST_KEPT", 8)
    for number in range(100):
        assert await connection.read(f"SELECT {number}") == number
        assert len(connection._kept) <= 8
    assert await prepared(connection) <= 9


async def test_one_that_fails_can_be_asked_again(connection: Connection) -> None:
    sql = "SELECT 1 / $1::int"
    for _ in range(3):
        with pytest.raises(Exception, match="division by zero"):
            await connection.read(sql, 0)
        assert await connection.read(sql, 1) == 1


async def test_who_gives_up_a_begin_leaves_nothing_to_the_next(connection: Connection) -> None:
    """asyncpg still assumes an open transaction, so such a connection is never used again."""
    lock = asyncio.create_task(connection.execute("SELECT pg_sleep(0.2)"))
    await asyncio.sleep(0.05)
    with pytest.raises(Exception, match="another operation is in progress"):
        await connection.transaction().start()
    await lock
    assert not connection.is_in_transaction()
    assert driver.must_discard(connection)


async def test_one_that_is_done_with_its_transaction_is_fit(connection: Connection) -> None:
    async with connection.transaction():
        assert driver.must_discard(connection)
    assert not driver.must_discard(connection)
