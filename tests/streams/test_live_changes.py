"""Changes: which rows a stream receives and with which events, and that a missed change is always reported as such."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kits.live import Events, events, until

from server import event_stream, requires, signed_in
from server.schema.migrate import apply
from server.streams import change_feed
from server.streams.fanout import PENDING, Fanout
from server.streams.live_changes import CHANGES
from tests.conftest import Client, Serve, TestDatabase, plugin, stub

TODOS = """
CREATE TABLE todos (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), organization_id text NOT NULL, created_by text, title text,
                    cost numeric(12, 2), private boolean NOT NULL DEFAULT false);
SELECT gatepost_tenant('todos', organization => 'organization_id', author => 'created_by');
SELECT gatepost_changes('todos', organization => 'organization_id');
CREATE POLICY not_private ON todos AS RESTRICTIVE FOR SELECT USING (NOT private OR created_by = NULLIF(current_setting('gatepost.user_id', true), ''));
CREATE TABLE lists (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL, org_id text, "update" text);
SELECT gatepost_tenant('lists', "user" => 'user_id', organization => 'org_id');
SELECT gatepost_changes('lists', "user" => 'user_id', organization => 'org_id');
CREATE TABLE silent (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id text NOT NULL);
SELECT gatepost_tenant('silent', "user" => 'user_id');
"""
ANN, ABE, BEA = stub("ann", org_id="red"), stub("abe", org_id="red"), stub("bea", org_id="blue")
ALONE = stub("ann")

routes = web.RouteTableDef()


async def told(request: web.Request, table: str) -> web.StreamResponse:
    async with event_stream(request) as stream:
        changes = stream.changes(table)
        await stream.send("", event="ready")
        async for event, id, row in changes:
            await stream.send(row if row is not None else {"id": id}, event=event, id=id)
    return stream.response


@routes.get("/api/todos/events")
@signed_in
async def todos(request: web.Request) -> web.StreamResponse:
    return await told(request, "todos")


@routes.get("/api/lists/events")
@signed_in
async def lists(request: web.Request) -> web.StreamResponse:
    return await told(request, "public.lists")


@routes.get("/api/all-lists/events")
@requires(role="org:admin")
async def all_lists(request: web.Request) -> web.StreamResponse:
    return await told(request, "lists")


@routes.get("/api/{table}/told")
@signed_in
async def any_table(request: web.Request) -> web.StreamResponse:
    return await told(request, request.match_info["table"])


@routes.get("/api/{table}/direct")
@signed_in
async def any_table_direct(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("", event="ready")
        await stream.send_changes(request.match_info["table"])
    return stream.response


LIVE = {"live": plugin(*routes)}


@pytest.fixture
async def own(postgres: Any) -> AsyncIterator[TestDatabase]:
    """A database of one test with the tables."""
    found = TestDatabase(postgres, await postgres.fresh())
    async with postgres.connected(postgres.owner_role, found.name) as owner:
        await owner.execute("SET client_min_messages = error")
        await apply(owner, TODOS, serving_role=postgres.serving_role)
    yield found
    await postgres.drop_database(found.name)


@pytest.fixture
async def client(serve: Serve, own: TestDatabase) -> Client:
    return await serve({"database.url": own.url}, extra=LIVE)


@asynccontextmanager
async def hearing(client: Client, path: str, who: dict[str, str]) -> AsyncIterator[Events]:
    """A stream that hears changes from now on."""
    async with events(client, path, who) as stream:
        assert stream.response.status == 200
        assert (await stream.next())["event"] == "ready"
        yield stream


async def change(stream: Events) -> tuple[str, Any]:
    """The next event and its data."""
    found = await stream.next()
    return found["event"], json.loads(found["data"])


async def nothing(*streams: Events) -> None:
    """None of these streams receives an event for a moment."""
    for stream in streams:
        with pytest.raises(TimeoutError):
            pytest.fail(str(await stream.next(0.3)))


async def test_a_stream_receives_only_its_organizations_changes(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", BEA) as bea, \
            hearing(client, "/api/todos/events", ALONE) as alone:  # fmt: skip
        ((row,)) = await own.rows("INSERT INTO todos (organization_id, created_by, title, cost) VALUES ('red', 'abe', 'a', 12.5) RETURNING id")
        id = str(row["id"])
        expected = {"id": id, "organization_id": "red", "created_by": "abe", "title": "a", "cost": "12.50", "private": False}
        assert await change(ann) == ("created", expected)
        await own.rows("UPDATE todos SET title = 'b'")
        assert await change(ann) == ("updated", expected | {"title": "b"})
        await own.rows("DELETE FROM todos")
        assert await change(ann) == ("deleted", {"id": id})
        await nothing(ann, bea, alone)


async def test_what_row_level_security_hides_does_not_arrive(client: Client, own: TestDatabase) -> None:
    """Also where a policy hides a row between the change and its reading."""
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", ABE) as abe:
        await own.rows("INSERT INTO todos (organization_id, created_by, title, private) VALUES ('red', 'abe', 'mine', true)")
        assert (await change(abe))[1]["title"] == "mine"
        await nothing(ann)
        await own.rows("UPDATE todos SET private = false")
        assert [(await change(one))[0] for one in (ann, abe)] == ["updated", "updated"]
        async with own.server.as_admin(own.name) as admin, admin.transaction():
            await admin.execute("UPDATE todos SET private = true")
            await admin.execute("UPDATE todos SET title = 'hidden'")
        assert (await change(abe))[1]["title"] == "hidden"
        await nothing(ann)


async def test_a_row_that_moves_is_reported_to_both_tenants(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", BEA) as bea:
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'a')")
        id = (await change(ann))[1]["id"]
        await own.rows("UPDATE todos SET organization_id = 'blue'")
        assert await change(ann) == ("deleted", {"id": id})
        assert (await change(bea))[0] == "created"
        await nothing(ann, bea)


async def test_a_row_that_comes_and_goes_in_one_transaction(client: Client, own: TestDatabase) -> None:
    """The stream receives the final state, however often the row came and went."""
    moves = "UPDATE todos SET organization_id = '{}'"
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", BEA) as bea:
        ((row,)) = await own.rows("INSERT INTO todos (organization_id) VALUES ('blue') RETURNING id")
        id = str(row["id"])
        assert (await change(bea))[0] == "created"
        async with own.server.as_admin(own.name) as admin, admin.transaction():
            for organization in ("red", "blue", "red"):
                await admin.execute(moves.format(organization))
        event, seen = await change(ann)
        assert (event, seen["id"], await change(bea)) == ("created", id, ("deleted", {"id": id}))
        async with own.server.as_admin(own.name) as admin, admin.transaction():
            for organization in ("blue", "red", "blue"):
                await admin.execute(moves.format(organization))
        assert (await change(bea))[0] == "created"
        assert await change(ann) == ("deleted", {"id": id})
        await nothing(ann, bea)


async def test_a_row_that_comes_back_hidden_is_deleted(client: Client, own: TestDatabase) -> None:
    """It was told to have left the organisation: a stream that cannot see it any more must hear that."""
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", ABE) as abe:
        ((row,)) = await own.rows("INSERT INTO todos (organization_id, created_by) VALUES ('red', 'abe') RETURNING id")
        id = str(row["id"])
        assert ((await change(ann))[0], (await change(abe))[0]) == ("created", "created")
        async with own.server.as_admin(own.name) as admin, admin.transaction():
            await admin.execute("UPDATE todos SET organization_id = 'blue'")
            await admin.execute("UPDATE todos SET organization_id = 'red', private = true")
        assert await change(ann) == ("deleted", {"id": id})
        event, seen = await change(abe)
        assert (event, seen["private"]) == ("created", True)
        await nothing(ann, abe)


async def test_rows_of_a_user_and_of_an_organization(client: Client, own: TestDatabase) -> None:
    """A user hears of rows in every organisation; others of the organisation see only what their scope shows."""
    admin = stub("ada", org_id="red", org_role="org:admin")
    async with hearing(client, "/api/lists/events", ALONE) as alone, hearing(client, "/api/lists/events", ABE) as abe, \
            hearing(client, "/api/all-lists/events", admin) as ada, hearing(client, "/api/lists/events", ANN) as ann:  # fmt: skip
        await own.rows("""INSERT INTO lists (user_id, org_id, "update") VALUES ('ann', 'red', 'x')""")
        for stream in (alone, ada, ann):
            assert await change(stream) == ("created", {"id": 1, "user_id": "ann", "org_id": "red", "update": "x"})
        await own.rows("UPDATE lists SET org_id = 'blue'")  # gone for the organisation, and still the user's
        for stream in (alone, ann):
            assert await change(stream) == ("updated", {"id": 1, "user_id": "ann", "org_id": "blue", "update": "x"})
        assert await change(ada) == ("deleted", {"id": "1"})
        assert await change(abe) == ("deleted", {"id": "1"})
        await nothing(alone, abe, ada, ann)


async def test_a_table_without_gatepost_changes_is_an_error(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for table in ("silent", "nope", "data; SELECT 1"):
        async with events(client, f"/api/{table}/told", ANN) as stream:
            with pytest.raises(aiohttp.ClientPayloadError):
                await stream.end()
    failures = [record.fields for record in caplog.records if record.getMessage() == "handler failed"]
    assert len(failures) == 3
    assert all("call gatepost_changes for it" in str(fields) for fields in failures)


async def test_changes_arrive_after_the_commit(client: Client, own: TestDatabase) -> None:
    """And changes of one row are one."""
    async with hearing(client, "/api/todos/events", ANN) as ann, own.server.as_admin(own.name) as admin:
        async with admin.transaction():
            id = await admin.fetchval("INSERT INTO todos (organization_id, title) VALUES ('red', 'a') RETURNING id::text")
            await admin.execute("UPDATE todos SET title = 'b'")
            await nothing(ann)
        event, row = await change(ann)
        assert (event, row["id"], row["title"]) == ("created", id, "b")
        async with admin.transaction():
            await admin.execute("INSERT INTO todos (organization_id, title) VALUES ('red', 'short-lived')")
            gone = await admin.fetchval("DELETE FROM todos WHERE title = 'short-lived' RETURNING id::text")
        assert await change(ann) == ("deleted", {"id": gone})
        await nothing(ann)


async def test_a_bulk_change_is_a_resync_for_its_tenant(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", BEA) as bea:
        await own.rows("INSERT INTO todos (organization_id, title) SELECT 'red', i FROM generate_series(1, 3000) AS i")
        assert await change(ann) == ("resync", {"id": None})
        await nothing(ann, bea)
        await own.rows("TRUNCATE todos")
        assert [await change(one) for one in (ann, bea)] == [("resync", {"id": None})] * 2


async def test_too_many_waiting_changes_are_a_resync(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann:
        await own.rows("INSERT INTO todos (organization_id, title) SELECT 'red', i FROM generate_series(1, 1000) AS i")
        seen = [(await change(ann))[0]]
        while seen[-1] != "resync":  # some may be told before the last of the messages has come
            seen.append((await change(ann))[0])
        assert len(seen) < 1000
        await own.rows(f"DELETE FROM todos WHERE title <= '{PENDING - 100}'")
    live = client.app[CHANGES]
    await until(lambda: len(live.fanout) == 0)
    assert (live.fanout.held, live.fanout._by_key) == (0, {})


async def test_large_rows_arrive_in_parts(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann:
        await own.rows("INSERT INTO todos (organization_id, title) SELECT 'red', repeat('x', 30000) || i FROM generate_series(1, 40) AS i")
        titles = [(await change(ann))[1]["title"] for _ in range(40)]
    assert sorted(int(title.strip("x")) for title in titles) == list(range(1, 41))


async def test_a_new_column_is_part_of_the_row(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann:
        async with own.server.as_admin(own.name) as admin:
            await admin.execute("ALTER TABLE todos DROP COLUMN cost; ALTER TABLE todos ADD COLUMN notes text DEFAULT 'n'")
            await admin.execute("INSERT INTO todos (organization_id, title) VALUES ('red', 'a')")
        event, row = await change(ann)
        assert (event, row["notes"], "cost" in row) == ("created", "n", False)


async def by_owner(own: TestDatabase, sql: str) -> None:
    async with own.server.connected(own.server.owner_role, own.name) as owner:
        await owner.execute(f"SET client_min_messages = error; {sql}")


@pytest.mark.parametrize("path", ["told", "direct"])
async def test_a_table_that_is_renamed_ends_its_streams(serve: Serve, own: TestDatabase, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """They would wait for ever: the changes are reported under the new name from then on."""
    client = await serve({"database.url": own.url}, extra=LIVE)
    async with hearing(client, f"/api/todos/{path}", ANN) as ann, hearing(client, f"/api/lists/{path}", ANN) as other:
        await by_owner(own, "ALTER TABLE todos RENAME TO tasks")
        await own.rows("INSERT INTO tasks (organization_id) VALUES ('red')")
        with pytest.raises(aiohttp.ClientPayloadError):
            await ann.next(10)
        assert "the table 'todos' reports no changes" in caplog.text + str([getattr(one, "fields", "") for one in caplog.records])
        async with hearing(client, f"/api/tasks/{path}", ANN) as ann_too:
            await own.rows("INSERT INTO tasks (organization_id) VALUES ('red')")
            assert (await change(ann_too))[0] == "created"
        await nothing(other)


@pytest.mark.parametrize("path", ["told", "direct"])
async def test_a_table_that_reports_to_others_from_now_on(serve: Serve, own: TestDatabase, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is open receives what it would receive if it were opened now."""
    monkeypatch.setattr(change_feed, "_LOAD_SECONDS", 0.1)
    await by_owner(own, "SELECT gatepost_changes('lists', organization => 'org_id')")
    client = await serve({"database.url": own.url}, extra=LIVE)
    client.app[CHANGES].feed._beat = 0.1
    async with hearing(client, f"/api/lists/{path}", ALONE) as ann, hearing(client, f"/api/todos/{path}", ANN) as other:
        await by_owner(own, "SELECT gatepost_changes('lists', \"user\" => 'user_id', organization => 'org_id')")
        assert (await ann.next())["event"] == "resync"
        await own.rows("INSERT INTO lists (user_id) VALUES ('ann')")
        assert (await change(ann))[0] == "created"
        await by_owner(own, "ALTER TABLE lists DISABLE TRIGGER changed_update")
        with pytest.raises(aiohttp.ClientPayloadError):
            await ann.next(10)
        await nothing(other)


