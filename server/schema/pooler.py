"""Checks a transaction pooler in front of Postgres: both URLs must lead to one database, and the role needs its settings.

Behind a pooler a connection has no settings of its own. `scoped` sets its timeouts in each transaction. The one statement
of `read` cannot (a timeout set inside a statement does not apply to it), so the server cancels it, or Postgres does if the
role has a statement_timeout. This module imports no database library.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

_PLACE: Final = "SELECT current_database() || ' ' || extract(epoch FROM pg_postmaster_start_time())"
# The role's settings for this database come last, because they take precedence over its settings for all databases.
_SETTINGS: Final = """SELECT unnest(s.setconfig) AS setting FROM pg_db_role_setting AS s JOIN pg_roles AS r ON r.oid = s.setrole
 WHERE r.rolname = $1 AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
 ORDER BY s.setdatabase"""
_CHANNEL: Final = "gatepost_check"
_NOTIFY_SECONDS: Final = 1.0


async def same_place(one: Any, other: Any) -> bool:
    """Whether two connections lead to the same database of the same Postgres server."""
    return bool(await one.fetchval(_PLACE) == await other.fetchval(_PLACE))


async def warnings(pooled: Any, direct: Any) -> list[str]:
    """Returns a sentence for each setting that the role lacks behind the pooler, and one if the direct URL is not direct."""
    found = []
    timeout, zone, role = await pooled.fetchrow(
        "SELECT current_setting('statement_timeout'), current_setting('timezone'), current_user"
    )
    if timeout == "0":
        found.append(f"behind the pooler {role} has no statement_timeout: ALTER ROLE {role} SET statement_timeout = …")
    if zone.upper() not in ("UTC", "ETC/UTC"):
        found.append(
            f"behind the pooler the time zone of {role} is {zone}: a read takes a time literal without a zone as in that zone; "
            f"ALTER ROLE {role} SET timezone = 'UTC'"
        )
    if not await _is_notified(direct, pooled):
        found.append("database.direct_url: no notification arrives there, so it leads through a pooler as well")
    return found


async def role_has_limits(connection: Any, role: str) -> bool:
    """Whether `role` has a statement_timeout and the time zone UTC in this database. Needs no pooled connection."""
    rows = await connection.fetch(_SETTINGS, role)
    settings = {name.lower(): value for name, _, value in (row["setting"].partition("=") for row in rows)}
    return settings.get("statement_timeout", "0") != "0" and settings.get("timezone", "").upper() in ("UTC", "ETC/UTC")


async def _is_notified(direct: Any, pooled: Any) -> bool:
    """Whether a notification that is sent on `pooled` arrives on `direct`: through a transaction pooler none would."""
    notified = asyncio.Event()
    await direct.add_listener(_CHANNEL, lambda *_: notified.set())
    await pooled.execute(f"SELECT pg_notify('{_CHANNEL}', '')")
    with suppress(TimeoutError):
        async with asyncio.timeout(_NOTIFY_SECONDS):
            await notified.wait()
    return notified.is_set()
