"""Hostile bodies: never a 500, nothing stored, and the answers in the order of the contract."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import sys
import time
from typing import Any

import pytest
from aiohttp import web

from server import answer, body, public, raw_body, signed_in
from server.http import bodies
from tests.conftest import ALICE, BOB, CLERK_A, READ, ROBOT_A, Client, Serve, TestDatabase, plugin, stub

JSON = {"Content-Type": "application/json"}
WRITES = {
    "POST /api/data": ALICE,
    "POST /api/orgs/org_a/data": ALICE,
    "POST /api/invoices": CLERK_A,
    "PATCH /api/data/00000000-0000-4000-8000-000000000001": ALICE,
}
GOOD = b'{"name": "x"}'
LENGTH = {"Content-Length": str(len(GOOD))}
NOT_JSON, TOO_LONG = {"Content-Type": "text/plain"}, {"Content-Length": "1048577"}


def in_payload(text: bytes | str) -> bytes:
    """A body that is good but for its payload's member."""
    return b'{"name": "x", "payload": {"a": ' + (text if isinstance(text, bytes) else text.encode()) + b"}}"


# What two readers could take differently, or one not at all: 400.
UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "blanks": b"  \n",
    "not json": b"hello",
    "cut off": b'{"name": "x"',
    "two values": b'{"name": "x"} {"name": "y"}',
    "trailing comma": b'{"name": "x",}',
    "comment": b'{"name": "x"} // mine',
    "single quotes": b"{'name': 'x'}",
    "nul after it": GOOD + b"\0",
    "nul in it": b'{"name": "x\0y"}',
    "raw newline in text": b'{"name": "x\ny"}',
    "form": b"name=x",
    "deep arrays": in_payload(b"[" * 30_000 + b"]" * 30_000),
    "deep arrays, open": b"[" * 500_000,
    "deep objects": in_payload(b'{"a":' * 30_000 + b"1" + b"}" * 30_000),
    "65 deep": in_payload("[" * 64 + "]" * 64),
    "integer of 5000 digits": in_payload("9" * 5000),
    "integer over 63 bits": in_payload(str(2**63)),
    "integer under 63 bits": in_payload(str(-(2**63) - 1)),
    "1e400": in_payload("1e400"),
    "1e308": in_payload("1e308"),
    "1e-400": in_payload("1e-300"),
    "exponent of 5000 digits": in_payload("1e" + "9" * 5000),
    "NaN": in_payload("NaN"),
    "Infinity": in_payload("Infinity"),
    "-Infinity": in_payload("-Infinity"),
    "duplicate member": b'{"name": "x", "name": "y"}',
    "duplicate member, escaped": b'{"name": "x", "n\\u0061me": "y"}',
    "duplicate member, nested": in_payload('[{"k": {"b": 1, "c": 2, "b": 1}}]'),
    "bad utf-8": b'{"name": "\xff\xfe"}',
    "overlong utf-8": b'{"name": "\xc0\xaf"}',
    "surrogate as utf-8": b'{"name": "\xed\xa0\x80"}',
    "cut utf-8": b'{"name": "\xe2\x82',
    "latin-1": '{"name": "ä"}'.encode("latin-1"),
    "bom": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "utf-16 little": GOOD.decode().encode("utf-16-le"),
    "utf-32": GOOD.decode().encode("utf-32"),
    "lone surrogate": b'{"name": "\\ud800"}',
    "lone low surrogate": b'{"name": "\\udc00x"}',
    "surrogates in wrong order": b'{"name": "\\udc00\\ud800"}',
    "lone surrogate in a key": b'{"name": "x", "payload": {"\\ud800": 1}}',
    "lone surrogate, nested": in_payload('["\\udfff"]'),
    "bad escape": b'{"name": "\\x41"}',
}
SLUGS = {"json-depth": "deep", "json-number": "integer|1e|exponent|NaN|Infinity", "json-duplicate-member": "duplicate",
         "json-encoding": "utf-8|latin|utf-16$|utf-32", "json-byte-order-mark": "bom", "json-unicode": "surrogate", "json-malformed": ""}  # fmt: skip
