"""The limit of addresses where addresses are a proxy's, and credentials that were accepted before at an address over its limit."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from kits import ROOT
from kits import tokens as kit
from kits.app import Client, ask, build_app, provider_plugin, serving
from multidict import CIMultiDict

from server import CredentialRejected, Identity
from server.app import LIMITS, build, warn
from server.http.client_address import UNIX, UNKNOWN, ClientAddress
from server.http.errors import TooManyRequests
from server.rate_limits.addresses import AddressLimit
from server.rate_limits.counters import Counters
from server.rate_limits.rate import Rate
from server.settings.sources import Settings
from tests.conftest import ROBOT_A, Serve, TestDatabase

CLERK = {"clerk__jwt_key": kit.pem(kit.rsa_key()), "clerk__publishable_key": kit.PUBLISHABLE_KEY,
         "clerk__authorized_parties": [kit.PARTY], "clerk__webhook_signing_secret": "whsec_" + "A" * 32}  # fmt: skip
PRODUCTION = {"env": "production", "database__url": "postgresql://gatepost_app@localhost/x", "providers": ["clerk"], **CLERK}
BAD = ("Authorization", "x")


def via(address: str) -> tuple[str, str]:
    return ("X-Forwarded-For", address)


def token(**members: Any) -> tuple[str, str]:
    return ("Authorization", f"Bearer {kit.encode(kit.claims(**members))}")


async def flood(port: int, number: int, *headers: tuple[str, str]) -> Counter[int]:
    async with Client(port) as client:
        return Counter([(await client.ask("GET", "/api/me", [("Host", "localhost"), *headers])).status for _ in range(number)])


# Unknown addresses -----------------------------------------------------------------------------------------------------


async def test_an_unknown_client_behind_an_unlisted_proxy_locks_no_user_out() -> None:
    """All clients come from the proxy's address: 3,000 refused credentials of one client do not affect others."""
    async with serving(build_app(**PRODUCTION)) as port:
        assert await flood(port, 3050, BAD) == {401: 3050}
        assert (await ask(port, "GET", "/api/me", token())).status == 200


async def test_behind_a_listed_proxy_the_limit_applies_to_the_client() -> None:
    app = build_app(**PRODUCTION, trusted_proxies=["127.0.0.1"])
    limit = app[LIMITS].address
    assert limit is not None
    async with serving(app) as port:
        assert await flood(port, 5, BAD, via("198.51.100.7")) == {401: 5}
        assert limit.refusals["198.51.100.7"].count == 5
        for _ in range(3000):  # the rest at once: on a slow machine a window would end before 3,000 requests have come
            limit.charge("198.51.100.7")
        assert await flood(port, 5, BAD, via("198.51.100.7")) == {429: 5}
        assert (await ask(port, "GET", "/api/me", token(), via("198.51.100.7"))).status == 429
        assert (await ask(port, "GET", "/api/me", token(), via("198.51.100.8"))).status == 200


async def test_a_listed_proxy_that_names_no_client_is_not_one() -> None:
    app = build_app(**PRODUCTION, trusted_proxies=["127.0.0.1", "10.0.0.0/8"])
    async with serving(app) as port:
        for headers in ([BAD], [BAD, via("10.1.2.3")], [BAD, via("unknown")]):
            assert await flood(port, 3, *headers) == {401: 3}
        assert not app[LIMITS].address.refusals  # type: ignore[union-attr]


