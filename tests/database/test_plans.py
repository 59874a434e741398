"""How Postgres runs a page: for a caller with very many rows it must neither read nor sort all of them.

Each query is planned as the server sends it, in the serving role, with row-level security and the caller's scope: once with a
generic plan, which a prepared statement ends up with, and once for the given arguments.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
from kits.postgres import Server, cluster  # noqa: F401

from handlers import audit, data, invoices, orgs, profile
from providers.api_key import routes as manage
from server.database.statements import one_statement

HEAVY, LIGHT, MANY, FEW = "heavy", 400, 6000, 20
"""One tenant with so many rows, and so many others with a page each. A tenant here is a user and an organisation alike."""
WHO = f"CASE WHEN n < {MANY} THEN '{HEAVY}' ELSE 'light_' || n % {LIGHT} END"
EACH = f"FROM generate_series(0, {MANY + FEW * LIGHT - 1}) AS n"
FILL = f"""SET session_replication_role = replica;
INSERT INTO data (user_id, org_id, name, created_at) SELECT {WHO}, {WHO}, 'x', now() - n * interval '1 second' {EACH};
INSERT INTO org_data (organization_id, created_by, name, created_at) SELECT {WHO}, {WHO}, 'x', now() - n * interval '1 second' {EACH};
INSERT INTO invoices (organization_id, created_by, customer, amount, currency, due_on, created_at)
       SELECT {WHO}, {WHO}, 'x', 1, 'EUR', now(), now() - n * interval '1 second' {EACH};
INSERT INTO users (id, created_at) SELECT 'user_' || n, now() {EACH};
INSERT INTO memberships (id, organization_id, user_id, created_at)
       SELECT 'member_' || n, {WHO}, 'user_' || n, now() - n * interval '1 second' {EACH};
INSERT INTO audit_log (org_id, actor, action, target, created_at) SELECT {WHO}, 'x', 'insert', 'data', now() - n * interval '1 second' {EACH};
INSERT INTO api_keys (id, hash, name, user_id, org_id, created_by)
       SELECT 'key_' || n, sha256(n::text::bytea), 'x', CASE WHEN n % 2 = 0 THEN {WHO} END, {WHO}, 'x' {EACH};
