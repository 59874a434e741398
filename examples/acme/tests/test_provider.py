"""The provider keeps Gatepost's contract, and what it says of itself."""

from __future__ import annotations

import pytest
from acme_gatepost.provider import AcmeProvider
from conftest import ALICE, BOB, SECRET, Acme

from server.testing.provider import ProviderContract
from server.testing.stage import ProviderCase


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class TestContract(ProviderContract):
    @pytest.fixture
    def provider_case(self, acme: Acme) -> ProviderCase:
        return ProviderCase(
            factory=AcmeProvider,
            settings={"url": acme.url, "secret": SECRET, "cache_seconds": 30},
            known=[bearer(ALICE), {"Authorization": f"bearer {BOB}"}],
            bad=[bearer("acme_nobody-knows-this-one"), bearer("acme_"), bearer("acme_" + "x" * 600)],
            not_mine=[bearer("gp_something"), {"Authorization": f"Basic {ALICE}"}, {"X-API-Key": ALICE}],
            outage=acme.down,
            slow=acme.slow,
            secrets=[SECRET],
        )


async def test_an_answer_is_remembered(client_as, acme):
    client = await client_as(None)
    for _ in range(3):
        async with client.get("/api/me", headers=bearer(ALICE)) as got:
            assert (got.status, (await got.json())["user_id"]) == (200, "acme:alice")
    assert acme.asked == 1


async def test_an_answer_that_cannot_be_read_is_an_outage(client_as, acme):
    acme.status = 204
    client = await client_as(None)
    async with client.get("/api/me", headers=bearer(ALICE)) as got:
        assert got.status == 503


def test_the_secret_is_demanded():
    with pytest.raises(ValueError, match=r"acme\.secret"):
        AcmeProvider({"url": "https://acme.example", "secret": None, "cache_seconds": 30})
