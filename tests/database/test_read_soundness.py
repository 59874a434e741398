"""The one-statement read sets the scope before any row is read, whatever plan Postgres chooses.

No query here names a user or an organisation (except two that say so): row-level security alone decides. The expected rows come
from the same query in a separate transaction, in which an earlier statement made the settings.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from kits.postgres import Server, cluster  # noqa: F401

from server.database import statements

USERS, ROWS, ORGS = 24, 12, 6
SETTINGS = ("gatepost.user_id", "gatepost.org_id", "gatepost.admin_org_id")
SET = " AND ".join(f"set_config('{name}', ${{{i}}}, true) IS NOT NULL" for i, name in enumerate(SETTINGS))
# The row's alias must not be the name of a column, else json_agg would take that column.
FORMS = {
    "json_agg": "coalesce(json_agg(gatepost_row), '[]')::text",
    "counted": "count(*) || ':' || coalesce(json_agg(gatepost_row), '[]')::text",
    # One row's JSON after another, with a character between that no JSON text can hold: cut, counted and joined by Python.
    "separated": "coalesce(string_agg(row_to_json(gatepost_row)::text, E'\\x1e'), '')",
    # The same with a page's bound, here one that holds every row of these queries: as the server sends it.
    "page": "",
}
BOUND = 2**28
QUERIES = {
    "page": "SELECT id, user_id AS who, name, payload, created_at FROM data ORDER BY created_at DESC, id DESC LIMIT 10",
    "whole": "SELECT id, user_id AS who FROM data",
    "count": "SELECT count(*) AS n, min(user_id) AS who, max(user_id) AS also FROM data",
    "group": "SELECT user_id AS who, count(*) AS n FROM data GROUP BY 1 HAVING count(*) > 1 ORDER BY 1",
    "join": "SELECT d.id, d.user_id AS who, o.id AS o FROM data d JOIN org_data o ON o.organization_id = d.org_id",
    "self join": "SELECT a.id, a.user_id AS who, b.user_id AS also FROM data a JOIN data b USING (user_id)",
    "left join": "SELECT d.id, d.user_id AS who, i.id AS i FROM data d LEFT JOIN invoices i ON i.organization_id = d.org_id",
    "cross": "SELECT d.user_id AS who, o.id FROM data d, org_data o",
    "cte": "WITH mine AS (SELECT * FROM data) SELECT id, user_id AS who FROM mine",
    "materialised cte": "WITH mine AS MATERIALIZED (SELECT * FROM data), n AS MATERIALIZED (SELECT count(*) AS n FROM mine) "
                        "SELECT id, user_id AS who, n FROM mine, n",
    "recursive cte": "WITH RECURSIVE walk AS (SELECT min(name) AS name FROM data UNION ALL "
                     "SELECT (SELECT min(d.name) FROM data d WHERE d.name > walk.name) FROM walk WHERE walk.name IS NOT NULL) "
                     "SELECT user_id AS who, walk.name FROM walk JOIN data USING (name)",
    "subquery": "SELECT who, n FROM (SELECT user_id AS who, count(*) AS n FROM data GROUP BY 1) AS sub WHERE n > 0",
    "scalar": "SELECT (SELECT max(user_id) FROM data) AS who, (SELECT count(*) FROM org_data) AS n",
    "in": "SELECT id, user_id AS who FROM data WHERE org_id IN (SELECT organization_id FROM org_data)",
    "exists": "SELECT id, user_id AS who FROM data d WHERE NOT EXISTS (SELECT FROM data e WHERE e.created_at > d.created_at)",
    "lateral": "SELECT d.user_id AS who, top.id FROM data d, LATERAL (SELECT id FROM org_data o "
               "WHERE o.organization_id = d.org_id ORDER BY o.id LIMIT 2) AS top",
    "union": "SELECT id, user_id AS who FROM data UNION ALL SELECT id, NULL FROM org_data",
    "window": "SELECT user_id AS who, row_number() OVER (ORDER BY created_at) AS nth FROM data",
    "distinct": "SELECT DISTINCT user_id AS who FROM data",
    "comment at the end": "SELECT id, user_id AS who FROM data -- the last word",
}
MINE = "SELECT id, user_id AS who FROM data WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 10"
PLANS: list[dict[str, str]] = [
    {}, {"plan_cache_mode": "force_generic_plan"}, {"plan_cache_mode": "force_custom_plan"},
    {"enable_indexscan": "off", "enable_bitmapscan": "off", "enable_indexonlyscan": "off"}, {"enable_seqscan": "off"},
    {"enable_sort": "off"}, {"enable_nestloop": "off"}, {"enable_hashjoin": "off", "enable_mergejoin": "off"},
    {"enable_nestloop": "off", "enable_hashjoin": "off"}, {"enable_material": "off", "enable_seqscan": "off"},
    {"enable_hashagg": "off"}, {"from_collapse_limit": "1", "join_collapse_limit": "1"}, {"geqo_threshold": "2"},
    {"jit": "on", "jit_above_cost": "0"},
    {"parallel": "on", "parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "0",
     "min_parallel_index_scan_size": "0", "max_parallel_workers_per_gather": "4", "plan_cache_mode": "force_generic_plan"},
    {"parallel": "on", "parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "0",
     "enable_indexscan": "off", "enable_bitmapscan": "off", "enable_nestloop": "off", "plan_cache_mode": "force_custom_plan"},
]
Who = tuple[str | None, str | None, str | None]


def one_statement(sql: str, arguments: int = 0, form: str = "json_agg") -> str:
    """`sql`, which has `arguments` arguments, as a read; its last three arguments are the caller's scope."""
    if form == "page":
        return statements.one_statement(sql, arguments, page_bytes=BOUND)
    told = SET.format(*range(arguments + 1, arguments + 4))
    return f"SELECT CASE WHEN {told} THEN (SELECT {FORMS[form]} FROM (\n{sql}\n) AS gatepost_row) END"