ANALYZE"""
PAGES = {
    "data_by_user": data.PAGE,
    "org_data_by_org": orgs.PAGE,
    "invoices_by_org": invoices.PAGE,
    "memberships_page": profile.PAGE,
    "audit_log_by_org": audit.PAGE,
}
END = "'infinity', 'ffffffff-ffff-ffff-ffff-ffffffffffff'"
MODES = [("force_generic_plan", HEAVY), ("force_custom_plan", HEAVY), ("force_custom_plan", "light_7")]


@pytest.fixture(scope="module")
def filled(cluster: Server) -> str:  # noqa: F811
    """A database in which one tenant has very many rows; its name."""

    async def fill() -> str:
        name = await cluster.fresh()
        async with cluster.as_admin(name) as admin:
            await admin.execute(FILL)
        return name

    return asyncio.run(fill())


@pytest.fixture
async def serving(cluster: Server, filled: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    async with cluster.connected(cluster.serving_role, filled) as connection:
        yield connection


def as_sent(sql: str, arguments: int) -> str:
    """The statement of a page, with its limit in bytes."""
    return one_statement(sql, arguments, page_bytes=4 * 2**20)


async def plan(connection: asyncpg.Connection, statement: str, arguments: str, mode: str) -> str:
    """The plan; the query must return rows."""
    await connection.execute(f"SET plan_cache_mode = {mode}")
    await connection.execute(f"PREPARE page AS {statement}")
    assert len(await connection.fetchval(f"EXECUTE page ({arguments})")) > 100
    return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE page ({arguments})"))


@pytest.mark.parametrize(("mode", "tenant"), MODES)
@pytest.mark.parametrize("index", PAGES)
async def test_a_page_is_read_in_the_order_of_an_index(
    serving: asyncpg.Connection, index: str, mode: str, tenant: str
) -> None:
    admin = tenant if index == "audit_log_by_org" else ""
    found = await plan(
        serving, as_sent(PAGES[index], 4), f"'{tenant}', {END}, 21, '{tenant}', '{tenant}', '{admin}'", mode
    )
    assert f"using {index} on" in found, found
    assert "Sort" not in found, found
    assert "Seq Scan" not in found, found
    assert "Bitmap" not in found, found
    assert "hashed SubPlan" not in found, found


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_a_page_of_keys_reads_no_other_owners_keys(serving: asyncpg.Connection, mode: str) -> None:
    """A user's keys and the organisation's come from two indexes, so they are sorted; a tenant has few of them."""
    tenant = "light_7"
    arguments = f"'{tenant}', '{tenant}', {END}, 21, '{tenant}', '{tenant}', '{tenant}'"
    found = await plan(serving, as_sent(manage.PAGE, 5), arguments, mode)
    assert "Seq Scan" not in found, found


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_rows_beyond_the_pages_bytes_are_not_read(cluster: Server, filled: str, mode: str) -> None:  # noqa: F811
    """Two hundred rows of a mebibyte: Postgres neither reads nor makes JSON of any row after the fifth."""
    async with cluster.as_admin(filled) as admin:
        await admin.execute("""INSERT INTO data (user_id, name, payload) SELECT 'large', 'x', jsonb_build_object('a', repeat('x', 1048576))
                               FROM generate_series(1, 200) WHERE NOT EXISTS (SELECT FROM data WHERE user_id = 'large')""")
    async with cluster.connected(cluster.serving_role, filled, plan_cache_mode=mode) as serving:
        await serving.execute(f"PREPARE large AS {as_sent(data.PAGE, 4)}")
        arguments = f"'large', {END}, 201, 'large', '', ''"
        sent = await serving.fetchval(f"EXECUTE large ({arguments})")
        assert sent.count("\x1e") == 4
        found = json.loads(await serving.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE large ({arguments})"))
    scans = [node for node in nodes(found[0]["Plan"]) if node.get("Relation Name") == "data"]
    assert [node["Actual Rows"] for node in scans] == [5]


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's nodes."""
    yield node
    for below in node.get("Plans", ()):
        yield from nodes(below)


async def test_an_administrator_finds_the_organisations_rows_by_its_index(serving: asyncpg.Connection) -> None:
    await serving.execute(f"SELECT set_config('gatepost.admin_org_id', '{HEAVY}', false)")
    await serving.execute("PREPARE gone AS DELETE FROM data WHERE org_id = $1 AND id = $2")
    rows = await serving.fetch(f"EXPLAIN EXECUTE gone ('{HEAVY}', gen_random_uuid())")
    found = "\n".join(row[0] for row in rows)
    assert "Index Scan using" in found, found
    assert await serving.fetchval("SELECT count(*) FROM data WHERE org_id = $1", HEAVY) == MANY


async def test_an_audited_write_is_planned_for_good(cluster: Server, filled: str) -> None:  # noqa: F811
    """The trigger of the audit log runs for each row: after the first rows of a connection Postgres plans nothing any more."""
    planned: list[str] = []
    async with cluster.as_admin(filled) as admin:
        insert = await admin.prepare("INSERT INTO data (user_id, name) VALUES ($1, 'x') RETURNING id")
        update = await admin.prepare("UPDATE data SET name = $2 WHERE id = $1")
        delete = await admin.prepare("DELETE FROM data WHERE id = $1")
        admin.add_log_listener(lambda _, message: planned.append(message.message))
        counts = []
        for n in range(24):
            if n == 12:
                await admin.execute("SET client_min_messages = log; SET log_planner_stats = on")
                await admin.execute("SELECT 1")
                assert "PLANNER STATISTICS" in planned  # so that these are seen at all
            planned.clear()
            row = await insert.fetchval("auditor")
            await update.fetch(row, f"y {n}")
            await delete.fetch(row)
            counts.append(planned.count("PLANNER STATISTICS"))
        noted = await admin.fetch("SELECT action, target, changed FROM audit_log WHERE row_id = $1 ORDER BY created_at", str(row))
    assert counts[12:] == [0] * 12
    assert [tuple(one) for one in noted] == [("insert", "data", None), ("update", "data", ["name", "updated_at"]), ("delete", "data", None)]
