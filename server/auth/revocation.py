"""Who is signed out although a token still runs: a set in memory, held against every request, re-read all the time.

The table is the truth and is read whole every half second (a high-water mark would lose rows of transactions that
commit late); NOTIFY is a hint to read now. A worker whose feed is older than the allowed staleness does not guess: what
depends on the set is a 503 until it has read again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

from ..http.errors import Unavailable
from ..telemetry.log import LOG
from .identity import Identity

CHANNEL: Final = "gatepost_revocations"
INTERVAL_SECONDS: Final = 0.5
PRUNE_SECONDS: Final = 600.0
PRUNE_ROWS: Final = 1000  # at a time: pruning must not keep the feed from reading
# Longer than a healthy database takes; twice this and a new connection fit into the staleness that is allowed.
READ_SECONDS: Final = 3.0


class Revocations:
    """Revoked sessions, users, memberships, organisations, roles and keys, and how fresh that knowledge is.

    A subject is revoked for credentials issued at or before a moment (Unix seconds); infinity: for all of them.
    """

    def __init__(self, *, max_staleness: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_staleness` in seconds."""
        self._max_staleness = max_staleness
        self._clock = clock
        self._entries: dict[tuple[str, str], float] = {}
        self._read_at = -math.inf

    @property
    def age(self) -> float:
        """Seconds since the table was last read; infinity before the first time."""
        return self._clock() - self._read_at

    @property
    def stale(self) -> bool:
        return self.age > self._max_staleness

    def replace(self, rows: Iterable[Mapping[str, Any]], read_at: float) -> None:
        """Take the table as it was at `read_at` (by the clock, before the query was sent)."""
        self._entries = {(row["kind"], row["subject"]): _moment(row["issued_before"]) for row in rows}
        self._read_at = read_at

    def revoked(self, kind: str, subject: str, issued_at: float | None) -> bool:
        """Is this subject revoked for a credential issued at `issued_at` (None: not known, so any revocation counts)?"""
        before = self._entries.get((kind, subject))
        return before is not None and (issued_at is None or issued_at <= before)

    def denies(self, identity: Identity) -> bool:
        """Is this caller revoked, by session, user, organisation, membership or role? Raises Unavailable when stale."""
        if identity.token_type == "session_token" and self.stale:
            raise Unavailable("the revocation feed is stale")
        if not self._entries:
            return False
        issued, user, org = identity.issued_at, identity.user_id, identity.org_id
        if identity.session_id is not None and self.revoked("session", identity.session_id, None):
            return True
        if user is not None and self.revoked("user", user, issued):
            return True
        if org is None:
            return False
        if self.revoked("organization", org, issued) or (user and self.revoked("membership", f"{user} {org}", issued)):
            return True
        return identity.org_role is not None and self.revoked("role", identity.org_role, issued)


class Feed:
    """Keeps a Revocations fresh, on a connection of its own."""

    def __init__(self, revocations: Revocations, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        """`connect()` opens a connection that may LISTEN (not through a transaction pooler)."""
        self._revocations = revocations
        self._connect = connect
        self._hint = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._prune_at = time.monotonic() + PRUNE_SECONDS

    async def open(self) -> None:
        """Read the table once before anything is served, then keep reading. Raises Unavailable."""
        async with self._connect() as connection:
            await self._read(connection)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause = INTERVAL_SECONDS
        while True:
            try:
                async with self._connect() as connection:
                    await connection.add_listener(CHANNEL, lambda *_: self._hint.set())
                    while True:
                        await self._read(connection)
                        await self._prune(connection)
                        pause = INTERVAL_SECONDS
                        await self._wait(INTERVAL_SECONDS)
            except Exception as error:
                if self._closing:  # an outage in the moment of the cancellation: wait_for of Python 3.11 loses it then
                    return
                LOG.warning("revocation feed interrupted", extra={"fields": {"error": type(error).__name__}})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hint.wait()
        self._hint.clear()

    async def _prune(self, connection: Any) -> None:
        """Now and then drop what has expired; every worker does, and it does not matter which comes first."""
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_SECONDS
            await connection.execute("SELECT prune_sync()", timeout=30)
            if await connection.fetchval("SELECT prune_idempotency($1)", PRUNE_ROWS, timeout=5) >= PRUNE_ROWS:
                self._prune_at = time.monotonic()  # there are more: go on after the next reading

    async def _read(self, connection: Any) -> None:
        begun = time.monotonic()
        rows = await connection.fetch("SELECT kind, subject, issued_before FROM live_revocations()", timeout=READ_SECONDS)
        self._revocations.replace(rows, begun)


def _moment(value: Any) -> float:
    return math.inf if value is None else float(value.timestamp())