FINE: dict[str, bytes] = {
    "64 deep": in_payload("[" * 62 + "]" * 62),
    "surrogate pair": b'{"name": "\\ud83d\\udc18"}',
    "escapes": b'{"name": "\\u0041\\n\\t\\/"}',
    "largest integers": in_payload(f"[{2**63 - 1}, {-(2**63)}, -0, 0.0, 1e18, 1e-30]"),
    "blanks around": b"\r\n\t " + GOOD + b" \n",
    "same member in two objects": in_payload('[{"b": 1}, {"b": 1}]'),
    "many members": in_payload("{" + ", ".join(f'"k{n}": {n}' for n in range(5000)) + "}"),
    "controls escaped": b'{"name": "\\u0001\\u001f\\u007f"}',
}


@pytest.mark.parametrize("write", WRITES)
async def test_what_is_not_clearly_json_is_a_400_and_stores_nothing(
    client: Client, db: TestDatabase, write: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    method, path = write.split()
    for what, raw in UNREADABLE.items():
        caplog.clear()
        got = await client.send(method, path, {**WRITES[write], **JSON}, data=raw)
        reason = next(slug for slug, names in SLUGS.items() if re.search(names, what))
        told = got.json()
        assert (got.status, told.pop("error"), told.pop("reason")) == (400, "Bad Request", reason), what
        assert set(told) == ({"detail"} if reason == "json-malformed" else set())
        (line,) = [record.fields for record in caplog.records if record.getMessage() == "refused"]  # type: ignore[attr-defined]
        assert (line["request_id"], line["reason"]) == (got.headers["X-Request-Id"], reason)
    for table in ("data", "org_data", "invoices"):
        assert await db.count(table) == 0


async def test_what_is_odd_but_clear_is_taken(client: Client) -> None:
    for what, raw in FINE.items():
        got = await client.send("POST", "/api/data", {**ALICE, **JSON}, data=raw)
        assert got.status == 201, (what, got)
        sent = json.loads(raw)
        assert (got.json()["name"], got.json()["payload"]) == (sent["name"], sent.get("payload", {})), what


async def test_large_hostile_json_is_answered(client: Client) -> None:
    for raw in (b"[" * 1_000_000, in_payload(b"[" * 500_000 + b"]" * 500_000), in_payload("9" * 1_000_000),
                b'{"a":' * 200_000, b'{"' + b"\\u0041" * 170_000 + b'": 1}',
                in_payload("[" + "1e5," * 240_000 + "1]")):  # fmt: skip
        got = await client.send("POST", "/api/data", {**ALICE, **JSON}, data=raw)
        assert got.status in (400, 422, 201)


TYPES: list[tuple[dict[str, str], int]] = [
    ({"Content-Type": "application/json"}, 201),
    ({"Content-Type": "Application/JSON"}, 201),
    ({"Content-Type": "application/json; charset=utf-8"}, 201),
    ({"Content-Type": 'application/json; charset="UTF-8"'}, 201),
    ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 201),
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "text/json"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
    ({"Content-Type": "application/octet-stream"}, 415),
    ({"Content-Type": "application/problem+json"}, 415),
    ({"Content-Type": "application/jsonx"}, 415),
    ({"Content-Type": "application/json, text/plain"}, 415),
    ({"Content-Type": "json"}, 415),
    ({"Content-Type": ""}, 415),
    ({"Content-Type": "*/*"}, 415),
    ({"Content-Type": "application/json; charset=latin-1"}, 415),
    ({"Content-Type": "application/json; charset=utf-16"}, 415),
    ({"Content-Type": "application/json; charset=rot13"}, 415),
    ({"Content-Type": "application/json; charset=nonsense"}, 415),
    ({"Content-Type": "application/json; charset=utf-7"}, 415),
    ({"Content-Type": "application/json", "Content-Encoding": "zstd-or-so"}, 415),
    ({"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"}, 415),
]


