"""What a handler says about caching stays, where no shared cache could give one caller's answer to another."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from aiohttp import web
from kits.app import Reply, ask, build_app, routes_plugin, serving, stub

from server import answer, public, signed_in

OPEN, LOCKED = "/api/x/open", "/api/x/locked"


WAYS = 5


async def made(request: web.Request) -> web.Response:
    """The response that the client asks for, made in one of the ways there are."""
    status, headers, way = json.loads(request.headers["X-Make"])
    if way == 0:
        return answer({"a": 1}, status, headers)
    if way == 1:
        return answer({"a": 1}, status, {**headers, "Content-Type": "application/x"})
    if way == 2:
        return answer({"a": 1}, status, {name.lower(): value for name, value in headers.items()})
    if way == 3:
        return web.Response(status=status, headers=headers, **({} if status == 304 else {"text": "x"}))
    response = answer({"a": 1}, status)
    response.headers.update(headers)
    return response


def app_of(handler: Any) -> web.Application:
    routes = routes_plugin(web.get(OPEN, public(handler)), web.get(LOCKED, signed_in(handler)))
    return build_app({"x": routes}, handlers=["health"], public_routes=["/api/x/open", "/api/health"])


async def replies(status: int, headers: dict[str, str], path: str) -> list[Reply]:
    found = []
    async with serving(app_of(made)) as port:
        for way in range(WAYS):
            for method in ("GET", "HEAD"):
                said = ("X-Make", json.dumps([status, headers, way]))
                found.append(await ask(port, method, path, said, *([stub()] if path == LOCKED else [])))
    assert {reply.status for reply in found} == {status}
    return found


@pytest.mark.parametrize("value", ["no-store", "private, max-age=60", "public, max-age=60, s-maxage=600", "no-cache", "max-age=1"])
async def test_on_a_public_route_what_the_handler_says_stays(value: str) -> None:
    for status in (200, 304, 302):
        assert {reply.headers["cache-control"] for reply in await replies(status, {"Cache-Control": value}, OPEN)} == {value}


@pytest.mark.parametrize(
    "value",
    ["no-store", "private", "private, max-age=60", "PRIVATE, max-age=60", "max-age=60, private", "no-store, private", "no-store, max-age=0",
     "private, no-cache", "private, must-revalidate, max-age=5", "private, must-understand"],
)  # fmt: skip
async def test_on_a_locked_route_private_and_no_store_stay(value: str) -> None:
    for status in (200, 304):
        assert {reply.headers["cache-control"] for reply in await replies(status, {"Cache-Control": value}, LOCKED)} == {value}


@pytest.mark.parametrize(
    "value",
    ["public", "public, max-age=60", "max-age=60", "no-cache", "s-maxage=60", "private, s-maxage=60", "private, public", "no-store, public",
     'private="Set-Cookie", max-age=60', 'x="a, private, b", max-age=60', "privately", "must-understand, no-store, max-age=60", "must-revalidate",
     "immutable, max-age=60", "", " ", ","],
)  # fmt: skip
async def test_on_a_locked_route_anything_else_is_no_store(value: str) -> None:
    for status in (200, 304):
        assert {reply.headers["cache-control"] for reply in await replies(status, {"Cache-Control": value}, LOCKED)} == {"no-store"}


async def test_it_is_logged_once_for_each_route(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        return answer({}, headers={"Cache-Control": "public"})

    async with serving(app_of(handler)) as port:
        for _ in range(3):
            await ask(port, "GET", LOCKED, stub())
            await ask(port, "GET", OPEN)
    (line,) = [record for record in caplog.records if "Cache-Control" in record.getMessage()]
    assert (line.levelno, line.fields) == (logging.WARNING, {"route": LOCKED})  # type: ignore[attr-defined]


async def test_without_a_word_of_the_handler() -> None:
    for status in (200, 304):
        assert {reply.headers.get("cache-control") for reply in await replies(status, {}, OPEN)} == {None}
        assert {reply.headers.get("cache-control") for reply in await replies(status, {}, LOCKED)} == {"no-store"}
    assert {reply.headers.get("cache-control") for reply in await replies(302, {}, OPEN)} == {"no-store"}


@pytest.mark.parametrize("path", [OPEN, LOCKED])
async def test_an_error_is_never_stored(path: str) -> None:
    for value in ("public, max-age=60", "private, max-age=60", "max-age=60"):
        for status in (404, 500):
            headers = {"Cache-Control": value, "CDN-Cache-Control": "max-age=60"}
            found = await replies(status, headers, path)
            assert {reply.headers["cache-control"] for reply in found} == {"no-store"}
            assert not [reply for reply in found if "cdn-cache-control" in reply.headers]


async def test_what_only_shared_caches_obey_is_not_on_a_locked_route() -> None:
    headers = {"CDN-Cache-Control": "max-age=60", "Surrogate-Control": "max-age=60"}
    for reply in await replies(200, headers, LOCKED):
        assert reply.headers["cache-control"] == "no-store"
        assert not {"cdn-cache-control", "surrogate-control"} & set(reply.headers)
    for reply in await replies(200, headers, OPEN):
        assert reply.headers["cdn-cache-control"] == "max-age=60"


async def test_two_lines_are_one_list() -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.Response(text="x")
        response.headers.add("Cache-Control", "private")
        response.headers.add("Cache-Control", "s-maxage=60")
        return response

    async with serving(app_of(handler)) as port:
        assert (await ask(port, "GET", LOCKED, stub())).raw.lower().count(b"cache-control: no-store") == 1


async def test_a_handlers_vary_is_added_to_ours() -> None:
    ours = "Authorization, Cookie, X-API-Key, Origin"
    for value, expected in (("Accept", f"{ours}, Accept"), ("origin, Accept-Language", "Authorization, Cookie, X-API-Key, origin, Accept-Language"), ("*", "*")):
        assert {reply.headers["vary"] for reply in await replies(200, {"Vary": value}, OPEN)} == {expected}


async def test_what_a_known_caller_of_a_public_route_gets_is_never_stored(caplog: pytest.LogCaptureFixture) -> None:
    route = routes_plugin(web.get(OPEN, public(optional=True)(made)))
    async with serving(build_app({"x": route}, handlers=["health"], public_routes=[OPEN])) as port:
        for way in range(WAYS):
            for value in ("public, max-age=60", "private, max-age=60"):
                said = ("X-Make", json.dumps([200, {"Cache-Control": value}, way]))
                assert (await ask(port, "GET", OPEN, said)).headers["cache-control"] == value
                assert (await ask(port, "GET", OPEN, said, stub())).headers["cache-control"] == "no-store"
    assert not [record for record in caplog.records if "Cache-Control" in record.getMessage()]


async def test_health_is_never_stored() -> None:
    async with serving(app_of(made)) as port:
        assert (await ask(port, "GET", "/api/health")).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("way", range(4))
async def test_a_cookie_is_not_kept_for_others(way: int) -> None:
    """A shared cache would give one client's cookie to all (RFC 6265 leaves that to the server); what a handler says stays."""

    async def cookie(request: web.Request) -> web.StreamResponse:
        headers = {"Cache-Control": request.query["cache"]} if "cache" in request.query else {}
        if way == 1:
            return answer({}, headers={**headers, "Set-Cookie": "a=b"})
        response = (answer({}, headers=headers), None, web.Response(headers=headers), web.StreamResponse(headers=headers))[way]
        assert response is not None
        response.set_cookie("a", "b")
        if way == 3:
            response.content_length = 0
            await response.prepare(request)
            await response.write_eof()
        return response

    async with serving(app_of(cookie)) as port:
        for query, told in (("", "no-store"), ("?cache=private,%20max-age=5", "private, max-age=5"), ("?cache=public", "public")):
            reply = await ask(port, "GET", OPEN + query)
            assert (reply.headers["cache-control"], reply.headers["set-cookie"].partition(";")[0]) == (told, "a=b")


