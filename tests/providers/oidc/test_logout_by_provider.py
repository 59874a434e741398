"""Logout tokens that a certified OpenID provider makes and sends (npm oidc-provider, on loopback)."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestServer, unused_port
from kits import signals
from kits.oidc_provider import REDIRECT, RESOURCE, SECRETS, oidc_provider

from tests.conftest import Client, MakeApp, TestDatabase

WEB = {"client_id": "web", "token_endpoint_auth_method": "none", "grant_types": ["authorization_code"], "redirect_uris": [REDIRECT]}


@pytest.mark.parametrize("opaque", [False, True], ids=["JWTs", "opaque tokens"])
async def test_a_logout_at_the_provider_ends_its_access_tokens(make_app: MakeApp, db: TestDatabase, opaque: bool) -> None:
    """alice signs in at two browsers, and out in one of them; bob stays."""
    port = unused_port()
    web = {**WEB, "backchannel_logout_uri": f"http://127.0.0.1:{port}{signals.LOGOUT}", "backchannel_logout_session_required": True}
    async with oidc_provider(clients=(web,), opaque=("web",) if opaque else ()) as provider:
        assert provider.metadata["backchannel_logout_supported"] is True
        issuer: dict[str, Any] = {"issuer": provider.issuer, "audience": RESOURCE, "logout_audience": "web", "namespace": "op"}
        if opaque:  # kept for a minute, so that it is not the provider that tells of their end
            issuer["introspection"] = {"client_id": "api", "client_secret": SECRETS["api"], "cache_seconds": 60}
        app = make_app({"providers": ["oidc"], "oidc.issuers": [issuer]})
        server = TestServer(app, host="127.0.0.1", port=port)
        await server.start_server(shutdown_timeout=1)
        client = Client(server, app)
        try:
            alices = await provider.user_token("alice", client="web")
            bobs = await provider.user_token("bob", client="web")
            phone = provider._browsers.pop("alice")  # another browser of hers from now on
            second = await provider.user_token("alice", client="web")
            assert ("." in alices) is not opaque
            assert [await signals.asked(client, one) for one in (alices, second, bobs)] == [200] * 3
            await provider.log_out("alice")
            await signals.ends(client, second)
            assert [await signals.asked(client, one) for one in (alices, bobs)] == [200] * 2
            kept = await db.rows("SELECT kind, subject FROM revocations ORDER BY kind")
            assert [(row["kind"], row["subject"][:3]) for row in kept] == [("session", "op|"), ("subject", "op|")]
            assert kept[1]["subject"] == "op|alice"
            await phone.close()
        finally:
            await client.close()
