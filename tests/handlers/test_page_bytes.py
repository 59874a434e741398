"""What a page holds in bytes: it ends at a whole row, and `Link` goes on; whatever the rows hold, every one comes once."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import answer, identity_of, page, read, signed_in
from tests.conftest import ADMIN_A, ALICE, CLERK_A, Client, Got, MakeApp, Serve, TestDatabase, plugin, stub

MIB = 2**20
PAGE_BYTES = 4 * MIB
TIME = "'2026-01-01'::timestamptz + n / 7 * interval '1 us'"
# Every list, and how its rows are made: some small, some of which two are too many for the page of 4 KiB.
SIZE = "(CASE WHEN n % 3 = 0 THEN 3000 ELSE n % 7 * 40 + 1 END)"
LISTS = {
    "/api/data": "INSERT INTO data (user_id, name, payload, created_at) "
                 f"SELECT 'alice', 'n', jsonb_build_object('a', repeat('x', {SIZE})), {TIME}",
    "/api/orgs/org_a/data": "INSERT INTO org_data (organization_id, created_by, name, payload, created_at) "
                            f"SELECT 'org_a', 'alice', 'n', jsonb_build_object('a', repeat('ü', {SIZE} / 2)), {TIME}",
    "/api/invoices": "INSERT INTO invoices (organization_id, created_by, customer, amount, currency, memo, created_at) "
                     f"SELECT 'org_a', 'alice', 'n', n, 'EUR', repeat('ü', {SIZE} / 2), {TIME}",
    "/api/orgs/org_a/members": "INSERT INTO memberships (id, organization_id, user_id, permissions, created_at) "
                               f"SELECT 'member_' || n, 'org_a', 'user_' || n, ARRAY[repeat('x', {SIZE})], {TIME}",
    "/api/orgs/org_a/audit": "INSERT INTO audit_log (org_id, actor, action, target, row_id, created_at) "
                             f"SELECT 'org_a', 'alice', 'insert', 'data', repeat('x', {SIZE}), {TIME}",
    "/api/keys": "INSERT INTO api_keys (id, hash, name, user_id, org_id, scopes, created_by, created_at) "
                 f"SELECT 'key_' || n, sha256(n::text::bytea), 'n', 'alice', 'org_a', ARRAY[repeat('x', {SIZE})], 'alice', {TIME}",
}  # fmt: skip
CALLERS = {"/api/invoices": CLERK_A, "/api/orgs/org_a/audit": ADMIN_A}


def next_page(got: Got) -> str | None:
    """The target of `Link: <...>; rel="next"`."""
    match = re.fullmatch(r'<(/[^/>][^>]*)>; rel="next"', got.headers.get("Link", ""))
    assert match or "Link" not in got.headers
    return match[1] if match else None


async def pages(client: Client, at: str | None, caller: dict[str, str] = ALICE) -> list[Got]:
    """Every page, from `at` to the last."""
    found: list[Got] = []
    while at:
        found.append(await client.get(at, caller))
        assert found[-1].status == 200, found[-1]
        assert len(found) < 1000
        at = next_page(found[-1])
    return found


def peak() -> int:
    """The largest memory of this process since `forget_peak`, in bytes."""
    line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert line
    return int(line[1]) * 1024


async def test_two_hundred_rows_of_a_mebibyte_are_no_page_of_two_hundred(client: Client, db: TestDatabase) -> None:
    """What was 208 MB, 671 MiB of memory and five seconds of Postgres. Server and client are both in this process."""
    await db.rows(
        "INSERT INTO data (user_id, name, payload, created_at) SELECT 'alice', n::text, jsonb_build_object('a', "
        f"repeat('x', 1048000)), {TIME} FROM generate_series(1, 200) AS n"
    )
    await client.get("/api/data?limit=200", ALICE)  # what is only made once does not count
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak is what is used now
    before, names, at = peak(), [], "/api/data?limit=200"
    while at:
        got = await client.get(at, ALICE)
        assert len(got.json()) == 4  # the fifth would be beyond the bound
        assert len(got.raw) <= PAGE_BYTES
        names += [int(row["name"]) for row in got.json()]
        at = next_page(got) or ""
    assert sorted(names) == [*range(1, 201)]
    assert peak() - before < 12 * PAGE_BYTES


@pytest.mark.parametrize("path", LISTS)
async def test_every_list_ends_at_a_whole_row_and_goes_on(serve: Serve, db: TestDatabase, path: str) -> None:
    client = await serve({"limits.page_bytes": 4096})
    await db.rows(f"{LISTS[path]} FROM generate_series(1, 60) AS n")
    found = await pages(client, f"{path}?limit=60", CALLERS.get(path, ALICE))
    assert all(1 <= len(got.json()) <= 5 or len(got.raw) <= 4096 for got in found)
    assert max(len(got.raw) for got in found) <= 4096
    assert 20 <= len(found) < 60
    rows = [row["id"] for got in found for row in got.json()]
    assert (len(rows), len(set(rows))) == (60, 60)
    whole = await (await serve()).get(f"{path}?limit=60", CALLERS.get(path, ALICE))
    assert rows == [row["id"] for row in whole.json()]


def expected(rows: list[bytes], limit: int, most: int) -> list[list[bytes]]:
    """The rows page by page, by the rule in words: as many as `limit` and `most` bytes allow, but one at least."""
    found = []
    while rows:
        take = 1
        while take < min(limit, len(rows)) and len(b",".join(rows[: take + 1])) + 2 <= most:
            take += 1
        found.append(rows[:take])
        rows = rows[take:]
    return found


# Small rows, of which many make a page; and sizes around a page, around a unit in which Postgres counts, and far beyond.
SMALL = st.integers(0, 300)
SIZES = st.one_of(SMALL, st.integers(900, 1200), st.integers(3500, 4400), st.integers(8000, 9000), st.integers(20_000, 300_000))
CHARACTERS = st.sampled_from("xüक🐘\"\\\x01")  # of one to four bytes, and some that become longer in JSON
ROWS = st.one_of(*(st.lists(st.tuples(CHARACTERS, sizes), max_size=30) for sizes in (SMALL, SIZES)))


async def test_pages_of_any_sizes_and_limits_are_as_the_rule_says(serve: Serve, db: TestDatabase) -> None:
    client, loop = await serve({"limits.page_bytes": 4096}), asyncio.get_running_loop()

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(ROWS, st.one_of(st.integers(1, 5), st.integers(5, 200)))
    def each(rows: list[tuple[str, int]], limit: int) -> None:
        asyncio.run_coroutine_threadsafe(as_the_rule_says(client, db, rows, limit), loop).result(60)

    await asyncio.to_thread(each)


async def as_the_rule_says(client: Client, db: TestDatabase, rows: list[tuple[str, int]], limit: int) -> None:
    """A new user with these rows, each of a character and a size, gets the pages that `expected` says."""
    who = f"user_{uuid4().hex}"
    await db.rows(
        f"INSERT INTO data (user_id, name, payload, created_at) SELECT $1, 'n', jsonb_build_object('a', repeat(c, s)), {TIME} "
        "FROM unnest($2::text[], $3::int[]) WITH ORDINALITY AS given (c, s, n)",
        who, [character for character, _ in rows], [size // len(character.encode()) for character, size in rows],
    )  # fmt: skip
    texts = await db.rows(
        "SELECT row_to_json(r)::text AS text FROM (SELECT id, user_id, org_id, name, payload, created_at, updated_at "
        "FROM data WHERE user_id = $1 ORDER BY created_at DESC, id DESC) AS r", who,
    )  # fmt: skip
    found = await pages(client, f"/api/data?limit={limit}", stub(who))
    rule = expected([row["text"].encode() for row in texts], limit, 4096)
    assert [got.raw for got in found] == [b"[" + b",".join(one) + b"]" for one in rule or [[]]]


async def test_a_page_that_has_just_its_bytes_is_whole(serve: Serve, db: TestDatabase) -> None:
    """One byte less, and the last row is the next page's."""
    await db.rows(f"{LISTS['/api/data']} FROM generate_series(1, 20) AS n")
    whole = await (await serve()).get("/api/data", ALICE)
    assert len(whole.json()) == 20
    same = await (await serve({"limits.page_bytes": len(whole.raw)})).get("/api/data", ALICE)
    assert (same.raw, next_page(same)) == (whole.raw, None)
    short = await pages(await serve({"limits.page_bytes": len(whole.raw) - 1}), "/api/data")
    assert [len(got.json()) for got in short] == [19, 1]


