"""Cross-origin requests: an exact list, the same preflight for every path, and errors that a page may read."""

import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from kits.app import Reply, ask, build_app, provider_plugin, routes_plugin, serving, stub

from server import Identity, checked_origin, signed_in
from server.settings.setting import ConfigError

LISTED = "https://app.example.com"
OTHERS = [
    "https://evil.example", "http://app.example.com", "https://app.example.com:444", "https://app.example.com.evil.example", "https://evil-app.example.com",
    "https://appXexample.com", "https://APP.example.com", "https://app.example.com/", "https://sub.app.example.com", "null", "*", "", "file://",
    "https://app.example.com https://evil.example", "https://app.example.com,https://evil.example",
]  # fmt: skip
PATHS = ["/api/health", "/api/me", "/api/data", "/api/data/1", "/api/boom", "/unknown", "/", "/api/webhooks-admin"]


async def boom(request: web.Request) -> web.Response:
    raise RuntimeError("boom")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = build_app(
        {"acme": routes_plugin(web.get("/api/boom", signed_in(boom)))}, cors_origins=[LISTED, "http://localhost:5173"]
    )
    async with serving(app) as port:
        yield port


async def preflight(port: int, target: str, origin: str, *headers: tuple[str, str]) -> Reply:
    return await ask(port, "OPTIONS", target, ("Origin", origin), ("Access-Control-Request-Method", "DELETE"), *headers)


def cors_headers(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control")}


async def test_a_preflight_is_the_same_for_every_path(port: int) -> None:
    answers = [await preflight(port, path, LISTED) for path in PATHS]
    assert {answer.status for answer in answers} == {204}
    assert all(answer.body == b"" for answer in answers)
    for answer in answers:
        del answer.headers["x-request-id"], answer.headers["date"]
    assert all(answer.headers == answers[0].headers for answer in answers)
    assert cors_headers(answers[0]) == {
        "access-control-allow-origin": LISTED,
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
        "access-control-allow-headers": "Authorization, baggage, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Mcp-Method, Mcp-Name, "
        "MCP-Protocol-Version, sentry-trace, traceparent, tracestate, X-API-Key, X-Requested-With",
        "access-control-expose-headers": "ETag, Idempotency-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-Id",
        "access-control-max-age": "600",
    }


@pytest.mark.parametrize("origin", OTHERS)
async def test_an_origin_that_is_not_listed_gets_no_cors_headers(port: int, origin: str) -> None:
    assert cors_headers(await preflight(port, "/api/me", origin)) == {}
    assert cors_headers(await ask(port, "GET", "/api/health", ("Origin", origin))) == {}
    assert cors_headers(await ask(port, "GET", "/api/me", ("Origin", origin), stub())) == {}


async def test_two_origins_are_none(port: int) -> None:
    assert cors_headers(await ask(port, "GET", "/api/health", ("Origin", LISTED), ("Origin", LISTED))) == {}


async def test_without_an_origin_there_is_nothing_to_allow(port: int) -> None:
    assert cors_headers(await ask(port, "GET", "/api/health")) == {}


@pytest.mark.parametrize("origin", [LISTED, "http://localhost:5173"])
@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/api/health", [], 200),
        ("GET", "/api/me", [stub()], 200),
        ("GET", "/api/me", [], 401),
        ("GET", "/api/me", [("Authorization", "Bearer x"), ("X-API-Key", "y")], 400),
        ("DELETE", "/api/data/1", [stub(org_id="o", org_role="org:member")], 403),
        ("GET", "/unknown", [stub()], 404),
        ("POST", "/api/me", [stub()], 405),
        ("POST", "/api/data", [stub(), ("Content-Type", "text/plain"), ("Content-Length", "0")], 415),
        ("GET", "/api/boom", [stub()], 500),
        ("GET", "/api/../me", [], 400),
        ("OPTIONS", "/api/me", [], 401),
    ],
)
async def test_a_listed_origin_may_read_every_answer(
    port: int, origin: str, method: str, target: str, headers: list[tuple[str, str]], status: int
) -> None:
    reply = await ask(port, method, target, ("Origin", origin), *headers)
    assert reply.status == status
    assert reply.headers["access-control-allow-origin"] == origin
    assert reply.headers["access-control-allow-credentials"] == "true"
    assert "X-Request-Id" in reply.headers["access-control-expose-headers"]


