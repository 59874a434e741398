"""The time limits of a connection for handlers, and of the transactions on it."""

from __future__ import annotations

from typing import Any, Final

from .statements import set_scope_and_limits, set_scope_and_lock_limit

_IDLE_MORE: Final = 30.0


class Limits:
    """All in seconds: the longest statement, the longest idle transaction, the longest wait for a lock."""

    def __init__(self, acquire_seconds: float, statement_seconds: float, *, pooled: bool) -> None:
        """`pooled`: through a transaction pooler, where a connection has no settings of its own."""
        self._pooled, self.statement, self.idle = pooled, statement_seconds, statement_seconds + _IDLE_MORE
        # A request that waits for a lock holds a connection, so it gives up before those that wait for a connection do.
        self.lock = min(acquire_seconds / 2, statement_seconds)

    def set_scope(self) -> str:
        """The SQL that sets a scope ($1 to $3), a writer ($4, $5) and the limits of one transaction."""
        if self._pooled:
            return set_scope_and_limits(self.statement, self.idle, self.lock)
        return set_scope_and_lock_limit(self.lock)

    def arguments(self) -> dict[str, Any]:
        """asyncpg's arguments for a connection with these limits."""
        milliseconds = {"statement_timeout": self.statement, "idle_in_transaction_session_timeout": self.idle}
        settings = {name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()}
        return {
            "server_settings": {} if self._pooled else {"timezone": "UTC", "application_name": "gatepost", **settings},
            "statement_cache_size": 0 if self._pooled else 1024,
            "max_cached_statement_lifetime": 0,  # a statement stays prepared; asyncpg notices a change of the schema
            "command_timeout": self.statement + 1,  # the client's own limit, for a Postgres that does not respond at all
        }