async def test_the_listening_connection_is_killed(client: Client, own: TestDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """Streams stay open, receive `resync`, and then further changes."""
    live = client.app[CHANGES]
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/lists/events", BEA) as bea:
        for number in range(2, 4):
            async with own.server.as_admin(own.name) as admin:
                assert await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1", live.feed.process_id)
            assert await change(ann) == ("resync", {"id": None})
            assert await change(bea) == ("resync", {"id": None})
            assert live.feed.connections == number
            await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'again')")
            assert (await change(ann))[1]["title"] == "again"
    assert "change feed interrupted" in caplog.text


async def test_a_client_that_reconnects_gets_a_resync(client: Client, own: TestDatabase) -> None:
    async with events(client, "/api/todos/events", {**ANN, "Last-Event-ID": "7"}) as stream:
        assert [(await stream.next())["event"] for _ in range(2)] == ["ready", "resync"]


async def test_an_unknown_message_is_a_resync(client: Client, own: TestDatabase) -> None:
    async with hearing(client, "/api/todos/events", ANN) as ann:
        for payload in ("", "{}", "[1]", '["public.todos", "organization", "red", "x", []]', '["a", "b", "c", "i", [1]]', "[" * 5000):
            await own.rows("SELECT pg_notify('gatepost_changes', $1)", payload)
            assert await change(ann) == ("resync", {"id": None})
        # Only a program that has the rights of the server can send an id of another form.
        await own.rows("""SELECT pg_notify('gatepost_changes', '["public.todos", "organization", "red", "u", ["no id"]]')""")
        assert await change(ann) == ("resync", {"id": None})
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'a')")
        assert (await change(ann))[0] == "created"