async def test_every_answer_says_what_it_depends_on(port: int) -> None:
    for target in (*PATHS, "/api/../me"):
        for headers in ([], [("Origin", LISTED)], [("Origin", "null")], [stub()]):
            assert (await ask(port, "GET", target, *headers)).headers["vary"] == "Authorization, Cookie, X-API-Key, Origin"
    assert (await preflight(port, "/api/me", LISTED)).headers["vary"] == "Authorization, Cookie, X-API-Key, Origin"


async def test_what_only_looks_like_a_preflight_is_a_request(port: int) -> None:
    assert (await ask(port, "OPTIONS", "/api/me", ("Origin", LISTED))).status == 401
    assert (await ask(port, "OPTIONS", "/api/me", ("Access-Control-Request-Method", "GET"))).status == 401
    assert (await ask(port, "GET", "/api/me", ("Origin", LISTED), ("Access-Control-Request-Method", "GET"))).status == 401


async def test_a_preflight_runs_nothing_and_reads_no_credential() -> None:
    asked: list[str] = []

    class Counting:
        async def authenticate(self, request: web.Request) -> Identity | None:
            asked.append(request.path)
            return None

    app = build_app({"counting": provider_plugin(counting=Counting())}, providers=["counting"], cors_origins=[LISTED])
    async with serving(app) as port:
        assert (await preflight(port, "/api/me", LISTED, ("Authorization", "Bearer x"), ("X-API-Key", "y"))).status == 204
        assert asked == []
        assert (await ask(port, "GET", "/api/me", ("Authorization", "Bearer x"))).status == 401
        assert asked == ["/api/me"]


