"""Rotation of an issuer's keys without overlap, over real HTTP: Clerk's key set and that of another issuer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from kits import tokens as kit

from providers.jwt import jwks
from providers.jwt.texts import retry_after
from tests.conftest import Client, Got, Serve

ISSUER, AUDIENCE = "https://login.acme.example", "https://api.acme.example"


@dataclass
class World:
    """A server, and the service of its key set."""

    kind: str
    client: Client
    service: kit.Jwks

    def rotate(self, *kids: str) -> None:
        """From now on these are the keys, and no others."""
        self.service.members = [kit.jwk(kit.rsa_key(kid), kid) for kid in kids]

    async def ask(self, kid: str, signer: str | None = None, **claims: Any) -> Got:
        """A request with a new token of this key id, signed by the key `signer`."""
        at = int(time.time())
        if self.kind == "clerk":
            head, payload = kit.header(kid=kid), kit.claims(**claims)
        else:
            head = {"alg": "RS256", "kid": kid, "typ": "at+jwt"}
            payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": at, "exp": at + 300, **claims}
        token = kit.raw_token(json.dumps(head).encode(), json.dumps(payload).encode(), kit.rsa_key(signer or kid))
        return await self.client.get("/api/me", {"Authorization": f"Bearer {token}"})

    async def until_in(self, kid: str) -> list[int]:
        """Repeat as the answers say until the key is accepted. Returns the waits; a 401 would fail."""
        waits: list[int] = []
        while (got := await self.ask(kid)).status != 200:
            assert (got.status, len(waits) < 5) == (503, True), got.raw
            waits.append(int(got.headers["Retry-After"]))
            await asyncio.sleep(waits[-1])
        return waits


@pytest.fixture(params=["clerk", "oidc"])
async def world(request: pytest.FixtureRequest, serve: Serve) -> AsyncIterator[World]:
    async with kit.serve(kit.jwk(kit.rsa_key("k1"), "k1")) as service:
        given: dict[str, Any] = {"providers": [request.param], "limits.provider_seconds": 1.0}
        if request.param == "clerk":
            given |= {"clerk.secret_key": kit.SECRET_KEY, "clerk.publishable_key": kit.PUBLISHABLE_KEY}
            given |= {"clerk.api_url": service.url, "clerk.authorized_parties": [kit.PARTY]}
        else:
            given["oidc.issuers"] = [{"issuer": ISSUER, "audience": AUDIENCE, "jwks_uri": service.url}]
        made = World(request.param, await serve(given), service)
        assert (await made.ask("k1")).status == 200
        assert service.fetches == 1
        yield made


async def test_two_rotations_in_a_row(world: World) -> None:
    for number, kid in enumerate(("k2", "k3"), 2):
        world.rotate(kid)
        assert (await world.ask(kid)).status == 200  # the first token of the new key
        assert world.service.fetches == number
        for old in [f"k{n}" for n in range(1, number)]:
            got = await world.ask(old)
            assert (got.status, got.json()["reason"]) == (401, "credential-rejected")
        assert world.service.fetches == number


async def test_after_a_forged_key_id_too(world: World) -> None:
    assert (await world.ask("forged", "k1")).status == 401
    world.rotate("k2")
    assert (await world.ask("k2")).status == 200
    assert (await world.ask("k1")).status == 401


async def test_many_clients_with_the_new_key_at_once(world: World) -> None:
    world.service.delay = 0.1
    world.rotate("k2")
    answers = await asyncio.gather(*(world.ask("k2", n=number) for number in range(100)))
    assert {got.status for got in answers} == {200}
    assert world.service.fetches <= 3


async def test_the_service_is_down_during_the_rotation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.rotate("k2")
    world.service.status = 500
    answers = [await world.ask("k2", n=number) for number in range(20)]
    assert {got.status for got in answers} == {503}
    assert answers[-1].headers["Retry-After"] in ("13", "14", "15")
    assert world.service.fetches == 1 + jwks.BURST
    assert (await world.ask("k1", n=1)).status == 200  # nothing is known of its end
    world.service.status = 200
    keys = next(iter(_key_sets(world.client)))
    monkeypatch.setattr(keys._budget, "_full_at", keys._clock() + 3 * jwks.REFILL + 1)  # as if the seconds had passed
    assert await world.until_in("k2") in ([1], [1, 1])
    assert (await world.ask("k1")).status == 401


async def test_5000_forged_key_ids_during_a_rotation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost the budget, a good token never waits for them, and a token of the new key is accepted, or gets a 503 that says when to retry."""
    keys = next(iter(_key_sets(world.client)))
    monkeypatch.setattr(keys._budget, "_refill", 1.0)
    monkeypatch.setattr(keys._budget, "_ahead", 3.0)
    world.service.delay = 0.2
    begun, statuses, slowest, done = time.monotonic(), set[int](), 0.0, 0

    async def flood(lane: int) -> None:
        nonlocal done
        head = kit.header(kid="KID") if world.kind == "clerk" else {"alg": "RS256", "kid": "KID", "typ": "at+jwt"}
        payload = kit.claims() if world.kind == "clerk" else {"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": time.time() + 300}
        for number in range(250):
            forged = f"{kit.b64(json.dumps(head | {'kid': f'{lane}-{number}'}).encode())}.{kit.b64(json.dumps(payload).encode())}.AAAA"
            got = await world.client.get("/api/me", {"Authorization": f"Bearer {forged}"})
            statuses.add(got.status)
            assert got.status != 503 or 1 <= int(got.headers["Retry-After"]) <= 5
            done += 1

    async def good() -> None:
        nonlocal slowest
        while done < 5000:
            at = time.monotonic()
            got = await world.ask("k1")
            if got.status != 200:
                return  # the rotation has been heard of
            slowest = max(slowest, time.monotonic() - at)
            await asyncio.sleep(0.05)

    async def rotation() -> list[int]:
        await asyncio.sleep(0.5)
        world.rotate("k2")
        return await world.until_in("k2")

    *_, waits = await asyncio.gather(*(flood(lane) for lane in range(20)), good(), rotation())
    seconds = time.monotonic() - begun
    assert statuses <= {401, 503}
    assert world.service.fetches <= 1 + jwks.BURST + seconds + 1
    assert sum(waits) <= 10
    assert (await world.ask("k1")).status == 401
    assert (await world.ask("k2")).status == 200
    assert slowest < 2.0, slowest  # all on one loop, client and server: far below what waiting for a fetch each would cost


