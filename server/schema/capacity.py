"""Compares the connections that a server may open with those that Postgres allows; `check` prints the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..settings.sources import Settings
from .migrate import Connection

# The connections left for the serving role, without the superuser's and (from Postgres 16) the reserved ones. The role and the
# database may have limits of their own; -1 means none.
_GIVEN: Final = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The connections of a server, and those that Postgres allows.

    each      the most connections of one worker
    workers   how many workers a server has
    given     how many connections Postgres allows the serving role
    pooled    whether a pooler is in between, so that `given` limits only the connections that listen
    """

    each: int
    workers: int
    given: int
    pooled: bool

    @property
    def server(self) -> int:
        """The most connections of one server, all its workers together."""
        return self.each * self.workers

    def shortage(self) -> str | None:
        """Returns a sentence if Postgres allows fewer connections than one server may open, or None."""
        if self.pooled or self.server <= self.given:
            return None
        return (
            f"one server may open {self.server} connections, and Postgres allows {self.given}: lower database.pool_size or "
            "workers, or raise max_connections"
        )

    def line(self) -> str:
        """Returns the comparison as one line of text."""
        needed = f"connections: {self.workers} worker(s) x ({self.each - 2} pooled + 2 to listen) = {self.server} per server"
        if self.pooled:
            return f"{needed}; the pooler limits the pooled ones, and those that listen count towards Postgres's {self.given}"
        return f"{needed}; Postgres allows {self.given}: enough for {self.given // self.server} server(s)"


async def capacity(connection: Connection, settings: Settings) -> Capacity:
    """Returns the Capacity for these settings and the database of `connection`, which must be the serving role's."""
    ((free, role, database),) = await connection.fetch(_GIVEN)
    given = min(limit for limit in (free, role, database) if limit >= 0)
    pooled = settings.get("database.pooler") == "transaction"
    return Capacity(settings.get("database.pool_size") + 2, settings.get("workers"), given, pooled)
