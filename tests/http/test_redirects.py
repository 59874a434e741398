"""What a handler raises instead of answering: aiohttp's HTTP exceptions become plain answers in the contract's shape."""

import pytest
from aiohttp import web
from kits.app import LOCAL, Client, build_app, routes_plugin, serving, stub

from server import signed_in


def raising(error: web.HTTPException) -> object:
    async def raised(request: web.Request) -> web.Response:
        raise error

    async def returned(request: web.Request) -> web.Response:
        return error

    return routes_plugin(web.get("/api/raised", signed_in(raised)), web.get("/api/returned", signed_in(returned)))


def cookie() -> web.HTTPException:
    error = web.HTTPSeeOther("/elsewhere", headers={"X-Own": "1"}, text="go there")
    error.set_cookie("left", "1")
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [(web.HTTPSeeOther("/elsewhere"), 303), (web.HTTPFound("/elsewhere"), 302), (web.HTTPMovedPermanently("/elsewhere"), 301),
     (web.HTTPTemporaryRedirect("/elsewhere"), 307), (web.HTTPPermanentRedirect("/elsewhere"), 308), (cookie(), 303)],
    ids=["303", "302", "301", "307", "308", "with a text and a cookie"],
)  # fmt: skip
async def test_a_raised_redirect_is_an_answer_with_its_location_and_no_body(error: web.HTTPException, status: int) -> None:
    async with serving(build_app({"acme": raising(error)})) as port, Client(port) as client:
        for path in ("/api/raised", "/api/returned", "/api/raised"):  # on the same connection
            reply = await client.ask("GET", path, [("Host", LOCAL), stub()])
            assert (reply.status, reply.body, reply.headers["location"]) == (status, b"", "/elsewhere")
            assert reply.headers["cache-control"] == "no-store"
            assert reply.headers["server"] == "gatepost"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert len(reply.headers["x-request-id"]) == 24
            assert not reply.ends_the_connection


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [(web.HTTPOk(text="secret"), 200, b""), (web.HTTPNoContent(), 204, b""), (web.HTTPNotModified(), 304, b""),
     (web.HTTPNotFound(text="said"), 404, b'{"error": "Not Found", "detail": "said"}'), (web.HTTPGone(), 410, b'{"error": "Gone"}')],
    ids=["200", "204", "304", "404", "410"],
)  # fmt: skip
async def test_any_other_is_an_answer_too(error: web.HTTPException, status: int, body: bytes) -> None:
    async with serving(build_app({"acme": raising(error)})) as port, Client(port) as client:
        for path in ("/api/raised", "/api/returned", "/api/raised"):
            reply = await client.ask("GET", path, [("Host", LOCAL), stub()])
            assert (reply.status, reply.body) == (status, body)


async def test_the_cookies_and_headers_of_a_redirect_stay() -> None:
    async with serving(build_app({"acme": raising(cookie())})) as port, Client(port) as client:
        reply = await client.ask("GET", "/api/raised", [("Host", LOCAL), stub()])
        assert (reply.headers["x-own"], reply.headers["set-cookie"]) == ("1", "left=1; Path=/")
