"""Puts the rooms together: settings and plugins in, an application out. The only room that knows all the others."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiohttp import web

from . import openapi, wire
from .addresses import ADDRESSES, ClientAddress
from .audit import Audit
from .bodies import BODY_LIMITS
from .cors import Cors
from .front import Front
from .gate import Gate
from .hookspecs import Provider
from .house import ServerHouse
from .idempotency import KEEP_SECONDS
from .identity import Unavailable
from .limits import Limits
from .lookup import Lookup
from .metrics import Metrics
from .observe import LOG, DenialLog, RequestLog
from .openapi import DOCUMENT
from .plugins import Plugins
from .routes import RouteTable
from .routes import build as build_routes
from .scope import DATABASE
from .settings import ConfigError, Settings
from .storage import Storage

_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?\Z")
SETTINGS: Final = web.AppKey("settings", Settings)
TABLE: Final = web.AppKey("route_table", RouteTable)
PROVIDERS: Final = web.AppKey("providers", list)
STORAGE: Final = web.AppKey("storage", Storage)
LIMITS: Final = web.AppKey("limits", Limits)
FRONT: Final = web.AppKey("front", Front)
METRICS: Final = web.AppKey("metrics", Metrics)
AUDIT: Final = web.AppKey("audit", Audit)


def create_app() -> web.Application:
    """The application with settings from the file and the environment, for `gunicorn 'server.app:create_app()'`.

    A mistake in the settings is one line on the standard error and exit status 4, which tells gunicorn not to try again.
    """
    try:
        settings = Settings()
        if settings.get("database.url") is None:
            raise ConfigError("database.url (DATABASE_URL): not set, and gunicorn's workers cannot share an embedded Postgres")
        return build(settings)
    except ConfigError as error:
        print(f"gatepost: {error}", file=sys.stderr, flush=True)
        raise SystemExit(4) from None


def build(settings: Settings, extra: Mapping[str, object] | None = None) -> web.Application:
    """An application that opens its database and providers when it starts. Raises ConfigError for any mistake.

    `extra` are plugin objects by name, as if installed and named in `plugins`.
    """
    plugins = Plugins(settings, extra)
    offers = plugins.offers()
    providers = [(name, plugins.provider(name, offers)) for name in settings.words("providers")]
    app = web.Application(client_max_size=settings.get("limits.body_bytes"))
    metrics = Metrics()
    table = build_routes(app.router, offers.routes, settings.words("public_routes"), plugins.builtin, metrics)
    cors = Cors(_origins(settings, providers))
    app[DOCUMENT] = openapi.make(table, providers)
    storage, limits = Storage(settings), Limits(settings)
    app[ADDRESSES], app[LIMITS] = ClientAddress(settings.words("trusted_proxies")), limits
    audit = app[AUDIT] = Audit(
        storage.database.call, denials=settings.get("audit.denials"), retention_days=settings.get("audit.retention_days")
    )
    gate = Gate(
        table.plans,
        providers,
        provider_seconds=settings.get("limits.provider_seconds"),
        revocations=storage.revocations,
        metrics=metrics,
        denied=[DenialLog(), *audit.listeners],
        caller_limit=limits.caller,
        address_limit=limits.address,
        addresses=app[ADDRESSES],
    )
    app[METRICS], app[FRONT] = (
        metrics,
        Front(Lookup(app), cors, gate, metrics, RequestLog() if settings.get("log.requests") else None),
    )
    for warning in table.warnings:
        LOG.warning(warning)
    app[SETTINGS], app[TABLE], app[PROVIDERS] = settings, table, providers
    app[BODY_LIMITS] = tuple(settings.get(f"limits.{name}") for name in ("body_bytes", "body_seconds", "json_depth"))
    app[KEEP_SECONDS] = settings.get("idempotency.keep_seconds")
    app[STORAGE], app[DATABASE] = storage, storage.database
    app.cleanup_ctx.append(_storage)
    app.cleanup_ctx.append(audit.running)
    app.cleanup_ctx.append(_limits)
    app.cleanup_ctx.append(open_providers)
    wire.install(
        app,
        app[FRONT].handle,
        head_bytes=settings.get("limits.head_bytes"),
        head_seconds=settings.get("limits.head_seconds"),
        headers=settings.get("limits.headers"),
        idle_seconds=settings.get("limits.idle_seconds"),
        connections=settings.get("limits.connections"),
        descriptors=settings.get("database.pool_size"),
    )
    return app


def not_ready(app: web.Application) -> list[str]:
    """Why requests should not be sent here now; empty when ready. The database is asked by the operations port."""
    reasons = []
    for name, provider in app[PROVIDERS]:
        said = getattr(provider, "not_ready", lambda: None)()
        if said:
            reasons.append(f"{name}: {said}")
    return reasons


def _origins(settings: Settings, providers: list[tuple[str, Provider]]) -> list[str]:
    if settings.get("cors_origins") is not None:
        return _checked_origins(settings.words("cors_origins"))
    return [origin for _, provider in providers for origin in getattr(provider, "authorized_parties", ())]


def _checked_origins(origins: list[str]) -> list[str]:
    for origin in origins:
        if not _ORIGIN.match(origin):
            raise ConfigError(f"cors_origins: {origin!r} is not an origin (scheme://host[:port], lower case, no path)")
    return origins


async def _storage(app: web.Application) -> AsyncIterator[None]:
    storage = app[STORAGE]
    try:
        await storage.open()
        yield
    finally:
        await storage.close()


async def _limits(app: web.Application) -> AsyncIterator[None]:
    try:
        await app[LIMITS].open()
        yield
    finally:
        await app[LIMITS].close()


async def open_providers(app: web.Application) -> AsyncIterator[None]:
    """A context in which the providers are open. Raises ConfigError for a mistake that shows only then."""
    settings: Settings = app[SETTINGS]
    house = ServerHouse(settings.get("env"), Path(settings.get("data_folder")), app[DATABASE].call, app[STORAGE].revocations)
    opened: list[Provider] = []
    try:
        _claim(app[PROVIDERS], house)
        for name, provider in app[PROVIDERS]:
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
