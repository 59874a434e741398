"""Live answers through the example of deploy/nginx/: events arrive at once, WebSockets pass, and tickets stay out of its log."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from server import event_stream, signed_in, socket
from tests.conftest import ROBOT_A, Client, Serve, plugin
from tests.kits.pages import free_port
from tests.project.test_deploy_run import NGINX, certificate, configured, echo  # noqa: F401 - certificate is a fixture

HOST = {"Host": "api.example.com"}


@signed_in
async def ticks(request: web.Request) -> web.StreamResponse:
    async with event_stream(request) as stream:
        await stream.send({"n": 1}, event="tick")
        await asyncio.Event().wait()
    return stream.response


@signed_in
async def shout(request: web.Request) -> web.StreamResponse:
    async with socket(request) as ws:
        async for message in ws:
            await ws.send_str(message.data.upper())
    return ws


ROUTES = (web.get("/api/ticks", ticks), web.get("/api/shout", shout), web.get("/api/echo", echo))


@asynccontextmanager
async def behind_nginx(client: Client, folder: Path, tls: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """(a client that trusts the proxy's certificate, the proxy's origin)."""
    port, text = free_port(), NGINX
    for old, new in {"server 127.0.0.1:8080;": f"server 127.0.0.1:{client.port};", "listen 80;": f"listen 127.0.0.1:{free_port()};",
                     "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;", "    listen [::]:80;\n": "",
                     "    listen [::]:443 ssl http2;\n": ""}.items():  # fmt: skip
        assert text.count(old) == 1
        text = text.replace(old, new)
    nginx = await asyncio.create_subprocess_exec(*configured(folder, tls, text))
    trusted = ssl.create_default_context(cafile=str(tls / "api.example.com.crt"))
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session:
            async with asyncio.timeout(10):
                while True:
                    try:
                        async with session.get(f"https://127.0.0.1:{port}/api/health", headers=HOST, server_hostname=HOST["Host"]):
                            break
                    except aiohttp.ClientConnectorError:
                        await asyncio.sleep(0.05)
            yield session, f"https://127.0.0.1:{port}"
    finally:
        nginx.terminate()
        await nginx.wait()


async def test_streams_pass(serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    client = await serve(extra={"acme": plugin(*ROUTES)})
    secure, known = {"server_hostname": HOST["Host"]}, {**HOST, **ROBOT_A}
    async with behind_nginx(client, tmp_path, certificate) as (session, origin), asyncio.timeout(30):
        url, socket_url = f"{origin}/api/ticks", f"{origin}/api/shout"
        async with session.get(url, headers=known, **secure) as got, session.ws_connect(socket_url, headers=known, **secure) as ws:
            assert (got.status, got.headers["Content-Type"]) == (200, "text/event-stream")
            # The stream is open, and nothing else will be written to it: a proxy that buffered would show nothing.
            assert [await got.content.readline() for _ in range(3)] == [b"event: tick\n", b'data: {"n":1}\n', b"\n"]
            await ws.send_str("hello")
            assert await ws.receive_str() == "HELLO"
            await client.close()
            closed = await ws.receive()
            assert (closed.type, closed.data, closed.extra) == (aiohttp.WSMsgType.CLOSE, 1001, "draining")
            assert [await got.content.readline() for _ in range(2)] == [b"event: end\n", b'data: {"reason":"draining"}\n']


async def test_no_other_upgrade_passes_and_no_ticket_is_logged(serve: Serve, tmp_path: Path, certificate: Path) -> None:  # noqa: F811
    """h2c would be a connection of which the proxy sees nothing any more."""
    client = await serve(extra={"acme": plugin(*ROUTES)})
    secure = {"server_hostname": HOST["Host"]}
    async with behind_nginx(client, tmp_path, certificate) as (session, origin), asyncio.timeout(30):

        async def seen(headers: Mapping[str, str]) -> dict[str, list[str]]:
            async with session.get(f"{origin}/api/echo", headers={**HOST, **ROBOT_A, **headers}, **secure) as got:
                found: dict[str, list[str]] = json.loads(await got.read())
                return found

        for upgrade in ("h2c", "websocket, h2c", "foo"):
            headers = await seen({"Upgrade": upgrade, "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABk"})
            assert "upgrade" not in headers
            assert "connection" not in headers
        url = URL(f"{origin}/api/%74icks?ticket=st_canary&a=b", encoded=True)
        async with session.get(url, headers={**HOST}, **secure) as got:
            assert got.status == 401
    log = (tmp_path / "gatepost.log").read_text()
    assert '"GET /api/%74icks" 401' in log
    assert "st_canary" not in log
    assert "?" not in log
