"""The parts of an application: each function makes one from the parts that `app` has already, and adds it to `app`.

`server.app.build` calls them in order. All of them raise ConfigError for a mistake in the settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

from .auth.revocation import REVOCATION_FAILURES
from .database.scope import DATABASE
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
from .http.backlog import BACKLOG, Backlog
from .http.body_bytes import BODY_LIMITS, LATE_BODY
from .http.client_address import ADDRESSES, ClientAddress
from .http.cors import Cors
from .http.error_bodies import ErrorBodies
from .http.origins import ORIGINS, Origins
from .http.pagination import PAGE_BYTES
from .http.path_prefix import PathPrefix, path_prefix_of
from .http.resource import Resource, resource_of
from .http.stamp import vary_on
from .openapi import document as openapi
from .openapi.document import DOCUMENT
from .openapi.info import info_of
from .plugins.house import ServerHouse
from .plugins.loader import Offers, Plugins
from .plugins.providers import PROVIDERS, credential_headers, read_headers
from .plugins.services import SERVICES, Services
from .rate_limits.setup import Limits
from .routing.table import RouteTable
from .routing.table import build as build_routes
from .schema.startup import ServerDatabase
from .settings.sources import Settings
from .streams.setup import install as install_streams
from .streams.setup import install_changes
from .streams.ticket_route import OFFICE, TicketOffice, ticket_routes
from .streams.tickets import Tickets
from .telemetry.decisions import DenialLog, RequestLog
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


class _PublicAddress(NamedTuple):
    """Where clients find this API, as far as the settings say: `resource.url`, and the path below which it is."""

    resource: Resource | None
    prefix: PathPrefix | None


_ADDRESS: Final = web.AppKey("public_address", _PublicAddress)
_CORS: Final = web.AppKey("cors", Cors)
_ERRORS: Final = web.AppKey("error_bodies", ErrorBodies)
_GATE: Final = web.AppKey("gate", Gate)


def add_routes(app: web.Application, offers: Offers, builtin: Sequence[str]) -> None:
    """Register the routes of the plugins, and the server's own. `builtin` are the names of the built-in plugins."""
    get, providers = app[SETTINGS].get, app[PROVIDERS]
    app[_ADDRESS] = address = _PublicAddress(resource_of(get("resource.url")), path_prefix_of(get))
    metadata = ResourceRoutes(address.resource)
    own = metadata.routes() + ticket_routes(route for _, route in offers.routes)
    public = app[SETTINGS].words("public_routes")
    app[TABLE] = build_routes(app.router, offers.routes, public, builtin, app[METRICS], own)
    metadata.fill(app[TABLE], providers)


def add_response_rules(app: web.Application, offers: Offers) -> None:
    """Add what holds for all responses: the rules for other origins, `Vary`, and the form of error bodies."""
    providers = app[PROVIDERS]
    app[_CORS] = cors_of(app[SETTINGS], providers)
    vary_on(read_headers(providers))
    app[_ERRORS] = ErrorBodies(app[SETTINGS].get("errors.format"), offers.error_body)


def add_document(app: web.Application) -> None:
    """Make the OpenAPI document."""
    prefix, providers = app[_ADDRESS].prefix, app[PROVIDERS]
    info = info_of(app[SETTINGS].get, prefix.prefix if prefix is not None else "/")
    app[DOCUMENT] = openapi.make(app[TABLE], providers, info, app[_ERRORS])


def add_database(app: web.Application, *, beside_parent: bool) -> None:
    """Add the database, which is not opened yet, and the background work for the audit log."""
    get = app[SETTINGS].get
    server_database = app[SERVER_DATABASE] = ServerDatabase(app[SETTINGS], beside_parent=beside_parent)
    app[DATABASE], app[REVOCATION_FAILURES] = server_database.database, Counter()
    denials, days = get("audit.denials"), get("audit.retention_days")
    app[AUDIT] = Audit(server_database.database.call, denials=denials, retention_days=days)


