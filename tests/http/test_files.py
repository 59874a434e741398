"""Files, streams and sockets that handlers send by aiohttp's own classes: every promise about responses holds for them, too."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from kits.app import LOCAL, Client, Reply, ask, build_app, routes_plugin, serving, stub

from server import public, signed_in

PDF = bytes(range(256)) * 1200  # 300 KiB, which is more than one part
ORIGIN = "https://app.example.com"
EVERY = {"vary": "Authorization, Cookie, X-API-Key, Origin", "x-content-type-options": "nosniff", "server": "gatepost",
         "referrer-policy": "no-referrer", "access-control-allow-origin": ORIGIN}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.pdf").write_bytes(PDF)
    (tmp_path / "b.png").write_bytes(b"\x89PNG" + PDF)
    (tmp_path / "c.unknown").write_bytes(b"?")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "d.css").write_bytes(b"plain")
    (tmp_path / "d.css.gz").write_bytes(b"packed")
    (tmp_path / "own").write_text("x")
    return tmp_path


def app_of(folder: Path) -> web.Application:
    async def file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        if name == "own":
            headers |= {"Content-Type": "text/x-own", "Cache-Control": "private, max-age=60"}
        return web.FileResponse(folder / name, headers=headers)

    async def begun(request: web.Request) -> web.StreamResponse:
        response = web.FileResponse(folder / request.query.get("name", "a.pdf"))
        await response.prepare(request)
        return response

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/csv"} if "csv" in request.query else {})
        if "cache" in request.query:
            response.headers["Cache-Control"] = request.query["cache"]
        if "close" in request.query:
            response.force_close()
        if "zip" in request.query:
            response.enable_compression()
        await response.prepare(request)
        for number in range(3):
            await response.write(b"line %d\n" % number)
        await response.write_eof(b"end\n")
        return response

    async def socket(request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            if message.type == WSMsgType.TEXT:
                await response.send_str(message.data.upper())
        return response

    async def fails(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise RuntimeError

    both: list[web.RouteDef] = []
    for prefix, access in (("/x", signed_in), ("/open", public)):
        for path, handler in (("file/{name}", file), ("begun", begun), ("stream", stream), ("socket", socket), ("fails", fails)):
            async def named(request: web.Request, handler: Any = handler) -> web.StreamResponse:
                return await handler(request)  # type: ignore[no-any-return]

            both.append(web.get(f"{prefix}/{path}", access(named)))
    return build_app({"x": routes_plugin(*both)}, public_routes=["/open/(.*)"], handlers=["health"], cors_origins=[ORIGIN], limits__caller="1000/minute")


@pytest.fixture
async def port(folder: Path) -> AsyncIterator[int]:
    async with serving(app_of(folder)) as port:
        yield port


async def get(port: int, path: str, *headers: tuple[str, str], method: str = "GET") -> Reply:
    """One response, and proof that the connection is in order after it."""
    who = [stub()] if path.startswith("/x") else []
    async with Client(port) as client:
        await client.send(f"{method} {path} HTTP/1.1\r\nHost: {LOCAL}\r\nOrigin: {ORIGIN}\r\n".encode()
                          + b"".join(f"{name}: {value}\r\n".encode() for name, value in (*who, *headers)) + b"\r\n")  # fmt: skip
        reply = await client.reply(method)
        if reply.headers.get("transfer-encoding") == "chunked" and method != "HEAD":
            reply.body = await chunks(client)
        if not reply.ends_the_connection:
            assert (await client.ask("GET", "/api/none", [("Host", LOCAL)])).status == 401
        return reply


async def chunks(client: Client) -> bytes:
    body = b""
    assert client.reader is not None
    while size := int(await client.reader.readline(), 16):
        body += await client.reader.readexactly(size)
        await client.reader.readline()
    await client.reader.readline()
    return body


def promised(reply: Reply, path: str, cache: str | None = None) -> None:
    assert {name: reply.headers.get(name) for name in EVERY} == EVERY
    assert len(reply.headers["x-request-id"]) == 24
    expected = cache or ("no-store" if path.startswith("/x") or reply.status >= 400 else None)
    assert reply.headers.get("cache-control") == expected
    assert ("ratelimit" in reply.headers) == path.startswith("/x")
    assert reply.raw.lower().count(b"\r\nserver:") == reply.raw.lower().count(b"\r\nx-request-id:") == 1


TYPES = {"a.pdf": "application/pdf", "b.png": "image/png", "c.unknown": "application/octet-stream", "empty.txt": "text/plain"}


@pytest.mark.parametrize("prefix", ["/x", "/open"])
async def test_a_file_has_its_own_type_and_every_promised_header(port: int, folder: Path, prefix: str) -> None:
    for name, kind in TYPES.items():
        for method in ("GET", "HEAD"):
            reply = await get(port, f"{prefix}/file/{name}", method=method)
            content = (folder / name).read_bytes()
            assert (reply.status, reply.headers["content-type"]) == (200, kind)
            assert reply.body == (content if method == "GET" else b"")
            assert int(reply.headers["content-length"]) == len(content)
            promised(reply, prefix)
    own = await get(port, f"{prefix}/file/own")
    assert own.headers["content-type"] == "text/x-own"
    promised(own, prefix, "private, max-age=60")
    begun = await get(port, f"{prefix}/begun")
    assert (begun.body, begun.headers["content-type"]) == (PDF, "application/pdf")
    promised(begun, prefix)


async def test_a_file_that_its_handler_begins_itself_is_no_exception(port: int) -> None:
    for prefix in ("/x", "/open"):
        reply = await get(port, f"{prefix}/begun?name=none")
        assert (reply.status, reply.json, reply.headers["content-type"]) == (404, {"error": "Not Found"}, "application/json")
        promised(reply, prefix)


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [("bytes=0-9", 206, PDF[:10]), ("bytes=-5", 206, PDF[-5:]), (f"bytes={len(PDF) - 1}-", 206, PDF[-1:]), ("bytes=0-", 206, PDF),
     (f"bytes=0-{len(PDF) * 2}", 206, PDF), (f"bytes={len(PDF)}-", 416, None), ("bytes=9-1", 416, None), ("bytes=a-b", 416, None),
     ("items=0-5", 200, PDF), ("Bytes=0-9", 206, PDF[:10]), ("bytes=-0", 416, None), ("bytes=0-1,4-5", 200, PDF), ("bytes=0-1, -2", 200, PDF)],
)  # fmt: skip
async def test_parts_of_a_file(port: int, wanted: str, status: int, part: bytes | None) -> None:
    for prefix in ("/x", "/open"):
        reply = await get(port, f"{prefix}/file/a.pdf", ("Range", wanted))
        assert reply.status == status
        promised(reply, prefix)
        if part is not None:
            assert (reply.body, reply.headers["content-type"]) == (part, "application/pdf")
            assert reply.headers["accept-ranges"] == "bytes"
        else:
            assert (reply.headers["content-type"], reply.json) == ("application/json", {"error": "Range Not Satisfiable"})
            assert reply.headers["content-range"] == f"bytes */{len(PDF)}"
    head = await get(port, "/x/file/a.pdf", ("Range", "bytes=0-9"), method="HEAD")
    assert (head.status, head.headers["content-length"], head.headers["content-type"]) == (200, str(len(PDF)), "application/pdf")


async def test_a_part_belongs_to_the_version_that_the_client_has(port: int, folder: Path) -> None:
    first = await get(port, "/x/file/a.pdf")
    tag, changed = first.headers["etag"], first.headers["last-modified"]
    for version, status in ((tag, 206), (changed, 206), ('"other"', 200), (f"W/{tag}", 200), ("nonsense", 200), ("Mon, 01 Jan 2001 00:00:00 GMT", 200)):
        reply = await get(port, "/x/file/a.pdf", ("Range", "bytes=0-9"), ("If-Range", version))
        assert (reply.status, reply.body) == (status, PDF[:10] if status == 206 else PDF), version
    (folder / "a.pdf").write_bytes(PDF[::-1])
    os.utime(folder / "a.pdf", (2_000_000_000, 2_000_000_000))
    assert (await get(port, "/x/file/a.pdf", ("Range", "bytes=0-9"), ("If-Range", tag))).body == PDF[::-1]


async def test_a_file_that_the_client_has_is_a_304(port: int) -> None:
    tag = (await get(port, "/x/file/a.pdf")).headers["etag"]
    for prefix in ("/x", "/open"):
        for method in ("GET", "HEAD"):
            reply = await get(port, f"{prefix}/file/a.pdf", ("If-None-Match", tag), method=method)
            assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", tag)
            promised(reply, prefix)
    own = await get(port, "/x/file/own")
    again = await get(port, "/x/file/own", ("If-None-Match", own.headers["etag"]))
    assert (again.status, again.headers["cache-control"]) == (304, "private, max-age=60")


@pytest.mark.parametrize(
    ("name", "headers", "status", "body"),
    [("none.pdf", [], 404, {"error": "Not Found"}), ("..", [], 400, {"error": "Bad Request"}), ("%2e%2e%2fetc", [], 400, {"error": "Bad Request"}),
     ("a.pdf", [("If-Match", '"other"')], 412, {"error": "Precondition Failed"})],
)  # fmt: skip
async def test_an_error_about_a_file_is_json(port: int, name: str, headers: list[tuple[str, str]], status: int, body: Any) -> None:
    for prefix in ("/x", "/open"):
        reply = await get(port, f"{prefix}/file/{name}", *headers)
        assert (reply.status, reply.json, reply.headers["content-type"]) == (status, body, "application/json")
        assert reply.headers["cache-control"] == "no-store"
        assert not {"content-disposition", "etag", "last-modified", "accept-ranges"} & set(reply.headers)
        head = await get(port, f"{prefix}/file/{name}", *headers, method="HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (status, b"", str(len(reply.body)))


async def test_a_compressed_file_keeps_what_it_depends_on(port: int) -> None:
    packed = await get(port, "/open/file/d.css", ("Accept-Encoding", "gzip"))
    assert (packed.body, packed.headers["content-encoding"]) == (b"packed", "gzip")
    assert packed.headers["vary"] == f"{EVERY['vary']}, Accept-Encoding"


@pytest.mark.parametrize("prefix", ["/x", "/open"])
async def test_a_stream_has_every_promised_header(port: int, prefix: str) -> None:
    whole = b"line 0\nline 1\nline 2\nend\n"
    for query, kind in (("", "application/octet-stream"), ("?csv=1", "text/csv")):
        reply = await get(port, f"{prefix}/stream{query}")
        assert (reply.status, reply.body, reply.headers["content-type"]) == (200, whole, kind)
        promised(reply, prefix)
    promised(await get(port, f"{prefix}/stream?cache=private"), prefix, "private")
    public_one = await get(port, f"{prefix}/stream?cache=public")
    promised(public_one, prefix, "public" if prefix == "/open" else "no-store")
    assert (await get(port, f"{prefix}/stream?close=1")).ends_the_connection


async def test_the_head_of_a_stream_has_no_body(port: int) -> None:
    for path in ("/x/stream", "/open/stream", "/open/stream?csv=1", "/open/stream?zip=1"):
        for headers in ([], [("Accept-Encoding", "gzip")]):
            reply = await get(port, path, *headers, method="HEAD")
            assert (reply.status, reply.body) == (200, b"")
            promised(reply, path)


@pytest.mark.parametrize("prefix", ["/x", "/open"])
async def test_a_socket_has_every_promised_header(port: int, prefix: str) -> None:
    wanted = [("Host", LOCAL), ("Origin", ORIGIN), ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
              ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]  # fmt: skip
    async with Client(port) as client:
        await client.send(b"GET %b/socket HTTP/1.1\r\n" % prefix.encode()
                          + b"".join(f"{name}: {value}\r\n".encode() for name, value in (*wanted, stub())) + b"\r\n")  # fmt: skip
        reply = await client.reply()
        assert (reply.status, reply.headers["upgrade"].lower(), reply.headers["connection"].lower()) == (101, "websocket", "upgrade")
        assert "content-type" not in reply.headers
        promised(reply, "/x" if prefix == "/x" else "/open", "no-store")
        await client.send(b"\x81\x82\x00\x00\x00\x00hi")
        assert client.reader is not None
        assert await client.reader.readexactly(4) == b"\x81\x02HI"


async def test_after_the_first_byte_the_only_error_is_closing(port: int, caplog: pytest.LogCaptureFixture) -> None:
    async with Client(port) as client:
        await client.send(b"GET /x/fails HTTP/1.1\r\nHost: localhost\r\n" + f"{stub()[0]}: {stub()[1]}\r\n\r\n".encode())
        reply = await client.reply()
        promised_without_origin = {name: value for name, value in EVERY.items() if not name.startswith("access")}
        assert {name: reply.headers.get(name) for name in promised_without_origin} == promised_without_origin
        rest = b""
        assert client.reader is not None
        while part := await client.reader.read(1000):
            rest += part
        assert rest == b"5\r\nbegun\r\n"


async def test_the_last_response_before_the_end_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from server.app import DISPATCHER

    caplog.set_level(logging.ERROR)
    app = app_of(folder)
    async with serving(app) as port:
        app[DISPATCHER].draining = True
        for path in ("/x/stream", "/x/file/a.pdf"):
            async with asyncio.timeout(5):
                reply = await ask(port, "GET", path, stub())
            assert reply.headers["connection"] == "close"
