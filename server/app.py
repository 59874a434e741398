"""Builds the application from settings and plugins: the only module that imports all parts of the server."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from .auth.revocation import REVOCATION_FAILURES
from .database.scope import DATABASE
from .gate.access_table import show_in_development
from .gate.admission import Gate
from .gate.audit import Audit
from .gate.below_prefix import dispatcher_of, resolver_of
from .gate.challenges import Challenges
from .gate.cross_origin import cors_of
from .gate.dispatcher import Dispatcher
from .gate.idempotency import KEEP_SECONDS
from .gate.resource_metadata import ResourceRoutes
from .gate.route_limits import route_limits
from .gate.slow_clients import holder
from .http import connection_server
from .http.backlog import Backlog
from .http.body_bytes import BODY_LIMITS
from .http.client_address import ADDRESSES, ClientAddress
from .http.error_bodies import ErrorBodies
from .http.origins import ORIGINS, Origins
from .http.pagination import PAGE_BYTES
from .http.path_prefix import path_prefix_of
from .http.resource import resource_of
from .http.stamp import vary_on
from .http.this_machine import public_listeners
from .openapi import document as openapi
from .openapi.document import DOCUMENT
from .openapi.info import info_of
from .plugins.house import ServerHouse
from .plugins.loader import Plugins
from .plugins.providers import PROVIDERS, credential_headers, judge, opened, read_headers
from .plugins.services import SERVICES, Services
from .rate_limits.setup import Limits
from .routing.table import RouteTable
from .routing.table import build as build_routes
from .schema.startup import ServerDatabase
from .settings.setting import ConfigError
from .settings.sources import Settings
from .streams.live_changes import CHANGES
from .streams.setup import install as install_streams
from .streams.setup import install_changes
from .streams.ticket_route import OFFICE, TicketOffice, ticket_routes
from .streams.tickets import Tickets
from .telemetry.decisions import DenialLog, RequestLog
from .telemetry.log import LOG, log_tracebacks, start_logging
from .telemetry.metrics import Metrics
from .tools.calls import TOOLS, Tools

SETTINGS: Final = web.AppKey("settings", Settings)
TABLE: Final = web.AppKey("route_table", RouteTable)
SERVER_DATABASE: Final = web.AppKey("server_database", ServerDatabase)
LIMITS: Final = web.AppKey("limits", Limits)
DISPATCHER: Final = web.AppKey("dispatcher", Dispatcher)
METRICS: Final = web.AppKey("metrics", Metrics)
AUDIT: Final = web.AppKey("audit", Audit)
HOUSE: Final = web.AppKey("house", ServerHouse)


def create_app() -> web.Application:
    """The application, with settings from the file and the environment, for `gunicorn 'server.app:create_app()'`.

    The environment must be named, because the default, development, is not for serving. Development and test serve on
    loopback only, whatever gunicorn binds to. A mistake in the settings is printed as one line on standard error. The process
    then exits with status 4, which tells gunicorn not to try again.
    """
    try:
        settings = Settings()
        start_logging(settings.log_format)
        if all(source == "default" for key, _, source in settings.explain() if key == "env"):
            raise ConfigError("env (GATEPOST_ENV): not set; use production, or development or test for this machine only")
        if settings.get("database.url") is None:
            raise ConfigError("database.url (DATABASE_URL): not set, and gunicorn's workers cannot share an embedded Postgres")
        app = build(settings)
    except ConfigError as error:
        raise _refused(error) from None
    app.on_startup.insert(0, _on_loopback_only)
    return app


async def _on_loopback_only(app: web.Application) -> None:
    """Outside production: exit if this process listens beyond loopback. gunicorn binds its ports before it starts workers."""
    listening = public_listeners() if app[SETTINGS].get("env") != "production" else []
    if listening:
        env = app[SETTINGS].get("env")
        raise _refused(f"bind: {env} serves on loopback only, not on {', '.join(listening)}; set env = 'production'")


def _refused(error: object) -> SystemExit:
    print(f"gatepost: {error}", file=sys.stderr, flush=True)
    return SystemExit(4)


def build(settings: Settings, extra: Mapping[str, object] | None = None, *, beside_parent: bool = False) -> web.Application:
    """An application that opens its database and its providers when it starts. Raises ConfigError for any mistake.

    settings        the settings of this run
    extra           plugin objects by name, loaded as if they were installed and named in `plugins`
    beside_parent   True in a worker, whose parent process has started the embedded Postgres
    """
    log_tracebacks(settings.get("env") == "development")
    plugins = Plugins(settings, extra)
    offers = plugins.offers()
    providers = [plugins.provider(name, offers) for name in settings.words("providers")]
    app = web.Application(client_max_size=settings.get("limits.body_bytes"))
    metrics = Metrics()
    resource, prefix = resource_of(settings.get("resource.url")), path_prefix_of(settings.get)
    metadata = ResourceRoutes(resource)
    public_routes, own_routes = settings.words("public_routes"), metadata.routes()
    own_routes += ticket_routes(route for _, route in offers.routes)
    table = build_routes(app.router, offers.routes, public_routes, plugins.builtin, metrics, own_routes)
    metadata.fill(table, providers)
    cors = cors_of(settings, providers)
    vary_on(read_headers(providers))
    errors = ErrorBodies(settings.get("errors.format"), offers.error_body)
    app[DOCUMENT] = openapi.make(table, providers, info_of(settings.get, prefix.prefix if prefix else "/"), errors)
    server_database = ServerDatabase(settings, beside_parent=beside_parent)
    app[ADDRESSES] = ClientAddress(settings.words("trusted_proxies"))
    proofs = "dpop" in {name.lower() for name in read_headers(providers)}
    limits = app[LIMITS] = Limits(settings, app[ADDRESSES], credential_headers(providers), proofs=proofs)
    audit = app[AUDIT] = Audit(
        server_database.database.call,
        denials=settings.get("audit.denials"),
        retention_days=settings.get("audit.retention_days"),
    )
    tickets = Tickets(server_database.database.call)
    app[OFFICE] = TicketOffice(tickets, table.rules, app.router, prefix)
    gate = Gate(
        table.rules,
        providers,
        provider_seconds=settings.get("limits.provider_seconds"),
        revocations=server_database.revocations,
        metrics=metrics,
        denied=[DenialLog(), *audit.listeners],
        caller_limit=limits.caller,
        address_limit=limits.address,
        addresses=app[ADDRESSES],
        concurrency=limits.concurrency,
        route_limits=route_limits(table.rules, limits),
        redeem=tickets.redeem,
    )
    backlog = Backlog(settings.get("limits.buffered_bytes"), settings.get("limits.write_seconds"))
    listener, lookup = RequestLog() if settings.get("log.requests") else None, resolver_of(app, prefix)
    challenges = Challenges(resource, gate.challenges) if resource is not None else None
    app[DISPATCHER] = dispatcher_of(prefix, lookup, cors, gate, metrics, backlog, listener, errors, challenges)
    app[ORIGINS], app[TOOLS] = Origins(cors, resource), Tools(table, lookup, app[DISPATCHER], settings.get)
    app.on_response_prepare.append(app[DISPATCHER].before_headers)
    install_streams(app, settings.get, providers, server_database.revocations, gate, limits.client_of)
    install_changes(app, server_database.database, server_database.straight)
    for warning in [*table.warnings, *([] if beside_parent else limits.warnings)]:
        LOG.warning(warning)
    app[SETTINGS], app[TABLE], app[PROVIDERS], app[METRICS] = settings, table, providers, metrics
    show_in_development(app, table, settings.get("env"))
    app[BODY_LIMITS] = tuple(
        settings.get(f"limits.{name}") for name in ("body_bytes", "body_seconds", "json_depth", "json_values")
    )
    app[PAGE_BYTES], app[KEEP_SECONDS] = settings.get("limits.page_bytes"), settings.get("idempotency.keep_seconds")
    app[REVOCATION_FAILURES] = Counter()
    app[SERVER_DATABASE], app[DATABASE] = server_database, server_database.database
    house = app[HOUSE] = _house(settings, server_database, limits)
    services = app[SERVICES] = Services(plugins.services(house))
    app.cleanup_ctx.extend([_open_database, audit.running, _open_limits, open_providers, services.running])
    connection_server.install(
        app,
        app[DISPATCHER].handle,
        head_bytes=settings.get("limits.head_bytes"),
        head_seconds=settings.get("limits.head_seconds"),
        headers=settings.get("limits.headers"),
        idle_seconds=settings.get("limits.idle_seconds"),
        connections=settings.get("limits.connections"),
        descriptors=settings.get("database.pool_size") + settings.get("streams.total"),
        backlog=backlog,
        hold=holder(limits.concurrency),
        errors=errors,
        prefix=prefix,
    )
    return app


async def _open_database(app: web.Application) -> AsyncIterator[None]:
    judge(app[PROVIDERS], app[HOUSE])  # before a database is waited for
    server_database = app[SERVER_DATABASE]
    try:
        await server_database.open()
        if any(rule.streams for rule in app[TABLE].rules.values()):
            await app[CHANGES].open()
        yield
    finally:
        await app[CHANGES].close()
        await server_database.close()


async def _open_limits(app: web.Application) -> AsyncIterator[None]:
    try:
        await app[LIMITS].open()
        yield
    finally:
        await app[LIMITS].close()


async def open_providers(app: web.Application) -> AsyncIterator[None]:
    """A context in which the providers are open. Raises ConfigError for a mistake that only opening shows."""
    async with opened(app[PROVIDERS], app[HOUSE]):
        yield


def _house(settings: Settings, storage: ServerDatabase, limits: Limits) -> ServerHouse:
    folder, database, first_use = Path(settings.get("data_folder")), storage.database, limits.first_uses.first
    args = (settings.get("env"), folder, database.call, storage.revocations, database.scoped)
    return ServerHouse(*args, first_use=first_use, resource_url=settings.get("resource.url") or None)