FAULTS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "a redirect": {"status": 302},
    "garbage": {"raw": b"<html>"},
    "no key": {"raw": b'{"keys":[]}'},
    "too large": {"raw": b" " * 1_100_000},
    "slow": {"delay": 1.5},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_while_the_set_cannot_be_known_it_is_a_503(world: World, fault: str) -> None:
    usual = {name: getattr(world.service, name) for name in FAULTS[fault]}
    world.rotate("k2")
    for name, value in FAULTS[fault].items():
        setattr(world.service, name, value)
    got = await world.ask("k2")
    assert (got.status, got.json()) == (503, {"error": "Service Unavailable"})
    assert int(got.headers["Retry-After"]) == 1
    assert (await world.ask("k1", n=2)).status == 200
    for name, value in usual.items():
        setattr(world.service, name, value)
    await world.until_in("k2")
    assert (await world.ask("k1")).status == 401


async def test_a_service_that_answers_429_is_left_alone_as_long_as_it_says(world: World) -> None:
    world.rotate("k2")
    world.service.status, world.service.headers = 429, {"Retry-After": "2"}
    answers = [await world.ask("k2") for _ in range(10)]
    assert {(got.status, got.headers["Retry-After"]) for got in answers} <= {(503, "2"), (503, "1")}
    assert answers[0].headers["Retry-After"] == "2"
    assert world.service.fetches == 2
    world.service.status = 200
    assert await world.until_in("k2")
    assert world.service.fetches == 3


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({}, 1), ({"retry-after": "7"}, 7), ({"Retry-After": "0"}, 1), ({"Retry-After": "99999"}, 3600), ({"Retry-After": "-5"}, 1),
     ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1), ({"Retry-After": "1" * 5000}, 1), ({"Retry-After": "²"}, 1)],
)  # fmt: skip
def test_how_long_a_service_asks_to_wait(header: dict[str, str], seconds: int) -> None:
    assert retry_after(header) == seconds


def _key_sets(client: Client) -> list[Any]:
    from server.plugins.providers import PROVIDERS

    provider = client.app[PROVIDERS][0].provider
    return [provider._keys] if hasattr(provider, "_keys") else [one._keys for one in provider._issuers.values()]
