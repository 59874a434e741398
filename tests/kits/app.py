"""Applications and raw sockets for tests that need no database."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aiohttp import web

from server import Identity, hookimpl
from server.app import SERVER_DATABASE, build
from server.settings.sources import Settings

LOCAL = "localhost"


def settings(**given: Any) -> Settings:
    """Settings that read no environment; keys are written with `__` for the dot (`limits__head_seconds`)."""
    values = {"env": "test", "providers": ["stub"], **{key.replace("__", "."): value for key, value in given.items()}}
    return Settings(environ={}, given=values)


def routes_plugin(*routes: web.RouteDef, **hooks: Callable[..., Any]) -> object:
    """A plugin that offers these routes; further hooks by name."""
    plugin = SimpleNamespace()
    if routes:
        plugin.register_handlers = hookimpl(lambda: list(routes), specname="register_handlers")
    for name, hook in hooks.items():
        setattr(plugin, name, hookimpl(hook, specname=name))
    return plugin


def provider_plugin(**providers: object) -> object:
    """A plugin that offers these ready-made providers."""
    factories = {name: (lambda settings, it=it: it) for name, it in providers.items()}
    return SimpleNamespace(register_providers=hookimpl(lambda: factories, specname="register_providers"))


def build_app(extra: dict[str, object] | None = None, **given: Any) -> web.Application:
    """The real application without its storage: no test of this kind touches a database."""
    app = build(settings(**given), extra)
    without_storage(app)
    return app


def without_storage(app: web.Application) -> None:
    """Without a database: nothing is opened, and no revocation exists or is stale."""
    app.cleanup_ctx[:] = [one for one in app.cleanup_ctx if one.__name__ != "_open_database"]  # type: ignore[attr-defined]
    app[SERVER_DATABASE].revocations.replace([], math.inf)


@asynccontextmanager
async def serving(app: web.Application, **runner_arguments: Any) -> AsyncIterator[int]:
    """The application on a loopback port, under aiohttp's own runner; gives the port."""
    runner = web.AppRunner(app, **({"shutdown_timeout": 0.5} | runner_arguments))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class Reply:
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes = field(repr=False, default=b"")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ends_the_connection(self) -> bool:
        """What the parser refuses is answered as HTTP/1.0, which closes unless it says otherwise (RFC 9112 9.3)."""
        said = self.headers.get("connection", "").lower()
        return said == "close" or (self.raw.startswith(b"HTTP/1.0") and said != "keep-alive")


class Client:
    """One connection that sends bytes as they are."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Client:
        await self.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            with suppress(ConnectionError, OSError):
                await self.writer.wait_closed()
        self.reader = self.writer = None

    async def send(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, method: str = "GET", timeout: float = 5.0) -> Reply:
        """The next answer. Raises IncompleteReadError when the server hangs up without one."""
        assert self.reader is not None
        async with asyncio.timeout(timeout):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            lines = head.decode("latin-1").split("\r\n")[1:]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
            length = 0 if method == "HEAD" or status in (204, 304) else int(headers.get("content-length", "0"))
            body = await self.reader.readexactly(length)
        return Reply(status, headers, body, head + body)

    async def ask(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (("Host", LOCAL),), body: bytes = b""
    ) -> Reply:
        """Send one request and take its answer; opens the connection again when the server has closed it."""
        if self.writer is None:
            await self.open()
        await self.send(request_bytes(method, target, headers, body))
        try:
            reply = await self.reply(method)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self.close()
            raise
        if reply.ends_the_connection or method == "CONNECT":
            await self.close()
        return reply

    async def closed_by_server(self, timeout: float = 5.0) -> bool:
        assert self.reader is not None
        try:
            async with asyncio.timeout(timeout):
                return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def request_bytes(
    method: str, target: str, headers: Iterable[tuple[str, str]] = (("Host", LOCAL),), body: bytes = b""
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


async def ask(port: int, method: str, target: str, *headers: tuple[str, str], host: str = LOCAL, body: bytes = b"") -> Reply:
    """One request on a connection of its own."""
    async with Client(port) as client:
        return await client.ask(method, target, [("Host", host), *headers], body)


def stub(user_id: str = "user_1", **params: str) -> tuple[str, str]:
    """The header that the stub takes."""
    said = ", ".join(f'{name}="{value}"' for name, value in {"user_id": user_id, **params}.items())
    return ("Authorization", f"Stub {said}")


def caller(**fields: Any) -> Identity:
    """A session of a user in an organisation, unless the arguments differ."""
    return Identity(**{"provider": "test", "token_type": "session_token", "user_id": "user_1", "org_id": "org_1"} | fields)