def unsound(sql: str) -> str:
    """A form that looks equivalent and is not: it shows that these tests would notice."""
    return (f"SELECT coalesce(json_agg(gatepost_row), '[]')::text FROM (\n{sql}\n) AS gatepost_row "
            f"WHERE {SET.format(1, 2, 3)}")


def rows_of(text: str, form: str = "json_agg") -> list[Any]:
    """The rows that a read returned, sorted; the count that came with them must be right."""
    if form in ("separated", "page"):
        found = [json.loads(one) for one in text.split("\x1e")] if text else []
    else:
        count, _, text = text.partition(":") if form == "counted" else ("", "", text)
        found = json.loads(text)
        assert not count or int(count) == len(found)
    return sorted(found, key=json.dumps)


def someone(n: int, admin: bool = False) -> Who:
    """The scope of user n in one of the organisations."""
    return f"user_{n}", f"org_{n % ORGS}", f"org_{n % ORGS}" if admin else ""


async def truth(connection: asyncpg.Connection, sql: str, who: Who, *arguments: Any) -> list[Any]:
    """The rows that `who` may see, with settings made before the query is planned."""
    async with connection.transaction():
        for name, value in zip(SETTINGS, who, strict=True):
            await connection.execute("SELECT set_config($1, $2, true)", name, value)
        text = await connection.fetchval(
            f"SELECT coalesce(json_agg(gatepost_row), '[]')::text FROM (\n{sql}\n) AS gatepost_row", *arguments)
    return rows_of(text)


async def nothing_left(connection: asyncpg.Connection) -> None:
    """Asserts that the connection has no caller's settings."""
    assert [await connection.fetchval("SELECT NULLIF(current_setting($1, true), '')", name) for name in SETTINGS] == [None] * 3
    for table in ("data", "org_data", "invoices"):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


@pytest.fixture
async def filled(cluster: Server) -> str:  # noqa: F811
    """A database in which many users have rows in many organisations; made once per server."""
    name = f"filled_{cluster.run}"
    if name not in cluster.databases:
        await cluster.create_database(name, await cluster.template(), cluster.owner_role)
        async with cluster.as_admin(name) as admin:
            await admin.execute(f"""
                INSERT INTO data (user_id, org_id, name, created_at)
                    SELECT 'user_' || u, CASE WHEN n % 5 > 0 THEN 'org_' || (u + n) % {ORGS} END, 'row ' || u || ' ' || n,
                           now() - n * interval '1 minute' - u * interval '1 second'
                      FROM generate_series(0, {USERS - 1}) u, generate_series(1, {ROWS}) n;
                INSERT INTO org_data (organization_id, created_by, name)
                    SELECT 'org_' || o, 'user_1', 'row ' || n FROM generate_series(0, {ORGS - 1}) o, generate_series(1, 5) n;
                INSERT INTO invoices (organization_id, created_by, customer, amount, currency)
                    SELECT 'org_' || o, 'user_1', 'customer', n, 'EUR'
                      FROM generate_series(0, {ORGS - 1}) o, generate_series(1, 5) n;
                ANALYZE""")
    return name