async def test_only_json_in_utf_8_is_a_body(client: Client, db: TestDatabase) -> None:
    for headers, status in TYPES:
        async with client.wire() as wire:
            await wire.send("POST /api/data", ALICE, headers, {"Content-Length": str(len(GOOD))}, body=GOOD)
            got = await wire.answer()
            assert got[0] == status, (headers, got)
            if status != 201:
                assert json.loads(got[2]) == {"error": "Unsupported Media Type"}
    async with client.wire() as wire:  # none at all, and two
        await wire.send("POST /api/data", ALICE, {"Content-Length": str(len(GOOD))}, body=GOOD)
        assert (await wire.answer())[0] == 415
    async with client.wire() as wire:
        await wire.send("POST /api/data", ALICE, JSON, LENGTH, NOT_JSON, body=GOOD)
        assert (await wire.answer())[0] in (400, 415)
    assert await db.count("data") == sum(status == 201 for _, status in TYPES)


async def test_a_compressed_body_is_refused_good_or_bad(client: Client, db: TestDatabase) -> None:
    for encoding in ("gzip", "deflate", "br", "GZIP", "x-gzip", "zstd"):
        for raw in (gzip.compress(GOOD), b"not compressed at all", gzip.compress(b" " * 5_000_000 + GOOD)):
            async with client.wire() as wire:
                framing = {"Content-Encoding": encoding, "Content-Length": str(len(raw))}
                await wire.send("POST /api/data", ALICE, JSON, framing, body=raw)
                status, _, said = await wire.answer()
                assert status == 415 or (status == 400 and encoding in ("br", "zstd"))  # 400: the parser has no decoder for it
                assert set(json.loads(said)) == {"error"}
        assert await db.count("data") == 0


# Lengths and times -----------------------------------------------------------------------------------------------------


async def test_a_body_without_a_length_is_a_411(client: Client) -> None:
    for line, caller in WRITES.items():
        async with client.wire() as wire:
            await wire.send(line, caller, JSON)
            status, _, raw = await wire.answer()
            assert (status, json.loads(raw)) == (411, {"error": "Length Required"}), line


async def test_a_length_over_the_limit_is_a_413_before_anything_is_read(client: Client) -> None:
    async def one(length: str) -> None:
        async with client.wire() as wire:
            await wire.send("POST /api/data", ALICE, JSON, {"Content-Length": length})
            status, headers, raw = await wire.answer(0.5)
            assert (status, json.loads(raw)) == (413, {"error": "Content Too Large"})
            assert headers["connection"] == "close"
            assert await wire.closed()

    await asyncio.gather(*(one(length) for length in ("1048577", "99999999999", str(2**63 - 1))))


async def test_a_length_that_is_no_number_is_a_400(client: Client) -> None:
    for length in ("-1", "+5", "5.0", "0x5", "1_0", "5, 6", "abc", "9" * 30):
        async with client.wire() as wire:
            await wire.send("POST /api/data", ALICE, JSON, {"Content-Length": length}, body=GOOD)
            status, _, raw = await wire.answer()
            assert (status, json.loads(raw)) == (400, {"error": "Bad Request"})
            assert await wire.closed()


async def test_two_ways_to_tell_the_length_are_a_400(client: Client) -> None:
    async with client.wire() as wire:
        both = {**LENGTH, "Transfer-Encoding": "chunked"}
        await wire.send("POST /api/data", ALICE, JSON, both, body=b"d\r\n" + GOOD + b"\r\n0\r\n\r\n")
        status, _, raw = await wire.answer()
        assert (status, json.loads(raw)) == (400, {"error": "Bad Request"})
        assert await wire.closed()


async def test_a_body_up_to_the_limit_is_taken_and_one_byte_more_is_not(serve: Serve, db: TestDatabase) -> None:
    client = await serve({"limits.body_bytes": 1000})
    for size, status in ((1000, 201), (1001, 413)):
        padded = GOOD + b" " * (size - len(GOOD))
        assert (await client.send("POST", "/api/data", {**ALICE, **JSON}, data=padded)).status == status
        async with client.wire() as wire:
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (padded[:7], padded[7:])) + b"0\r\n\r\n"
            await wire.send("POST /api/data", ALICE, JSON, {"Transfer-Encoding": "chunked"}, body=chunks)
            got = await wire.answer()
            assert got[0] == status
            assert status == 201 or json.loads(got[2]) == {"error": "Content Too Large"}
    assert await db.count("data") == 2


