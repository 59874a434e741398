"""Makes the registry of live answers of one application, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from aiohttp import web

from ..auth.revocation import Revocations
from ..database.connections import Database
from ..database.many_scopes import read_for_each
from ..plugins.providers import LoadedProvider
from ..telemetry.metrics import Family, counter, gauge
from .change_feed import ChangeFeed
from .change_tables import ChangeTables
from .events import STREAMS
from .fanout import Fanout
from .live_changes import CHANGES, LiveChanges
from .recheck import Recheck
from .registry import Admission, Streams
from .row_reader import RowReader
from .settings import bounds_from


def install(
    app: web.Application,
    get: Callable[[str], Any],
    providers: Sequence[LoadedProvider],
    revocations: Revocations,
    admission: Admission,
    client_of: Callable[[web.Request], str | None],
) -> None:
    """Make the registry `app[STREAMS]`; it ends all live answers when `app` shuts down.

    get        returns a setting's value
    client_of  returns what counts as one client among unknown callers, such as an address; None if that is unknown
    """
    recheck = Recheck(providers, get("limits.provider_seconds"))
    registry = Streams(bounds_from(get), revocations, recheck, admission, client_of)
    app[STREAMS] = registry
    app.on_shutdown.append(registry.drain_at_shutdown)


def install_changes(app: web.Application, database: Database, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
    """Make `app[CHANGES]`, from which streams receive changed rows. `connect()` opens a connection that may LISTEN."""
    fanout, tables = Fanout(), ChangeTables()
    app[CHANGES] = LiveChanges(
        ChangeFeed(connect, fanout, tables), fanout, tables, RowReader(database.read, partial(read_for_each, database))
    )


def families_of(registry: Streams) -> list[Family]:
    """Returns the metrics of live answers."""
    return [
        gauge("gatepost_streams", "Live answers that are open.", registry.number),
        counter("gatepost_streams_opened_total", "Live answers opened, by kind.", "kind", registry.opened),
        counter("gatepost_streams_ended_total", "Live answers ended, by reason.", "reason", registry.ended),
    ]