@pytest.fixture
async def app(cluster: Server, filled: str) -> AsyncIterator[asyncpg.Connection]:  # noqa: F811
    """The serving role's connection."""
    async with cluster.connected(cluster.serving_role, filled) as connection:
        yield connection


@pytest.mark.parametrize(
    "plan",
    [pytest.param(plan, marks=[pytest.mark.long] if number > 2 else []) for number, plan in enumerate(PLANS)],
    ids=lambda plan: " ".join(plan) or "defaults",
)
async def test_own_rows_under_every_plan(cluster: Server, filled: str, plan: dict[str, str]) -> None:  # noqa: F811
    """The right rows on a clean connection, over another user's settings in the transaction, and over another's in the session."""
    async with cluster.connected(cluster.serving_role, filled) as app, cluster.connected(cluster.serving_role, filled) as judge:
        await _apply(app, plan)
        # Compiling takes its time; a few queries tell what it would change.
        for sql in (QUERIES[name] for name in (("page", "join", "lateral") if "jit" in plan else QUERIES)):
            for n, form in enumerate([*FORMS] * 3):                 # often enough that the plan becomes a generic one
                who = someone(n, admin=n % 2 == 1)
                expected = await truth(judge, sql, who)
                read = one_statement(sql, form=form)
                assert rows_of(await app.fetchval(read, *who), form) == expected
                async with app.transaction():
                    await truth(app, sql, someone(n + 7, admin=True))
                    await app.execute("SELECT set_config('gatepost.user_id', 'user_20', true)")
                    assert rows_of(await app.fetchval(read, *who), form) == expected
                await app.execute("SELECT set_config('gatepost.user_id', 'user_21', false)")
                assert rows_of(await app.fetchval(read, *who), form) == expected
                await app.execute("RESET gatepost.user_id")
            await nothing_left(app)


async def _apply(connection: asyncpg.Connection, plan: dict[str, str]) -> None:
    for name, value in plan.items():
        new = await connection.fetchval("SELECT current_setting('server_version_num')::int >= 160000")
        name = {"parallel": "debug_parallel_query" if new else "force_parallel_mode"}.get(name, name)
        await connection.execute(f"SET {name} = '{value}'")


async def test_the_answers_are_not_empty_for_want_of_rows(app: asyncpg.Connection) -> None:
    """Every query finds rows for some caller, so the test above does not compare empty lists."""
    for name, sql in QUERIES.items():
        rows = await truth(app, sql, someone(3))
        assert rows, name
        assert {row[key] for row in rows for key in ("who", "also") if key in row} <= {"user_3", None}
    assert len(await truth(app, QUERIES["whole"], someone(3))) == ROWS
    assert len(await truth(app, QUERIES["whole"], someone(3, admin=True))) > ROWS


async def test_an_unsound_form_is_noticed(app: asyncpg.Connection) -> None:
    """With the settings in a WHERE instead: no rows on a clean connection, and another caller's rows after another caller."""
    assert rows_of(await app.fetchval(unsound(QUERIES["page"]), *someone(3))) == []
    async with app.transaction():
        await app.execute("SELECT set_config('gatepost.user_id', 'user_4', true)")
        seen = {row["who"] for row in rows_of(await app.fetchval(unsound(QUERIES["page"]), *someone(3)))}
    assert seen == {"user_4"}


async def test_both_locks_together(app: asyncpg.Connection) -> None:
    """The WHERE and the policy must agree: with another user in either of them there are no rows."""
    read = one_statement(MINE, arguments=1)
    for mode in ("auto", "force_generic_plan", "force_custom_plan"):
        await app.execute(f"SET plan_cache_mode = {mode}")
        for n in range(8):
            assert {row["who"] for row in rows_of(await app.fetchval(read, f"user_{n}", *someone(n)))} == {f"user_{n}"}
            assert rows_of(await app.fetchval(read, f"user_{n + 1}", *someone(n))) == []
            async with app.transaction():
                await app.execute("SELECT set_config('gatepost.user_id', $1, true)", f"user_{n + 1}")
                assert rows_of(await app.fetchval(read, f"user_{n + 1}", *someone(n))) == []


