"""A transaction pooler in front of Postgres: do both ways lead to one database, and what does the pooled one lack?

Through a pooler a connection has no settings of its own. `scoped` sets its time-outs in each transaction; the one
statement of `read` cannot (a time-out that is set inside a statement does not bind that statement), so there Postgres is
told by us to stop, or stops by itself where the role has a statement_timeout. Knows no database library.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

_PLACE: Final = "SELECT current_database() || ' ' || extract(epoch FROM pg_postmaster_start_time())"
_CHANNEL: Final = "gatepost_check"
_NOTICE_SECONDS: Final = 1.0


async def same_place(one: Any, other: Any) -> bool:
    """Are two connections to the same database of the same server?"""
    return bool(await one.fetchval(_PLACE) == await other.fetchval(_PLACE))


async def warnings(pooled: Any, direct: Any) -> list[str]:
    """What the serving role lacks behind the pooler, and whether the direct URL really is direct; a sentence each."""
    found = []
    timeout, zone, role = await pooled.fetchrow(
        "SELECT current_setting('statement_timeout'), current_setting('timezone'), current_user"
    )
    if timeout == "0":
        found.append(f"behind the pooler {role} has no statement_timeout: ALTER ROLE {role} SET statement_timeout = …")
    if zone.upper() not in ("UTC", "ETC/UTC"):
        found.append(
            f"behind the pooler the time zone of {role} is {zone}: a time literal without a zone in a read is taken in it; "
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
