"""Live answers of opaque tokens (RFC 7662): the issuer alone knows whether they are still good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kits import oidc as oidc_kit
from kits.live import LIVE, events, registry
from kits.oidc import AUDIENCE, DROP, Issuer

from server.streams import watching
from tests.conftest import ALICE, Client, Serve


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


@pytest.fixture
async def client(serve: Serve, issuer: Issuer) -> Client:
    introspection = {"client_id": "api", "client_secret": "secret"}
    table: dict[str, Any] = {"issuer": issuer.url, "audience": AUDIENCE, "namespace": "acme", "introspection": introspection}
    return await serve({"providers": ["stub", "oidc", "api_key"], "oidc.issuers": [table]}, extra=LIVE)


def look_often(client: Client) -> None:
    """A heartbeat at each tick, and so a look at each lease every other second instead of once a minute."""
    clock = registry(client)._clock
    clock._slots, clock._next_slot = clock._slots[:1], iter([0] * 10)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_the_issuer_is_asked_again(client: Client, issuer: Issuer) -> None:
    look_often(client)
    async with events(client, "/api/ticks", bearer(issuer.opaque("opaque-1", exp=DROP))) as stream:
        assert (await stream.next())["event"] == "hello"
        issuer.tokens.clear()
        assert await stream.end() == "session-revoked"


async def test_a_ticket_of_one_opens_a_short_stream(client: Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket does not have the token, so the issuer cannot be asked again: the page must come back with another ticket."""
    look_often(client)
    monkeypatch.setattr(watching, "BLIND_SECONDS", 1.0)
    caller = bearer(issuer.opaque("opaque-1", exp=DROP))
    made = (await client.post("/api/stream-tickets", caller, {"path": "/api/ticks"})).json()["ticket"]
    async with events(client, f"/api/ticks?ticket={made}") as stream:
        assert (await stream.next())["event"] == "hello"
        assert await stream.end() == "too-long"
    issuer.tokens.clear()
    assert (await client.post("/api/stream-tickets", caller, {"path": "/api/ticks"})).status == 401


async def test_changes_of_keys_ask_no_issuer(client: Client, issuer: Issuer) -> None:
    """Anyone may make and delete keys. That must not make the server ask about each opaque token of everyone else."""
    async with events(client, "/api/ticks", bearer(issuer.opaque("opaque-1"))) as stream:
        assert (await stream.next())["event"] == "hello"
        await asyncio.sleep(0.3)
        asked = len(issuer.asked)
        for _ in range(3):
            made = await client.post("/api/keys", ALICE, {"name": "one"})
            assert (await client.delete(f"/api/keys/{made.json()['id']}", ALICE)).status == 204
            await asyncio.sleep(0.7)
        assert len(issuer.asked) == asked