async def test_a_malformed_target_is_a_400_before_any_preflight(port: int) -> None:
    assert (await preflight(port, "/api/%2e%2e/me", LISTED)).status == 400


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "app.example.com", "https://app.example.com/", "https://app.example.com/x", "https://", "ftp://app.example.com",
     "https://App.example.com", "HTTPS://app.example.com", "https://app.example.com?x", "https://u:p@app.example.com", "https://app.example.com#x",
     "https://app.example.com:port", "https://app example.com", "https://app.example.com:0443", "https://app.example.com:65536",
     "https://app.example.com:", "file://x", "wss://app.example.com", "Capacitor://localhost", "capacitor://localhost/", "https://a.example\n", "https://b\u00fccher.example"],
)  # fmt: skip
def test_what_is_no_origin_cannot_be_listed(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        build_app(cors_origins=[origin])


PREVIEWS = "https://*.preview.example.com"


@pytest.mark.parametrize(
    "pattern",
    ["https://*", "*.example.com", "https://*.com", "https://*.*.example.com", "https://a.*.example.com", "https://app-*.example.com",
     "https://*example.com", "https://*.", "https://*.example.", "https://*.127.0.0.1", "https://*.example.com/", "https://*.example.com:443",
     "https://*.example.com:*", "*://a.example.com", "capacitor://*.example.com", "https://*.EXAMPLE.com", "https://*.example.com:65536",
     "https://**.example.com", "https://*.example.com*", "https://*.-a.example.com", "https://*..example.com"],
)  # fmt: skip
def test_a_pattern_is_one_label_above_a_domain(pattern: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        build_app(cors_origins=[pattern])


class Silent:
    authorized_parties = (LISTED, PREVIEWS)

    async def authenticate(self, request: web.Request) -> Identity | None:
        return None


@pytest.mark.parametrize("env", ["test", "production"])
async def test_a_pattern_stands_for_one_label_and_never_for_cookies_in_production(env: str) -> None:
    app = build_app({"acme": provider_plugin(acme=Silent())}, env=env, providers=["acme"], database__url="postgresql://gatepost_app@127.0.0.1/x",
                    cors_origins=[LISTED, PREVIEWS, "http://*.localhost:5173"])  # fmt: skip
    async with serving(app) as port:
        for origin in ("https://a.preview.example.com", "https://feature-12.preview.example.com", "http://tenant.localhost:5173", LISTED):
            credentials = None if env == "production" and origin != LISTED else "true"
            for reply in (await preflight(port, "/api/me", origin), await ask(port, "GET", "/api/me", ("Origin", origin))):
                assert reply.headers["access-control-allow-origin"] == origin
                assert reply.headers.get("access-control-allow-credentials") == credentials
        for origin in (
            "https://preview.example.com", "https://a.b.preview.example.com", "http://a.preview.example.com", "https://a.preview.example.com:444",
            "https://.preview.example.com", "https://a.preview.example.com.evil.example", "https://evil.example/.preview.example.com", PREVIEWS,
            "https://a.previewXexample.com", "https://A.preview.example.com", "http://a.b.localhost:5173", "http://a.localhost",
            "https://-.preview.example.com", f"https://{'a' * 64}.preview.example.com",
        ):  # fmt: skip
            for reply in (await preflight(port, "/api/me", origin), await ask(port, "GET", "/api/health", ("Origin", origin))):
                assert cors_headers(reply) == {}, origin


async def test_a_pattern_among_a_providers_authorized_parties_is_none() -> None:
    async with serving(build_app({"acme": provider_plugin(acme=Silent())}, providers=["acme"])) as port:
        assert cors_headers(await ask(port, "GET", "/api/health", ("Origin", LISTED))) != {}
        assert cors_headers(await ask(port, "GET", "/api/health", ("Origin", "https://a.preview.example.com"))) == {}


@pytest.mark.parametrize(
    ("origin", "right"),
    [("https://app.example.com:443", "https://app.example.com"), ("http://localhost:80", "http://localhost"), ("https://[::1]:443", "https://[::1]")],
)
def test_a_default_port_is_refused_with_the_right_form(origin: str, right: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins") as caught:
        build_app(cors_origins=[origin])
    assert str(caught.value).endswith(f"write {right!r}")
    with pytest.raises(ValueError, match=re.escape(f"write {right!r}")):
        checked_origin(origin)


@pytest.mark.parametrize(
    "origin",
    ["capacitor://localhost", "ionic://localhost", "chrome-extension://abc", "https://x.example:80", "http://x.example:443", "http://[::1]:5173"],
)
async def test_an_app_is_an_origin_like_a_site(origin: str) -> None:
    assert checked_origin(origin) == origin
    async with serving(build_app(cors_origins=[origin])) as port:
        assert (await ask(port, "GET", "/api/health", ("Origin", origin))).headers["access-control-allow-origin"] == origin


async def test_headers_are_added_to_the_built_in_lists() -> None:
    class OwnHeader:
        reads = ("X-Acme-Key", "Cookie", "authorization")

        async def authenticate(self, request: web.Request) -> Identity | None:
            return None

    app = build_app({"acme": provider_plugin(acme=OwnHeader())}, providers=["acme"], cors_origins=[LISTED],
                    cors_headers=["X-Tenant", "content-type"], cors_exposed=["X-Total", "etag"])  # fmt: skip
    async with serving(build_app(cors_origins=[LISTED])) as plain, serving(app) as port:
        allowed = {number: (await preflight(number, "/x", LISTED)).headers["access-control-allow-headers"].lower().split(", ") for number in (plain, port)}
        assert set(allowed[port]) - set(allowed[plain]) == {"x-acme-key", "x-tenant"}
        assert "cookie" not in allowed[port]
        assert len(set(allowed[port])) == len(allowed[port])
        for target in ("/api/health", "/api/%2e%2e"):
            told = {number: (await ask(number, "GET", target, ("Origin", LISTED))).headers["access-control-expose-headers"].lower().split(", ") for number in (plain, port)}
            assert set(told[port]) - set(told[plain]) == {"x-total"}
            assert len(set(told[port])) == len(told[port])


@pytest.mark.parametrize("name", ["X Tenant", "X-Tenant, X-Other", "*", "X-Tenant:", "X\r\nSet-Cookie"])
def test_what_is_no_header_cannot_be_listed(name: str) -> None:
    for setting in ("cors_headers", "cors_exposed"):
        with pytest.raises(ConfigError, match=setting):
            build_app(**{setting: [name]})


@pytest.mark.parametrize(
    ("given", "expected"), [({}, LISTED), ({"cors_origins": []}, None), ({"cors_origins": ["https://b.example"]}, None)]
)
async def test_the_default_list_is_the_providers_authorized_parties(given: dict[str, Any], expected: str | None) -> None:
    async def authenticate(request: web.Request) -> None:
        return None

    provider = SimpleNamespace(authenticate=authenticate, authorized_parties=[LISTED])
    async with serving(build_app({"acme": provider_plugin(acme=provider)}, providers=["acme"], **given)) as port:
        reply = await ask(port, "GET", "/api/health", ("Origin", LISTED))
        assert reply.headers.get("access-control-allow-origin") == expected
