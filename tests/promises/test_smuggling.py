"""What could hide a second request in a first one: lengths, codings and chunks in all combinations, over raw sockets.

The oracle is a strict reading of RFC 9112 6 and 7.1, written here. Whatever it does not take is a 400 and the end of the
connection. Whatever it takes has one end, and the request behind that is answered as itself, or is refused as well. The hidden
request asks for a locked route: were it ever read as a request, there would be an answer more.
"""

import asyncio
import collections
import random
import re
from itertools import product

import pytest
from aiohttp import web
from kits.app import Client, build_app, routes_plugin, serving

from server import public, signed_in

LENGTHS = [
    "{n}", "0{n}", "{n} ", "\t{n}", "+{n}", "-{n}", "0x{n}", "{n}, {n}", "{n},{n}", "{n};", "{n}_0", "{n}.0", "{n}e0", "", " ", "x",
    "18446744073709551616", "99999999999999999999999999", "{n}\x0b", "{n}\x00", '"{n}"', "{n} {n}", "\xa0{n}",
]  # fmt: skip
CODINGS = [
    "chunked", "Chunked", " chunked ", "CHUNKED\t", "chunked, chunked", "identity", "gzip, chunked", "chunked, identity", "chunked, gzip", "xchunked",
    "chunkedx", "\x0bchunked", "chunked\x0b", "chunked;q=1", '"chunked"', "'chunked'", "chunked\x00", "", ",", ", chunked", "chunked,", "chu\tnked", "chunked\r\n ", "\xa0chunked",
    "cow", "deflate",
]  # fmt: skip
LINES = ["Content-Length: {l}", "content-length:{l}", "Content-Length : {l}", "Content-Length\t: {l}", "X: 1\nContent-Length: {l}",
         "X: 1\rContent-Length: {l}", " Content-Length: {l}", "Content-Length\x00: {l}", "Content-Length: {l}\r\nContent-Length: {l}",
         "Content-Length: {l}\r\nContent-Length: 0"]  # fmt: skip
CHUNKS = [
    b"4\r\nabcd\r\n0\r\n\r\n", b"04\r\nabcd\r\n0\r\n\r\n", b"4;x=1\r\nabcd\r\n0\r\n\r\n", b"4\r\nabcd\r\n0\r\nX-Trailer: 1\r\n\r\n", b"0\r\n\r\n",
    b"0x4\r\nabcd\r\n0\r\n\r\n", b"+4\r\nabcd\r\n0\r\n\r\n", b"-4\r\nabcd\r\n0\r\n\r\n", b" 4\r\nabcd\r\n0\r\n\r\n", b"4\nabcd\n0\n\n", b"4\r\nabcd\n0\r\n\r\n",
    b"4\r\nabcd0\r\n\r\n", b"4\r\nabcdX\r\n0\r\n\r\n", b"4\rabcd\r\n0\r\n\r\n", b"4_0\r\nabcd\r\n0\r\n\r\n", b"\r\n4\r\nabcd\r\n0\r\n\r\n", b"4,4\r\nabcd\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nabcd\r\n0\r\n\r\n", b"10000000000000004\r\nabcd\r\n0\r\n\r\n", b"4;\n\r\nabcd\r\n0\r\n\r\n", b"4;a=\x00\r\nabcd\r\n0\r\n\r\n", b"g\r\nabcd\r\n0\r\n\r\n",
    b"4\r\nabcd\r\n0\r\nX: 1\n\r\n\r\n", b"4\r\nabcd\r\n\x000\r\n\r\n",
]  # fmt: skip
HIDDEN = b"GET /api/locked HTTP/1.1\r\nHost: localhost\r\n\r\n"
NEXT = b"GET /api/next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

def body_of(chunks: bytes) -> bytes | None:
    """The body that these chunks are, trailers dropped (RFC 9112 7.1); None where they are none."""
    body = b""
    while head := re.match(rb"([0-9A-Fa-f]{1,15})(?:;[!-~]*)?\r\n", chunks):
        size, chunks = int(head[1], 16), chunks[head.end() :]
        if size == 0:
            return body if re.fullmatch(rb"(?:[A-Za-z-]+: [!-~]*\r\n)*\r\n", chunks) else None
        if chunks[size : size + 2] != b"\r\n":
            return None
        body, chunks = body + chunks[:size], chunks[size + 2 :]
    return None


