"""The kit with npm oidc-provider does what it says. What Gatepost makes of its tokens is tested beside the features."""

from __future__ import annotations

import json

from aiohttp import web
from aiohttp.test_utils import TestServer
from kits.oidc_provider import RESOURCE, oidc_provider

from providers.jwt import jws


def claims(token: str) -> dict[str, object]:
    segments = jws.split(token)
    assert segments is not None
    return dict(json.loads(jws.decode(segments.payload)))


async def test_tokens_of_a_user_and_of_a_client() -> None:
    async with oidc_provider() as provider:
        mine = claims(await provider.user_token("alice", scope="todos:read"))
        assert (mine["iss"], mine["aud"], mine["sub"], mine["scope"]) == (provider.issuer, RESOURCE, "alice", "todos:read")
        service = claims(await provider.client_token(scope="todos:read todos:write"))
        assert (service["sub"], service["client_id"], service["scope"]) == ("service", "service", "todos:read todos:write")
        assert "." not in await provider.user_token("alice", client="opaque")
        assert "." not in await provider.client_token(client="opaque-service")
        await provider.revoke(await provider.user_token("alice", client="opaque"), "opaque")


async def test_sign_out_tells_a_client_that_was_registered() -> None:
    heard: list[str] = []

    async def logout(request: web.Request) -> web.Response:
        heard.append(str((await request.post())["logout_token"]))
        return web.Response()

    app = web.Application()
    app.router.add_post("/logout", logout)
    server = TestServer(app)
    await server.start_server()
    async with oidc_provider() as provider:
        told = {"backchannel_logout_uri": str(server.make_url("/logout")), "backchannel_logout_session_required": True}
        client = await provider.register(client_name="web", **told)
        mine = claims(await provider.user_token("alice", client=client["client_id"]))
        await provider.log_out("alice")
        (token,) = heard
        assert claims(token)["sid"] == mine["sid"]
        assert claims(token)["sub"] == "alice"
    await server.close()
