"""Whose address a request comes from: over real connections, with every kind of X-Forwarded-For, and as a property."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from kits.app import ask, build_app, provider_plugin, request_bytes, routes_plugin, serving
from multidict import CIMultiDict

from server import client_address, public
from server.http.client_address import ADDRESSES, UNIX, UNKNOWN, ClientAddress, client_network, network_of
from server.settings.setting import ConfigError


async def where(request: web.Request) -> web.Response:
    said = request.app[ADDRESSES].inbound_request_id(request)
    return web.json_response({"address": client_address(request), "inbound": said})


def app_trusting(*proxies: str, **given: Any) -> web.Application:
    plugin = routes_plugin(web.get("/api/where", public(where)))
    return build_app({"where": plugin}, public_routes=["/api/where"], trusted_proxies=list(proxies), **given)


@asynccontextmanager
async def trusting(*proxies: str) -> AsyncIterator[int]:
    async with serving(app_trusting(*proxies)) as port:
        yield port


async def address(port: int, *headers: tuple[str, str]) -> str:
    return str((await ask(port, "GET", "/api/where", *headers)).json["address"])


def forwarded(*values: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", value) for value in values]


# Over real connections -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxies", [[], ["203.0.113.0/24"], ["unix"], ["::1"]])
async def test_a_peer_that_is_not_trusted_is_the_client_whatever_it_says(proxies: list[str]) -> None:
    async with trusting(*proxies) as port:
        for spoofed in (["198.51.100.7"], ["198.51.100.7", "203.0.113.1"], ["", "x"]):
            assert await address(port, *forwarded(*spoofed)) == "127.0.0.1"
        assert await address(port, ("Forwarded", "for=198.51.100.7"), ("X-Real-IP", "198.51.100.7")) == "127.0.0.1"


@pytest.mark.parametrize(("values", "client"), [
    ([], "127.0.0.1"),
    ([""], "127.0.0.1"),
    (["198.51.100.7"], "198.51.100.7"),
    (["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
    (["6.6.6.6", "198.51.100.7"], "198.51.100.7"),
    (["198.51.100.7, 10.1.2.3"], "198.51.100.7"),
    (["198.51.100.7", "10.1.2.3", "10.1.2.4"], "198.51.100.7"),
    (["6.6.6.6, 198.51.100.7,10.1.2.3 ,\t10.1.2.4"], "198.51.100.7"),
    (["198.51.100.7,, ,10.1.2.3,"], "198.51.100.7"),
    (["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
    (["6.6.6.6, garbage, 10.1.2.3"], "10.1.2.3"),
    (["6.6.6.6, garbage"], "127.0.0.1"),
    (["6.6.6.6, unknown, 10.1.2.3"], "10.1.2.3"),
    (["6.6.6.6, _hidden"], "127.0.0.1"),
    (["6.6.6.6, 198.51.100.07"], "127.0.0.1"),
    (["6.6.6.6, 1.2.3"], "127.0.0.1"),
    (["6.6.6.6, 198.51.100.7 10.1.2.3"], "127.0.0.1"),
    (["6.6.6.6, 10.0.0.0/8"], "127.0.0.1"),
    (["198.51.100.7:4711"], "198.51.100.7"),
    (["198.51.100.7:port"], "127.0.0.1"),
    (["2001:db8::7"], "2001:db8::7"),
    (["2001:DB8:0:0::7"], "2001:db8::7"),
    (["[2001:db8::7]"], "2001:db8::7"),
    (["[2001:db8::7]:4711"], "2001:db8::7"),
    (["[2001:db8::7"], "127.0.0.1"),
    (["fe80::1%eth0"], "fe80::1"),
    (["::ffff:198.51.100.7"], "198.51.100.7"),
    (["198.51.100.7, ::ffff:10.1.2.3"], "198.51.100.7"),
    (["198.51.100.7", "198.51.100.7"], "198.51.100.7"),
], ids=str)  # fmt: skip
async def test_behind_a_trusted_proxy_the_rightmost_untrusted_address_is_the_client(values: list[str], client: str) -> None:
    async with trusting("127.0.0.0/8", "10.0.0.0/8") as port:
        assert await address(port, *forwarded(*values)) == client


async def test_forwarded_and_other_headers_are_not_read() -> None:
    async with trusting("127.0.0.1") as port:
        for name in ("Forwarded", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP", "X-Forwarded"):
            assert await address(port, (name, "198.51.100.7")) == "127.0.0.1"


async def over_unix(path: Path, *headers: tuple[str, str]) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request_bytes("GET", "/api/where", [("Host", "localhost"), ("Connection", "close"), *headers]))
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said.decode()


@pytest.mark.parametrize(("proxies", "client"), [([], UNIX), (["0.0.0.0/0", "::/0"], UNIX), (["unix"], "198.51.100.7")])
async def test_a_unix_socket_is_trusted_by_its_word_alone(proxies: list[str], client: str, tmp_path: Path) -> None:
    runner = web.AppRunner(app_trusting(*proxies))
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        assert f'"address": "{client}"' in await over_unix(tmp_path / "s", *forwarded("198.51.100.7"))
    finally:
        await runner.cleanup()


async def test_an_ipv4_peer_of_a_dual_socket_is_an_ipv4_address() -> None:
    runner = web.AppRunner(app_trusting("127.0.0.1"))
    await runner.setup()
    dual = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    try:
        await web.SockSite(runner, dual).start()
        port = dual.getsockname()[1]
        assert await address(port) == "127.0.0.1"
        assert await address(port, *forwarded("198.51.100.7")) == "198.51.100.7"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("trusted", "sent", "logged"), [
    ("127.0.0.1", ["abc-1.2_3"], "abc-1.2_3"), ("127.0.0.1", ["x" * 64], "x" * 64), ("127.0.0.1", ["x" * 65], None),
    ("127.0.0.1", ["a b"], None), ("127.0.0.1", ["a", "a"], None), ("127.0.0.1", [""], None), ("127.0.0.1", ["é"], None),
    ("203.0.113.9", ["abc"], None), (None, ["abc"], None),
])  # fmt: skip
async def test_an_inbound_request_id_counts_from_a_trusted_proxy_alone(
    trusted: str | None, sent: list[str], logged: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gatepost")
    async with serving(app_trusting(*([trusted] if trusted else []))) as port:
        headers = [("X-Request-Id", value) for value in sent]
        got = await ask(port, "GET", "/api/where", *headers)
        assert got.json["inbound"] == logged
        assert got.headers["x-request-id"] not in sent
        await ask(port, "GET", "/api/me", *headers, *forwarded("198.51.100.7"))
    fields = [record.fields for record in caplog.records if record.getMessage() == "denied"]  # type: ignore[attr-defined]
    assert fields[0].get("inbound_request_id") == logged
    assert fields[0]["client"] == ("198.51.100.7" if trusted == "127.0.0.1" else "127.0.0.1")


async def test_a_provider_is_asked_with_the_address_by_the_door() -> None:
    class Asks:
        async def authenticate(self, request: web.Request) -> None:
            seen.append(client_address(request))

    seen: list[str] = []
    plugin = provider_plugin(asks=Asks())
    async with serving(build_app({"asks": plugin}, providers=["asks"], trusted_proxies=["127.0.0.1"])) as port:
        await ask(port, "GET", "/api/me", *forwarded("198.51.100.7"))
    assert seen == ["198.51.100.7"]


# Settings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["10.0.0.1/8", "10.0.0.0/33", "proxy.example.com", "10.0.0.*", "Unix", "::1/129", "1.2.3.4:80"])
def test_what_is_no_network_prevents_startup(word: str) -> None:
    with pytest.raises(ConfigError, match="trusted_proxies: ") as caught:
        build_app(trusted_proxies=["10.0.0.0/8", word])
    assert repr(word) in str(caught.value)


# As a property ---------------------------------------------------------------------------------------------------------


class Peer:
    """A transport with a peer."""

    def __init__(self, name: object) -> None:
        self.name = name

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.name if name == "peername" else default

    def is_closing(self) -> bool:
        return False


def request_from(peer: object, *values: str) -> web.Request:
    headers = CIMultiDict([("X-Forwarded-For", value) for value in values])
    return make_mocked_request("GET", "/", headers=headers, transport=Peer(peer), app=web.Application())


TRUSTED = ["10.0.0.0/8", "fd00::/8"]
PROXIES = st.one_of(
    st.ip_addresses(v=4, network="10.0.0.0/8").map(str),
    st.ip_addresses(v=6, network="fd00::/8").map(str),
    st.ip_addresses(v=4, network="10.0.0.0/8").map(lambda ip: f"::ffff:{ip}"),
)
STRANGERS = st.one_of(
    st.ip_addresses(v=4, network="198.51.100.0/24").map(str), st.ip_addresses(v=6, network="2001:db8::/32").map(str)
)
ANYTHING = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


def in_lines(entries: Sequence[str], cuts: Sequence[bool]) -> list[str]:
    """The same entries in several header lines."""
    lines: list[list[str]] = [[]]
    for entry, cut in zip(entries, cuts, strict=False):
        lines[-1].append(entry)
        if cut:
            lines.append([])
    return [", ".join(line) for line in lines if line]


@given(st.lists(ANYTHING, max_size=5), STRANGERS, st.lists(PROXIES, max_size=5), st.lists(st.booleans(), min_size=12, max_size=12))
def test_nothing_that_a_client_says_changes_its_address(spoofed: list[str], client: str, proxies: list[str], cuts: list[bool]) -> None:
    """A client may send any header; each proxy appends its peer's address on the right, and the last proxy is our peer."""
    heard = [",".join(spoofed), client, *proxies] if spoofed else [client, *proxies]
    addresses = ClientAddress(TRUSTED)
    assert addresses.of(request_from(("10.0.0.1", 1), *in_lines(heard, cuts))) == client
    assert addresses.of(request_from((client, 1), *in_lines(heard, cuts))) == client


