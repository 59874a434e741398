"""`body_stream`: a body piece by piece, within the limits, and never held whole."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.app import build_app, routes_plugin

from server import answer, body, body_stream, describe, limited, public, raw_body, signed_in
from server.openapi.document import DOCUMENT
from tests.conftest import ALICE, Client, Serve, plugin

PATTERNS = ["/api/webhooks(.*)", "/api/health", "/api/public(.*)", "/open(.*)"]
BYTES = {"Content-Type": "application/octet-stream"}
LARGEST: list[int] = []
routes = web.RouteTableDef()


async def digest(request: web.Request) -> web.Response:
    """What came, as (bytes, SHA-256); notes the largest piece."""
    number, sha = 0, hashlib.sha256()
    async for piece in body_stream(request):
        number += len(piece)
        sha.update(piece)
        LARGEST.append(len(piece))
    return answer({"bytes": number, "sha256": sha.hexdigest()})


@routes.put("/files")
@signed_in
@limited(body_bytes=50_000_000, body_seconds=120)
async def put_file(request: web.Request) -> web.Response:
    return await digest(request)


@routes.put("/timed")
@signed_in
@limited(body_seconds=1)
async def timed(request: web.Request) -> web.Response:
    return await digest(request)


@routes.put("/usual")
@signed_in
async def usual(request: web.Request) -> web.Response:
    return await digest(request)


@routes.put("/open/usual")
@public
async def open_usual(request: web.Request) -> web.Response:
    return await digest(request)


@routes.post("/images")
@signed_in
@limited(body_bytes=2_000_000)
@describe(body_stream=["image/*", "text/csv"], answers={200: dict[str, Any]})
async def post_image(request: web.Request) -> web.Response:
    return await digest(request)


@routes.post("/undescribed")
@signed_in
async def undescribed(request: web.Request) -> web.Response:
    return await digest(request)


@routes.post("/misdescribed")
@signed_in
@describe(body=dict[str, str], returns=dict[str, str])
async def misdescribed(request: web.Request) -> web.Response:
    return await digest(request)


@routes.put("/slowly")
@signed_in
@limited(body_seconds=0.4)
async def slowly(request: web.Request) -> web.Response:
    async for _ in body_stream(request):
        await asyncio.sleep(0.3)
    return answer({})


@routes.put("/twice/{how}")
@signed_in
async def twice(request: web.Request) -> web.Response:
    read = {"raw": raw_body, "stream": digest, "json": lambda request: body(request, dict[str, str])}
    first, _, second = request.match_info["how"].partition("-")
    await read[first](request)  # type: ignore[operator]
    got = await read[second](request)  # type: ignore[operator]
    return got if isinstance(got, web.Response) else answer({"bytes": len(got)})


@routes.put("/partly")
@signed_in
async def partly(request: web.Request) -> web.Response:
    async for _ in body_stream(request):
        return answer({"enough": True})
    return answer({"enough": False})


@pytest.fixture
async def acme(serve: Serve) -> Client:
    LARGEST.clear()
    return await serve({"public_routes": PATTERNS}, extra={"acme": plugin(*routes)})


async def pieces(size: int, of: int = 65_536) -> AsyncIterator[bytes]:
    for at in range(0, size, of):
        yield b"x" * min(of, size - at)


def told(size: int) -> dict[str, Any]:
    return {"bytes": size, "sha256": hashlib.sha256(b"x" * size).hexdigest()}


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
async def test_a_body_arrives_whole(acme: Client, size: int) -> None:
    for data in (io.BytesIO(b"x" * size), pieces(size)):
        got = await acme.send("PUT", "/files", {**ALICE, **BYTES}, data=data)
        assert (got.status, got.json()) == (200, told(size))


async def test_a_large_upload_is_not_held(acme: Client) -> None:
    tracemalloc.start()
    try:
        got = await acme.send("PUT", "/files", {**ALICE, **BYTES}, data=pieces(40_000_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (got.status, got.json()["bytes"]) == (200, 40_000_000)
    assert peak < 8_000_000
    assert max(LARGEST) < 1_000_000


@pytest.mark.parametrize(
    ("path", "caller", "limit"),
    [("/usual", ALICE, 1_048_576), ("/open/usual", {}, 262_144), ("/files", ALICE, 50_000_000)],
)
async def test_a_body_over_the_limit_is_a_413(acme: Client, path: str, caller: dict[str, str], limit: int) -> None:
    if limit < 2_000_000:
        assert (await acme.send("PUT", path, {**caller, **BYTES}, data=b"x" * limit)).status == 200
        assert (await acme.send("PUT", path, {**caller, **BYTES}, data=pieces(limit + 1))).status == 413
    async with acme.wire() as wire:
        await wire.send(f"PUT {path}", {**caller, **BYTES, "Content-Length": str(limit + 1)})
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) == (413, "close")


async def test_what_the_head_says_of_the_body(acme: Client) -> None:
    async with acme.wire() as wire:
        await wire.send("PUT /usual", {**ALICE, **BYTES})
        assert (await wire.answer())[0] == 411
    got = await acme.send("PUT", "/usual", {**ALICE, **BYTES, "Content-Encoding": "gzip"}, data=b"x")
    assert got.status == 415
    async with acme.wire() as wire:
        await wire.send("PUT /usual", {**ALICE, **BYTES, "Content-Length": "3", "Expect": "100-continue"})
        assert (await wire.reader.readline()).startswith(b"HTTP/1.1 100")
        await wire.reader.readline()
        wire.writer.write(b"xxx")
        status, _, raw = await wire.answer()
        assert (status, json.loads(raw)["bytes"]) == (200, 3)


async def test_a_client_that_stops_sending_is_a_408_and_a_slow_handler_is_not(acme: Client) -> None:
    async with acme.wire() as wire:
        await wire.send("PUT /timed", {**ALICE, **BYTES, "Content-Length": "10"}, body=b"x")
        status, headers, _ = await wire.answer(4)
        assert (status, headers["connection"]) == (408, "close")
    async with acme.wire() as wire:  # drop by drop: the time of all waits counts, not that of each
        await wire.send("PUT /timed", {**ALICE, **BYTES, "Content-Length": "100"})
        for _ in range(6):
            wire.writer.write(b"x")
            await asyncio.sleep(0.3)
        assert (await wire.answer(4))[0] == 408
    async with acme.wire() as wire:
        await wire.send("PUT /slowly", {**ALICE, **BYTES, "Content-Length": "4"}, body=b"x")
        for _ in range(3):
            await asyncio.sleep(0.31)
            wire.writer.write(b"x")
        assert (await wire.answer(4))[0] == 200


async def test_a_body_that_breaks_off_or_is_no_body(acme: Client, caplog: pytest.LogCaptureFixture) -> None:
    async with acme.wire() as wire:
        await wire.send("PUT /usual", {**ALICE, **BYTES, "Transfer-Encoding": "chunked"}, body=b"3\r\nxxx\r\nnonsense\r\n")
        assert (await wire.answer())[0] == 400
    async with acme.wire() as wire:
        await wire.send("PUT /files", {**ALICE, **BYTES, "Content-Length": "10"}, body=b"x")
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.3)
    assert (await acme.get("/api/me", ALICE)).status == 200
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_the_described_content_types_are_the_only_ones(acme: Client) -> None:
    for kind, status in {"image/png": 200, "image/svg+xml": 200, "IMAGE/PNG; a=b": 200, "text/csv": 200, "text/plain": 415, "application/json": 415,
                         "images/png": 415, "": 415}.items():  # fmt: skip
        got = await acme.send("POST", "/images", {**ALICE, "Content-Type": kind}, data=b"x")
        assert got.status == status, kind
    assert (await acme.send("POST", "/misdescribed", {**ALICE, **BYTES}, data=b"x")).status == 500


async def test_an_idempotency_key_is_refused(acme: Client) -> None:
    for path in ("/images", "/undescribed"):
        got = await acme.send("POST", path, {**ALICE, "Content-Type": "image/png", "Idempotency-Key": "k"}, data=b"x")
        assert (got.status, got.json()["reason"]) == (400, "idempotency-key-unsupported")
    async with acme.wire() as wire:  # before the body is read
        await wire.send("POST /images", {**ALICE, "Content-Type": "image/png", "Idempotency-Key": "k", "Content-Length": "1000000"})
        assert (await wire.answer())[0] == 400


@pytest.mark.parametrize(("how", "status"), [("raw-stream", 200), ("stream-raw", 500), ("stream-stream", 500), ("stream-json", 500)])
async def test_a_body_is_read_once(acme: Client, how: str, status: int) -> None:
    kind = {"Content-Type": "application/json"}
    assert (await acme.send("PUT", f"/twice/{how}", {**ALICE, **kind}, data=b"x" * 10)).status == status


async def test_a_handler_may_stop_reading(acme: Client) -> None:
    got = await acme.send("PUT", "/partly", {**ALICE, **BYTES}, data=b"x" * 500_000)
    assert (got.status, got.json()) == (200, {"enough": True})
    assert (await acme.get("/api/me", ALICE)).status == 200


def test_the_document() -> None:
    document = json.loads(build_app({"acme": routes_plugin(*routes)}, public_routes=PATTERNS)[DOCUMENT].json)
    made = document["paths"]["/images"]["post"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    assert made["requestBody"] == {"required": True, "content": {"image/*": binary, "text/csv": binary}}
    assert {"408", "411", "413", "415"} <= set(made["responses"])
    assert "parameters" not in made, "no Idempotency-Key"
    assert made["x-gatepost-limits"] == {"body_bytes": 2_000_000}


@pytest.mark.parametrize("wrong", ["png", "Image/PNG", "image/png; q=1", "", "*/png", ["image/png", 3], "image"])
def test_a_wrong_content_type_is_found_at_import(wrong: Any) -> None:
    with pytest.raises(TypeError, match="body_stream"):
        describe(body_stream=wrong)


def test_a_body_is_taken_one_way() -> None:
    with pytest.raises(TypeError, match="not both"):
        describe(body=dict, body_stream="image/png")
