"""The page of files is true: its plugin is served, with the table of its SQL, and files go in and out whole and in parts."""

from __future__ import annotations

import asyncio
import io
import os
import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kits import ROOT
from kits.pages import blocks

from server import content_disposition, hookimpl
from server.database.scope import DATABASE
from tests.conftest import Client, Serve, TestDatabase, stub

PAGE = "docs/guides/files.md"
NORTH, SOUTH = "/api/orgs/north", "/api/orgs/south"
ALICE, BOB, CAROL = stub("alice", org_id="north"), stub("bob", org_id="north"), stub("carol", org_id="south")
PDF = {"Content-Type": "application/pdf"}
LARGE = os.urandom(1 << 16) * 320  # 20 MiB


@pytest.fixture
async def table(db: TestDatabase) -> AsyncIterator[None]:
    (sql,) = [block.text for block in blocks("sql", page=PAGE)]
    async with db.server.connected(db.server.owner_role, db.name) as owner, owner.transaction():
        await owner.execute(sql)
    yield
    async with db.server.connected(db.server.owner_role, db.name) as owner:
        await owner.execute("DROP TABLE attachments")


@pytest.fixture
async def client(serve: Serve, table: None, tmp_path: Path) -> Client:
    scope: dict[str, Any] = {}
    for block in blocks("python", page=PAGE):
        exec(compile(block.text, PAGE, "exec", dont_inherit=True), scope)
    scope["FOLDER"] = tmp_path
    scope["PAGES"] = tmp_path
    scope["PIECE"] = 1000  # so that a small attachment has several
    return await serve({"public_routes": ["/shop", "/shop/:name"]}, extra={"acme": SimpleNamespace(register_handlers=hookimpl(lambda: scope["routes"], specname="register_handlers"))})


async def test_a_large_file_on_disk(client: Client, tmp_path: Path) -> None:
    path = f"{NORTH}/files/report.pdf"
    tracemalloc.start()
    try:
        assert (await client.send("PUT", path, {**ALICE, **PDF}, data=io.BytesIO(LARGE))).status == 204
        stored = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored < 2 * len(LARGE)  # the test's own client holds it once
    got = await client.get(path, BOB)
    assert (got.status, got.raw, got.headers["Content-Type"]) == (200, LARGE, "application/pdf")
    assert got.headers["Content-Disposition"] == 'attachment; filename="report.pdf"'
    assert got.headers["Cache-Control"] == "private, no-cache"
    part = await client.get(path, {**BOB, "Range": "bytes=1000-1999", "If-Range": got.headers["ETag"]})
    assert (part.status, part.raw) == (206, LARGE[1000:2000])
    assert (await client.get(path, {**BOB, "If-None-Match": got.headers["ETag"]})).status == 304
    assert (await client.get(path, {**BOB, "Range": f"bytes={len(LARGE)}-"})).status == 416
    assert (await client.get(f"{SOUTH}/files/report.pdf", CAROL)).json() == {"error": "Not Found"}
    assert (await client.get(path, CAROL)).status == 403
    assert not [one for one in tmp_path.rglob("*") if one.name.startswith(".")]


async def test_names_are_no_paths(client: Client, tmp_path: Path) -> None:
    (tmp_path.parent / "secret.pdf").write_bytes(b"secret")
    for name in ("..%2fsecret.pdf", "%2e%2e%2fsecret.pdf", "..", "%2e%2e", "..%5csecret.pdf", "a%00.pdf", "..;%2fsecret.pdf"):
        for method in ("GET", "PUT"):
            got = await client.send(method, f"{NORTH}/files/{name}", {**ALICE, **PDF}, data=b"x" if method == "PUT" else None)
            assert got.status == 400, name
    for name in ("...", "a..b", "~root", "C:secret.pdf", "con", "%2B%F0%9F%90%98.PDF", "a b.pdf".replace(" ", "%20"), "x" * 250):
        assert (await client.send("PUT", f"{NORTH}/files/{name}", {**ALICE, **PDF}, data=name.encode())).status == 204
        got = await client.get(f"{NORTH}/files/{name}", ALICE)
        assert (got.status, got.raw) == (200, name.encode())
    assert all(re.fullmatch(r"[0-9a-f]{64}(\.[a-z0-9]+)?", one.name) for one in tmp_path.rglob("*"))


async def test_an_upload_that_ends_early_stores_nothing(client: Client, tmp_path: Path) -> None:
    async with client.wire() as wire:
        await wire.send(f"PUT {NORTH}/files/cut.pdf", ALICE, PDF, {"Content-Length": "1000"}, body=b"x" * 500)
        await asyncio.sleep(0.2)
    for _ in range(50):
        if not [one for one in tmp_path.rglob("*") if one.is_file()]:
            break
        await asyncio.sleep(0.1)
    assert (await client.get(f"{NORTH}/files/cut.pdf", ALICE)).status == 404
    assert (await client.send("PUT", f"{NORTH}/files/a.html", {**ALICE, "Content-Type": "text/html"}, data=b"x")).status == 415
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]


async def attached(client: Client, content: bytes, name: str = "a.pdf") -> str:
    got = await client.send("POST", f"{NORTH}/attachments?name={name}", {**ALICE, **PDF}, data=io.BytesIO(content))
    assert got.status == 201, got.raw
    return got.headers["Location"]


