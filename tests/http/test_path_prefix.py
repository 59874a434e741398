"""An API below a path: requests below it are served, URLs in responses have it, and nothing else is opened."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kits.app import Client, ask, build_app, routes_plugin, serving, stub

from server import answer, event_stream, public, signed_in
from server.settings.setting import ConfigError

PREFIX = "/gatepost"
LINK = '</api/x?page=2>; rel="next", <https://other.example/a>; rel="help", <//cdn.example/a>; rel="x", <?page=3>; rel="last"'
LINKED = '</gatepost/api/x?page=2>; rel="next", <https://other.example/a>; rel="help", <//cdn.example/a>; rel="x", <?page=3>; rel="last"'


@signed_in
async def made(request: web.Request) -> web.StreamResponse:
    """The response that the client asks for, made in one of the ways there are."""
    way, headers = json.loads(request.headers["X-Make"])
    if way == 0:
        return answer({}, 201, headers)
    if way == 1:
        return answer({}, 201, {**headers, "Content-Type": "application/x"})
    if way == 2:
        return answer({}, 201, {name.lower(): value for name, value in headers.items()})
    if way == 3:
        return web.Response(status=201, headers=headers)
    if way == 4:
        raise web.HTTPCreated(headers=headers)
    response = web.StreamResponse(status=201, headers=headers)
    response.content_length = 2
    await response.prepare(request)
    await response.write(b"{}")
    await response.write_eof()
    return response


@signed_in
async def seen(request: web.Request) -> web.Response:
    return answer({"path": request.path, "raw": request.raw_path, "url": str(request.rel_url), "tail": request.match_info.get("tail")})


@signed_in
async def events(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send("x")
    return stream.response


async def opened(request: web.Request) -> web.Response:
    return answer({"open": request.path})


ROUTES = routes_plugin(
    web.post("/api/made", made), web.get("/api/seen", seen), web.get("/api/events", events), web.get("/api/open/{tail:.*}", public(opened)),
    web.get("/{tail:.*}", seen),
)  # fmt: skip


def app(**given: Any) -> web.Application:
    return build_app({"acme": ROUTES}, **{"path_prefix": PREFIX, "public_routes": ["/api/health", "/api/public(.*)", "/api/open/(.*)"], **given})


@pytest.fixture
async def kept() -> AsyncIterator[int]:
    """A server whose proxy passes the prefix on."""
    async with serving(app(strip_path_prefix=True)) as port:
        yield port


@pytest.mark.parametrize(("strip", "below"), [(False, ""), (True, PREFIX)])
async def test_what_responses_name_is_below_the_prefix(strip: bool, below: str) -> None:
    async with serving(app(strip_path_prefix=strip)) as port, Client(port) as client:
        for way in range(6):
            for given, told in (
                ("/api/x/1", "/gatepost/api/x/1"), ("/", "/gatepost/"), ("//evil.example/a", "//evil.example/a"),
                ("https://a.example/b", "https://a.example/b"), ("x/1", "x/1"), ("?a", "?a"),
            ):  # fmt: skip
                said = ("X-Make", json.dumps([way, {"Location": given, "Content-Location": given, "Link": LINK, "X-Own": "/api/x"}]))
                reply = await client.ask("POST", f"{below}/api/made", [("Host", "localhost"), said, stub()])
                assert reply.status == 201
                assert (reply.headers["location"], reply.headers["content-location"]) == (told, told), (way, given)
                assert (reply.headers["link"], reply.headers["x-own"]) == (LINKED, "/api/x")
                assert reply.raw.lower().count(b"location: ") == 2
        document = (await ask(port, "GET", f"{below}/api/public/openapi.json")).json
        assert document["servers"] == [{"url": PREFIX}]
        assert "/api/seen" in document["paths"]


async def test_without_a_prefix_nothing_is_changed() -> None:
    async with serving(app(path_prefix=None)) as port:
        said = ("X-Make", json.dumps([0, {"Location": "/api/x", "Link": LINK}]))
        reply = await ask(port, "POST", "/api/made", said, stub())
        assert (reply.headers["location"], reply.headers["link"]) == ("/api/x", LINK)


async def test_the_prefix_is_removed_once(kept: int) -> None:
    for target, path, raw in (
        ("/gatepost/api/seen", "/api/seen", "/api/seen"), ("/gatepost/api/seen?a=%2F&b=/gatepost", "/api/seen", "/api/seen?a=%2F&b=/gatepost"),
        ("/gatepost", "/", "/"), ("/gatepost/", "/", "/"), ("/gatepost?a=1", "/", "/?a=1"), ("/gatepost/gatepost/api/seen", "/gatepost/api/seen", "/gatepost/api/seen"),
        ("/gatepost/%61", "/a", "/%61"), ("/gatepost//api/seen", "//api/seen", "//api/seen"), ("http://localhost/gatepost/api/seen?a", "/api/seen", "/api/seen?a"),
        ("/gatepost/gatepostx", "/gatepostx", "/gatepostx"), ("/gatepost/api/seen?", "/api/seen", "/api/seen?"),
    ):  # fmt: skip
        reply = await ask(kept, "GET", target, stub())
        assert (reply.status, reply.json["path"], reply.json["raw"]) == (200, path, raw), target


OUTSIDE = [
    "/api/seen", "/api/health", "/api/open/x", "/", "/gatepostx", "/gatepostx/api/seen", "/gatepost;a/api/seen", "/GATEPOST/api/seen",
    "/g%61tepost/api/seen", "//gatepost/api/seen", "/x/gatepost/api/seen", "/api/open/gatepost/api/open/x", "http://localhost/api/open/x",
    "/api/public/openapi.json", "/.well-known/oauth-protected-resource",
]  # fmt: skip


@pytest.mark.parametrize("target", OUTSIDE)
async def test_what_is_not_below_it_is_an_unknown_path(kept: int, target: str) -> None:
    """Neither public routes nor a template for any path match it: a proxy's own rules for paths would be passed by."""
    assert (await ask(kept, "GET", target)).status == 401
    if not target.startswith("/.well-known"):  # which is passed on as it is, and here a template takes it
        known = await ask(kept, "GET", target, stub())
        assert (known.status, known.json) == (404, {"error": "Not Found"})


