"""Growing traffic and growing configurations: routes, patterns, tokens, connections, neighbours. Part of scale.py."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from book import Book
from growth import CALLERS
from issuer import request
from machine import Child
from stage import FAR, fill

_HEAVY = 500_000
"""The number of the heavy tenant."""
# A product's routes, as many as BENCH_ROUTES says, four ways.
_PLUGIN = """
import os
from aiohttp import web
from server import answer, hookimpl, public, signed_in

async def here(request):
    return answer('{"ok": true}')

def copy(declare):
    async def one(request):
        return await here(request)
    return declare(one)

@hookimpl
def register_handlers():
    for n in range(int(os.environ["BENCH_ROUTES"])):
        yield web.get(f"/api/plain{n}", copy(signed_in))
        yield web.get(f"/api/own{n}/{{id}}", copy(signed_in))
        if os.environ["BENCH_SHARED"]:
            yield web.get(f"/api/shared/{{id}}/part{n}", copy(signed_in))
        if os.environ["BENCH_OPEN"]:
            yield web.get(f"/api/open{n}", copy(public))
"""


def routes(book: Book) -> None:
    """The last of many routes: without parameters, with one below a first word of its own, with one below a shared word."""
    stage, found = book.stage, {"plain": [], "own": [], "shared": []}  # type: ignore[var-annotated]
    for size in book.sizes(book.args.most_routes):
        last = size - 1
        with _product(book, size, shared=True) as child:
            measures = []
            for path in (f"/api/plain{last}", f"/api/own{last}/x", f"/api/shared/x/part{last}"):
                sent = [request(path, stage.issuer.token(1))]
                stage.load(child, sent, count=200)
                measures.append(partial(stage.measure, child, sent, seconds=book.args.seconds))
            for name, point in zip(found, book.point(size, *measures), strict=True):
                found[name].append(point)
    book.write("The last of many routes without parameters", "routes", found["plain"])
    book.write("… with a parameter, each below a word of its own (`/api/orders/{id}`)", "routes", found["own"])
    book.write(
        "… all below the same parameter (`/api/shops/{id}/orders`)",
        "routes",
        found["shared"],
    )


def patterns(book: Book) -> None:
    """Public routes, each opened by a pattern of its own."""
    stage, opened, locked = book.stage, [], []
    for size in book.sizes(book.args.most_routes):
        public = ["/api/health", *(f"/api/open{n}" for n in range(size))]
        with _product(book, size, open=True, settings={"public_routes": public}) as child:
            sent = ([request(f"/api/open{size - 1}")], [request("/api/me", stage.issuer.token(1))])
            for one in sent:
                stage.load(child, one, count=200)
            points = book.point(size, *(partial(stage.measure, child, one, seconds=book.args.seconds) for one in sent))
            opened.append(points[0])
            locked.append(points[1])
    book.write("The last of many public routes", "public patterns", opened)
    book.write("A locked route beside them (`GET /api/me`)", "public patterns", locked)


def _product(
    book: Book, size: int, *, shared: bool = False, open: bool = False, settings: dict[str, Any] | None = None
) -> AbstractContextManager[Child]:
    (book.stage.folder / "bench_product.py").write_text(_PLUGIN)
    env = {
        "PYTHONPATH": str(book.stage.folder),
        "BENCH_ROUTES": str(size),
        "BENCH_SHARED": "1" * shared,
        "BENCH_OPEN": "1" * open,
    }
    return book.stage.gatepost({"plugins": ["module:bench_product"], **(settings or {})}, env=env)


def tokens(book: Book) -> None:
    """Hot and cold: few tokens in turn, many, and more than are remembered."""
    stage, most = book.stage, book.args.most_tokens
    signed = [stage.issuer.token(n % 1000) for n in range(most + most // 5)]
    with stage.gatepost() as child:

        def of(number: int) -> Callable[[], dict[str, float]]:
            sent = [request("/api/me", token) for token in signed[:number]]

            def measure() -> dict[str, float]:
                stage.load(child, sent, count=len(sent))  # the others have put them out
                return stage.measure(child, sent, seconds=book.args.seconds)

            return measure

        points = book.together({size: of(size) for size in [1, *book.sizes(most)]})
        beyond = book.together({most: of(most), len(signed): of(len(signed))})
    book.write("`GET /api/me` with tokens in turn, all of them remembered", "tokens", points)
    book.write(
        "… and with more than are remembered", "tokens", beyond, word="a step, where each token is verified anew each time"
    )


def connections(book: Book) -> None:
    """One connection and many."""
    stage, most = book.stage, book.args.most_connections
    fill(stage, CALLERS, 20)
    sent = [request("/api/data?limit=20", stage.issuer.token(n)) for n in range(CALLERS)]
    with stage.gatepost() as child:
        stage.load(child, sent, count=1000)
        numbers = [number for number in (1, 8, 32, 100, 200, 500) if number <= most]
        measures = {
            number: partial(stage.measure, child, sent, seconds=book.args.seconds, connections=number) for number in numbers
        }
        points = book.together(measures)
    book.write("`GET /api/data` of 20 rows", "connections", points)


def neighbours(book: Book) -> list[dict[str, Any]]:
    """How long the others wait alone, beside many slow clients, and beside one heavy tenant."""
    stage, args = book.stage, book.args
    fill(stage, CALLERS, 20)
    asyncio.run(stage.postgres.fill(1, min(args.most, 100_000), _HEAVY, (stage.postgres.locked,)))
    sent = [request("/api/data?limit=20", stage.issuer.token(n)) for n in range(CALLERS)]
    heavy = [request("/api/data?limit=200", stage.issuer.token(_HEAVY))]
    head = [request("/api/data", stage.issuer.token(1))]
    found = []

    def others(child: Child, beside: str) -> None:
        got = stage.load(child, sent, seconds=2 * args.seconds, rate=args.others_rate)
        found.append({"beside": beside, "p50_ms": got["p50"] * 1e3, "p99_ms": got["p99"] * 1e3, "bad": got["bad"]})

    with stage.gatepost() as child:
        stage.load(child, sent, count=1000)
        others(child, "nobody")
        with _beside(book, child, head, connections=args.slow_clients, drip=True):
            others(child, f"{args.slow_clients} clients whose heads never end")
        with _beside(book, child, heavy, connections=16):
            others(child, "a tenant with 16 connections, 200 rows a time, without pause")
    if FAR:
        with stage.gatepost({"limits.caller": "600/minute"}) as child:
            stage.load(child, sent, count=CALLERS)
            with _beside(book, child, heavy, connections=16):
                others(child, "the same tenant, held to 600 requests a minute")
    return found


@contextlib.contextmanager
def _beside(book: Book, child: Child, sent: list[bytes], **job: Any) -> Iterator[None]:
    """Other clients, at work before the block begins."""
    with book.stage.loading(child, sent, seconds=3600.0, **job) as running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(1.0)
            raise RuntimeError("the clients beside have gone away")
        yield