CONTENT = bytes(range(256)) * 20  # 5120 bytes, in pieces of 1000


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [(None, 200, CONTENT), ("bytes=0-9", 206, CONTENT[:10]), ("bytes=995-2005", 206, CONTENT[995:2006]), ("bytes=-1500", 206, CONTENT[-1500:]),
     ("bytes=5119-", 206, CONTENT[-1:]), ("bytes=0-99999", 200, CONTENT), ("bytes=5120-", 416, None), ("bytes=7-3", 416, None), ("items=0-1", 200, CONTENT)],
)  # fmt: skip
async def test_parts_of_an_attachment(client: Client, wanted: str | None, status: int, part: bytes | None) -> None:
    path = await attached(client, CONTENT)
    got = await client.get(path, BOB | ({} if wanted is None else {"Range": wanted}))
    assert got.status == status
    if part is None:
        assert (got.json(), got.headers["Content-Range"]) == ({"error": "Range Not Satisfiable"}, "bytes */5120")
        return
    assert got.raw == part
    assert (got.headers["Content-Type"], got.headers["Content-Length"]) == ("application/pdf", str(len(part)))
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert ("Content-Range" in got.headers) == (status == 206)
    old = await client.get(path, BOB | {"Range": wanted or "bytes=0-1", "If-Range": '"old"'})
    assert (old.status, old.raw) == (200, CONTENT)
    again = await client.get(path, BOB | {"If-None-Match": got.headers["ETag"]})
    assert (again.status, again.headers["Cache-Control"]) == (304, "private, no-cache")
    head = await client.send("HEAD", path, BOB)
    assert (head.status, head.headers["Content-Length"], head.raw) == (200, "5120", b"")


async def test_an_attachment_is_its_tenants(client: Client) -> None:
    path = await attached(client, CONTENT)
    assert (await client.get(path, CAROL)).status == 403
    assert (await client.get(path.replace("north", "south"), CAROL)).json() == {"error": "Not Found"}
    assert (await client.send("POST", f"{NORTH}/attachments", {**ALICE, **PDF}, data=io.BytesIO(b"x" * 5_000_001))).status == 413


async def test_a_slow_reader_holds_no_connection_and_a_deleted_attachment_ends(client: Client, db: TestDatabase) -> None:
    path = await attached(client, os.urandom(4_900_000))
    async with client.wire() as wire:
        await wire.send(f"GET {path}", ALICE)
        await wire.reader.readuntil(b"\r\n\r\n")
        pool, quiet = client.app[DATABASE].pool, 0
        assert pool is not None
        async with asyncio.timeout(20):
            while quiet < 10:  # nothing is taken: once all buffers are full, the handler waits in write
                await asyncio.sleep(0.05)
                quiet = quiet + 1 if pool.lent == 0 else 0
        await db.rows("DELETE FROM attachments")
        taken = 0
        async with asyncio.timeout(20):
            while part := await wire.reader.read(65536):
                taken += len(part)
    assert taken < 4_900_000


@pytest.mark.parametrize(
    ("name", "value"),
    [("report.pdf", 'attachment; filename="report.pdf"'), ('a"b\\c.pdf', 'attachment; filename="a_b_c.pdf"; filename*=UTF-8\'\'a%22b_c.pdf'),
     ("M\u00e4rz \u2603.pdf", "attachment; filename=\"M_rz _.pdf\"; filename*=UTF-8''M%C3%A4rz%20%E2%98%83.pdf"),
     ("a\r\nSet-Cookie: x=1", 'attachment; filename="a__Set-Cookie: x=1"'), ("../../etc/passwd", 'attachment; filename="_.._etc_passwd"'),
     ("", 'attachment; filename="file"'), ("...", 'attachment; filename="file"'), ("a\u202efdp.exe", 'attachment; filename="a_fdp.exe"'),
     ("\ud800.pdf", 'attachment; filename="_.pdf"'), ("x" * 1000, f'attachment; filename="{"x" * 200}"')],
)  # fmt: skip
def test_any_name_makes_a_header(name: str, value: str) -> None:
    assert content_disposition(name) == value
    assert content_disposition(name, inline=True) == value.replace("attachment", "inline")


async def test_a_name_with_quotes_and_letters_comes_back(client: Client) -> None:
    path = await attached(client, b"x", "Angebot%20%22M%C3%A4rz%22.pdf")
    said = (await client.get(path, BOB)).headers["Content-Disposition"]
    assert said == "attachment; filename=\"Angebot _M_rz_.pdf\"; filename*=UTF-8''Angebot%20%22M%C3%A4rz%22.pdf"
    assert said in (ROOT / PAGE).read_text("utf-8")


async def test_a_public_page_with_its_files(client: Client, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<!doctype html><link rel="stylesheet" href="/shop/shop.css">')
    (tmp_path / "shop.css").write_text("body {}")
    (tmp_path / "secret.txt").write_text("secret")
    page, css = await client.get("/shop"), await client.get("/shop/shop.css")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html")
    assert "style-src 'self'" in page.headers["Content-Security-Policy"]
    assert (css.status, css.headers["Content-Type"], css.headers["Cache-Control"]) == (200, "text/css", "public, max-age=3600")
    for name in ("secret.txt", "index.html", "none.css", "..%2fsecret.txt"):
        assert (await client.get(f"/shop/{name}")).status in (400, 404)
