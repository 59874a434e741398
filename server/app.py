"""Builds the application from settings and plugins: `composition` makes its parts, and this module says in which order."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from .composition import (
    AUDIT,
    DISPATCHER,
    HOUSE,
    LIMITS,
    METRICS,
    SERVER_DATABASE,
    SETTINGS,
    TABLE,
    add_connections,
    add_database,
    add_dispatcher,
    add_document,
    add_gate,
    add_limits,
    add_response_rules,
    add_routes,
    add_services,
    add_streams,
)
from .gate.access_table import show_in_development
from .http.this_machine import public_listeners
from .openapi.document import DOCUMENT
from .plugins.loader import Plugins
from .plugins.providers import PROVIDERS, judge, opened
from .plugins.services import SERVICES
from .settings.setting import ConfigError
from .settings.sources import Settings
from .streams.live_changes import CHANGES
from .telemetry.log import LOG, log_tracebacks, start_logging
from .telemetry.metrics import Metrics

__all__ = [
    "AUDIT", "DISPATCHER", "DOCUMENT", "HOUSE", "LIMITS", "METRICS", "SERVER_DATABASE", "SETTINGS", "TABLE", "build",
    "create_app", "open_providers", "warn",
]  # fmt: skip


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
    app = web.Application(client_max_size=settings.get("limits.body_bytes"))
    app[SETTINGS], app[METRICS] = settings, Metrics()
    app[PROVIDERS] = [plugins.provider(name, offers) for name in settings.words("providers")]
    add_routes(app, offers, plugins.builtin)
    add_response_rules(app, offers)
    add_document(app)
    add_database(app, beside_parent=beside_parent)
    add_limits(app)
    add_gate(app)
    add_dispatcher(app)
    add_streams(app)
    add_services(app, plugins)
    add_connections(app)
    show_in_development(app, app[TABLE], settings.get("env"))
    app.cleanup_ctx.extend([_open_database, app[AUDIT].running, _open_limits, open_providers, app[SERVICES].running])
    if not beside_parent:
        app.cleanup_ctx.append(_warned)
    return app


def warn(app: web.Application) -> None:
    """Log the warnings about settings and routes, at the end of startup: a mistake that prevents it must be the only line."""
    for warning in [*app[TABLE].warnings, *app[LIMITS].warnings]:
        LOG.warning(warning)


async def _warned(app: web.Application) -> AsyncIterator[None]:
    warn(app)
    yield


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