MALFORMED = [
    "/gatepost/../api/open/x", "/gatepost/%2e%2e/api/open/x", "/gatepost/api/open/..%2fx", "/gatepost/a#b", "/gatepost/%zz", "/gatepost\\api",
    "/gatepost/\x80", "/x/../gatepost/api/open/x", "/./gatepost/api/open/x", "http://a@b/gatepost/api/open/x", "/gatepost/%00", "/gatepost/./api/open/x", "*",
]  # fmt: skip


@pytest.mark.parametrize("target", MALFORMED)
async def test_a_malformed_target_is_a_400_as_without_a_prefix(kept: int, target: str) -> None:
    for credential in ([], [stub()]):
        reply = await ask(kept, "OPTIONS" if target == "*" else "GET", target, *credential)
        assert (reply.status, reply.json) == (400, {"error": "Bad Request"})


async def test_the_public_list_sees_the_route_alone(kept: int) -> None:
    """Two keys, and a template: `/api/open/` behind the prefix is open, a path that only looks like it is not."""
    assert (await ask(kept, "GET", "/gatepost/api/open/x")).json == {"open": "/api/open/x"}
    for target in ("/gatepost/gatepost/api/open/x", "/gatepost/api/openx", "/gatepost/api/seen?/api/open/x", "/gatepost/api/seen;/api/open/x"):
        assert (await ask(kept, "GET", target)).status == 401, target
    with pytest.raises(ConfigError, match="covers no route"):
        build_app({"acme": routes_plugin(web.get("/api/open", public(opened)))}, path_prefix=PREFIX, public_routes=["/gatepost/api/open"])


