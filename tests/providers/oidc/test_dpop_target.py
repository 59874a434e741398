"""Which URI a DPoP proof must name: `resource.url`, else the socket's own address; never `Host` (RFC 9449 4.3, step 9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from kits import oidc as oidc_kit
from kits.dpop import Holder
from kits.oidc import AUDIENCE, Issuer
from yarl import URL

from providers.oidc.dpop_target import Address, read_target, served_at
from server import answer, hookimpl, signed_in
from tests.conftest import Client, Serve

PATH = "/api/me"
HOLDER = Holder()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with oidc_kit.serve() as made:
        yield made


async def served(serve: Serve, issuer: Issuer, **more: Any) -> Client:
    from aiohttp import web

    @signed_in
    async def echo(request: web.Request) -> web.StreamResponse:
        return answer({"path": request.path})

    routes = [web.get("/api/dpop/{name}", echo), web.post("/api/dpop/{name}", echo), web.get("/api/dpop/{name}/", echo)]
    plugin = SimpleNamespace(register_handlers=hookimpl(lambda: routes, specname="register_handlers"))
    settings = {"providers": ["oidc"], "oidc.issuers": [{"issuer": issuer.url, "audience": AUDIENCE, "dpop": "accept"}]}
    return await serve({**settings, **more}, extra={"dpop_routes": plugin})


async def test_the_uri_over_http(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, issuer)
    token, origin = HOLDER.token(issuer), f"http://127.0.0.1:{client.port}"
    rows = [
        ("/api/dpop/a", origin + "/api/dpop/a", True),
        ("/api/dpop/a?x=1", origin + "/api/dpop/a", True),
        ("/api/dpop/a?x=1", origin + "/api/dpop/a?x=1", True),
        ("/api/dpop/a", origin + "/api/dpop/a?y=2#fragment", True),
        ("/api/dpop/a", f"http://localhost:{client.port}/api/dpop/a", True),
        ("/api/dpop/a", f"HTTP://LOCALHOST:{client.port}/api/dpop/a", True),
        ("/api/dpop/a", f"http://[::1]:{client.port}/api/dpop/a", True),
        ("/api/dpop/%61", origin + "/api/dpop/a", True),
        ("/api/dpop/a", origin + "/api/dpop/%61", True),
        ("/api/dpop/%c3%a4", origin + "/api/dpop/%C3%A4", True),
        ("/api/dpop/a%20b", origin + "/api/dpop/a%20b", True),
        ("/api/dpop/a", origin + "/api/dpop/a/", False),
        ("/api/dpop/a/", origin + "/api/dpop/a", False),
        ("/api/dpop/a/", origin + "/api/dpop/a/", True),
        ("/api/dpop/a", origin + "/api/dpop/A", False),
        ("/api/dpop/a", origin + "/api//dpop/a", False),
        ("/api/dpop/a", origin + "//api/dpop/a", False),
        ("/api/dpop/a", origin + "/api/x/../dpop/a", False),
        ("/api/dpop/a", origin + "/api/./dpop/a", False),
        ("/api/dpop/a", origin + "/api/dpop%2Fa", False),
        ("/api/dpop/a", origin + "/api/dpop/a;x=1", False),
        ("/api/dpop/a", origin + "\\api\\dpop\\a", False),
        ("/api/dpop/a", origin + "/api/dpop/b", False),
        ("/api/dpop/a", origin + "/api/dpop/a%00", False),
        ("/api/dpop/a", origin + "/api/dpop/a ", False),
        ("/api/dpop/a", origin + "/api/dpop/a\n", False),
        ("/api/dpop/a", f"https://127.0.0.1:{client.port}/api/dpop/a", False),
        ("/api/dpop/a", "http://127.0.0.1/api/dpop/a", False),
        ("/api/dpop/a", f"http://127.0.0.1:{client.port + 1}/api/dpop/a", False),
        ("/api/dpop/a", f"http://127.0.0.2:{client.port}/api/dpop/a", False),
        ("/api/dpop/a", f"http://evil@127.0.0.1:{client.port}/api/dpop/a", False),
        ("/api/dpop/a", f"//127.0.0.1:{client.port}/api/dpop/a", False),
        ("/api/dpop/a", "/api/dpop/a", False),
        ("/api/dpop/a", f"http://127.0.0.1:{client.port}\u00e4/api/dpop/a", False),
        ("/api/dpop/a", origin + "/api/dpop/" + "a" * 5000, False),
    ]
    for asked, named, fine in rows:
        got = await client.get(asked, HOLDER.headers(token, "GET", named))
        assert (got.status == 200) == fine, (asked, named, got.json())
        assert fine or got.json()["reason"] in ("proof-target", "proof-rejected")


async def test_the_method_over_http(serve: Serve, issuer: Issuer) -> None:
    client = await served(serve, issuer)
    token, target = HOLDER.token(issuer), f"http://127.0.0.1:{client.port}/api/dpop/a"
    rows = [("GET", "GET", 200), ("HEAD", "HEAD", 200), ("HEAD", "GET", 401), ("GET", "HEAD", 401), ("POST", "POST", 200),
            ("POST", "GET", 401), ("GET", "get", 401), ("GET", "GET ", 401)]  # fmt: skip
    for method, named, status in rows:
        override = {"X-HTTP-Method-Override": named}  # which no one reads
        got = await client.send(method, "/api/dpop/a", {**HOLDER.headers(token, named, target), **override})
        assert got.status == status, (method, named)


@pytest.mark.parametrize("host", ["evil.example", "api.example.com"])
async def test_host_is_never_trusted(serve: Serve, issuer: Issuer, host: str) -> None:
    client = await served(serve, issuer)
    token = HOLDER.token(issuer)
    forwarded = {"Host": host, "X-Forwarded-Host": host, "X-Forwarded-Proto": "https", "Forwarded": f"host={host};proto=https"}
    for named in (f"http://{host}", f"https://{host}"):
        got = await client.get("/api/dpop/a", {**HOLDER.headers(token, "GET", f"{named}/api/dpop/a"), **forwarded})
        assert (got.status, got.json()["reason"]) == (401, "proof-target")
    own = f"http://127.0.0.1:{client.port}/api/dpop/a"
    assert (await client.get("/api/dpop/a", {**HOLDER.headers(token, "GET", own), **forwarded})).status == 200
    async with client.wire() as wire:  # a request target in absolute form (RFC 9112 3.2.2)
        await wire.send(f"GET http://{host}/api/dpop/a", HOLDER.headers(token, "GET", f"http://{host}/api/dpop/a"))
        assert (await wire.answer())[0] in (400, 401)


# The address of the setting --------------------------------------------------------------------------------------------------


def request(path: str, sockname: Any = ("10.0.0.7", 8080), tls: object = None) -> Any:
    known = {"sockname": sockname, "sslcontext": tls}
    return SimpleNamespace(rel_url=URL(path, encoded=True), transport=SimpleNamespace(get_extra_info=known.get))


PUBLIC = [
    ("https://api.example.com", "https://api.example.com/api/me", True),
    ("https://api.example.com/", "https://api.example.com/api/me", True),
    ("https://API.example.com:443", "https://api.EXAMPLE.com/api/me", True),
    ("https://api.example.com", "https://api.example.com:443/api/me", True),
    ("https://api.example.com", "https://api.example.com:/api/me", True),
    ("https://api.example.com", "HTTPS://api.example.com/api/me", True),
    ("https://api.example.com", "https://api.example.com:8443/api/me", False),
    ("https://api.example.com:8443", "https://api.example.com:8443/api/me", True),
    ("https://api.example.com", "http://api.example.com/api/me", False),
    ("https://api.example.com", "http://api.example.com:443/api/me", False),
    ("https://api.example.com", "https://api.example.com./api/me", False),
    ("https://api.example.com", "https://api.example.com.evil.example/api/me", False),
    ("https://api.example.com", "https://evil.example/api/me", False),
    ("https://api.example.com", "http\u017f://api.example.com/api/me", False),
    ("https://kpi.example.com", "https://\u212api.example.com/api/me", False),
    ("https://api.example.com", "https://api.example.com\u3002/api/me", False),
    ("https://api.example.com", "https://api.example.com:\u0664\u0664\u0663/api/me", False),
    ("https://api.example.com", "http://10.0.0.7:8080/api/me", False),
    ("https://api.example.com", "https://api.example.com", False),
    ("https://example.com/gateway", "https://example.com/gateway/api/me", True),
    ("https://example.com/gateway/", "https://example.com/gateway/api/me", True),
    ("https://example.com/api", "https://example.com/api/me", True),
    ("https://example.com/gateway", "https://example.com/other/api/me", False),
    ("https://[2001:DB8::1]", "https://[2001:db8::1]/api/me", True),
]


@pytest.mark.parametrize(("public", "named", "fine"), PUBLIC)
def test_the_public_address(public: str, named: str, fine: bool) -> None:
    assert Address(public).is_of(named, request("/api/me")) is fine
    assert Address(public).is_of(named + "?x=1#y", request("/api/me?z=2")) is fine


@pytest.mark.parametrize("wrong", ["", "api.example.com", "ftp://x", "https://", "https://u:p@x", "https://x y", "https://ä.example"])
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"resource\.url"):
        Address(wrong)


def test_the_addresses_of_a_socket() -> None:
    def of(sockname: Any, tls: object = None) -> set[str]:
        return {f"{scheme}://{host}:{port}" for scheme, host, port in served_at(request("/", sockname, tls))}

    assert of(("10.0.0.7", 8080)) == {"http://10.0.0.7:8080"}
    assert of(("10.0.0.7", 8443), object()) == {"https://10.0.0.7:8443"}
    assert of(("2001:db8::1", 80, 0, 0)) == {"http://[2001:db8::1]:80"}
    assert of(("::ffff:10.0.0.7", 80, 0, 0)) == {"http://10.0.0.7:80"}
    assert of(("fe80::1%eth0", 80, 0, 2)) == {"http://[fe80::1]:80"}
    assert of(("127.0.0.1", 80)) == {"http://127.0.0.1:80", "http://localhost:80", "http://[::1]:80"}
    assert of("/run/gatepost.sock") == of("") == of(None) == set()
    assert list(served_at(SimpleNamespace(transport=None))) == []  # type: ignore[arg-type]


def test_an_ipv6_address_is_normalised_by_its_letters_alone() -> None:
    assert read_target("http://[::1]:80/") == read_target("HTTP://[::1]")
    assert read_target("http://x:99999999/") is None
    assert read_target("http://x/%zz") is None or not Address("http://x").is_of("http://x/%zz", request("/"))
