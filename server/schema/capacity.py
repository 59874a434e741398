"""Compares the connections that a server may open with those that Postgres allows; `check` prints the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..settings.sources import Settings
from .migrate import Connection

# What is left for the serving role: without the superuser's connections and (from Postgres 16 on) the reserved ones. The role
# and the database may have limits of their own; -1 means none.
_GIVEN: Final = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most connections of `each` worker, the `workers` of one server, and the connections `given` to the serving role."""

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
        wants = f"connections: {self.workers} worker(s) x ({self.each - 1} pooled + 1 to listen) = {self.server} per server"
        if self.pooled:
            return f"{wants}; the pooled ones are the pooler's to limit, those that listen are of Postgres's {self.given}"
        return f"{wants}; Postgres gives {self.given}: enough for {self.given // self.server} server(s)"


async def capacity(connection: Connection, settings: Settings) -> Capacity:
    """Returns the Capacity for these settings and the database of `connection`, which must be the serving role's."""
    ((free, role, database),) = await connection.fetch(_GIVEN)
    given = min(limit for limit in (free, role, database) if limit >= 0)
    pooled = settings.get("database.pooler") == "transaction"
    return Capacity(settings.get("database.pool_size") + 1, settings.get("workers"), given, pooled)
