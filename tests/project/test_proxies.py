"""The proxies of deploy/, the real programs, in front of a real server: what docs/guides/behind-a-proxy.md says of them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kits import doc_page
from kits.proxies import FILES, Backend, Proxy, behind, operations, program, until_served

from server import answer, public, signed_in
from server.http.client_address import ADDRESSES
from tests.conftest import KEYS, ROBOT_A, Client, Serve, plugin
from tests.kits.pages import free_port
from tests.project.test_deploy_run import certificate  # noqa: F401 - a fixture
from tests.project.test_deploy_streams import shout, ticks

# A key of a user: development credentials are refused behind a proxy.
USER = {"X-API-Key": "gp_the-key-of-alice"}
USERS = [{"id": "alice", "hash": "sha256:" + hashlib.sha256(USER["X-API-Key"].encode()).hexdigest(), "user_id": "alice", "org_id": "org_a"}]
PROXIES = pytest.mark.parametrize("name", FILES)


@signed_in
async def echo(request: web.Request) -> web.Response:
    """What the server sees of the proxy."""
    headers = {name.lower(): request.headers.getall(name) for name in request.headers}
    return answer({"target": request.raw_path, "address": request.app[ADDRESSES].of(request), "id": request.app[ADDRESSES].inbound_request_id(request), "headers": headers})


ROUTES = plugin(web.get("/api/echo{tail:.*}", echo), web.post("/api/echo", echo), web.get("/api/ticks", ticks), web.get("/api/shout", shout))


@asynccontextmanager
async def proxied(name: str, serve: Serve, folder: Path, tls: Path, changes: Any = None, **settings: Any) -> AsyncIterator[tuple[Proxy, Client, Any]]:
    """(the proxy, a client of the server behind it, the server's operations port)"""
    client = await serve({"trusted_proxies": ["127.0.0.1"], "api_key.keys": [*KEYS, *USERS], **settings}, {"acme": ROUTES})
    ops = free_port()
    async with operations(client.app, ops) as port, behind(name, folder, tls, [Backend(client.port, ops)], changes) as proxy:
        await until_served(proxy, f"{settings.get('path_prefix', '')}/api/health")
        yield proxy, client, port


CLAIMED = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9", "X-Request-Id": "the-clients", "X-Forwarded-Host": "evil.example"}
KEPT = ["/api/echo", "/api/echo//a", "/api/echo/a%20b?x=%2F&y=1", "/api/echo/%C3%BC?q=%C3%BC+a", "/api/echo/a;b", "/api/echo/"]
REFUSED = ["/api/echo/%2e%2e/x", "/api/echo/%2fa", "/api/echo/../echo", "/api/%2e%2e/public/docs", "/api/echo/%5c", "/api/echo/%25"]


@PROXIES
async def test_addresses_request_ids_and_targets(name: str, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    async with proxied(name, serve, tmp_path, certificate) as (proxy, _, _):
        seen = await proxy.ask("GET", "/api/echo", {**ROBOT_A, **CLAIMED, "Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABk"})
        told = seen.json()
        headers = told["headers"]
        # A client's own claim about its address is discarded, and so is an upgrade other than to a WebSocket.
        assert (told["address"], headers["x-forwarded-for"], headers["x-forwarded-proto"]) == ("127.0.0.1", ["127.0.0.1"], ["https"])
        assert headers["host"] == ["api.example.com"]
        assert not {"forwarded", "upgrade"} & set(headers)
        assert "evil.example" not in seen.raw.decode()
        # The proxy's own id is in the server's log, beside the one in the response; a client's is neither.
        assert (told["id"] is None) == (name == "traefik")
        assert told["id"] not in ("the-clients", seen.headers["X-Request-Id"])
        assert len(seen.headers.getall("X-Request-Id")) == 1
        assert seen.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert (seen.headers["Cache-Control"], seen.headers["Vary"]) == ("no-store", "Authorization, Cookie, X-API-Key, Origin")
        for target in KEPT:
            assert (await proxy.ask("GET", target, ROBOT_A)).json()["target"] == target
        for target in REFUSED:
            seen = await proxy.ask("GET", target, ROBOT_A)
            assert (seen.status, seen.json()) == (400, {"error": "Bad Request"}), target
        redirected = await proxy.bytes(b"GET /api/me?x=1 HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n", plain=True)
        assert redirected.split()[1] in (b"301", b"308")
        assert b"ocation: https://api.example.com" in redirected


@PROXIES
async def test_no_other_upgrade_goes_on_beside_a_websocket(name: str, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    async with proxied(name, serve, tmp_path, certificate) as (proxy, _, _):
        two = "GET /api/echo HTTP/1.1\r\nHost: api.example.com\r\nConnection: close, Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n"
        raw = await proxy.bytes((two + "".join(f"{name}: {value}\r\n" for name, value in ROBOT_A.items()) + "\r\n").encode())
        assert raw.split()[1] in (b"200", b"400")
        assert b"h2c" not in raw
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13", "Connection": "Upgrade"}
        for value in ("websocket, h2c", "h2c, websocket"):
            async with asyncio.timeout(10):
                assert "h2c" not in (await proxy.ask("GET", "/api/echo", {**ROBOT_A, **key, "Upgrade": value})).raw.decode()


@PROXIES
async def test_live_answers(name: str, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    async with proxied(name, serve, tmp_path, certificate) as (proxy, client, _), asyncio.timeout(40):
        assert (await proxy.ask("GET", "/api/ticks?ticket=st_canary")).status == 401
        given = {"headers": {"Host": "api.example.com", **ROBOT_A}, "server_hostname": "api.example.com"}
        async with proxy.open("GET", "/api/ticks", ROBOT_A) as got, proxy.session.ws_connect(f"{proxy.origin}/api/shout", **given) as ws:
            # The stream is open, and nothing else will be written to it: a proxy that buffered would show nothing.
            assert [await got.content.readline() for _ in range(3)] == [b"event: tick\n", b'data: {"n":1}\n', b"\n"]
            await ws.send_str("hello")
            assert await ws.receive_str() == "HELLO"
            await client.close()
            closed = await ws.receive()
            assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            assert [await got.content.readline() for _ in range(2)] == [b"event: end\n", b'data: {"reason":"draining"}\n']
    logs = "".join(path.read_text() for path in (tmp_path / "gatepost.log", tmp_path / "output") if path.exists())
    assert "401" in logs
    assert "st_canary" not in logs
    assert ROBOT_A["X-API-Key"] not in logs


# (what the client sends, the status, and whose body it is: the proxy's own in JSON, the proxy's own text, or the server's)
LARGE = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n"
HUGE = b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n"
OWN: dict[str, list[tuple[bytes, int, str]]] = {
    "nginx": [(b"GET / HTTP/1.1\r\nbad header\r\n", 400, "json"), (b"TRACE / HTTP/1.1\r\n", 405, "json"), (LARGE, 431, "json"), (HUGE, 431, "json")],
    "haproxy": [(b"GET / HTTP/1.1\r\nbad header\r\n", 400, "text or json"), (b"TRACE / HTTP/1.1\r\n", 401, "server"), (LARGE, 431, "server"), (HUGE, 400, "text or json")],
    "caddy": [(b"GET / HTTP/1.1\r\nbad header\r\n", 400, "text"), (b"TRACE / HTTP/1.1\r\n", 401, "server"), (LARGE, 431, "server"), (HUGE, 431, "text")],
    "traefik": [(b"GET / HTTP/1.1\r\nbad header\r\n", 400, "text"), (b"TRACE / HTTP/1.1\r\n", 401, "server"), (LARGE, 431, "server"), (HUGE, 431, "text")],
}
DOWN = {"nginx": (503,), "haproxy": (503,), "caddy": (502, 503), "traefik": (502, 503)}


@PROXIES
async def test_errors(name: str, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    async with proxied(name, serve, tmp_path, certificate) as (proxy, client, ops):
        for data, status, whose in OWN[name]:
            head, _, body = (await proxy.bytes(data + b"Host: api.example.com\r\nConnection: close\r\n\r\n")).partition(b"\r\n\r\n")
            assert int(head.split()[1]) == status, data[:40]
            assert b"gp_" not in body
            if whose in ("json", "server"):
                assert b"application/json" in head
                assert b"no-store" in head
                assert b"nosniff" in head
                assert set(json.loads(body)) <= {"error", "reason"}
            assert (b"x-request-id" in head.lower()) == (whose == "server")
        large = await proxy.ask("POST", "/api/data", {**USER, "Content-Type": "application/json"}, data=io.BytesIO(b"x" * 1_100_000))
        assert (large.status, large.json()) == (413, {"error": "Content Too Large"})
        # A draining server gets no new requests; one that is gone is a 502 or 503.
        ops.draining = True
        if name != "nginx":  # which has no probes of its own
            async with asyncio.timeout(30):
                while (seen := await proxy.ask("GET", "/api/health")).status == 200:
                    await asyncio.sleep(0.2)
            assert seen.status == 503
        await client.close()
        seen = await proxy.ask("GET", "/api/health")
        assert seen.status in DOWN[name]
        if name != "traefik":
            assert seen.json()["error"] in ("Service Unavailable", "Bad Gateway")
            assert (seen.headers["Cache-Control"], seen.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert seen.headers["Strict-Transport-Security"] == "max-age=31536000"


@PROXIES
async def test_compression_and_entity_tags(name: str, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    asks = {"Accept-Encoding": "gzip"}
    async with proxied(name, serve, tmp_path, certificate) as (proxy, client, _):
        target = "/api/public/docs/swagger-ui-bundle.js"
        plain = await client.get(target)
        got = await proxy.ask("GET", target, asks)
        assert (got.headers["Content-Encoding"], gzip.decompress(got.raw)) == ("gzip", plain.raw)
        assert "Accept-Encoding" in ", ".join(got.headers.getall("Vary"))
        # nginx and HAProxy make the tag weak, as a different sequence of bytes demands; either form is the file's.
        assert got.headers["ETag"].removeprefix("W/") == plain.headers["ETag"]
        assert got.headers["ETag"].startswith("W/") == (name in ("nginx", "haproxy"))
        for known in (got.headers["ETag"], f'"other", {got.headers["ETag"]}', "*"):
            again = await proxy.ask("GET", target, {**asks, "If-None-Match": known})
            assert (again.status, again.raw, again.headers["Cache-Control"]) == (304, b"", "no-cache")
        assert (await proxy.ask("GET", target, {**asks, "If-None-Match": '"other"'})).status == 200
        # A row is not compressed: its strong tag comes back as If-Match.
        made = await proxy.ask("POST", "/api/data", {**USER, **asks}, json={"name": "a" * 200, "payload": {"text": "a" * 5000}})
        assert (made.status, "Content-Encoding" in made.headers) == (201, False)
        row, tag = made.headers["Location"], made.headers["ETag"]
        assert (await proxy.ask("PATCH", row, {**USER, "If-Match": f"W/{tag}"}, json={"name": "b"})).status == 412
        assert (await proxy.ask("PATCH", row, {**USER, "If-Match": tag}, json={"name": "b"})).status == 200
        assert (await proxy.ask("PATCH", row, {**USER, "If-Match": tag}, json={"name": "c"})).status == 412


# Below a path ------------------------------------------------------------------------------------------------------------

PLAIN = {"Accept-Encoding": "identity"}
# The proxy removes the prefix; the page has the same lines. Without them the proxy passes it on, and the server removes it.
STRIPPING: dict[str, dict[str, str]] = {
    "nginx": {"location / {\n        # No path": "location /gatepost/ {\n        # No path", "proxy_pass http://gatepost;": "proxy_pass http://gatepost/;"},
    "haproxy": {"    default_backend gatepost": "    http-request set-path %[path,regsub(^/gatepost/,/)] if { path_beg /gatepost/ }\n    default_backend gatepost"},
    "caddy": {"\t# For several servers": "\turi strip_prefix /gatepost\n\t# For several servers"},
    "traefik": {
        "[gatepost-retry, gatepost-headers, no-upgrade": "[gatepost-strip, gatepost-retry, gatepost-headers, no-upgrade",
        "  middlewares:\n    gatepost-headers:": "  middlewares:\n    gatepost-strip:\n      stripPrefix:\n        prefixes: [/gatepost]\n    gatepost-headers:",
    },
}


@pytest.mark.long
@pytest.mark.parametrize("strip", [True, False], ids=["the server strips", "the proxy strips"])
@PROXIES
async def test_below_a_path(name: str, strip: bool, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    given = {"path_prefix": "/gatepost", "strip_path_prefix": strip, "resource.url": "https://api.example.com/gatepost"}
    async with proxied(name, serve, tmp_path, certificate, None if strip else STRIPPING[name], **given) as (proxy, _, _), asyncio.timeout(40):
        for number in range(3):
            made = await proxy.ask("POST", "/gatepost/api/data", USER, json={"name": f"row {number}"})
            assert made.headers["Location"] == f"/gatepost/api/data/{made.json()['id']}"
            assert (await proxy.ask("GET", made.headers["Location"], USER)).json()["name"] == f"row {number}"
        target, names = "/gatepost/api/data?limit=2", []
        while target:
            page = await proxy.ask("GET", target, {**USER, "X-Forwarded-Prefix": "/evil"})
            names += [row["name"] for row in page.json()]
            target = page.headers.get("Link", "<").partition("<")[2].partition(">")[0]
            assert not target or target.startswith("/gatepost/api/data?limit=2&cursor=")
        assert names == ["row 2", "row 1", "row 0"]
        assert (await proxy.ask("GET", "/gatepost/api/public/openapi.json", PLAIN)).json()["servers"] == [{"url": "/gatepost"}]
        assert b'src="docs/page.js' in (await proxy.ask("GET", "/gatepost/api/public/docs", PLAIN)).raw
        assert (await proxy.ask("GET", "/gatepost/api/public/docs/page.js")).status == 200
        for path in ("/gatepost/api/data/events", "/api/data/events"):  # as the page's address has it, and as the document has it
            ticket = (await proxy.ask("POST", "/gatepost/api/stream-tickets", USER, json={"path": path})).json()["ticket"]
            async with proxy.open("GET", f"/gatepost/api/data/events?ticket={ticket}") as got:
                assert (got.status, got.headers["Content-Type"]) == (200, "text/event-stream")
        known = "/.well-known/oauth-protected-resource/gatepost/api/data"
        refused = await proxy.ask("GET", "/gatepost/api/data")
        assert f'resource_metadata="https://api.example.com{known}"' in refused.headers["WWW-Authenticate"]
        if strip or name != "nginx":  # there the location of the example passes nothing on but the prefix
            assert (await proxy.ask("GET", known)).json()["resource"] == "https://api.example.com/gatepost/api/data"
        if strip:
            for outside in ("/api/health", "/api/public/openapi.json", "/gatepostx/api/health", "/gatepost/gatepost/api/health", "/g%61tepost/api/public/docs"):
                assert (await proxy.ask("GET", outside)).status == (200 if name == "traefik" and "%61" in outside else 401), outside
        for trick in ("/gatepost/..%2fapi/health", "/gatepost/%2e%2e/gatepost/api/data", "/gatepost/api/public/../data", "/gatepost/api/public/%2e%2e/data"):
            assert (await proxy.ask("GET", trick)).status in ((400, 401) if strip or name != "nginx" else (400, 401, 403, 404)), trick


# Two servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@PROXIES
async def test_a_server_that_drains_costs_no_request(name: str, serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    """As in a rolling update: the first says that it is not ready, takes no new connection, and ends; the second serves."""
    first, second = await serve({"api_key.keys": [*KEYS, *USERS]}), await serve({"api_key.keys": [*KEYS, *USERS]})
    ports = free_port(), free_port()
    async with operations(first.app, ports[0]) as leaving, operations(second.app, ports[1]):
        # Caddy and Traefik probe one port for all: the second one's, so that they learn of the first by their connections.
        both = [Backend(second.port, ports[1]), Backend(first.port, ports[0])]
        async with behind(name, tmp_path, certificate, both) as proxy:
            await until_served(proxy)
            seen: list[int] = []
            stop = asyncio.Event()

            async def call() -> None:
                while not stop.is_set():
                    seen.append((await proxy.ask("GET", "/api/data", USER)).status)
                    await asyncio.sleep(0.05)

            async with asyncio.TaskGroup() as group:
                callers = [group.create_task(call()) for _ in range(4)]
                await asyncio.sleep(1)
                leaving.draining = True
                await first.close()
                await asyncio.sleep(2)
                stop.set()
                await asyncio.gather(*callers)
            assert set(seen) == {200}
            assert len(seen) > 40


# Credentials, and caches -------------------------------------------------------------------------------------------------

STAGING = {
    "map $status $gatepost_phrase": 'map $http_authorization $gatepost_authorization {\n    default $http_authorization;\n    "~*^basic " "";\n}\nmap $status $gatepost_phrase',
    "    gzip on;": '    auth_basic "staging";\n    auth_basic_user_file /etc/nginx/staging.htpasswd;\n    proxy_set_header Authorization $gatepost_authorization;\n    gzip on;',
    "        proxy_set_header Host $host;": "        proxy_set_header Host $host;\n        proxy_set_header Authorization $gatepost_authorization;",
}


async def test_the_password_of_a_staging_proxy_is_no_credential(serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    """The proxy asks for Basic credentials and keeps them. Passed on, they are a second credential beside a key, and hide a cookie."""
    program("nginx")
    (tmp_path / "htpasswd").write_text("staging:{PLAIN}secret-of-staging\n")
    changes = {old: new.replace("/etc/nginx/staging.htpasswd", str(tmp_path / "htpasswd")) for old, new in STAGING.items()}
    basic = aiohttp.encode_basic_auth("staging", "secret-of-staging")
    client = await serve({"trusted_proxies": ["127.0.0.1"], "api_key.keys": [*KEYS, *USERS]})
    async with behind("nginx", tmp_path, certificate, [Backend(client.port, 0)], changes) as proxy:
        assert (await proxy.ask("GET", "/api/me", USER)).status == 401
        assert "staging" in (await proxy.ask("GET", "/api/me", USER)).headers["WWW-Authenticate"]
        assert (await proxy.ask("GET", "/api/me", {**USER, "Authorization": basic})).json()["user_id"] == "alice"
        assert (await proxy.ask("GET", "/api/me", {"Authorization": basic})).json()["reason"] == "credential-missing"
    for headers, status in (({**USER, "Authorization": basic}, 400), ({"Authorization": basic}, 401), ({**USER, "Authorization": ""}, 400)):
        assert (await client.get("/api/me", headers)).status == status
    # What a gateway writes where it has no key is none.
    bearer = {"Authorization": f"Bearer {USER['X-API-Key']}"}
    assert (await client.get("/api/me", {**bearer, "X-API-Key": ""})).json()["user_id"] == "alice"
    assert (await client.get("/api/me", {"X-API-Key": ""})).json()["reason"] == "credential-missing"


CACHE = {
    "limit_req_zone ": "proxy_cache_path /var/cache/nginx/gatepost keys_zone=gatepost_answers:1m;\nlimit_req_zone ",
    "        proxy_connect_timeout 2s;": "        proxy_cache gatepost_answers;\n        proxy_cache_valid 200 10m;\n        add_header X-Cache $upstream_cache_status;\n        proxy_connect_timeout 2s;",
}


async def test_a_caching_proxy_gives_no_caller_anothers_answer(serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    """Even one that keeps everything that does not forbid it."""
    async def told(request: web.Request) -> web.Response:
        more = {"Cache-Control": request.query["cache"]} if "cache" in request.query else {}
        return answer({"secret": request.headers.get("X-Secret"), "caller": request.headers.get("X-API-Key")}, headers=more)

    routes = plugin(web.get("/api/open/x", public(told)), web.get("/api/locked", signed_in(told)))
    client = await serve({"trusted_proxies": ["127.0.0.1"], "api_key.keys": [*KEYS, *USERS], "public_routes": ["/api/open/x", "/api/health"]}, {"x": routes})
    changes = {old: new.replace("/var/cache/nginx/gatepost", str(tmp_path / "cache")) for old, new in CACHE.items()}
    async with behind("nginx", tmp_path, certificate, [Backend(client.port, 0)], changes) as proxy:

        async def twice(target: str, one: dict[str, str], other: dict[str, str]) -> tuple[Any, str]:
            """(what the second caller was given, and where it came from)"""
            for headers in (one, one, other):
                seen = await proxy.ask("GET", target, headers)
                assert seen.status == 200
            return seen.json(), seen.headers.get("X-Cache", "")

        for said in ("no-store", "private, max-age=60"):
            got, cached = await twice(f"/api/open/x?cache={said.replace(' ', '%20')}", {"X-Secret": "one"}, {"X-Secret": "two"})
            assert (got["secret"], cached) == ("two", "MISS"), said
        got, cached = await twice("/api/open/x?cache=public,%20max-age=60", {"X-Secret": "one"}, {"X-Secret": "two"})
        assert (got["secret"], cached) == ("one", "HIT")
        for said in ("", "?cache=public,%20max-age=60", "?cache=private,%20max-age=60", "?cache=s-maxage=60", "?cache=max-age=60"):
            got, cached = await twice(f"/api/locked{said}", USER, ROBOT_A)
            assert (got["caller"], cached) == (ROBOT_A["X-API-Key"], "MISS"), said
        assert (await proxy.ask("GET", "/api/locked")).status == 401


async def test_the_proxy_protocol_is_not_understood(serve: Serve) -> None:
    """It is for a proxy in front of the proxy: here it is a malformed request."""
    client = await serve()
    async with client.wire() as wire:
        wire.writer.write(b"PROXY TCP4 203.0.113.9 127.0.0.1 5000 8080\r\nGET /api/health HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, body = await wire.answer()
        assert (status, json.loads(body)) == (400, {"error": "Bad Request"})


def test_the_page_has_the_lines_that_the_tests_use() -> None:
    page = doc_page("behind-a-proxy.md").read_text("utf-8")
    for line in ("http-request set-path %[path,regsub(^/gatepost/,/)] if { path_beg /gatepost/ }", "uri strip_prefix /gatepost"):
        assert line in page
        assert any(line in new for changes in STRIPPING.values() for new in changes.values())
    assert all(f"`deploy/{file}`" in page for file in FILES.values())
    for line in ("map $http_authorization $gatepost_authorization {", '"~*^basic " "";', "proxy_set_header Authorization $gatepost_authorization;"):
        assert line in page
        assert any(line in new for new in STAGING.values())