async def test_different_scopes_share_no_read(client: Client, own: TestDatabase) -> None:
    """Two streams with one scope are one SELECT; another user of the same organisation is another, sent along with it."""
    reader, asked = client.app[CHANGES].reader, []
    read, read_each = reader._read, reader._read_each

    async def noted(scope: Any, *more: Any) -> Any:
        asked.append([scope])
        return await read(scope, *more)

    async def noted_each(sql: str, pairs: Any, caller: str) -> Any:
        asked.append([scope for scope, _ in pairs])
        return await read_each(sql, pairs, caller)

    reader._read, reader._read_each = noted, noted_each
    async with hearing(client, "/api/todos/events", ANN) as one, hearing(client, "/api/todos/events", ANN) as two, \
            hearing(client, "/api/todos/events", ABE) as three:  # fmt: skip
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'a')")
        for stream in (one, two, three):
            assert (await change(stream))[0] == "created"
    assert sorted(scope for scopes in asked for scope in scopes) == [("abe", "red", ""), ("ann", "red", "")]


async def test_a_policy_that_fails_for_one_caller_fails_for_no_other(client: Client, own: TestDatabase) -> None:
    async with own.server.connected(own.server.owner_role, own.name) as owner:
        await owner.execute("CREATE POLICY fails ON todos AS RESTRICTIVE FOR SELECT USING "
                            "(1 / nullif(length(replace(current_setting('gatepost.user_id', true), 'abe', '')), -1) > -1)")  # fmt: skip
    async with hearing(client, "/api/todos/events", ANN) as ann, hearing(client, "/api/todos/events", ABE) as abe:
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'a')")
        assert (await change(ann))[0] == "created"
        assert await change(abe) == ("resync", {"id": None})
        await own.rows("INSERT INTO todos (organization_id, title) VALUES ('red', 'b')")
        assert (await change(ann))[0] == "created"


