"""What the rows do: create, read, change, delete, page; what is refused, field by field."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import ADMIN_A, ADMIN_B, ALICE, ALICE_ALONE, BOB, CLERK_A, CLERK_B, ROBOT_A, Client, Got, TestDatabase

INVOICE = {"customer": "Acme", "amount": "12.50", "currency": "EUR"}
ORG = "/api/orgs/org_a/data"
DATA_KEYS = ["id", "user_id", "org_id", "name", "payload", "created_at", "updated_at"]
ORG_KEYS = ["id", "organization_id", "created_by", "name", "payload", "created_at", "updated_at"]
INVOICE_KEYS = ["id", "organization_id", "created_by", "customer", "amount", "currency", "due_on", "memo", *DATA_KEYS[-2:]]
COLLECTIONS = {"/api/data": (ALICE, {"name": "row"}), ORG: (ALICE, {"name": "row"}), "/api/invoices": (CLERK_A, INVOICE)}
STRONG_TAG = re.compile(r'"[!#-~]+"')


async def made(client: Client, path: str = "/api/data", **members: Any) -> Got:
    """POST a row with these members over the usual ones."""
    caller, usual = COLLECTIONS[path]
    got = await client.post(path, caller, {**usual, **members})
    assert got.status == 201, got
    return got


def moment(text: str) -> datetime:
    """A time of an answer: RFC 3339, in UTC."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)", text)
    return datetime.fromisoformat(text)


def bad_fields(got: Got) -> list[str]:
    """The fields that a 422 complains about, each with a message."""
    assert got.status == 422, got
    body = got.json()
    assert (set(body), body["error"]) == ({"error", "fields"}, "Unprocessable Content")
    assert all(set(each) == {"field", "message"} and each["message"] for each in body["fields"])
    return sorted(each["field"] for each in body["fields"])


# One row ---------------------------------------------------------------------------------------------------------------