@given(st.one_of(PROXIES, STRANGERS), st.lists(st.one_of(ANYTHING, PROXIES, STRANGERS), max_size=8))
def test_whatever_comes_the_answer_is_an_address_in_its_usual_form(peer: str, values: list[str]) -> None:
    found = ClientAddress(TRUSTED).of(request_from((peer, 1), *values))
    assert str(ipaddress.ip_address(found)) == found
    assert not found.startswith("::ffff:")
    assert network_of(found)


def test_the_address_of_a_closed_connection_is_unknown_and_never_trusted() -> None:
    addresses = ClientAddress(["0.0.0.0/0", "::/0", "unix"])
    assert addresses.of(request_from(None, "198.51.100.7")) == UNKNOWN


@pytest.mark.parametrize(("address", "network"), [
    ("203.0.113.9", "203.0.113.9"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("2001:db8:1:2::", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::4", "2001:db8:1:3::/64"), ("fe80::1", "fe80::/64"), (UNIX, UNIX), (UNKNOWN, UNKNOWN),
])  # fmt: skip
def test_what_counts_as_one_client(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(("peer", "network"), [
    ("::ffff:203.0.113.9", "203.0.113.9"), ("fe80::1%eth0", "fe80::/64"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
])  # fmt: skip
def test_what_counts_as_one_client_of_a_request(peer: str, network: str) -> None:
    assert client_network(request_from((peer, 1))) == network


def test_a_trusted_network_of_mapped_addresses_is_one_of_ipv4() -> None:
    addresses = ClientAddress(["::ffff:10.0.0.0/104"])
    assert addresses.of(request_from(("10.1.2.3", 1), "198.51.100.7")) == "198.51.100.7"
    assert addresses.of(request_from(("11.1.2.3", 1), "198.51.100.7")) == "11.1.2.3"
