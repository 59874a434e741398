"""What one process reports about itself: its metrics, and why it should get no requests now."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ..app import AUDIT, LIMITS, METRICS, SERVER_DATABASE
from ..auth.revocation import REVOCATION_FAILURES
from ..database.pool import Pool
from ..database.scope import DATABASE
from ..http.backlog import BACKLOG
from ..http.errors import Unavailable
from ..plugins.providers import PROVIDERS, not_ready
from ..schema.startup import ServerDatabase
from ..streams.events import STREAMS
from ..streams.setup import families_of as streams_families
from ..telemetry.log import log_failure
from ..telemetry.metrics import Family, Labels, counter, gauge


async def families_of(app: web.Application) -> list[Family]:
    """The metrics of this process: its counters, its providers' figures, its pool and the age of its revocations."""
    families = [*app[METRICS].families(), *_figures(app), *_of_pool(app[DATABASE].pool)]
    waiting, dropped = app[LIMITS].concurrency.waiting, app[AUDIT].dropped
    families.append(gauge("gatepost_concurrency_waiting", "Requests that wait for others of their caller to end.", waiting))
    families.append(_total("gatepost_audit_dropped_total", "Denials that were not written to the audit log.", dropped))
    families += _of_revocations(app[SERVER_DATABASE])
    backlog, failures = app[BACKLOG], app[REVOCATION_FAILURES]
    held: dict[Labels, list[float]] = {("bodies",): [float(backlog.bodies)], ("responses",): [float(backlog.responses)]}
    families.append(Family("gatepost_held_bytes", "gauge", "Bytes held for slow clients.", ("kind",), held))
    families.append(_total("gatepost_slow_clients_total", "Connections closed: response not taken.", backlog.cut))
    families.append(counter("gatepost_revocation_failures_total", "Ends of access not recorded.", "kind", failures))
    families += streams_families(app[STREAMS])
    families.append(gauge("gatepost_workers", "Worker processes.", 1))
    families.append(gauge("gatepost_up", "1 while at least one process serves.", 1, merge="max"))
    return families


def _of_pool(pool: Pool[Any] | None) -> list[Family]:
    """The connections to Postgres; nothing before the database is open."""
    if pool is None:
        return []
    numbers = {"idle": pool.idle, "lent": pool.lent, "opening": pool.opening}
    states: dict[Labels, list[float]] = {(state,): [float(number)] for state, number in numbers.items()}
    return [
        Family("gatepost_pool_connections", "gauge", "Connections to Postgres.", ("state",), states),
        gauge("gatepost_pool_waiting", "Requests that have waited for a connection for more than 5 ms.", pool.waiting),
    ]


def _of_revocations(database: ServerDatabase) -> list[Family]:
    known = database.revocations
    return [
        gauge("gatepost_revocation_lag_seconds", "Seconds since the revocations were last read.", known.age, merge="max"),
        gauge("gatepost_revocations", "Revocations held in memory.", len(known), merge="max"),
        gauge("gatepost_endings_pending", "Ends of access to tidy up after.", database.pending, merge="max"),
    ]


def _total(name: str, help: str, number: int) -> Family:
    """A counter without labels."""
    return Family(name, "counter", help, (), {(): [float(number)]})


def _figures(app: web.Application) -> list[Family]:
    """The providers' own `figures`. A provider whose `figures` fails is left out, and the failure is logged."""
    samples_of: dict[str, dict[Labels, list[float]]] = {}
    for one in app[PROVIDERS]:
        try:
            figures = {str(figure): float(value) for figure, value in one.figures().items()}
        except Exception as error:
            log_failure("provider's figures failed", error, provider=one.name)
            continue
        for figure, value in figures.items():
            if figure.isidentifier() and figure.isascii():
                samples_of.setdefault(figure, {})[(one.name,)] = [value]
    return [
        Family(
            f"gatepost_provider_{figure}", "counter" if figure.endswith("_total") else "gauge", "Reported by the provider.",
            ("provider",), samples, "sum" if figure.endswith("_total") else "max",
        )
        for figure, samples in samples_of.items()
    ]  # fmt: skip


async def reasons_of(app: web.Application) -> list[str]:
    """Why this process should get no requests now: what its providers report, and whether the database answers in 2 seconds."""
    reasons = not_ready(app)
    try:
        async with asyncio.timeout(2), app[DATABASE].connection() as connection:
            await connection.fetchval("SELECT 1")
    except (Unavailable, TimeoutError):
        reasons.append("the database is unavailable")
    return reasons