async def test_one_row(app: asyncpg.Connection) -> None:
    """The form for at most one row: the row of its own user alone, with every plan; a second row is an error."""
    by_id = "SELECT id, user_id AS who, name FROM data WHERE id = $1"
    read = statements.one_statement(by_id, 1, single=True)
    ids = [(await truth(app, "SELECT id FROM data ORDER BY id LIMIT 1", someone(n)))[0]["id"] for n in range(6)]
    for plan in PLANS:
        async with app.transaction():
            for name, value in plan.items():
                if name != "parallel":
                    await app.execute(f"SET LOCAL {name} = '{value}'")
            for n in range(6):
                for m, id in enumerate(ids):
                    found = await app.fetchval(read, id, *someone(n))
                    assert ([json.loads(found)] if found else []) == (await truth(app, by_id, someone(n), id)), (plan, n, m)
                    assert bool(found) is (n == m)
                assert await app.fetchval(read, ids[n], "", "", "") == ""
                assert await app.fetchval(read, ids[n], None, None, None) in ("", None)
    with pytest.raises(asyncpg.CardinalityViolationError):
        await app.fetchval(statements.one_statement("SELECT id FROM data", 0, single=True), *someone(1))
    with pytest.raises(ValueError, match="several rows"):
        statements.one_statement(by_id, 1, page_bytes=1024, single=True)
    await nothing_left(app)


async def test_without_a_caller_no_row_is_visible(app: asyncpg.Connection) -> None:
    """Without an identity, as NULL and as an empty text, in every form of the query; also over another caller's settings."""
    for nobody in (("", "", ""), (None, None, None)):
        for form in FORMS:
            for stale in ("", "user_4"):
                async with app.transaction():
                    await app.execute("SELECT set_config('gatepost.user_id', $1, true)", stale)
                    text = await app.fetchval(one_statement(QUERIES["whole"], form=form), *nobody)
                assert text is None or rows_of(text, form) == []
    await nothing_left(app)


async def test_after_an_error_a_timeout_and_a_cancel(app: asyncpg.Connection) -> None:
    """However a read ends, the connection has no caller's settings afterwards and serves the next read."""
    broken = one_statement("SELECT 1 / (length(user_id) - length(user_id)) AS x FROM data")
    slow = one_statement("SELECT pg_sleep(20), user_id FROM data")
    for _ in range(3):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await app.fetchval(broken, *someone(1))
        await nothing_left(app)
        await app.execute("SET statement_timeout = 60")
        with pytest.raises(asyncpg.QueryCanceledError):
            await app.fetchval(slow, *someone(1))
        await app.execute("SET statement_timeout = 0")
        await nothing_left(app)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(app.fetchval(slow, *someone(1)), 0.05)
        await nothing_left(app)
        assert len(rows_of(await app.fetchval(one_statement(QUERIES["whole"]), *someone(2)))) == ROWS


async def test_no_parallel_worker_ever_takes_part(app: asyncpg.Connection) -> None:
    """set_config is parallel unsafe, which forbids workers in the whole statement: even forced, the plan has none."""
    await _apply(app, PLANS[-2])
    assert "Gather" in await _plan(app, QUERIES["whole"])
    for form in ("json_agg", "page"):
        read = one_statement(QUERIES["whole"], form=form).replace("$1", "'u'").replace("$2", "'o'").replace("$3", "''")
        assert "Gather" not in await _plan(app, read)


async def test_a_bound_leaves_the_first_rows_of_the_callers_own(app: asyncpg.Connection) -> None:
    """A page that ends at its limit in bytes is the beginning of the whole one, under the right scope even if another's is set."""
    many = "SELECT d.user_id AS who, n FROM data AS d, generate_series(1, 40) AS n ORDER BY d.id, n"
    cut = statements.one_statement(many, 0, page_bytes=1024)
    for n in range(4):
        async with app.transaction():
            await app.execute("SELECT set_config('gatepost.user_id', $1, true)", f"user_{n + 1}")
            whole = (await app.fetchval(one_statement(many, form="page"), *someone(n))).split("\x1e")
            rows = (await app.fetchval(cut, *someone(n))).split("\x1e")
        assert {json.loads(row)["who"] for row in whole} == {f"user_{n}"}
        assert rows == whole[:203]  # a row of each kibibyte, of the largest page, and the one that shows that there are more
        assert len(rows) < len(whole)
    await nothing_left(app)


