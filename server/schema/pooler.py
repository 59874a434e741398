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
_CHANNEL: Final = "gatepost_check"
_NOTICE_SECONDS: Final = 1.0


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
    if not await _notices(direct, pooled):
        found.append("database.direct_url: no notice arrives there, so it leads through a pooler as well")
    return found


async def _notices(direct: Any, pooled: Any) -> bool:
    heard = asyncio.Event()
    await direct.add_listener(_CHANNEL, lambda *_: heard.set())
    await pooled.execute(f"SELECT pg_notify('{_CHANNEL}', '')")
    with suppress(TimeoutError):
        async with asyncio.timeout(_NOTICE_SECONDS):
            await heard.wait()
    return heard.is_set()