async def test_a_row_larger_than_a_page_is_a_page(serve: Serve, db: TestDatabase) -> None:
    client = await serve({"limits.page_bytes": 1024})
    await db.rows(
        "INSERT INTO data (user_id, name, payload, created_at) SELECT 'alice', n::text, jsonb_build_object('a', repeat('x', 2000000)), "
        "now() + n * interval '1 s' FROM generate_series(1, 3) AS n"
    )
    found = await pages(client, "/api/data?limit=200")
    assert [[row["name"] for row in got.json()] for got in found] == [["3"], ["2"], ["1"]]
    head = await client.send("HEAD", "/api/data?limit=200", ALICE)
    assert (head.headers["Link"], head.raw) == (found[0].headers["Link"], b"")


# What a product's own handler does -------------------------------------------------------------------------------------

OWN = "SELECT id, created_at, payload FROM data WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
ALL = "SELECT id, created_at, payload FROM data ORDER BY created_at DESC, id DESC"


@signed_in
async def own_page(request: web.Request) -> web.Response:
    at = page(request)
    rows = await read(request, OWN, *at.args)
    response = at.answer(rows)
    response.headers["X-Read"] = str(len(rows.encode()))
    return response


@signed_in
async def own_list(request: web.Request) -> web.Response:
    at = page(request)  # the rows do not come from a query with its arguments
    assert identity_of(request).user_id == "alice"
    rows = await read(request, ALL)
    return answer(rows) if "all" in request.headers else at.answer(rows)


