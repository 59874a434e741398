"""DPoP beside other parts of the server: streams, the OpenAPI document, the metadata, what the operator is warned of."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from kits import oidc as oidc_kit
from kits import tokens
from kits.dpop import Holder
from kits.live import LIVE, events
from kits.oidc import AUDIENCE, Issuer

from providers.oidc.provider import OidcProvider
from server import CredentialRejected
from server.app import warn
from tests.conftest import MakeApp, Serve

HOLDER = Holder()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


def given(issuer: Issuer | str, mode: str = "accept", **more: Any) -> dict[str, Any]:
    url = issuer if isinstance(issuer, str) else issuer.url
    table = {"issuer": url, "audience": AUDIENCE, "dpop": mode, "leeway_seconds": 0}
    return {"providers": ["oidc"], "oidc.issuers": [table], **more}


async def test_a_stream_lives_as_long_as_its_token(serve: Serve, issuer: Issuer) -> None:
    client = await serve(given(issuer), extra=LIVE)
    token = HOLDER.token(issuer, exp=int(time.time()) + 4)
    headers = HOLDER.headers(token, "GET", f"http://127.0.0.1:{client.port}/api/ticks")
    async with events(client, "/api/ticks", headers) as stream:
        assert stream.response.status == 200
        assert (await stream.next())["event"] == "hello"
        async with events(client, "/api/ticks", headers) as again:
            assert again.response.status == 401, "the proof that opened it opens no other"
        assert await stream.end() == "token-expired"


async def test_the_credential_of_an_open_request_can_be_asked_about_again(tmp_path: Path, issuer: Issuer) -> None:
    """As the server does for a stream whose credential nothing else reports: its proof was checked when it was opened."""
    house = tokens.TestHouse(tmp_path)
    house.resource_url = "https://api.acme.example"
    provider = OidcProvider({"issuers": given(issuer)["oidc.issuers"]})
    await provider.open(house)
    try:
        token = HOLDER.token(issuer)
        headers = HOLDER.headers(token, "GET", "https://api.acme.example/api/ticks")
        one, other = (make_mocked_request("GET", "/api/ticks", headers=headers) for _ in range(2))
        first = await provider.authenticate(one)
        assert first is not None
        assert await provider.authenticate(one) is first
        assert provider.recall(one) is None, "memory alone never answers for a bound token"
        with pytest.raises(CredentialRejected) as refused:
            await provider.authenticate(other)
        assert refused.value.reason == "proof-replayed"
    finally:
        await provider.close()
        await house.close()


async def test_the_document_has_the_scheme(serve: Serve, issuer: Issuer) -> None:
    for mode in ("off", "accept"):
        client = await serve({**given(issuer, mode)})
        document = (await client.get("/api/public/openapi.json")).json()
        schemes = document["components"]["securitySchemes"]
        assert ("oidcDPoP" in schemes) == (mode != "off")
        named = {name for one in document["paths"]["/api/me"]["get"]["security"] for name in one}
        assert named == ({"bearerAuth", "oidcDPoP"} if mode != "off" else {"bearerAuth"})
    assert schemes["oidcDPoP"]["scheme"] == "dpop"


@pytest.mark.parametrize("mode", ["off", "accept", "required"])
async def test_the_metadata_names_the_algorithms(serve: Serve, issuer: Issuer, mode: str) -> None:
    client = await serve(given(issuer, mode, **{"resource.url": "https://api.acme.example"}))
    said = (await client.get("/.well-known/oauth-protected-resource")).json()
    if mode == "off":
        assert not [name for name in said if name.startswith("dpop")]
    else:
        assert said["dpop_signing_alg_values_supported"] == ["ES256", "ES384", "ES512", "Ed25519", "EdDSA", "PS256", "RS256"]
        assert said["dpop_bound_access_tokens_required"] is (mode == "required")
    got = await client.get("/api/me")
    challenge = ", ".join(got.headers.getall("WWW-Authenticate"))
    assert "resource_metadata=" in challenge
    assert ("DPoP algs=" in challenge) == (mode != "off")


@pytest.mark.parametrize(("mode", "workers", "warned"), [("accept", 2, True), ("accept", 1, False), ("off", 2, False)])
def test_processes_that_share_nothing(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, mode: str, workers: int, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        warn(make_app(given("https://login.example", mode, workers=workers)))
    assert ("DPoP proofs are remembered by each" in caplog.text) == warned


@pytest.mark.parametrize(("env", "url", "warned"), [("production", None, True), ("production", "https://x.example", False),
                                                    ("test", None, False)])  # fmt: skip
async def test_an_address_that_no_client_knows(
    tmp_path: Path, issuer: Issuer, caplog: pytest.LogCaptureFixture, env: str, url: str | None, warned: bool
) -> None:
    house = tokens.TestHouse(tmp_path, env=env)
    house.resource_url = url
    provider = OidcProvider({"issuers": given(issuer)["oidc.issuers"]})
    with caplog.at_level(logging.WARNING):
        await provider.open(house)
    await provider.close()
    await house.close()
    assert ("resource.url is not set" in caplog.text) == warned