async def test_a_chunked_body_without_end_is_a_413_once_it_is_too_large(client: Client) -> None:
    async with client.wire() as wire:
        await wire.send("POST /api/data", ALICE, JSON, {"Transfer-Encoding": "chunked"})
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        answer = asyncio.ensure_future(wire.answer())
        for _ in range(100):
            if answer.done():
                break
            wire.writer.write(chunk)
            try:
                async with asyncio.timeout(0.2):
                    await wire.writer.drain()
            except (ConnectionError, TimeoutError):
                break
            await asyncio.sleep(0.001)
        assert (await answer)[0] == 413


async def test_bad_chunks_are_a_400(client: Client, db: TestDatabase) -> None:
    for chunks in ("zz\r\n", "-1\r\n", "5\r\nab\r\nXX", "1;" + "x" * 20000 + "\r\n"):
        async with client.wire() as wire:
            await wire.send("POST /api/data", ALICE, JSON, {"Transfer-Encoding": "chunked"}, body=chunks.encode() + b"\r\n\r\n")
            status, _, raw = await wire.answer()
            assert (status, json.loads(raw)) == (400, {"error": "Bad Request"})
        assert await db.count("data") == 0


async def test_a_body_that_stalls_or_drips_is_a_408(serve: Serve) -> None:
    client = await serve({"limits.body_seconds": 0.3})

    async def one(framing: dict[str, str], drop: bytes) -> None:
        async with client.wire() as wire:
            started = time.perf_counter()
            await wire.send("POST /api/data", ALICE, JSON, framing)
            answer = asyncio.ensure_future(wire.answer())
            while drop and not answer.done():
                wire.writer.write(drop)
                await asyncio.sleep(0.05)
            status, headers, raw = await answer
            assert (status, json.loads(raw)) == (408, {"error": "Request Timeout"})
            assert 0.25 < time.perf_counter() - started < 2
            assert headers["connection"] == "close"
            assert await wire.closed()

    counted, chunked = {"Content-Length": "100"}, {"Transfer-Encoding": "chunked"}
    await asyncio.gather(one(counted, b""), one(counted, b" "), one(chunked, b""), one(chunked, b"1\r\n \r\n"))


async def test_a_client_that_goes_away_in_its_body_leaves_nothing(client: Client, db: TestDatabase) -> None:
    async with client.wire() as wire:
        await wire.send("POST /api/data", ALICE, JSON, {"Content-Length": "100"}, body=GOOD)
    assert (await client.get("/api/data", ALICE)).json() == []
    assert await db.count("data") == 0


# Expect ----------------------------------------------------------------------------------------------------------------


async def test_the_body_is_asked_for_only_after_the_gate(client: Client) -> None:
    expecting = {**JSON, **LENGTH, "Expect": "100-continue"}
    for line, caller, status in (
        ("POST /api/data", {}, 401), ("POST /api/data", BOB | {"X-API-Key": "x"}, 400), ("POST /api/data", ROBOT_A, 403),
        ("POST /api/orgs/org_a/data", BOB, 403), ("POST /api/nothing", {}, 401), ("POST /api/nothing", ALICE, 404),
        ("PUT /api/data", {}, 401), ("PUT /api/data", ALICE, 405), ("POST /api/%zz", {}, 400),
        ("POST /api/data", ALICE | NOT_JSON, 415), ("POST /api/data", ALICE | TOO_LONG, 413), ("GET /api/health", {}, 200),
    ):  # fmt: skip
        async with client.wire() as wire:
            await wire.send(line, {**expecting, **caller})
            assert (await wire.answer())[0] == status, (line, caller)


async def test_the_body_is_asked_for_where_it_is_wanted(client: Client) -> None:
    async with client.wire() as wire:
        await wire.send("POST /api/data", ALICE, JSON, LENGTH, {"Expect": "100-continue"})
        assert (await wire.answer())[0] == 100
        wire.writer.write(GOOD)
        status, headers, raw = await wire.answer()
        assert (status, json.loads(raw)["name"]) == (201, "x")
        assert "x-request-id" in headers


