"""No conflict, foreign key, id, cursor, count or error message reveals to one tenant what another has.

Two answers are alike when status, body and every header but the request's id and the date are the same.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from server import answer, body, identity_of, scoped, signed_in
from tests.conftest import ADMIN_A, ADMIN_B, ALICE, BOB, CLERK_A, CLERK_B, Client, Serve, TestDatabase, plugin, stub
from tests.promises.test_routes_matrix import MATRIX
from tests.promises.test_tenants import INVOICE, made, same_but_for_the_request

# A product's tables, made as `check` wants them: the tenant is a part of every unique key and of every foreign key.
OWN = "NULLIF(current_setting('gatepost.user_id', true), '')"
TABLES = f"""
CREATE TABLE IF NOT EXISTS pads (id uuid DEFAULT gen_random_uuid(), user_id text NOT NULL, slug text NOT NULL,
    PRIMARY KEY (user_id, id), UNIQUE (user_id, slug));
CREATE TABLE IF NOT EXISTS sheets (id uuid DEFAULT gen_random_uuid(), user_id text NOT NULL, pad uuid NOT NULL,
    PRIMARY KEY (user_id, id), FOREIGN KEY (user_id, pad) REFERENCES pads (user_id, id));
ALTER TABLE pads ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE sheets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON pads USING (user_id = {OWN});
CREATE POLICY own ON sheets USING (user_id = {OWN});
GRANT SELECT, INSERT, DELETE ON pads, sheets TO "@APP"; GRANT UPDATE (slug) ON pads TO "@APP"
"""
routes = web.RouteTableDef()


@routes.post("/pads")
@signed_in
async def new_pad(request: web.Request) -> web.Response:
    slug = await body(request, str)
    async with scoped(request) as one:
        await one.execute("INSERT INTO pads (user_id, slug) VALUES ($1, $2)", identity_of(request).user_id, slug)
    return answer({"done": True}, 201)


@routes.post("/pads/rename")
@signed_in
async def rename_pad(request: web.Request) -> web.Response:
    before, after = await body(request, list[str])
    async with scoped(request) as one:
        await one.execute("UPDATE pads SET slug = $2 WHERE slug = $1", before, after)
    return answer({"done": True})


@routes.post("/sheets")
@signed_in
async def new_sheet(request: web.Request) -> web.Response:
    pad = await body(request, str)
    async with scoped(request) as one:
        await one.execute("INSERT INTO sheets (user_id, pad) VALUES ($1, $2)", identity_of(request).user_id, pad)
    return answer({"done": True}, 201)


@pytest.fixture
async def pads(db: TestDatabase, serve: Serve) -> Any:
    async with db.server.as_admin(db.name) as admin:
        await admin.execute(TABLES.replace("@APP", db.server.serving_role))
    yield await serve(extra={"pads": plugin(*routes)})
    await db.rows("DROP TABLE sheets, pads")


async def test_a_unique_value_of_another_tenant(pads: Client, db: TestDatabase) -> None:
    assert (await pads.post("/pads", ALICE, "plans")).status == 201
    assert (await pads.post("/pads", ALICE, "plans")).status == 409  # one's own
    same_but_for_the_request(await pads.post("/pads", BOB, "plans"), await pads.post("/pads", BOB, "never seen"))
    assert (await pads.post("/pads", ALICE, "secret")).status == 201
    same_but_for_the_request(await pads.post("/pads/rename", BOB, ["plans", "secret"]), await pads.post("/pads/rename", BOB, ["never seen", "x"]))
    same_but_for_the_request(await pads.post("/pads/rename", BOB, ["none", "plans"]), await pads.post("/pads/rename", BOB, ["none", "y"]))


async def test_a_foreign_key_to_another_tenants_row(pads: Client, db: TestDatabase) -> None:
    await pads.post("/pads", ALICE, "plans")
    there = str((await db.rows("SELECT id FROM pads"))[0]["id"])
    assert (await pads.post("/sheets", ALICE, there)).status == 201
    foreign = await pads.post("/sheets", BOB, there)
    assert (foreign.status, foreign.json()) == (409, {"error": "Conflict"})
    same_but_for_the_request(foreign, await pads.post("/sheets", BOB, str(uuid4())))


async def test_a_key_that_names_no_tenant_is_an_oracle(pads: Client, db: TestDatabase) -> None:
    """Row-level security does not close this, so `check` warns of it. (It also shows that the tests above would notice.)"""
    await db.rows("CREATE UNIQUE INDEX everybodys ON pads (slug)")
    await pads.post("/pads", ALICE, "plans")
    assert [(await pads.post("/pads", BOB, slug)).status for slug in ("plans", "never seen")] == [409, 201]


# The built-in routes -----------------------------------------------------------------------------------------------------


async def one_of_each(client: Client) -> dict[str, str]:
    """Creates a row of alice's or org_a's for each route; returns the row's id by the route's template."""
    row, invoice = await made(client, "/api/data", ALICE), await made(client, "/api/invoices", CLERK_A, INVOICE)
    key = await made(client, "/api/keys", ALICE)
    return {"/api/data/{id}": row["id"], "/api/invoices/{id}": invoice["id"], "/api/keys/{id}": key["id"],
            "/api/keys/{id}/rotate": key["id"]}  # fmt: skip


CONDITIONS: list[dict[str, str]] = [{}, {"If-Match": "*"}, {"If-Match": '"x"'}, {"If-None-Match": "*"}, {"If-None-Match": '"x"'},
                                    {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, {"Range": "bytes=0-1"}]  # fmt: skip


async def test_every_route_with_an_id_says_the_same_of_a_foreign_and_a_missing_one(client: Client, db: TestDatabase) -> None:
    there = await one_of_each(client)
    tried = [(method, template) for method, template in MATRIX if "{id}" in template]
    assert {template for _, template in tried} == set(there)
    before = {table: await db.rows(f"SELECT * FROM {table} ORDER BY id") for table in ("data", "invoices", "api_keys")}
    for method, template in [*tried, *[("HEAD", template) for method, template in tried if method == "GET"]]:
        body = {"name": "x"} if method == "PATCH" else {} if method == "POST" else None
        for caller in (BOB, CLERK_B, ADMIN_B, stub("anna", org_id="org_a", org_role="org:member")):
            if "invoices" in template and caller is not CLERK_B:
                continue  # refused before any row is looked for
            for more in CONDITIONS:
                foreign = await client.send(method, template.replace("{id}", there[template]), {**caller, **more}, json=body)
                missing = "0" * 16 if "keys" in template else str(uuid4())
                same_but_for_the_request(
                    foreign, await client.send(method, template.replace("{id}", missing), {**caller, **more}, json=body)
                )
                assert foreign.status in (403, 404)
    assert before == {table: await db.rows(f"SELECT * FROM {table} ORDER BY id") for table in before}


async def test_an_organisation_that_is_there_and_one_that_is_not(client: Client, db: TestDatabase) -> None:
    await made(client, "/api/orgs/org_a/data", ALICE)
    await db.rows("INSERT INTO organizations (id, name) VALUES ('org_a', 'A')")
    for path in ("/api/orgs/{}/data", "/api/orgs/{}/members"):
        for caller in (BOB, ADMIN_B, stub("nobody")):
            same_but_for_the_request(await client.get(path.format("org_a"), caller), await client.get(path.format("org_q"), caller))


def cursor_of(got: Any) -> str:
    return str(got.headers["Link"].partition("cursor=")[2].partition(">")[0])


async def test_a_cursor_of_another_tenant_is_a_position_and_nothing_more(client: Client) -> None:
    for n in range(3):
        await made(client, "/api/data", BOB, {"name": f"old {n}"})
    for n in range(3):
        await made(client, "/api/data", ALICE, {"name": f"secret {n}"})
    of_alice = cursor_of(await client.get("/api/data?limit=1", ALICE))
    for n in range(2):
        await made(client, "/api/data", BOB, {"name": f"new {n}"})
    with_it = await client.get(f"/api/data?cursor={of_alice}", BOB)
    assert [row["name"] for row in with_it.json()] == ["old 2", "old 1", "old 0"]
    await asyncio.gather(*(client.delete(f"/api/data/{row['id']}", ADMIN_A) for row in (await client.get("/api/data", ALICE)).json()))
    assert (await client.get("/api/data", ALICE)).json() == []
    same_but_for_the_request(with_it, await client.get(f"/api/data?cursor={of_alice}", BOB))  # the row is gone: the same answer
    same_but_for_the_request(
        await client.get(f"/api/data?cursor={of_alice[:-3]}", BOB), await client.get("/api/data?cursor=bm9uc2Vuc2U", BOB)
    )


async def test_lists_and_counts_do_not_feel_others_rows(client: Client) -> None:
    for n in range(3):
        await made(client, "/api/data", BOB, {"name": f"mine {n}"})
        await made(client, "/api/invoices", CLERK_B, INVOICE)
    asked = [(BOB, "/api/data?limit=2"), (BOB, "/api/data?limit=3"), (CLERK_B, "/api/invoices?limit=2"), (BOB, "/api/orgs/org_b/data"), (BOB, "/api/keys"),
             (BOB, "/api/me/profile"), (BOB, "/api/orgs/org_b/members")]  # fmt: skip
    before = [await client.get(path, caller) for caller, path in asked]
    for n in range(12):
        await made(client, "/api/data", ALICE, {"name": f"secret {n}"})
        await made(client, "/api/invoices", CLERK_A, INVOICE)
        await made(client, "/api/orgs/org_a/data", ALICE)
    await made(client, "/api/keys", ALICE)
    for one, (caller, path) in zip(before, asked, strict=True):
        same_but_for_the_request(one, await client.get(path, caller))


# Timing: a report, never a verdict -----------------------------------------------------------------------------------------


@pytest.mark.long
async def test_how_long_a_foreign_and_a_missing_row_take(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """The requests alternate, so that the machine's load affects both. 0.50 means that the two cannot be distinguished."""
    row = (await made(client, "/api/data", ALICE))["id"]
    for n in range(50):
        await made(client, "/api/data", ALICE, {"name": str(n)})

    async def took(path: str) -> float:
        started = time.perf_counter()
        assert (await client.get(path, BOB)).status == 404
        return (time.perf_counter() - started) * 1e6

    foreign, missing = [], []
    for n in range(2000):
        pair = [(foreign, f"/api/data/{row}"), (missing, f"/api/data/{uuid4()}")]
        for kept, path in pair if n % 2 else reversed(pair):
            kept.append(await took(path))
    foreign, missing = foreign[200:], missing[200:]
    ranks = sorted([(t, 1) for t in foreign] + [(t, 0) for t in missing])
    above = sum(rank for rank, (_, is_foreign) in enumerate(ranks) if is_foreign) - len(foreign) * (len(foreign) - 1) / 2
    with capsys.disabled():
        print(f"\nreport: a foreign row {statistics.median(foreign):.0f} us, a missing one {statistics.median(missing):.0f} us (medians of"
              f" {len(foreign)}); chance to tell them apart {above / len(foreign) / len(missing):.2f}")  # fmt: skip