@pytest.mark.parametrize("strip", [False, True])
async def test_no_header_decides_the_prefix(strip: bool) -> None:
    """Nor anything else: `Host` and what proxies say about the original request are a client's words."""
    claims = [("X-Forwarded-Prefix", "/evil"), ("X-Forwarded-Host", "evil.example"), ("X-Original-URL", "/api/open/x"), ("X-Rewrite-URL", "/api/open/x"),
              ("Forwarded", "host=evil.example"), ("X-Forwarded-Uri", "/api/open/x"), ("X-Script-Name", "/evil")]  # fmt: skip
    async with serving(app(strip_path_prefix=strip, trusted_proxies=["127.0.0.1"])) as port:
        below = PREFIX if strip else ""
        assert (await ask(port, "GET", f"{below}/api/seen", *claims, host="evil.example")).status == 401
        reply = await ask(port, "GET", f"{below}/api/public/openapi.json", *claims, host="evil.example")
        assert reply.json["servers"] == [{"url": PREFIX}]
        assert b"evil" not in reply.raw


async def test_preflights_and_head_below_the_prefix(kept: int) -> None:
    asked = [("Origin", "https://a.example"), ("Access-Control-Request-Method", "GET")]
    answers = [await ask(kept, "OPTIONS", target, *asked) for target in ("/gatepost/api/seen", "/gatepost/x", "/api/seen", "/")]
    assert {reply.status for reply in answers} == {204}
    assert (await ask(kept, "HEAD", "/gatepost/api/health")).status == 200
    assert (await ask(kept, "POST", "/gatepost/api/seen", stub())).status == 405


@pytest.mark.parametrize(("strip", "below"), [(False, ""), (True, PREFIX)])
async def test_the_metadata_of_the_resource(strip: bool, below: str) -> None:
    """Its URL has the prefix behind the well-known path (RFC 9728 3.1), so a proxy passes it on as it is."""
    url = f"https://api.example.com{PREFIX}"
    routes = routes_plugin(web.get("/api/seen", seen))
    async with serving(build_app({"acme": routes}, path_prefix=PREFIX, strip_path_prefix=strip, resource__url=url)) as port:
        challenge = (await ask(port, "GET", f"{below}/api/seen")).headers["www-authenticate"]
        known = f"/.well-known/oauth-protected-resource{PREFIX}"
        assert challenge == f'Bearer resource_metadata="https://api.example.com{known}/api/seen"'
        for path in ("", "/api/seen"):
            assert (await ask(port, "GET", known + path)).json["resource"] == url + path
        assert (await ask(port, "GET", "/.well-known/oauth-protected-resource")).json["resource"] == url


@pytest.mark.parametrize(
    ("given", "words"),
    [({"path_prefix": text}, "path_prefix: must be a path") for text in
     ("gatepost", "//gatepost", "/a//b", "/a/../b", "/.", "/a b", "/a?b", "/a%2fb", "/{x}", "https://a.example/x", "/a\n", "/ä", "/a;b", "/" + "a" * 300)]
    + [({"strip_path_prefix": True}, "strip_path_prefix: there is no path_prefix"),
       ({"path_prefix": "/", "strip_path_prefix": True}, "strip_path_prefix: there is no path_prefix"),
       ({"path_prefix": "/a", "resource__url": "https://api.example.com"}, "path_prefix: '/a' is not the path of resource.url"),
       ({"path_prefix": "/a", "resource__url": "https://api.example.com/b"}, "path_prefix: '/a' is not the path of resource.url")],
)  # fmt: skip
def test_a_mistake_prevents_startup(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build_app(**given)
    assert "\n" not in str(caught.value)


def test_a_slash_at_the_end_is_none() -> None:
    build_app(path_prefix="/a/b/", resource__url="https://api.example.com/a/b/")
    build_app(path_prefix="/")