@pytest.mark.parametrize(("trusted", "known", "unknown"), [
    ([], ["198.51.100.7", "8.8.8.8", "2001:db8::7", "172.32.0.1"],
     ["127.0.0.1", "10.1.2.3", "172.17.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "::1", "fd00::1", "fe80::1", UNIX, UNKNOWN]),
    (["10.0.0.0/8"], ["198.51.100.7", "127.0.0.1", "192.168.1.1", "::1"], ["10.1.2.3", UNIX, UNKNOWN]),
    (["unix"], ["198.51.100.7", "10.1.2.3", "127.0.0.1"], [UNIX, UNKNOWN]),
])  # fmt: skip
def test_which_addresses_are_a_clients(trusted: list[str], known: list[str], unknown: list[str]) -> None:
    addresses = ClientAddress(trusted)
    assert [one for one in known if not addresses.is_known(one)] == []
    assert [one for one in unknown if addresses.is_known(one)] == []


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "trusted_proxies" in record.getMessage()]


def test_the_start_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    warn(build_app(**PRODUCTION))
    (line,) = warned(caplog)
    assert line.startswith("limits.address: auto does not count")
    assert "GATEPOST_TRUSTED_PROXIES" in line


def test_workers_leave_the_warning_to_their_parent(caplog: pytest.LogCaptureFixture) -> None:
    given = {key.replace("__", "."): value for key, value in PRODUCTION.items()}
    build(Settings(environ={}, given=given), beside_parent=True)
    assert warned(caplog) == []


@pytest.mark.parametrize("given", [
    {"trusted_proxies": ["127.0.0.1"]}, {"trusted_proxies": ["unix"]}, {"limits__address": "100/minute"}, {"limits__address": "off"},
    {"env": "test"}, {"env": "development"},
], ids=str)  # fmt: skip
def test_nothing_to_warn_of(given: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    warn(build_app(**{**PRODUCTION, **given}))
    assert warned(caplog) == []


@pytest.mark.parametrize("trusted", ["", "127.0.0.1"])
def test_check_warns_too(db: TestDatabase, trusted: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "GATEPOST_ENV": "production",
                   "GATEPOST_PROVIDERS": "api_key", "DATABASE_URL": db.url, "GATEPOST_TRUSTED_PROXIES": trusted}  # fmt: skip

    def check(*words: str) -> str:
        program = [sys.executable, "-m", "server", "check", *words]
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    expected = 0 if trusted else 1
    assert check().count("warning: limits.address: auto does not count") == expected
    lines = json.loads(check("--json"))["warnings"]
    assert len([line for line in lines if line.startswith("limits.address: auto")]) == expected


# Accepted before -------------------------------------------------------------------------------------------------------


class Doors:
    """A provider that remembers nothing: `good-…` is a user until it is closed."""

    def __init__(self) -> None:
        self.closed: set[str] = set()
        self.asked = 0

    async def authenticate(self, request: web.Request) -> Identity | None:
        self.asked += 1
        await asyncio.sleep(0)
        shown = request.headers.get("Authorization", "")
        if shown.startswith("good-") and shown not in self.closed:
            return Identity(provider="doors", user_id=shown)
        raise CredentialRejected


def good(name: str) -> tuple[str, str]:
    return ("Authorization", f"good-{name}")


async def test_a_credential_that_was_accepted_is_not_refused_for_its_neighbours() -> None:
    provider = Doors()
    app = build_app({"x": provider_plugin(doors=provider)}, providers=["doors"], limits__address="5/day", trusted_proxies=["127.0.0.1"])
    near, far = via("198.51.100.7"), via("198.51.100.8")
    async with serving(app) as port:
        assert await flood(port, 1, good("near"), near) == {200: 1}
        assert await flood(port, 1, good("far"), far) == {200: 1}
        assert await flood(port, 8, BAD, near) == {401: 5, 429: 3}
        asked = provider.asked
        assert await flood(port, 3, good("near"), near) == {200: 3}
        assert await flood(port, 3, good("far"), near) == {200: 3}, "wherever it was accepted"
        assert provider.asked == asked + 6
        assert await flood(port, 3, good("new"), near) == {429: 3}
        assert await flood(port, 3, BAD, near) == {429: 3}
        assert provider.asked == asked + 6
        # One that is refused is no longer known to be good: it costs one verification.
        provider.closed.add("good-near")
        assert await flood(port, 3, good("near"), near) == {401: 1, 429: 2}
        assert await flood(port, 1, good("far"), near) == {200: 1}


async def test_tokens_cookies_and_keys_that_were_accepted_work_on(serve: Serve) -> None:
    settings = {key.replace("__", "."): value for key, value in CLERK.items()}
    client = await serve({**settings, "providers": ["clerk", "api_key"], "limits.address": "5/day", "trusted_proxies": ["127.0.0.1"]})
    near, far = via("198.51.100.7"), via("198.51.100.8")
    cookie = ("Cookie", f"__session={kit.encode(kit.claims(jti='cookie'))}; __client_uat=1; __clerk_db_jwt=1")
    shown = [token(jti="token"), cookie, *ROBOT_A.items(), ("Authorization", f"Bearer {ROBOT_A['X-API-Key']}")]
    for one in shown:
        assert await flood(client.port, 1, one, far) == {200: 1}, one[0]
    assert await flood(client.port, 6, BAD, near) == {401: 5, 429: 1}
    for one in shown:
        assert await flood(client.port, 2, one, near) == {200: 2}, one[0]
    for one in (token(jti="new"), ("Cookie", "__session=x"), ("X-API-Key", "gp_nobody-knows-this-key"), ("X-API-Key", "x")):
        assert await flood(client.port, 2, one, near) == {429: 2}, one
    assert await flood(client.port, 1, near) == {401: 1}, "there is nothing to verify"


async def test_accepted_credentials_in_process() -> None:
    limit = AddressLimit(Rate("address", 1, 86400), Counters(), credentials=("Authorization", "X-API-Key"))
    first, second = CIMultiDict(Authorization="Bearer one"), CIMultiDict({"X-API-Key": "Bearer one"})

    def recall(headers: CIMultiDict[str]) -> str | None:
        return limit.recall(make_mocked_request("GET", "/", headers=headers), "203.0.113.1", lambda request: None)

    limit.remember(first)
    limit.charge("203.0.113.1")
    assert recall(first) is None
    assert recall(CIMultiDict(first, Cookie="theme=dark")) is None, "a cookie beside it changes nothing"
    with pytest.raises(TooManyRequests):
        recall(second)
    limit.refused(first, "203.0.113.1")
    with pytest.raises(TooManyRequests):
        recall(first)
    await limit.close()