def coded(coding: str, chunks: bytes) -> int | None:
    """How long the body is that this coding and these chunks give; None where they are to be refused."""
    named = [name.strip(" \t").lower() for name in coding.split(",")]
    named = [name for name in named if name]  # an empty member of a list counts for nothing (RFC 9110 5.6.1.2)
    # What other codings make of the body is not the question here: chunks that come last have an end (RFC 9112 6.3).
    body = body_of(chunks) if named.count("chunked") == 1 and named[-1] == "chunked" else None
    return None if body is None else len(body)


def measured(line: str, length: str) -> int | None:
    """The same of a length."""
    fine = line in LINES[:2] and re.fullmatch(r"[ \t]*[0-9]{1,18}[ \t]*", length)
    return len(HIDDEN) if fine else None


def corpus() -> list[tuple[bytes, int | None]]:
    """(a request, how many bytes of body it has by a strict reading; None: it must be refused)"""
    lengths = [length.format(n=len(HIDDEN)) for length in LENGTHS]
    made = [(head(line.format(l=length)) + HIDDEN, measured(line, length)) for line, length in product(LINES, lengths)]
    made += [(head(f"Transfer-Encoding: {coding}") + chunks + HIDDEN, None) for coding, chunks in product(CODINGS, CHUNKS) if coded(coding, chunks) is None]
    made += [(head(f"Transfer-Encoding: {coding}") + chunks, coded(coding, chunks)) for coding, chunks in product(CODINGS, CHUNKS) if coded(coding, chunks) is not None]
    for line, length, coding in product(LINES, lengths, CODINGS):
        both = [line.format(l=length), f"Transfer-Encoding: {coding}"]
        made += [(head(*order) + chunks + HIDDEN, None) for order in (both, both[::-1]) for chunks in (CHUNKS[0], CHUNKS[4])]
    return made


def head(*lines: str) -> bytes:
    return ("\r\n".join(("POST /api/echo HTTP/1.1", "Host: localhost", *lines)) + "\r\n\r\n").encode("latin-1")


async def echo(request: web.Request) -> web.Response:
    return web.json_response({"length": len(await request.read())})


async def after(request: web.Request) -> web.Response:
    return web.json_response({"next": True})


async def answers(port: int, raw: bytes) -> list[tuple[int, dict]]:
    """All that comes back, until the server hangs up."""
    got = []
    async with Client(port) as client:
        await client.send(raw)
        try:
            while True:
                reply = await client.reply(timeout=10)
                got.append((reply.status, reply.json))
        except (asyncio.IncompleteReadError, ConnectionError):
            return got


REFUSED = [(400, {"error": "Bad Request"})]
LOCKED = (401, {"error": "Unauthorized", "reason": "credential-missing"})


async def search(cases: list[tuple[bytes, int | None]]) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    routes = routes_plugin(web.post("/api/echo", public(echo)), web.get("/api/next", public(after)), web.get("/api/locked", signed_in(after)))
    waiting = iter(cases)

    async def drive(port: int) -> None:
        for raw, length in waiting:
            got = await answers(port, raw + NEXT)
            if got == REFUSED:  # stricter than we need is fine
                counts["refused"] += 1
            else:
                assert got == [(200, {"length": length}), (200, {"next": True})], (raw, got)
                counts["taken"] += 1
            # The same where nobody reads the body: it must not become the next request either.
            got = await answers(port, raw.replace(b"/api/echo", b"/api/locked", 1) + NEXT)
            if length is None:
                assert got in (REFUSED, [LOCKED]), (raw, got)
            else:
                assert got in (REFUSED, [LOCKED], [LOCKED, (200, {"next": True})]), (raw, got)

    async with serving(build_app({"probe": routes}, public_routes=["/api/echo", "/api/next"])) as port:
        await asyncio.gather(*(drive(port) for _ in range(8)))
    return counts


async def test_a_request_has_one_end_or_none() -> None:
    everything = corpus()
    some = [case for case in everything if case[1] is not None] + random.Random(1).sample(everything, 1_000)
    counts = await search(some)
    assert counts["taken"] >= 15
    assert counts["refused"] >= 900


@pytest.mark.long
async def test_a_request_has_one_end_or_none_in_every_combination() -> None:
    counts = await search(corpus())
    print(f"drill: smuggling: {sum(counts.values())} requests, {counts['refused']} refused and hung up on, {counts['taken']} read as the strict reading does")
    assert counts["refused"] > 10_000