OURS = {"X-Request-Id": "theirs", "Server": "theirs/1.0", "X-Content-Type-Options": "none", "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Credentials": "false", "Access-Control-Expose-Headers": "X-Own"}  # fmt: skip


@pytest.mark.parametrize("names", [[name] for name in OURS] + [list(OURS)])
async def test_what_is_the_servers_own_is_on_a_response_once(names: list[str]) -> None:
    """Two `Access-Control-Allow-Origin` are none for a browser, and two request ids name two requests."""
    app = build_app({"x": routes_plugin(web.get(OPEN, public(made)), web.get(LOCKED, signed_in(made)))}, handlers=["health"],
                    public_routes=[OPEN], cors_origins=["https://a.example"])  # fmt: skip
    async with serving(app) as port:
        for way in range(WAYS):
            for path in (OPEN, LOCKED):
                said = ("X-Make", json.dumps([200, {name: OURS[name] for name in names}, way]))
                reply = await ask(port, "GET", path, said, ("Origin", "https://a.example"), *([stub()] if path == LOCKED else []))
                head = reply.raw.partition(b"\r\n\r\n")[0].lower()
                assert [head.count(f"\r\n{name.lower()}: ".encode()) for name in OURS] == [1] * len(OURS), (way, head)
                assert (reply.headers["server"], reply.headers["x-content-type-options"]) == ("gatepost", "nosniff")
                assert (reply.headers["access-control-allow-origin"], reply.headers["access-control-allow-credentials"]) == ("https://a.example", "true")
                assert len(reply.headers["x-request-id"]) == 24
