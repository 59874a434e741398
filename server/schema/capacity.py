"""How many connections a server may open to Postgres, beside how many Postgres gives: the sum that `check` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..settings.sources import Settings
from .migrate import Connection

# What is left for the serving role: not the superuser's places, nor (from Postgres 16 on) the reserved ones. The role and the
# database may have limits of their own; -1 is none.
_GIVEN: Final = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """`each` worker's connections at the most, `workers` of one server, and what Postgres has `given` the serving role."""

    each: int
    workers: int
    given: int
    pooled: bool

    @property
    def server(self) -> int:
        """Connections of one server, all its workers together."""
        return self.each * self.workers

    def shortage(self) -> str | None:
        """A sentence where Postgres gives fewer connections than one server may ask for; None where it is enough."""
        if self.pooled or self.server <= self.given:
            return None
        return (
            f"one server may open {self.server} connections, and Postgres gives {self.given}: lower database.pool_size or "
            "workers, or raise max_connections"
        )

    def line(self) -> str:
        """The sum in words."""
        wants = f"connections: {self.workers} worker(s) x ({self.each - 1} pooled + 1 to listen) = {self.server} per server"
        if self.pooled:
            return f"{wants}; the pooled ones are the pooler's to limit, those that listen are of Postgres's {self.given}"
        return f"{wants}; Postgres gives {self.given}: enough for {self.given // self.server} server(s)"


async def capacity(connection: Connection, settings: Settings) -> Capacity:
    """The sum for these settings, on the database of this connection, which must be the serving role's."""
    ((free, role, database),) = await connection.fetch(_GIVEN)
    given = min(limit for limit in (free, role, database) if limit >= 0)
    pooled = settings.get("database.pooler") == "transaction"
    return Capacity(settings.get("database.pool_size") + 1, settings.get("workers"), given, pooled)
