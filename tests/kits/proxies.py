"""Runs real reverse proxies with the examples of deploy/, in front of servers of this run."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from kits.deploy import DEPLOY
from server.serving.operations import Operations
from server.serving.process_metrics import families_of, reasons_of
from tests.conftest import Got
from tests.kits.pages import free_port

HOST = "api.example.com"
FILES = {"nginx": "nginx/gatepost.conf", "haproxy": "haproxy/haproxy.cfg", "caddy": "caddy/Caddyfile", "traefik": "traefik/gatepost.yaml"}
Changes = Mapping[str, str]


def program(name: str) -> str:
    """The program's path. The test is skipped where it is missing."""
    beside = str(Path(sys.executable).parent)  # Traefik comes as a package
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin:/sbin", beside]))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def replaced(text: str, changes: Changes) -> str:
    """The text with each key, which must occur, replaced by its value."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Backend:
    """A server behind the proxy: its port, and the port that says whether it is ready."""

    port: int
    ops: int


def unreachable() -> Backend:
    """A backend that does not run."""
    return Backend(free_port(), free_port())


@asynccontextmanager
async def operations(app: web.Application, port: int) -> AsyncIterator[Operations]:
    """The operations port of an application in this process."""
    made = Operations(lambda: reasons_of(app), lambda: families_of(app))
    await made.start("127.0.0.1", port)
    try:
        yield made
    finally:
        await made.stop()


@dataclass(frozen=True)
class Proxy:
    """A running proxy, and a client that trusts its certificate, undoes no compression and follows no redirect."""

    name: str
    port: int
    plain: int
    folder: Path
    session: aiohttp.ClientSession
    trusted: ssl.SSLContext

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None, **more: Any) -> Got:
        """One exchange; the target is sent as it is."""
        async with self.open(method, target, headers, **more) as got:
            return Got(got.status, got.headers, await got.read())

    def open(self, method: str, target: str, headers: Mapping[str, str] | None = None, **more: Any) -> Any:
        url, given = URL(self.origin + target, encoded=True), {"Host": HOST, **(headers or {})}
        return self.session.request(method, url, headers=given, server_hostname=HOST, allow_redirects=False, **more)

    async def bytes(self, data: bytes, *, plain: bool = False) -> bytes:
        """What comes back for these bytes, until the proxy hangs up."""
        secure = {} if plain else {"ssl": self.trusted, "server_hostname": HOST}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.plain if plain else self.port, **secure)
        try:
            writer.write(data)
            async with asyncio.timeout(15):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def behind(
    name: str, folder: Path, certificate: Path, backends: Sequence[Backend], changes: Changes | None = None
) -> AsyncIterator[Proxy]:
    """A proxy of this name with its file of deploy/ on free ports. `changes` are made in the file, before those of the ports."""
    tls, plain = free_port(), free_port()
    folder.mkdir(exist_ok=True)
    words = _WRITERS[name](program(name), folder, certificate, backends, dict(changes or {}), tls, plain)
    env = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "output").open("wb") as output:
        process = await asyncio.create_subprocess_exec(*words, stdout=output, stderr=output, env=env)
    trusted = ssl.create_default_context(cafile=str(certificate / f"{HOST}.crt"))
    connector = aiohttp.TCPConnector(ssl=trusted)
    try:
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
            proxy = Proxy(name, tls, plain, folder, session, trusted)
            await _until_it_listens(process, proxy)
            yield proxy
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_it_listens(process: asyncio.subprocess.Process, proxy: Proxy) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, (proxy.folder / "output").read_text()
            try:
                await proxy.ask("GET", "/.gatepost-is-there")
                return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def until_served(proxy: Proxy, target: str = "/api/health") -> Got:
    """Wait until the proxy knows that its server is ready."""
    async with asyncio.timeout(30):
        while (seen := await proxy.ask("GET", target)).status != 200:
            await asyncio.sleep(0.1)
    return seen


def _nginx(path: str, folder: Path, certificate: Path, backends: Sequence[Backend], changes: Changes, tls: int, plain: int) -> list[str]:
    servers = "\n".join(f"    server 127.0.0.1:{one.port};" for one in backends)
    text = replaced((DEPLOY / FILES["nginx"]).read_text("utf-8"), changes)
    text = replaced(text, {
        "    server 127.0.0.1:8080;": servers, "listen 80;": f"listen 127.0.0.1:{plain};", "    listen [::]:80;\n": "",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{tls} ssl http2;", "    listen [::]:443 ssl http2;\n": "",
        "/etc/nginx/tls": str(certificate), "/var/log/nginx": str(folder),
    })  # fmt: skip
    (folder / "gatepost.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; pid {folder}/pid; error_log stderr warn;\nevents {{}}\nhttp {{ access_log off;\ninclude /etc/nginx/mime.types;\n"
        + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"include {folder}/gatepost.conf; }}\n"
    )
    return [path, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _haproxy(path: str, folder: Path, certificate: Path, backends: Sequence[Backend], changes: Changes, tls: int, plain: int) -> list[str]:
    both = [(certificate / f"{HOST}.{kind}").read_text() for kind in ("crt", "key")]
    (folder / f"{HOST}.pem").write_text("".join(both))
    servers = "\n".join(f"    server gatepost{n} 127.0.0.1:{one.port} check port {one.ops}" for n, one in enumerate(backends))
    text = replaced((DEPLOY / FILES["haproxy"]).read_text("utf-8"), changes)
    text = replaced(text, {
        "    server gatepost1 127.0.0.1:8080": servers, "bind :80": f"bind 127.0.0.1:{plain}", "bind :443": f"bind 127.0.0.1:{tls}",
        "/etc/haproxy/tls": str(folder),
    })  # fmt: skip
    (folder / "haproxy.cfg").write_text(text)
    return [path, "-db", "-f", str(folder / "haproxy.cfg")]


def _caddy(path: str, folder: Path, certificate: Path, backends: Sequence[Backend], changes: Changes, tls: int, plain: int) -> list[str]:
    text = replaced((DEPLOY / FILES["caddy"]).read_text("utf-8"), changes)
    pair = f"tls {certificate}/{HOST}.crt {certificate}/{HOST}.key"
    text = replaced(text, {
        "\n{\n": f"\n{{\n\tadmin off\n\thttp_port {plain}\n\thttps_port {tls}\n\tstorage file_system {folder}\n", "api.example.com {": f"{HOST} {{\n\tbind 127.0.0.1\n\t{pair}",
        "reverse_proxy 127.0.0.1:8080": "reverse_proxy " + " ".join(f"127.0.0.1:{one.port}" for one in backends),
        "health_port 9090": f"health_port {backends[0].ops}", "/var/log/caddy": str(folder),
    })  # fmt: skip
    (folder / "Caddyfile").write_text(text)
    return [path, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def _traefik(path: str, folder: Path, certificate: Path, backends: Sequence[Backend], changes: Changes, tls: int, plain: int) -> list[str]:
    routes = replaced((DEPLOY / FILES["traefik"]).read_text("utf-8"), changes)
    servers = "\n".join(f"          - url: http://127.0.0.1:{one.port}" for one in backends)
    routes = replaced(routes, {
        "          - url: http://127.0.0.1:8080": servers, "port: 9090": f"port: {backends[0].ops}", "/etc/traefik/tls": str(certificate),
    })  # fmt: skip
    (folder / "gatepost.yaml").write_text(routes)
    static = replaced((DEPLOY / "traefik" / "traefik.yaml").read_text("utf-8"), {
        'address: ":80"': f'address: "127.0.0.1:{plain}"', 'address: ":443"': f'address: "127.0.0.1:{tls}"',
        "/etc/traefik/gatepost.yaml": f"{folder}/gatepost.yaml", "/var/log/traefik": str(folder),
    })  # fmt: skip
    (folder / "traefik.yaml").write_text(static)
    return [path, f"--configFile={folder}/traefik.yaml"]


_WRITERS: dict[str, Callable[..., list[str]]] = {"nginx": _nginx, "haproxy": _haproxy, "caddy": _caddy, "traefik": _traefik}