# What waits ---------------------------------------------------------------------------------------------------------------

KEY = ("public.todos", "organization", "red")


@pytest.mark.parametrize(("heard", "expected"), [
    ("iu", "created"), ("iud", "deleted"), ("id", "deleted"), ("uu", "updated"), ("ud", "deleted"), ("di", "recreated"), ("diu", "recreated"),
    ("did", "deleted"), ("didi", "recreated"), ("du", "deleted"),
])  # fmt: skip
def test_changes_of_one_row_become_one(heard: str, expected: str) -> None:
    fanout = Fanout()
    subscription = fanout.subscribe((KEY,))
    for what in heard:
        fanout.receive(json.dumps([*KEY, what, ["1"]]))
    assert subscription.take(10) == {"1": expected}
    assert fanout.held == 0


async def test_many_streams_are_notified_a_few_at_a_time() -> None:
    """The first rows are read while the other streams are notified, so the last stream receives a change earlier."""
    fanout, order = Fanout(), list[int]()
    subscriptions = [fanout.subscribe((KEY,)) for _ in range(200)]
    for number, one in enumerate(subscriptions):
        one.notify = partial(order.append, number)
    fanout.receive(json.dumps([*KEY, "i", ["1"]]))
    asyncio.get_running_loop().call_soon(order.append, -1)
    subscriptions[150].close()
    await asyncio.sleep(0)
    assert order == [*range(64), -1]
    fanout.receive(json.dumps([*KEY, "u", ["1"]]))
    while len(order) < 199 + 64 + 1:  # those that had been told before the second change are told of it
        await asyncio.sleep(0)
    assert [number for number in order if number >= 0] == [*range(150), *range(151, 200), *range(64)]
    await asyncio.sleep(0)
    assert len(order) == 264


def test_the_changes_held_for_all_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.streams.fanout.PENDING_IN_ALL", 500)
    fanout = Fanout()
    subscriptions = [fanout.subscribe((("public.todos", "organization", f"org_{n}"),)) for n in range(10)]
    for n in range(10):
        fanout.receive(json.dumps(["public.todos", "organization", f"org_{n}", "i", [str(id) for id in range(100)]]))
    assert fanout.held == 500
    assert [one.resync for one in subscriptions] == [False] * 5 + [True] * 5
    taken = subscriptions[0].take(60)
    assert (len(taken), fanout.held) == (60, 440)
    subscriptions[0].put_back(taken)
    assert (list(subscriptions[0].pending)[:60], fanout.held) == (list(taken), 500)
    for one in subscriptions:
        one.close()
        one.close()
    assert (fanout.held, len(fanout), fanout._by_key) == (0, 0, {})
