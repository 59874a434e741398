"""The short way to a route is the router's way, for every request line: else the gate and `explain` would speak of two routes.

Route tables in random orders, with templates that are easily taken for one another, against targets made by mutation; each
request line is read by the parser that serves. One search uses what the server itself sees (test_public_property).
"""

import asyncio
import os
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser

from server.http.targets import malformed
from server.routing.resolver import Resolver
from tests.promises.test_public_property import mutated

TEMPLATES = [
    "/", "/{tail:.*}", "/{tail:[^/]*}", "/api", "/api/", "/api/{tail:.*}", "/api/{name}", "/api/health", "/api/health/", "/api/health/{tail:.*}",
    "/api/health{tail:.*}", "/api/healthz", "/api/me", "/api//me", "//api/me", "/api/me/{x:.*}", "/api/m{x:.*}", "/api/{x:m.*}", "/api/%6de", "/api/%6De",
    "/api/me?x=1", "/api/me?", "/api/me;a=b", "/api/me%20", "/api/webhooks/", "/api/webhooks/{tail:.*}", "/api/webhooks-open", "/api/open/1", "/api/open/{id}",
    "/api/open/{id:1}", "/API/me", "/api/.well-known", "/api/a:b@c", "/api/~a", "/api/é", "/api/%C3%A9", "/api/data", "/api/data/{id}", "/api/files/{tail:.*}/b",
    "/{a}", "/{a}/{b}", "/{a}/{b}/{c}", "/api/{a}/{b}", "/api/{a}/b", "/api/open/{id}/x", "/api/open/{id}/{x}", "/api/{a}/1", "/api/{id:[^{}/]+}", "/api/{a}/{id}",
    "/api/open/{id}/x/", "/api/open/{id}.json", "/api/data/{id}/{data}", "/api/{a}/{b}/{c}", "/api/{open}/1/x", "/{api}/open/1", "/api/data/{id:\\d+}", "/api/data/..{id}",
    "/api/public", "/api/public/{x:.*}", "/api/public/x", "http", "/..", "/api/./me", "/api/a+b", "/api/[1]", "/unknown", "/metrics", "/api/notes/1",
]  # fmt: skip
WORDS = ["1", "x", "me", "open", "api", "a.b", "a:b", "data", "..", ".", "..x", "%61", "a/b", "1.json", "~", "", "é", "{x}", "a;b", "a%2Fb"]
METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "PURGE"]


async def nothing(request: web.Request) -> web.Response:
    return web.Response()


def table(random_: random.Random) -> web.Application:
    """An application with some of the templates, in any order, each with some methods."""
    app = web.Application()
    for template in random_.sample(TEMPLATES, random_.randint(3, 30)):
        for method in random_.sample(("GET", "HEAD", "POST", "DELETE", "OPTIONS"), random_.randint(1, 4)):
            if template.startswith("/"):
                app.router.add_route(method, template, nothing)
    app.freeze()
    return app