async def test_an_unknown_expectation_is_no_fault_of_the_server(client: Client) -> None:
    for expect in ("weird", "100-continue, weird", "200-ok", "100-Continue"):
        for line in ("POST /api/data", "POST /api/nothing", "GET /api/me"):
            async with client.wire() as wire:
                await wire.send(line, JSON, LENGTH, {"Expect": expect})
                status, headers, raw = await wire.answer()
                assert (status, json.loads(raw)["error"]) == (401, "Unauthorized"), line
                assert len(headers["x-request-id"]) == 24
        async with client.wire() as wire:
            await wire.send("POST /api/data", ALICE, JSON, LENGTH, {"Expect": expect}, body=GOOD)
            statuses = [(await wire.answer())[0]]
            if statuses == [100]:
                statuses.append((await wire.answer())[0])
            assert statuses[-1] in (201, 417)


# The order of answers -----------------------------------------------------------------------------------------------------

ORDER: list[tuple[str, dict[str, str], dict[str, str], bytes, int]] = [
    # (request, caller, headers, body, status): each request has all the later faults too
    ("POST /api/%zz", {**ALICE, "X-API-Key": "x"}, NOT_JSON, b"{", 400),
    ("POST /api/nothing", {**ALICE, "X-API-Key": "x"}, NOT_JSON, b"{", 400),
    ("POST /api/nothing", {}, NOT_JSON, b"{", 401),
    ("POST /api/nothing", {"Authorization": "Bearer x"}, NOT_JSON, b"{", 401),
    ("PUT /api/orgs/org_b/data", {}, TOO_LONG, b"", 401),
    ("POST /api/nothing", ALICE, NOT_JSON, b"{", 404),
    ("PUT /api/orgs/org_b/data", ALICE, NOT_JSON, b"{", 405),
    ("POST /api/orgs/org_b/data", {}, TOO_LONG, b"", 401),
    ("POST /api/orgs/org_b/data", ALICE, TOO_LONG, b"", 403),
    ("POST /api/orgs/org_b/data", ALICE, NOT_JSON, b"{", 403),
    ("POST /api/invoices", stub("alice", org_id="org_a", org_permissions=READ), NOT_JSON, b"{", 403),
    ("PATCH /api/data/none", ROBOT_A, NOT_JSON, b"{", 403),
    ("PATCH /api/data/none", ALICE, {**NOT_JSON, **TOO_LONG}, b"", 413),
    ("PATCH /api/data/none", ALICE, NOT_JSON, b"{", 415),
    ("PATCH /api/data/none", ALICE, JSON, b"{", 400),
    ("PATCH /api/data/none", ALICE, JSON, b'{"id": 1}', 422),
    ("PATCH /api/data/00000000-0000-4000-8000-000000000001", {**ALICE, "If-Match": '"x"'}, JSON, b'{"id": 1}', 422),
    ("PATCH /api/data/none", {**ALICE, "If-Match": '"x"'}, JSON, GOOD, 404),
    ("PATCH /api/data/00000000-0000-4000-8000-000000000001", {**ALICE, "If-Match": '"x"'}, JSON, GOOD, 404),
]


async def test_of_several_faults_the_first_in_order_is_answered(client: Client) -> None:
    for line, caller, headers, raw, status in ORDER:
        async with client.wire() as wire:
            await wire.send(line, {"Content-Length": str(len(raw)), **headers}, caller, body=raw)
            assert (await wire.answer())[0] == status, (line, caller, headers, raw)


