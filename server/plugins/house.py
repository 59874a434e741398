"""Implements the protocol House: a bounded HTTP client, listed database functions, revocations, and work for one tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp

from ..auth.revocation import Revocations
from ..http.errors import Unavailable
from .hookspecs import Answer
from .tenant_work import work_of


def _no_database(*_: object) -> AbstractAsyncContextManager[Any]:
    raise Unavailable("there is no database here")


async def _no_storage(value: str, seconds: float) -> bool:
    raise Unavailable("nothing here remembers values that count once")


class ServerHouse:
    """The House that all providers and services of one server share."""

    def __init__(
        self,
        env: str,
        folder: Path,
        call: Any,
        revocations: Revocations,
        transaction: Callable[..., AbstractAsyncContextManager[Any]] = _no_database,
        *,
        first_use: Callable[[str, float], Awaitable[bool]] = _no_storage,
        resource_url: str | None = None,
    ) -> None:
        """`call(function, *args)` runs a listed database function; `transaction(scope, writer, caller)` opens a transaction.

        `first_use(value, seconds)` tells the first use of a value from a repeat.
        """
        self._first_use = first_use
        self.resource_url = resource_url
        self._transaction = transaction
        self.env = env
        self.folder = folder
        self._call = call
        self._revocations = revocations
        self._issuers: dict[str, str] = {}
        self._owners: set[str] = set()
        self._providers: set[str] = set()
        self._namespaces: set[str] = set()
        self._client: aiohttp.ClientSession | None = None

    def claim_issuer(self, issuer: str, provider: str) -> str | None:
        """Record that `issuer` belongs to `provider`. Returns the name of another provider that has it already, or None."""
        owner = self._issuers.setdefault(issuer, provider)
        self._owners.add(owner)
        return None if owner == provider else owner

    def claim_actor(self, provider: str, namespace: str = "") -> None:
        """Record a provider, and a prefix of its users' ids: no work outside a request is audited under such a name."""
        self._providers.add(provider)
        self._namespaces.add(namespace)

    def scoped(self, *, user_id: str | None = None, org_id: str | None = None, actor: str) -> AbstractAsyncContextManager[Any]:
        return self._transaction(*work_of(user_id, org_id, actor, self._providers, self._namespaces))

    def revoked(self, kind: str, subject: str, issued_at: float | None) -> bool:
        if self._revocations.stale:
            raise Unavailable("the revocation feed is stale")
        return self._revocations.revoked(kind, subject, issued_at)

    async def first_use(self, value: str, seconds: float) -> bool:
        return await self._first_use(value, seconds)

    def issuer_of(self, issuer: str) -> str | None:
        return self._issuers.get(issuer)

    def has_issuers_beside(self, provider: str) -> bool:
        return len(self._owners) > (provider in self._owners)

    async def query(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        return await self._call(function, *args)  # type: ignore[no-any-return]

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int = 1_048_576,
        timeout: float = 5.0,
    ) -> Answer:
        client = self._open_client()
        try:
            async with (
                asyncio.timeout(timeout),
                client.request(method, url, headers=headers, data=body, allow_redirects=False) as response,
            ):
                content = bytearray()
                async for chunk in response.content.iter_chunked(65536):
                    content += chunk
                    if len(content) > max_bytes:
                        raise Unavailable(f"{url}: the response is larger than {max_bytes} bytes")
                return Answer(response.status, bytes(content), dict(response.headers))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"{url}: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close the HTTP client."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _open_client(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=64, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "gatepost"},
                auto_decompress=False,
                skip_auto_headers=["Accept-Encoding"],
                trust_env=False,
            )
        return self._client