def add_limits(app: web.Application) -> None:
    """Add the limits of callers, addresses and bodies."""
    get, providers = app[SETTINGS].get, app[PROVIDERS]
    app[ADDRESSES] = ClientAddress(app[SETTINGS].words("trusted_proxies"))
    proofs = "dpop" in {name.lower() for name in read_headers(providers)}
    app[LIMITS] = Limits(app[SETTINGS], app[ADDRESSES], credential_headers(providers), proofs=proofs)
    app[BODY_LIMITS] = tuple(get(f"limits.{name}") for name in ("body_bytes", "body_seconds", "json_depth", "json_values"))
    app[PAGE_BYTES], app[KEEP_SECONDS] = get("limits.page_bytes"), get("idempotency.keep_seconds")
    app[BACKLOG] = Backlog(get("limits.buffered_bytes"), get("limits.write_seconds"))


def add_gate(app: web.Application) -> None:
    """Make the gate, and the tickets that it accepts for live answers."""
    rules, providers, limits, server_database = app[TABLE].rules, app[PROVIDERS], app[LIMITS], app[SERVER_DATABASE]
    tickets = Tickets(server_database.database.call)
    app[OFFICE] = TicketOffice(tickets, rules, app.router, app[_ADDRESS].prefix)
    app[_GATE] = Gate(
        rules,
        providers,
        provider_seconds=app[SETTINGS].get("limits.provider_seconds"),
        revocations=server_database.revocations,
        metrics=app[METRICS],
        denied=[DenialLog(), *app[AUDIT].listeners],
        caller_limit=limits.caller,
        address_limit=limits.address,
        addresses=app[ADDRESSES],
        concurrency=limits.concurrency,
        route_limits=route_limits(rules, limits),
        redeem=tickets.redeem,
    )
    app[LATE_BODY] = app[_GATE].still_admitted.check_late_body


def add_dispatcher(app: web.Application) -> None:
    """Make the dispatcher, and the tools, whose calls pass through it."""
    get, gate, (resource, prefix) = app[SETTINGS].get, app[_GATE], app[_ADDRESS]
    listener, lookup = RequestLog() if get("log.requests") else None, resolver_of(app, prefix)
    challenges = Challenges(resource, gate.challenges) if resource is not None else None
    app[DISPATCHER] = dispatcher_of(
        prefix, lookup, app[_CORS], gate, app[METRICS], app[BACKLOG], listener, app[_ERRORS], challenges
    )
    app.on_response_prepare.append(app[DISPATCHER].before_headers)
    app[ORIGINS], app[TOOLS] = Origins(app[_CORS], resource), Tools(app[TABLE], lookup, app[DISPATCHER], get)


def add_streams(app: web.Application) -> None:
    """Make the registry of live answers, and the feed from which they receive changed rows."""
    get, providers, server_database = app[SETTINGS].get, app[PROVIDERS], app[SERVER_DATABASE]
    install_streams(app, get, providers, server_database.revocations, app[_GATE], app[LIMITS].client_of)
    install_changes(app, server_database.database, server_database.straight)


def add_services(app: web.Application, plugins: Plugins) -> None:
    """Add the server context that providers and services get, and the services, which are not opened yet."""
    get, server_database = app[SETTINGS].get, app[SERVER_DATABASE]
    database, first_use, url = server_database.database, app[LIMITS].first_uses.first, get("resource.url") or None
    args = (get("env"), Path(get("data_folder")), database.call, server_database.revocations, database.scoped)
    app[HOUSE] = ServerHouse(*args, first_use=first_use, resource_url=url)
    app[SERVICES] = Services(plugins.services(app[HOUSE]))


def add_connections(app: web.Application) -> None:
    """Make everything that serves `app` use the server's own connection class, with its limits."""
    get = app[SETTINGS].get
    connection_server.install(
        app,
        app[DISPATCHER].handle,
        head_bytes=get("limits.head_bytes"),
        head_seconds=get("limits.head_seconds"),
        headers=get("limits.headers"),
        idle_seconds=get("limits.idle_seconds"),
        connections=get("limits.connections"),
        descriptors=get("database.pool_size") + get("streams.total"),
        backlog=app[BACKLOG],
        hold=holder(app[LIMITS].concurrency),
        errors=app[_ERRORS],
        prefix=app[_ADDRESS].prefix,
    )