class Parser:
    """Reads request lines as the server's connections do."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.protocol: Any = SimpleNamespace(resume_reading=lambda resume_parser=True: None)

    def request(self, method: str, target: str) -> Any:
        """As much of a request as a router looks at; None where the parser takes no such line."""
        parser = HttpRequestParser(self.protocol, self.loop, 2**16, max_line_size=16384, max_field_size=16384)
        try:
            messages, _, _ = parser.feed_data(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("utf-8", "surrogatepass"))
        except (HttpProcessingError, ValueError, IndexError):  # the last two are the URL parser's
            return None
        if len(messages) != 1:
            return None
        message = messages[0][0]
        url = message.url
        return SimpleNamespace(_message=message, method=message.method, rel_url=url.relative() if url.absolute else url)


async def agree(lookup: Resolver, router: web.UrlDispatcher, request: Any) -> bool:
    """Whether the fast path was taken, and whether it found the same route as the router."""
    short = lookup.at_once(request)
    if short is None:
        return False
    where = (request.method, request._message.path)
    assert not malformed(request._message.path), where
    long = await router.resolve(request)
    assert long.http_exception is None, where
    assert short.route is long.route, (*where, short.route, long.route)
    assert short.http_exception is None
    assert dict(short) == dict(long), where
    assert list(short) == list(long), where
    return True


def filled(random_: random.Random, template: str) -> str:
    """A target that the template may take: words in place of its parameters, now and then a query behind it."""
    path = re.sub(r"\{[^{}]*\}", lambda _: random_.choice(WORDS), template)
    return path + random_.choice(("", "", "", "?", "?a=1", "?a=/b", "?a=%20", "#a"))


async def compare(number: int, seed: int) -> tuple[int, int]:
    """(request lines that the parser took, those that went the short way)"""
    random_, parser = random.Random(seed), Parser()
    read = quick = 0
    while read < number:
        app = table(random_)
        lookup = Resolver(app)
        canonical = [resource.canonical for resource in app.router.resources()]
        for _ in range(100):
            target = filled(random_, random_.choice(canonical)) if random_.random() < 0.6 else mutated(random_)
            if (request := parser.request(random_.choice(METHODS), target)) is not None:
                read += 1
                quick += await agree(lookup, app.router, request)
    return read, quick


async def test_the_short_way_is_the_routers_way() -> None:
    read, quick = await compare(12_000, seed=1)  # OPTIONS never goes the short way
    assert read >= 12_000
    assert quick >= 500, "else nothing was compared"


@pytest.mark.long
async def test_the_short_way_is_the_routers_way_for_many_more() -> None:
    seed = int(os.environ.get("CORPUS_SEED", "2026"))
    read, quick = await compare(320_000, seed)
    print(f"drill: lookup: seed {seed}, {read} request lines, {quick} by the short way, none elsewhere than by the router")
    assert quick >= 15_000


async def test_each_template_that_is_alone_is_found_at_once() -> None:
    """The short way is there for the usual templates: else the tests above compare nothing."""
    plain = ("/api/me", "/api/health", "/api/open/1", "/api/a:b@c", "/api/.well-known")
    for template, target in [
        *((each, each) for each in plain), ("/api/me", "/api/me?limit=10&cursor=a/b"), ("/api/me?y=1", "/api/me"),
        ("/api/shops/{id}", "/api/shops/1"), ("/api/shops/{id}/orders/{order}", "/api/shops/1/orders/2?limit=3"), ("/{a}/{b}", "/x/y"),
    ]:  # fmt: skip
        app = web.Application()
        app.router.add_get(template.partition("?")[0], nothing)
        assert await agree(Resolver(app), app.router, Parser().request("GET", target)), template


async def test_of_many_templates_that_begin_alike_the_routers_is_found() -> None:
    app = web.Application()
    for number in range(300):
        app.router.add_get(f"/api/shops/{{id}}/part{number}", nothing)
    app.router.add_post("/api/shops/{id}/{part}", nothing)
    app.router.add_get("/api/shops/{shop}/{part}", nothing)
    lookup = Resolver(app)
    for method, target in (("GET", "/api/shops/1/part299"), ("POST", "/api/shops/1/part299"), ("GET", "/api/shops/1/other")):
        assert await agree(lookup, app.router, Parser().request(method, target))
    assert not await agree(lookup, app.router, Parser().request("DELETE", "/api/shops/1/part299"))


@pytest.mark.parametrize(
    ("templates", "target"),
    [
        (["/{tail:.*}", "/"], "/"),
        (["/api/x/{tail:.*}", "/api/x/"], "/api/x/"),
        (["/api/%61", "/api/a"], "/api/%61"),
        (["/api/{x}", "/api/{x:.*}"], "/api/a%20b"),
        (["/api/{x:[a-z]+}", "/api/{x}"], "/api/abc"),
        (["/api/{x}.json", "/api/{x}"], "/api/abc.json"),
        (["/{tail:.*}", "/{x}"], "/abc"),
        (["/api/{x}"], "/api/.."),
        (["/api/{x}"], "/api/x/"),
    ],
)
async def test_templates_that_only_look_plain_go_the_long_way(templates: list[str], target: str) -> None:
    app = web.Application()
    for template in templates:
        app.router.add_get(template, nothing)
    assert not await agree(Resolver(app), app.router, Parser().request("GET", target))