PRODUCT = plugin(web.get("/own", own_page), web.post("/own", own_page), web.get("/list", own_list))


async def test_a_plugins_page_ends_too_and_the_rows_beyond_do_not_leave_postgres(serve: Serve, db: TestDatabase) -> None:
    client = await serve(extra={"own": PRODUCT})
    await db.rows(
        "INSERT INTO data (user_id, name, payload, created_at) SELECT 'alice', 'n', jsonb_build_object('a', repeat('x', 1000000)), "
        f"{TIME} FROM generate_series(1, 60) AS n"
    )
    found = await pages(client, "/own?limit=50")
    assert [len(got.json()) for got in found] == [4] * 15
    assert max(int(got.headers["X-Read"]) for got in found) <= PAGE_BYTES + MIB
    # In the one transaction of a request with an Idempotency-Key, too.
    once = await client.post("/own?limit=50", {**ALICE, "Idempotency-Key": "k"})
    assert (once.status, once.raw) == (200, found[0].raw)
    # Rows that were read without the page's arguments end there as well; a list that is no page is whole.
    listed = await client.get("/list?limit=50", ALICE)
    assert (listed.raw, next_page(listed) is not None) == (found[0].raw, True)
    assert len((await client.get("/list", {**ALICE, "all": "1"})).json()) == 60


# The other direction: what a row can come to ---------------------------------------------------------------------------


async def test_a_row_is_not_much_larger_than_the_body_that_made_it(client: Client, db: TestDatabase) -> None:
    """Postgres writes numbers as decimals and a blank after each comma and colon; text comes back as long as it was, or shorter."""
    values = 49_990
    for number in ("1e-30", "-1.2345678901234567e-30", "9e18", "0", "-9223372036854775808"):
        body = '{"name": "n", "payload": {"a": [' + ",".join([number] * min(values, MIB // (len(number) + 1) - 10)) + "]}}"
        got = await client.post("/api/data", {**ALICE, "Content-Type": "application/json"}, data=body)
        assert got.status == 201
        assert len(got.raw) <= len(body) + 50_000 * 30
    for text in ("x", "ü", "🐘", '\\"', "\\u0001", "\\u00fc", "\\ud83d\\udc18", "\\/"):
        body = '{"name": "n", "payload": {"a": "' + text * ((MIB - 100) // len(text.encode())) + '"}}'
        got = await client.post("/api/data", {**ALICE, "Content-Type": "application/json"}, data=body.encode())
        assert got.status == 201
        assert len(got.raw) <= len(body.encode()) + 1000


async def test_a_change_replaces_and_never_adds(client: Client, db: TestDatabase) -> None:
    row = (await client.post("/api/data", ALICE, {"name": "n", "payload": {"kept": 1}})).headers["Location"]
    for n in range(3):
        got = await client.patch(row, ALICE, {"payload": {f"a{n}": "x" * 1000}})
        assert got.json()["payload"] == {f"a{n}": "x" * 1000}
    stored: list[dict[str, Any]] = await db.rows("SELECT changed FROM audit_log WHERE action = 'update'")
    assert [one["changed"] for one in stored if len(json.dumps(one["changed"])) > 100] == []


@pytest.mark.parametrize("wrong", [0, 1023, 2**28 + 1])
def test_the_bound_has_bounds(make_app: MakeApp, wrong: int) -> None:
    with pytest.raises(Exception, match=r"limits\.page_bytes"):
        make_app({"limits.page_bytes": wrong})
