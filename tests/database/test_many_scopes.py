"""One SELECT under many scopes at once: each sees its own rows, whatever plan Postgres takes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from server.database.connections import Database
from server.database.many_scopes import read_for_each
from server.http.answers import Rows
from server.http.pagination import RowLimit
from tests.conftest import TestDatabase

MOST = 64
LIMIT = RowLimit(100)
LIMIT.page_bytes = 262_144
SQL = "SELECT t.id, t.name FROM {table} AS t WHERE t.id = ANY ($1::text[]::uuid[]) ORDER BY t.name LIMIT $2"
TABLES = {"data": "(user_id, org_id, name) VALUES ($1, $2, $3)", "org_data": "(organization_id, created_by, name) VALUES ($2, $1, $3)"}


@pytest.fixture(params=[False, True], ids=["direct", "pooled"])
async def database(request: pytest.FixtureRequest, db: TestDatabase) -> AsyncIterator[Database]:
    made = Database(size=2, acquire_seconds=5, statement_seconds=5, pooled=request.param)
    await made.open({"dsn": db.url})
    yield made
    await made.close()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("mode", ["auto", "force_generic_plan", "force_custom_plan"])
async def test_each_scope_sees_its_own_rows(database: Database, db: TestDatabase, table: str, mode: str) -> None:
    """Ids of all tenants are asked for under every scope, again and again: a plan is made anew, and then kept."""
    people = [(f"user_{n}", f"org_{n % 3}") for n in range(MOST)]
    ids: dict[str, tuple[str, str]] = {}
    for user, org in people:
        (row,) = await db.rows(f"INSERT INTO {table} {TABLES[table]} RETURNING id", user, org, user)
        ids[str(row["id"])] = (user, org)
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(f"ALTER ROLE {db.server.serving_role} SET plan_cache_mode = {mode}")
    try:
        for number in (MOST, 3, 1, MOST - 1, MOST, MOST, MOST, MOST, MOST, 2):
            asked = [((user, org, ""), (list(ids), LIMIT)) for user, org in people[:number]]
            found = await read_for_each(database, SQL.format(table=table), asked, "streams")
            assert len(found) == number
            for (user, org), rows in zip(people, found, strict=False):
                seen = {row["id"] for row in json.loads(Rows(rows))}
                assert seen == {id for id, (owner, tenant) in ids.items() if (owner == user if table == "data" else tenant == org)}
    finally:
        async with db.server.as_admin(db.name) as admin:
            await admin.execute(f"ALTER ROLE {db.server.serving_role} RESET plan_cache_mode")


async def test_no_scope_is_left_and_none_sees_nothing(database: Database, db: TestDatabase) -> None:
    (row,) = await db.rows("INSERT INTO data (user_id, name) VALUES ('alice', 'x') RETURNING id")
    asked = [((user, "", ""), ([str(id)], LIMIT)) for user, id in (("alice", row["id"]), ("", row["id"]), ("bob", uuid4()))]
    found = await read_for_each(database, SQL.format(table="data"), asked, "streams")
    assert [len(json.loads(Rows(rows))) for rows in found] == [1, 0, 0]
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM data") == 0