async def test_the_index_is_used(cluster: Server, filled: str) -> None:  # noqa: F811
    """A page of the caller's rows is read in the index's order, with the policies as a filter: no sort, no scan of the table."""
    async with cluster.connected(cluster.serving_role, filled, enable_seqscan="off", enable_bitmapscan="off") as app:
        page = ("SELECT id, name FROM data WHERE user_id = 'user_1' AND (created_at, id) < ('infinity', "
                "'ffffffff-ffff-ffff-ffff-ffffffffffff') ORDER BY created_at DESC, id DESC LIMIT 5")
        plan = await _plan(app, one_statement(page).replace("$1", "'user_1'").replace("$2", "'o'").replace("$3", "''"))
    assert "data_by_user" in plan
    assert "Sort" not in plan
    assert "ROW(created_at, id) <" in plan.partition("Index Cond")[2].partition("\n")[0]


async def _plan(connection: asyncpg.Connection, sql: str) -> str:
    return "\n".join(row[0] for row in await connection.fetch("EXPLAIN (COSTS OFF) " + sql))


async def test_writes_are_refused_inside_a_read(app: asyncpg.Connection) -> None:
    for sql in ("DELETE FROM data RETURNING id", "WITH gone AS (DELETE FROM data RETURNING id) SELECT * FROM gone"):
        with pytest.raises((asyncpg.PostgresSyntaxError, asyncpg.FeatureNotSupportedError)):
            await app.fetchval(one_statement(sql), *someone(1))


async def test_a_table_partitioned_by_the_policys_column_is_empty_but_never_a_leak(
        cluster: Server, filled: str) -> None:  # noqa: F811
    """Postgres chooses partitions before the settings are made, which is why `check` refuses such a table."""
    async with cluster.as_admin(filled) as admin:
        await admin.execute(f"""
            DROP TABLE IF EXISTS parted;
            CREATE TABLE parted (LIKE data) PARTITION BY HASH (user_id);
            CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
            CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
            INSERT INTO parted SELECT * FROM data;
            ALTER TABLE parted ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY own ON parted USING (user_id = NULLIF(current_setting('gatepost.user_id', true), ''));
            GRANT SELECT ON parted TO "{cluster.serving_role}" """)
    async with cluster.connected(cluster.serving_role, filled) as app:
        seen = set()
        for n in range(USERS):
            async with app.transaction():
                await app.execute("SELECT set_config('gatepost.user_id', $1, true)", f"user_{(n * 7 + 3) % USERS}")
                rows = rows_of(await app.fetchval(one_statement("SELECT user_id AS who FROM parted"), *someone(n)))
            assert {row["who"] for row in rows} <= {f"user_{n}"}
            seen.add(len(rows))
    assert seen == {0, ROWS}


async def test_two_tenants_and_no_caller_interleaved_on_one_connection(app: asyncpg.Connection) -> None:
    """Thousands of random operations by several callers, including errors and writes that are rolled back."""
    rng = random.Random(4)
    whole, page = QUERIES["whole"], QUERIES["join"]
    expected = {(n, sql): await truth(app, sql, someone(n)) for n in (1, 2, 3) for sql in (whole, page)}
    for _ in range(3000):
        n, form, sql = rng.choice((1, 2, 3)), rng.choice([*FORMS]), rng.choice((whole, page))
        match rng.randrange(6):
            case 0:
                assert await app.fetchval("SELECT count(*) FROM data") == 0
            case 1:
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await app.fetchval(one_statement("SELECT 1 / (count(*) - count(*)) AS x FROM data"), *someone(n))
            case 2:
                with pytest.raises(RuntimeError):
                    await _insert_and_fail(app, n)
            case 3:
                async with app.transaction():
                    for m in rng.sample((1, 2, 3), 3):
                        assert rows_of(await app.fetchval(one_statement(sql, form=form), *someone(m)), form) == expected[m, sql]
            case _:
                assert rows_of(await app.fetchval(one_statement(sql, form=form), *someone(n)), form) == expected[n, sql]
    await nothing_left(app)


async def _insert_and_fail(app: asyncpg.Connection, n: int) -> None:
    async with app.transaction():
        await app.execute("SELECT set_config('gatepost.user_id', $1, true)", f"user_{n}")
        await app.execute("INSERT INTO data (user_id, name) VALUES ($1, 'gone')", f"user_{n}")
        raise RuntimeError
