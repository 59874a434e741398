"""The ground of the conformance kit: a provider opened with its server context, and real requests over loopback."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from ..auth.access import requires
from ..auth.identity import TOKEN_TYPES, Identity
from ..auth.revocation import Revocations
from ..http.errors import Unavailable
from ..plugins.hookspecs import Provider, ProviderFactory
from ..plugins.house import ServerHouse
from ..rate_limits.counters import Counters
from ..rate_limits.first_uses import FirstUses

Headers: TypeAlias = Mapping[str, str]
Context: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


async def _no_rows(function: str, *args: Any) -> list[Mapping[str, Any]]:
    return []


@dataclass(frozen=True, kw_only=True)
class ProviderCase:
    """A provider, and what it must make of which headers.

    factory    what `register_providers` offers; `settings` is the plugin's whole table, defaults included
    known      headers of callers that it knows, one caller each
    not_mine   headers with another provider's credentials. A request without any credential is added.
    bad        headers with credentials of its own that are invalid
    outage     `async with outage():` the service that it asks is down; None: it asks none
    slow       `async with slow():` that service takes half a second to some seconds; None: it asks none
    secrets    further texts that must not be shown: the secrets of its settings
    query      what `House.query` returns, `async def query(function, *args)`; default: no rows
    seconds    the longest time in seconds that an answer of a healthy service may take
    name       its name in `register_providers`; matters to a provider that has `issuers`
    """

    factory: ProviderFactory
    settings: Mapping[str, Any]
    known: Sequence[Headers]
    bad: Sequence[Headers]
    not_mine: Sequence[Headers] = ()
    outage: Context | None = None
    slow: Context | None = None
    secrets: Sequence[str] = ()
    query: Callable[..., Awaitable[list[Mapping[str, Any]]]] = _no_rows
    seconds: float = 5.0
    name: str = "tested"


class Opened:
    """An open provider, and the requests to ask it about."""

    def __init__(self, provider: Provider) -> None:
        self.authenticate = provider.authenticate
        self.recall: Callable[[web.Request], object] = getattr(provider, "recall", lambda request: None)
        self.recheck: Callable[[Identity], Awaitable[Identity]] | None = getattr(provider, "recheck", None)
        self.reads: object = getattr(provider, "reads", None)
        self._provider = provider
        self._held: dict[str, tuple[asyncio.Future[web.Request], asyncio.Event]] = {}
        self._client: aiohttp.ClientSession | None = None

    async def answer(self, headers: Headers) -> Identity | Exception | None:
        """What the provider returns for a request with these headers. An exception is returned, not raised."""
        async with self.request(headers) as request:
            try:
                return await self._provider.authenticate(request)
            except Exception as error:
                return error

    def words(self) -> list[str]:
        """The texts in which the provider describes itself: repr, str, and its reason for /readyz."""
        said = getattr(self._provider, "not_ready", lambda: None)()
        return [repr(self._provider), str(self._provider), str(said)]

    @asynccontextmanager
    async def request(self, headers: Headers) -> AsyncIterator[web.Request]:
        """A request that a server has received; it is answered at the end of the block."""
        assert self._client is not None
        number = str(len(self._held))
        self._held[number] = arrived, released = asyncio.get_running_loop().create_future(), asyncio.Event()
        sending = asyncio.create_task(self._send(f"/{number}", headers))
        try:
            async with asyncio.timeout(30):
                yield await arrived
        finally:
            released.set()
            await sending

    async def _send(self, path: str, headers: Headers) -> None:
        assert self._client is not None
        async with self._client.get(path, headers=headers) as got:
            await got.read()

    async def _hold(self, request: web.Request) -> web.Response:
        arrived, released = self._held[request.match_info["number"]]
        arrived.set_result(request)
        await released.wait()
        return web.Response()

    @asynccontextmanager
    async def on_stage(self) -> AsyncIterator[None]:
        """The server and the client for `request`, within the block."""

        async def hold(request: web.Request) -> web.Response:
            return await self._hold(request)

        # Marked as a route that accepts every type of token, without the check that goes with it.
        hold.__dict__.update(vars(requires(accepts=sorted(TOKEN_TYPES))(hold)))
        app = web.Application()
        app.router.add_get("/{number}", hold)
        server = TestServer(app, host="127.0.0.1")
        await server.start_server(shutdown_timeout=0.1)
        try:
            async with aiohttp.ClientSession(server.make_url("/"), cookie_jar=aiohttp.DummyCookieJar()) as self._client:
                yield
        finally:
            await server.close()


@asynccontextmanager
async def opened(case: ProviderCase) -> AsyncIterator[Opened]:
    """A new provider of this case, opened and closed as the server does it."""
    provider = case.factory(MappingProxyType(dict(case.settings)))
    with tempfile.TemporaryDirectory() as folder:
        first_use = FirstUses(Counters()).first
        house = ServerHouse("test", Path(folder), case.query, Revocations(max_staleness=math.inf), first_use=first_use)
        for issuer in getattr(provider, "issuers", ()):
            house.claim_issuer(issuer, case.name)
        try:
            if hasattr(provider, "open"):
                with suppress(Unavailable, TimeoutError):  # the server starts all the same, and is not ready
                    await asyncio.wait_for(provider.open(house), 30)
            stage = Opened(provider)
            async with stage.on_stage():
                yield stage
        finally:
            if hasattr(provider, "close"):
                await asyncio.wait_for(provider.close(), 5)
            await house.close()
