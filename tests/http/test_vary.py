"""The header Vary lists every header that can hold a credential, so that a shared cache never mixes up callers."""

from uuid import uuid4

from aiohttp import web
from kits.app import ask, build_app, provider_plugin, routes_plugin, serving

from server import CredentialRejected, Identity, public, signed_in

BUILT_IN = "Authorization, Cookie, X-API-Key, Origin"


class OwnHeader:
    reads = ("X-Acme-Key", "x-api-key", "cookie")

    async def authenticate(self, request: web.Request) -> Identity | None:
        if "X-Acme-Key" not in request.headers:
            return None
        if request.headers["X-Acme-Key"] != "good":
            raise CredentialRejected
        return Identity(provider="acme", user_id="user_1")


async def text(request: web.Request) -> web.Response:
    """A response that is not made from the server's own headers."""
    return web.Response(text="text")


async def test_vary_lists_the_headers_that_the_providers_read() -> None:
    routes = routes_plugin(web.get("/api/text", signed_in(text)), web.get("/api/public/text", public(text)))
    app = build_app({"acme": provider_plugin(acme=OwnHeader()), "routes": routes}, providers=["acme"])
    async with serving(app) as port:
        for target, key, status in (
            ("/api/me", "good", 200), ("/api/text", "good", 200), ("/api/public/text", "good", 200), ("/api/health", "good", 200),
            ("/api/me", "bad", 401), ("/api/text", "", 401), (f"/api/data/{uuid4()}", "good", 503), ("/nowhere", "good", 404),
        ):  # fmt: skip
            got = await ask(port, "GET", target, *([("X-Acme-Key", key)] if key else []))
            assert (target, got.status, got.headers["vary"]) == (target, status, f"{BUILT_IN}, X-Acme-Key")


async def test_without_such_a_provider_vary_lists_the_built_in_headers() -> None:
    async with serving(build_app()) as port:
        assert (await ask(port, "GET", "/api/health")).headers["vary"] == BUILT_IN