async def test_a_new_row_is_answered_whole_with_its_place_and_tag(client: Client) -> None:
    got = await made(client, name="näme", payload={"a": [1, 2.5, None, True, "ü", {}], "b": {"c": "d"}})
    row = got.json()
    assert list(row) == DATA_KEYS
    assert (row["user_id"], row["org_id"], row["name"]) == ("alice", "org_a", "näme")
    assert row["payload"] == {"a": [1, 2.5, None, True, "ü", {}], "b": {"c": "d"}}
    assert str(UUID(row["id"])) == row["id"]
    assert abs(moment(row["created_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert row["updated_at"] == row["created_at"]
    assert got.headers["Location"] == f"/api/data/{row['id']}"
    assert STRONG_TAG.fullmatch(got.headers["ETag"])
    again = await client.get(got.headers["Location"], ALICE)
    assert (again.status, again.raw, again.headers["ETag"]) == (200, got.raw, got.headers["ETag"])


async def test_members_may_be_left_out_and_then_have_their_defaults(client: Client) -> None:
    assert (await made(client)).json()["payload"] == {}
    invoice = (await made(client, "/api/invoices")).json()
    assert (invoice["due_on"], invoice["memo"]) == (None, None)
    assert (await client.post("/api/data", ALICE_ALONE, {"name": "x"})).json()["org_id"] is None


async def test_a_row_of_the_organisation(client: Client) -> None:
    for caller, maker in ((ALICE, "alice"), (ADMIN_A, "anna"), (ROBOT_A, "key:robot_a")):
        got = await client.post(ORG, caller, {"name": "n", "payload": {"k": 1}})
        assert got.status == 201
        assert list(got.json()) == ORG_KEYS
        assert (got.json()["organization_id"], got.json()["created_by"]) == ("org_a", maker)
        assert STRONG_TAG.fullmatch(got.headers["ETag"])


async def test_an_invoice(client: Client) -> None:
    for caller, maker in ((CLERK_A, "alice"), (ROBOT_A, "key:robot_a")):
        got = await client.post("/api/invoices", caller, {**INVOICE, "due_on": "2028-02-29", "memo": "thanks"})
        row = got.json()
        assert got.status == 201
        assert list(row) == INVOICE_KEYS
        assert (row["organization_id"], row["created_by"], row["customer"]) == ("org_a", maker, "Acme")
        assert (row["amount"], row["currency"], row["due_on"], row["memo"]) == ("12.50", "EUR", "2028-02-29", "thanks")
        moment(row["created_at"])
        again = await client.get(got.headers["Location"], CLERK_A)
        assert (got.headers["Location"], again.raw) == (f"/api/invoices/{row['id']}", got.raw)
        assert again.headers["ETag"] == got.headers["ETag"]


async def test_a_due_date_is_any_date_of_four_digits(client: Client) -> None:
    for day in ("0001-01-01", "0004-02-29", "9999-12-31"):  # the first and the last are infinite to the driver
        got = await made(client, "/api/invoices", due_on=day)
        assert (got.status, got.json()["due_on"]) == (201, day)


async def test_an_amount_is_a_decimal_text_from_end_to_end(client: Client) -> None:
    sent = ["0", "0.1", "7", "0.01", "9999999999.99", "0000000012.50"]
    kept = ["0.00", "0.10", "7.00", "0.01", "9999999999.99", "12.50"]
    assert [(await made(client, "/api/invoices", amount=amount)).json()["amount"] for amount in sent] == kept
    assert [row["amount"] for row in (await client.get("/api/invoices", CLERK_A)).json()] == kept[::-1]


async def test_a_change_touches_what_it_names_and_no_more(client: Client) -> None:
    got = await made(client, name="one", payload={"a": 1, "b": 2})
    path, before = got.headers["Location"], got.json()
    renamed = await client.patch(path, ALICE, {"name": "two"})
    assert (renamed.status, list(renamed.json())) == (200, DATA_KEYS)
    after = renamed.json()
    assert after == {**before, "name": "two", "updated_at": after["updated_at"]}
    assert moment(after["updated_at"]) > moment(before["updated_at"])
    replaced = await client.patch(path, ALICE, {"payload": {"b": 3}})  # replaced, not merged
    assert (replaced.json()["payload"], replaced.json()["name"]) == ({"b": 3}, "two")
    assert (await client.patch(path, ALICE, {"payload": {}})).json()["payload"] == {}
    last = await client.patch(path, ALICE_ALONE, {"name": "three", "payload": {"c": 4}})  # in whatever organisation
    assert (await client.get(path, ALICE)).raw == last.raw
    assert last.json()["org_id"] == "org_a"


async def test_a_change_that_names_nothing_is_a_422(client: Client) -> None:
    path = (await made(client)).headers["Location"]
    before = (await client.get(path, ALICE)).raw
    assert (await client.patch(path, ALICE, {})).status == 422
    for bad in ({"name": None}, {"name": ""}, {"payload": None}, {"payload": []}, {"payload": "x"}, {"name": "x" * 201}):
        assert bad_fields(await client.patch(path, ALICE, bad)) == sorted(bad)
    assert (await client.get(path, ALICE)).raw == before


async def test_if_match_lets_through_what_is_still_so(client: Client) -> None:
    got = await made(client)
    path, first = got.headers["Location"], got.headers["ETag"]
    second = (await client.patch(path, {**ALICE, "If-Match": first}, {"name": "two"})).headers["ETag"]
    assert first != second == (await client.get(path, ALICE)).headers["ETag"]
    for stale in (first, '"never"', f"W/{second}", second.strip('"'), f'{first}, "never"', ""):
        got = await client.patch(path, {**ALICE, "If-Match": stale}, {"name": "lost"})
        assert (got.status, got.json()) == (412, {"error": "Precondition Failed"}), stale
    assert (await client.get(path, ALICE)).json()["name"] == "two"
    assert (await client.patch(path, {**ALICE, "If-Match": f'"never", {second}'}, {"name": "three"})).status == 200
    assert (await client.patch(path, {**ALICE, "If-Match": "*"}, {"name": "four"})).status == 200
    assert (await client.patch(path, ALICE, {"name": "five"})).json()["name"] == "five"


async def test_a_deletion_of_what_has_changed_is_a_412_and_deletes_nothing(client: Client, db: TestDatabase) -> None:
    anna = ADMIN_A
    got = await client.post("/api/data", anna, {"name": "one"})
    path, first = got.headers["Location"], got.headers["ETag"]
    second = (await client.patch(path, anna, {"name": "two"})).headers["ETag"]
    entries = await db.count("audit_log")
    for stale in (first, '"never"', f"W/{second}", f'{first}, "never"', "", '*, "never"'):
        got = await client.delete(path, {**anna, "If-Match": stale})
        assert (got.status, got.json()) == (412, {"error": "Precondition Failed"}), stale
    assert (await client.get(path, anna)).json()["name"] == "two"
    assert await db.count("audit_log") == entries
    # A row that this caller cannot see is a 404, whatever the tag.
    assert (await client.delete(path, {**ADMIN_B, "If-Match": second})).status == 404
    assert (await client.delete(path, {**anna, "If-Match": f'"never", {second}'})).json() == {"success": True}
    assert (await client.delete(path, {**anna, "If-Match": "*"})).status == 404
    path = (await client.post("/api/data", anna, {"name": "one"})).headers["Location"]
    assert (await client.delete(path, {**anna, "If-Match": "*"})).status == 200


@pytest.mark.parametrize("path", ["/api/data", "/api/invoices"])
async def test_a_row_that_the_client_has_is_a_304(client: Client, path: str) -> None:
    caller, stranger = (CLERK_A, CLERK_B) if path == "/api/invoices" else (ALICE, BOB)
    got = await made(client, path)
    path, tag, name = got.headers["Location"], got.headers["ETag"], got.headers["X-Request-Id"]
    for known in (tag, f"W/{tag}", f'"never", W/{tag}', f'"a,b",{tag} ', "*"):
        for method in ("GET", "HEAD"):
            again = await client.send(method, path, {**caller, "If-None-Match": known})
            assert (again.status, again.raw, again.headers["ETag"]) == (304, b"", tag), (method, known)
            assert (again.headers["Cache-Control"], again.headers["X-Request-Id"] == name) == ("no-store", False)
            assert "Authorization" in again.headers["Vary"]
            assert "Content-Length" not in again.headers
    for other in ('"never"', tag.strip('"'), f"w/{tag}", '*, "never"', tag[:-2] + '"', "", f"W/W/{tag}"):
        again = await client.get(path, {**caller, "If-None-Match": other})
        assert (again.status, again.raw, again.headers["ETag"]) == (200, got.raw, tag), other
    # The caller is asked first, and a row of another tenant is not there, whatever the tag.
    assert (await client.get(path, {"If-None-Match": "*"})).status == 401
    assert (await client.get(path, {**stranger, "If-None-Match": tag})).status == 404


async def test_a_row_that_has_changed_is_sent_again(client: Client) -> None:
    got = await made(client)
    path, tag = got.headers["Location"], got.headers["ETag"]
    assert (await client.patch(path, {**ALICE, "If-None-Match": f"W/{tag}"}, {"name": "lost"})).status == 412
    assert (await client.patch(path, {**ALICE, "If-None-Match": "*"}, {"name": "lost"})).status == 412
    assert (await client.get(path, {**ALICE, "If-None-Match": tag})).status == 304
    assert (await client.patch(path, {**ALICE, "If-None-Match": '"never"'}, {"name": "two"})).status == 200
    assert (await client.get(path, {**ALICE, "If-None-Match": tag})).json()["name"] == "two"


async def test_a_304_leaves_the_connection_usable(client: Client) -> None:
    got = await made(client)
    path, tag = got.headers["Location"], got.headers["ETag"]
    async with client.wire() as wire:
        for _ in range(2):
            await wire.send(f"GET {path}", {**ALICE, "If-None-Match": tag})
            assert (await wire.answer())[0] == 304
            await wire.send(f"GET {path}", ALICE)
            assert (await wire.answer())[0] == 200


async def test_a_star_among_tags_is_none(client: Client) -> None:
    path = (await made(client)).headers["Location"]
    assert (await client.patch(path, {**ALICE, "If-Match": '*, "never"'}, {"name": "lost"})).status == 412


async def test_of_two_changes_with_one_tag_one_wins(client: Client) -> None:
    got = await made(client)
    both = await asyncio.gather(*(
        client.patch(got.headers["Location"], {**ALICE, "If-Match": got.headers["ETag"]}, {"name": str(n)}) for n in range(8)
    ))  # fmt: skip
    assert sorted(each.status for each in both) == [200] + [412] * 7


NO_ID = ["not-a-uuid", "1", "%20", "00000000-0000-4000-8000-00000000000g", "00000000000040008000000000000001",
         "00000000-0000-4000-8000-000000000001a", "null", "'", "%F0%9F%90%98"]  # fmt: skip


async def test_an_id_that_is_none_is_a_row_that_is_not_there(client: Client) -> None:
    for method, path, caller in (("GET", "/api/data", ALICE), ("PATCH", "/api/data", ALICE), ("DELETE", "/api/data", ADMIN_A),
                                 ("GET", "/api/invoices", CLERK_A)):  # fmt: skip
        for key in NO_ID:
            got = await client.send(method, f"{path}/{key}", caller, json={"name": "x"})
            assert (got.status, got.json()) == (404, {"error": "Not Found"}), (method, path, key)


async def test_an_id_in_capitals_is_the_same_id(client: Client) -> None:
    row = (await made(client)).json()
    assert (await client.get(f"/api/data/{row['id'].upper()}", ALICE)).json() == row


# What is refused -------------------------------------------------------------------------------------------------------

NAME_AND_PAYLOAD: list[tuple[Any, list[str]]] = [
    ({}, ["name"]),
    ({"payload": {}}, ["name"]),
    ({"name": None}, ["name"]),
    ({"name": 5}, ["name"]),
    ({"name": True}, ["name"]),
    ({"name": ["x"]}, ["name"]),
    ({"name": ""}, ["name"]),
    ({"name": "x" * 201}, ["name"]),
    ({"name": "x", "payload": None}, ["payload"]),
    ({"name": "x", "payload": []}, ["payload"]),
    ({"name": "x", "payload": "{}"}, ["payload"]),
    ({"name": 1, "payload": 2, "extra": 3, "id": 4}, ["extra", "id", "name", "payload"]),
    ({"name": "x", "Name": "y"}, ["Name"]),
    ({"name": "x", "__proto__": {}, "constructor": {}}, ["__proto__", "constructor"]),
    ({"name": "a\0b"}, ["name"]),
    ({"name": "x", "payload": {"a": {"b": ["\0"]}}}, ["payload.a.b.0"]),
    ({"name": "x\0", "payload": {"a\0": 1}}, ["name", "payload.a?"]),
    ({"name": "x\0", "payload": 5, "extra": 1}, ["extra", "name", "payload"]),
]
INVOICES: list[tuple[dict[str, Any], list[str]]] = [
    ({"customer": ""}, ["customer"]),
    ({"customer": "x" * 201}, ["customer"]),
    ({"customer": 1}, ["customer"]),
    ({"customer": "a\0"}, ["customer"]),
    ({"memo": "x" * 2001}, ["memo"]),
    ({"memo": 5}, ["memo"]),
    ({"memo": "\0"}, ["memo"]),
    *(({"amount": bad}, ["amount"]) for bad in (
        12.5, 12, None, "", "-1", "+1", "1.234", "12345678901", "1e3", "NaN", "Infinity", " 1", "1 ", "1\n", "1,50", ".5", "1.",
        "0x1", "١٢", "\uff11", "1_000", True, ["1"])),
    *(({"currency": bad}, ["currency"]) for bad in ("eur", "EU", "EURO", "", "EUR\n", "€€€", "ÄÖÜ", 978, None)),
    *(({"due_on": bad}, ["due_on"]) for bad in (
        "2026-02-29", "2026-13-01", "2026-00-10", "26-01-01", "2026-1-1", "20260101", "2026-W01-1", "2026-01-01T00:00:00Z",
        "0000-01-01", "infinity", "tomorrow", "2026-01-01\n", "", 20260101, "\uff12026-01-01")),
    ({"amount": "x", "currency": "x", "due_on": "x", "memo": 1, "customer": "", "paid": True},
     ["amount", "currency", "customer", "due_on", "memo", "paid"]),
]  # fmt: skip
OWNED = {
    "/api/data": ["id", "user_id", "org_id", "organization_id", "created_by", "created_at", "updated_at"],
    ORG: ["id", "user_id", "org_id", "organization_id", "created_by", "created_at", "updated_at"],
    "/api/invoices": ["id", "user_id", "org_id", "organization_id", "created_by", "created_at", "updated_at"],
}


@pytest.mark.parametrize("path", ["/api/data", ORG])
async def test_a_422_names_every_bad_field_of_a_row(client: Client, db: TestDatabase, path: str) -> None:
    for sent, expected in NAME_AND_PAYLOAD:
        assert bad_fields(await client.post(path, ALICE, sent)) == expected, sent
    for sent in ([], "text", 5, True, [{"name": "x"}]):
        assert bad_fields(await client.post(path, ALICE, sent)) == [""], sent
    assert await db.count("data") + await db.count("org_data") == 0


async def test_a_422_names_every_bad_field_of_an_invoice(client: Client, db: TestDatabase) -> None:
    assert bad_fields(await client.post("/api/invoices", CLERK_A, {})) == ["amount", "currency", "customer"]
    for bad, expected in INVOICES:
        assert bad_fields(await client.post("/api/invoices", CLERK_A, {**INVOICE, **bad})) == expected, bad
    assert await db.count("invoices") == 0


@pytest.mark.parametrize("path", OWNED)
async def test_what_the_server_owns_cannot_be_said(client: Client, db: TestDatabase, path: str) -> None:
    caller, usual = COLLECTIONS[path]
    for member in OWNED[path]:
        assert bad_fields(await client.post(path, caller, {**usual, member: "alice"})) == [member]
    assert bad_fields(await client.post(path, caller, {**usual, **dict.fromkeys(OWNED[path], "x")})) == sorted(OWNED[path])
    row = (await made(client)).headers["Location"]
    for member in OWNED[path]:
        assert bad_fields(await client.patch(row, ALICE, {"name": "x", member: "bob"})) == [member]
    assert [each["user_id"] for each in await db.rows("SELECT user_id FROM data")] == ["alice"]


async def test_a_422_does_not_repeat_what_was_sent(client: Client) -> None:
    got = await client.post("/api/data", ALICE, {"name": 5, "payload": "hunter2-secret"})
    assert b"hunter2" not in got.raw


async def test_texts_at_their_limits_are_taken(client: Client) -> None:
    for name in ("x" * 200, "🐘" * 200, " ", "null", "'; DROP TABLE data; --", '"', "\\", "\u202e", "\x01\x1e", "$1", "%s"):
        got = await client.post("/api/data", ALICE, {"name": name, "payload": {name: name}})
        assert (got.status, got.json()["name"], got.json()["payload"]) == (201, name, {name: name})
    listed = await client.get("/api/data", ALICE)
    assert len(listed.json()) == 11  # the character that separates rows inside is a character like any other
    assert (await made(client, "/api/invoices", memo="m" * 2000, customer="c" * 200)).status == 201


# Pages -----------------------------------------------------------------------------------------------------------------


async def fill(db: TestDatabase, table: str, rows: int, who: str = "alice", org: str = "org_a") -> None:
    """Rows of which every seven have the same created_at."""
    columns, values = {
        "data": ("user_id, name", f"'{who}', n::text"),
        "org_data": ("organization_id, created_by, name", f"'{org}', '{who}', n::text"),
        "invoices": ("organization_id, created_by, customer, amount, currency", f"'{org}', '{who}', n::text, n, 'EUR'"),
    }[table]
    time = "'2026-01-01'::timestamptz + n / 7 * interval '1 us'"
    await db.rows(f"INSERT INTO {table} ({columns}, created_at) SELECT {values}, {time} FROM generate_series(1, {rows}) AS n")


def next_page(got: Got) -> str | None:
    """The target of `Link: <...>; rel="next"`, which is relative."""
    if "Link" not in got.headers:
        return None
    match = re.fullmatch(r'<(/[^/>][^>]*)>; rel="next"', got.headers["Link"])
    assert match
    return match[1]


@pytest.mark.parametrize(("table", "path"), [("data", "/api/data"), ("org_data", ORG), ("invoices", "/api/invoices")])
async def test_three_pages_hold_450_rows_once_each(client: Client, db: TestDatabase, table: str, path: str) -> None:
    await fill(db, table, 450)
    await fill(db, table, 20, who="bob", org="org_b")
    seen, pages, at = [], [], f"{path}?limit=200"
    while at:
        got = await client.get(at, CLERK_A)
        assert got.status == 200
        assert at.startswith(f"{path}?limit=200")
        seen += got.json()
        pages.append(len(got.json()))
        at = next_page(got) or ""
    assert pages == [200, 200, 50]
    assert len({row["id"] for row in seen}) == 450
    assert seen == sorted(seen, key=lambda row: (moment(row["created_at"]), row["id"]), reverse=True)


async def test_a_page_that_is_just_full_has_no_next(client: Client, db: TestDatabase) -> None:
    await fill(db, "data", 50)
    assert next_page(await client.get("/api/data", ALICE)) is None
    assert next_page(await client.get("/api/data?limit=50", ALICE)) is None
    await fill(db, "data", 1)
    got = await client.get("/api/data", ALICE)
    assert len(got.json()) == 50  # the default
    assert len((await client.get(next_page(got) or "", ALICE)).json()) == 1
    one = await client.get("/api/data?limit=1", ALICE)
    assert (len(one.json()), (next_page(one) or "").partition("&")[0]) == (1, "/api/data?limit=1")
    assert (await client.get("/api/data", BOB)).json() == []


async def test_rows_made_meanwhile_do_not_shift_the_pages(client: Client, db: TestDatabase) -> None:
    await fill(db, "data", 20)
    first = await client.get("/api/data?limit=10", ALICE)
    for _ in range(5):
        await made(client)
    second = await client.get(next_page(first) or "", ALICE)
    assert not {row["id"] for row in first.json()} & {row["id"] for row in second.json()}
    assert len(second.json()) == 10


async def test_a_host_does_not_decide_where_the_next_page_is(client: Client, db: TestDatabase) -> None:
    await fill(db, "data", 5)
    async with client.wire() as wire:
        for target in ("/api/data?limit=2", "http://127.0.0.1/api/data?limit=2"):
            await wire.send(f"GET {target}", ALICE)
            status, headers, _ = await wire.answer()
            assert status == 200
            assert headers["link"].startswith("</api/data?limit=2&cursor=")
    async with client.wire() as wire:
        await wire.send("GET http://evil.example/api/orgs/org_a/data?limit=2", ROBOT_A, {"X-Forwarded-Host": "evil.example"})
        assert (await wire.answer())[0] == 200


BAD_LIMITS = ["0", "201", "-1", "+5", "5.0", "1e2", "abc", "", "%205", "5%20", "0x10", "%D9%A5", "9" * 20, "9" * 5000,
              "5&limit=6", "true", "null", "NaN", "%EF%BC%95", "5,6", "1_0"]  # fmt: skip


async def test_a_limit_out_of_range_is_a_422(client: Client) -> None:
    for limit in BAD_LIMITS:
        for path, (caller, _) in COLLECTIONS.items():
            assert bad_fields(await client.get(f"{path}?limit={limit}", caller)) == ["limit"]
        assert bad_fields(await client.get(f"/api/data?cursor=x&limit={limit}", ALICE)) == ["cursor", "limit"]


async def test_a_limit_in_range_is_taken(client: Client) -> None:
    for limit in ("1", "200", "050"):
        assert (await client.get(f"/api/data?limit={limit}", ALICE)).status == 200


def cursor(said: Any) -> str:
    return base64.urlsafe_b64encode(said if isinstance(said, bytes) else json.dumps(said).encode()).decode().rstrip("=")


ID = "00000000-0000-4000-8000-000000000001"
NOW = "2026-01-01T00:00:00+00:00"
GARBAGE: dict[str, str] = {
    "empty": "", "not base64": "***", "plain": "x", "blanks": "%20%20", "non-ascii": "%C3%A4", "long": "A" * 5000,
    "not json": cursor(b"\xff\xfe"), "number": cursor(5), "null": cursor(None), "object": cursor({"created_at": NOW, "id": ID}),
    "one": cursor([NOW]), "three": cursor([NOW, ID, 1]), "deep": cursor(b"[" * 300), "text": cursor("ab"),
    "not a time": cursor(["yesterday", ID]), "time as number": cursor([5, ID]), "no zone": cursor(["2026-01-01T00:00:00", ID]),
    "not an id": cursor([NOW, "x"]), "id as number": cursor([NOW, 5]), "id as bool": cursor([NOW, True]),
    "id as null": cursor([NOW, None]), "id as list": cursor([NOW, [ID]]), "nul": cursor([NOW, "\0"]),
    "before all times": cursor(["0001-01-01T00:00:00+23:59", ID]), "after all times": cursor(["9999-12-31T23:59:59-23:59", ID]),
    "infinity": cursor(["infinity", ID]), "surrogate": cursor([NOW, "\ud800"]),
    "huge number": cursor(b'["x",' + b"9" * 300 + b"]"),
    "twice": f"{cursor([NOW, ID])}&cursor={cursor([NOW, ID])}", "sql": cursor([NOW, "' OR true --"]),
}  # fmt: skip


async def test_a_cursor_that_is_none_is_a_422(client: Client) -> None:
    for path, (caller, _) in COLLECTIONS.items():
        for what, garbage in GARBAGE.items():
            got = await client.get(f"{path}?cursor={garbage}", caller)
            assert got.status == 422, (path, what, got)
            assert bad_fields(got) == ["cursor"]


async def test_a_cursor_of_somebody_else_or_made_up_gives_only_own_rows(client: Client, db: TestDatabase) -> None:
    await fill(db, "data", 20)
    await fill(db, "data", 10, who="bob")
    alices = next_page(await client.get("/api/data?limit=10", ALICE)) or ""
    assert {row["user_id"] for row in (await client.get(alices, BOB)).json()} <= {"bob"}
    for time in ("9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+00:00", "2026-01-01T00:00:00.000001+02:00"):
        got = await client.get(f"/api/data?cursor={cursor([time, ID])}", BOB)
        assert got.status == 200
        assert {row["user_id"] for row in got.json()} <= {"bob"}
    text = alices.partition("cursor=")[2]
    for place in range(len(text)):  # one character changed: a 422 or own rows, never anything else
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        got = await client.get(f"/api/data?cursor={changed}", ALICE)
        assert got.status in (200, 422)
        assert got.status == 422 or {row["user_id"] for row in got.json()} <= {"alice"}


# Who am I, and am I alive -------------------------------------------------------------------------------------------------


async def test_me_says_all_of_the_identity_and_null_where_there_is_none(client: Client) -> None:
    said = {"provider": "stub", "token_type": "session_token", "user_id": "alice", "impersonator": None, "session_id": None,
            "org_id": "org_a", "org_slug": None, "org_role": "org:member", "org_permissions": None, "scopes": None, "claims": None}  # fmt: skip
    assert (await client.get("/api/me", ALICE)).json() == said
    none = {**said, "org_id": None, "org_role": None}
    assert (await client.get("/api/me", ALICE_ALONE)).json() == none
    robot = (await client.get("/api/me", ROBOT_A)).json()
    assert (robot["provider"], robot["token_type"], robot["user_id"], robot["org_id"]) == ("api_key", "api_key", None, "org_a")
    assert robot["org_permissions"] == ["org:invoices:read", "org:invoices:create"]
    assert ROBOT_A["X-API-Key"] not in json.dumps(robot)


async def test_health_is_ok(client: Client) -> None:
    got = await client.get("/api/health")
    assert (got.status, got.json()) == (200, {"status": "ok"})
