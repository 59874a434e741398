"""The loaded providers: their members, with a default for each that is left out, and their opening and closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiohttp import hdrs, web
from multidict import istr

from ..http.errors import Unavailable
from ..settings.setting import ConfigError
from ..telemetry.log import LOG
from .hookspecs import Provider
from .house import ServerHouse

NOT_READY: Final = "provider is not ready"
"""The log line of a provider that could not be opened."""
_OPEN_SECONDS: Final = 30
_CLOSE_SECONDS: Final = 5


class LoadedProvider:
    """One provider with all members of the protocol `Provider` as plain attributes, read once.

    This is the only place that knows which members are optional, and what holds where one is left out.

    name                 its name in the setting `providers`
    provider             the provider itself
    authenticate         its method
    recall, recheck      its methods, or None
    reads                the headers that it reads; None: any
    issuers, authorized_parties   empty where left out
    namespaces           where left out: "" for a provider that has issuers, else none
    security_schemes, challenge, subject_of   None where left out
    resource_metadata    empty where left out
    not_ready, figures   its methods, or functions that report nothing
    known                the metrics label for callers that it knew
    """

    __slots__ = (
        "_check", "_close", "_open", "authenticate", "authorized_parties", "challenge", "figures", "issuers", "known", "name",
        "namespaces", "not_ready", "provider", "reads", "recall", "recheck", "resource_metadata", "security_schemes",
        "subject_of",
    )  # fmt: skip

    def __init__(self, name: str, provider: Provider) -> None:
        """Raises TypeError where a member that must be a list is none."""
        self.name: Final = name
        self.provider: Final = provider
        self.authenticate: Final = provider.authenticate
        self.recall: Final = getattr(provider, "recall", None)
        self.recheck: Final = getattr(provider, "recheck", None)
        self.reads: Final = _names(getattr(provider, "reads", None))
        self.issuers: Final[tuple[str, ...]] = tuple(getattr(provider, "issuers", ()))
        self.namespaces: Final[tuple[str, ...]] = tuple(getattr(provider, "namespaces", ("",) if self.issuers else ()))
        self.authorized_parties: Final[tuple[str, ...]] = tuple(getattr(provider, "authorized_parties", ()))
        self.security_schemes: Final[Mapping[str, Any] | None] = getattr(provider, "security_schemes", None)
        self.challenge: Final[str | None] = getattr(provider, "challenge", None)
        self.resource_metadata: Final[Mapping[str, Any]] = getattr(provider, "resource_metadata", {})
        self.subject_of: Final = getattr(provider, "subject_of", None)
        self.not_ready: Final = getattr(provider, "not_ready", _ready)
        self.figures: Final = getattr(provider, "figures", _no_figures)
        self.known: Final = (name, "known")
        self._check: Final = getattr(provider, "check", None)
        self._open: Final = getattr(provider, "open", None)
        self._close: Final = getattr(provider, "close", None)

    def may_know(self, headers: Container[str]) -> bool:
        """Does the request have one of the headers that the provider reads? True where it does not list them."""
        if self.reads is None:
            return True
        for name in self.reads:  # noqa: SIM110 - a generator for `any` costs as much as all the rest
            if name in headers:
                return True
        return False

    def check(self, env: str) -> None:
        """Let the provider judge its settings. Raises ConfigError for a mistake in them."""
        if self._check is not None:
            try:
                self._check(env)
            except ValueError as error:
                raise ConfigError(f"provider {self.name!r}: {error}") from error

    async def open(self, house: ServerHouse) -> None:
        """Open the provider within 30 seconds. An outage is logged, and a mistake raises ConfigError."""
        if self._open is None:
            return
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._open(house)
        except ValueError as error:
            raise ConfigError(f"provider {self.name!r}: {error}") from error
        except (Unavailable, TimeoutError) as error:
            LOG.warning(NOT_READY, extra={"fields": {"provider": self.name, "error": type(error).__name__}})
        except Exception as error:
            raise ConfigError(f"provider {self.name!r} failed at start: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close the provider within 5 seconds; whatever it raises is ignored, so that the next one is closed too."""
        if self._close is not None:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._close()


def credential_headers(providers: Iterable[LoadedProvider]) -> tuple[istr, ...]:
    """The headers that can hold a credential: Authorization, X-API-Key, and what the providers list in `reads`.

    Never Cookie: every browser sends cookies that are not credentials. Never DPoP: a proof belongs to the token in
    Authorization (RFC 9449 7.1), and is nothing without it.
    """
    return tuple(istr(name) for name in read_headers(providers) if name.lower() != "dpop")


def read_headers(providers: Iterable[LoadedProvider]) -> tuple[istr, ...]:
    """The headers by which providers decide: Authorization, X-API-Key, and what they list in `reads` except Cookie."""
    names = {name.lower(): istr(name) for name in (hdrs.AUTHORIZATION, "X-API-Key")}
    for one in providers:
        for name in one.reads or ():
            if name.lower() != "cookie":
                names.setdefault(name.lower(), istr(name))
    return tuple(names.values())


def exposed_headers(providers: Iterable[LoadedProvider]) -> tuple[str, ...]:
    """The response headers that pages of other origins need for the providers: the nonce for a DPoP proof (RFC 9449 8.2)."""
    return ("DPoP-Nonce",) if any(name.lower() == "dpop" for name in read_headers(providers)) else ()


def _names(names: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if names is None or isinstance(names, str) else tuple(names)


def _ready() -> None:
    return None


def _no_figures() -> Mapping[str, float]:
    return {}


PROVIDERS: Final = web.AppKey("providers", list[LoadedProvider])


def not_ready(app: web.Application) -> list[str]:
    """Why this process should get no requests now; empty when its providers are ready. The database is checked elsewhere."""
    reasons = ((one.name, one.not_ready()) for one in app[PROVIDERS])
    return [f"{name}: {reason}" for name, reason in reasons if reason]


@asynccontextmanager
async def opened(providers: list[LoadedProvider], house: ServerHouse) -> AsyncIterator[None]:
    """A context in which the providers are open. Raises ConfigError for a mistake that only opening shows."""
    opened: list[LoadedProvider] = []
    try:
        judge(providers, house)
        for one in providers:
            await one.open(house)
            opened.append(one)
        yield
    finally:
        for one in reversed(opened):
            await one.close()
        await house.close()


def judge(providers: list[LoadedProvider], house: ServerHouse) -> None:
    """Find mistakes in the providers' settings that need no database to be seen. Raises ConfigError."""
    _claim(providers, house)
    for one in providers:
        one.check(house.env)


def _claim(providers: list[LoadedProvider], house: ServerHouse) -> None:
    """Record which provider owns which issuers and namespaces. Raises ConfigError where two claim the same.

    All providers share one space of user and organisation ids, so no two may have ids in the same namespace.
    """
    spaces: dict[str, str] = {}
    for one in providers:
        for issuer in one.issuers:
            if other := house.claim_issuer(issuer, one.name):
                raise ConfigError(f"providers: both {other!r} and {one.name!r} answer for the issuer {issuer}")
        house.claim_actor(one.name)
        for space in one.namespaces:
            house.claim_actor(one.name, space)
            if (other := spaces.setdefault(space, one.name)) != one.name:
                where = f"in the namespace {space!r}" if space else "without a namespace"
                raise ConfigError(f"providers: {other!r} and {one.name!r} both have ids {where}; give one of them another")