async def test_an_answer_before_the_body_does_not_become_the_next_request(client: Client) -> None:
    """What was not read must not be taken for a request: the rest of a refused body is skipped or the connection ends."""
    smuggled = b"GET /api/me HTTP/1.1\r\nHost: 127.0.0.1\r\n" + f"Authorization: {ALICE['Authorization']}\r\n\r\n".encode()
    for caller, headers, status in (({}, JSON, 401), (ALICE, NOT_JSON, 415), (BOB | {"X-API-Key": "x"}, JSON, 400)):
        async with client.wire() as wire:
            await wire.send("POST /api/data", caller, headers, {"Content-Length": str(len(smuggled))}, body=smuggled)
            assert (await wire.answer())[0] == status
            await wire.send("GET /api/health")
            try:
                answer = await wire.answer()
            except (asyncio.IncompleteReadError, ConnectionError):
                continue
            assert json.loads(answer[2]) == {"status": "ok"}


async def test_many_bad_bodies_at_once_are_all_answered(client: Client) -> None:
    async def one(raw: Any) -> int:
        return (await client.send("POST", "/api/data", {**ALICE, **JSON}, data=raw)).status

    assert set(await asyncio.gather(*(one(raw) for raw in list(UNREADABLE.values()) * 3))) == {400}


# Errors are bounded, and cost in proportion to the body -------------------------------------------------------------------

LONG = "a" * 10_000


@pytest.mark.parametrize(
    "payload",
    [{LONG: ["\x00"] * 9000}, {"\U0001f600" * 9000: ["\x00"] * 9000}, {LONG: {LONG: ["\x00"]}}, {"\x00" * 10_000: 1}, {str(n) + "\x00": 1 for n in range(9000)}],
    ids=["long name", "beyond the BMP", "deep", "a name", "names"],
)  # fmt: skip
async def test_an_error_is_bounded_whatever_the_body(client: Client, payload: Any) -> None:
    got = await client.post("/api/data", ALICE, {"name": "x", "payload": payload})
    assert got.status == 422
    fields = got.json()["fields"]
    assert 1 <= len(fields) <= 100
    assert max(len(one["field"]) for one in fields) <= 200
    assert {one["message"] for one in fields} == {"must not contain the character NUL"}


async def test_bad_fields_beyond_the_hundredth_are_not_listed(serve: Serve) -> None:
    async def take(request: web.Request) -> web.Response:
        return answer((await body(request, dict[str, list[int]])) and {})

    client = await serve(extra={"acme": plugin(web.post("/take", signed_in(take)))})
    got = await client.post("/take", ALICE, {LONG: ["x"] * 900})
    assert (got.status, len(got.json()["fields"])) == (422, 100)
    assert len(got.raw) < 60_000
    many = await client.post("/take", ALICE, {"a": ["x"] * 50_001})
    long = await client.post("/take", ALICE, {"b" * 1000: ["x"] * 40_000})
    assert [one.json()["fields"][0]["message"] for one in (many, long)] == ["must not have more than 50000 values, or overlong names"] * 2
    assert (await client.post("/take", ALICE, {"a": [1] * 49_000})).status == 200


async def test_the_work_for_a_body_grows_with_its_length(client: Client) -> None:
    """Counted in steps of the interpreter, not in seconds: a long name over a long array was quadratic."""

    def steps(length: int) -> int:
        data, count = {"\U0001f600" * length: ["x"] * length}, 0

        def trace(*_: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        sys.settrace(trace)
        try:
            assert bodies._nul(data) == []
            assert not bodies._too_many(data, 10**6, 10**12)
        finally:
            sys.settrace(None)
        return count

    assert steps(4000) < 4.5 * steps(1000)


async def test_a_body_from_a_caller_who_has_proven_nothing_is_small(serve: Serve) -> None:
    async def take(request: web.Request) -> web.Response:
        return answer({"bytes": len(await raw_body(request))})

    routes = plugin(web.post("/api/public/take", public(take)), web.post("/take", signed_in(take)))
    client = await serve({"public_routes": ["/api/public/take"]}, {"acme": routes})
    assert (await client.post("/api/public/take", data=b"x" * 262_144)).json() == {"bytes": 262_144}
    assert (await client.post("/api/public/take", data=b"x" * 262_145)).status == 413
    assert (await client.post("/take", ALICE, data=b"x" * 262_145)).status == 200

    async def slowly() -> Any:
        for _ in range(5):
            yield b"x" * 100_000

    assert (await client.post("/api/public/take", data=slowly())).status == 413
