"""A provider as the gate asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web

from ..http.errors import Unavailable
from ..settings.setting import ConfigError
from ..telemetry.log import LOG
from .hookspecs import Provider
from .house import ServerHouse


class LoadedProvider:
    """One provider, with what it says of itself looked up once.

    recall   its `recall`, or None
    known    the label under which callers that it knew are counted
    """

    __slots__ = ("_reads", "authenticate", "known", "name", "recall")

    def __init__(self, name: str, provider: Provider) -> None:
        self.name: Final = name
        self.authenticate: Final = provider.authenticate
        self._reads: tuple[str, ...] | None = _names(getattr(provider, "reads", None))
        self.recall: Final = getattr(provider, "recall", None)
        self.known: Final = (name, "known")

    def may_know(self, headers: Container[str]) -> bool:
        """Is one of the headers there that the provider reads? True where it does not say which it reads."""
        if self._reads is None:
            return True
        for name in self._reads:  # noqa: SIM110 - a generator for `any` costs as much as all the rest
            if name in headers:
                return True
        return False


def _names(said: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if said is None or isinstance(said, str) else tuple(said)


PROVIDERS: Final = web.AppKey("providers", list)


def not_ready(app: web.Application) -> list[str]:
    """Why requests should not be sent here now; empty when ready. The database is asked by the operations port."""
    reasons = []
    for name, provider in app[PROVIDERS]:
        said = getattr(provider, "not_ready", lambda: None)()
        if said:
            reasons.append(f"{name}: {said}")
    return reasons


@asynccontextmanager
async def opened(providers: list[tuple[str, Provider]], house: ServerHouse) -> AsyncIterator[None]:
    """A context in which the providers are open. Raises ConfigError for a mistake that shows only then."""
    opened: list[Provider] = []
    try:
        _claim(providers, house)
        for name, provider in providers:
            await _open_one(name, provider, house)
            opened.append(provider)
        yield
    finally:
        for provider in reversed(opened):
            if hasattr(provider, "close"):
                with suppress(Exception):
                    async with asyncio.timeout(5):
                        await provider.close()
        await house.close()


def _claim(providers: list[tuple[str, Provider]], house: ServerHouse) -> None:
    """Note whose tokens and whose ids are whose. Raises ConfigError where two providers want the same.

    All share one space of user and organisation ids. So each says the `namespaces` that its ids are in, and no two the
    same; who has issuers and says nothing has ids without a namespace, "".
    """
    spaces: dict[str, str] = {}
    for name, provider in providers:
        issuers = list(getattr(provider, "issuers", ()))
        for issuer in issuers:
            if other := house.claim_issuer(issuer, name):
                raise ConfigError(f"providers: both {other!r} and {name!r} answer for the issuer {issuer}")
        for space in getattr(provider, "namespaces", ("",) if issuers else ()):
            if (other := spaces.setdefault(space, name)) != name:
                what = f"in the namespace {space!r}" if space else "without a namespace"
                raise ConfigError(f"providers: {other!r} and {name!r} both have ids {what}; give one of them another")


async def _open_one(name: str, provider: Provider, house: ServerHouse) -> None:
    if not hasattr(provider, "open"):
        return
    try:
        async with asyncio.timeout(30):
            await provider.open(house)
    except ValueError as error:
        raise ConfigError(f"provider {name!r}: {error}") from error
    except (Unavailable, TimeoutError) as error:
        LOG.warning("provider is not ready", extra={"fields": {"provider": name, "error": type(error).__name__}})
    except Exception as error:
        raise ConfigError(f"provider {name!r} failed at start: {type(error).__name__}: {error}") from error
