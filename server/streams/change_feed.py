"""Receives changes over one connection to Postgres for the whole process, and reopens it whenever it is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

from ..http.errors import Unavailable
from ..telemetry.log import LOG
from .change_tables import ChangeTables
from .fanout import Fanout

CHANNEL: Final = "gatepost_changes"
BEAT_SECONDS: Final = 5.0
"""How often the connection is checked: a half-open one is noticed within this time plus `_ANSWER_SECONDS`."""
_ANSWER_SECONDS: Final = 3.0
_LOAD_SECONDS: Final = 60.0
"""How often the catalogs are read."""
_BETWEEN_SECONDS: Final = 1.0
"""The shortest time between two reads of the catalogs."""
_MOST_UNKNOWN: Final = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
_STEADY_SECONDS: Final = 10.0
"""After a connection that lasted this long, the next pause is short again."""
# Postgres drops a listener that does not answer, whose unread notifications it would otherwise keep.
_KEEPALIVE: Final = """SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_count', '3', false),
                              set_config('tcp_keepalives_interval', '10', false)"""


class ChangeFeed:
    """Listens for messages of gatepost_changed, and passes them to a Fanout.

    Changes may be missed while there is no connection. So every subscription gets a `resync` as soon as the next connection
    listens: what the client then loads includes whatever was missed, and later changes are received.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Any]],
        fanout: Fanout,
        tables: ChangeTables,
        *,
        beat: float = BEAT_SECONDS,
    ) -> None:
        """`connect()` opens a connection that may LISTEN (not through a transaction pooler)."""
        self._connect, self._fanout, self._tables, self._beat = connect, fanout, tables, beat
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loaded_at = 0.0
        self._reloaded: asyncio.Future[None] | None = None
        """Done when the catalogs have been read again; None if nothing waits for that."""
        self._wake = asyncio.Event()
        self._unknown: set[str] = set()
        """Tables of messages that were in no catalog when it was read last."""
        self._outdated = False
        """Has a message named a table that was not known?"""
        fanout.missed = self._missed
        self._interrupted_at: float | None = None
        self.connections = 0
        """How many connections have listened so far."""
        self.failures = 0
        """How often a connection was lost, or could not be opened."""
        self.process_id: int | None = None
        """The process id of the Postgres backend that serves the connection."""

    @property
    def listening(self) -> bool:
        """Is LISTEN in force, so that no change is missed?"""
        return self._listening.is_set()

    def start(self) -> None:
        """Begin to listen; may be called more than once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self) -> None:
        """Wait until LISTEN is in force."""
        self.start()
        await self._listening.wait()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def reload(self) -> None:
        """Read the catalogs again, at most once a second, and wait for it: a table or a column may be new."""
        if self._reloaded is None:
            self._reloaded = asyncio.get_running_loop().create_future()
            self._wake.set()
        await asyncio.shield(self._reloaded)

    def _missed(self, table: str) -> None:
        """Read the catalogs soon if a message names an unknown table: it may be the new name of one that streams wait for."""
        if self._tables.find(table) is None and table not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
            self._unknown.add(table)
            self._outdated = True
            self._wake.set()

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                async with self._connect() as connection:
                    fields = {"error": await self._listen(connection)}
            except Exception as error:
                fields = {"error": type(error).__name__} | ({"why": str(error)} if isinstance(error, Unavailable) else {})
            finally:
                self._listening.clear()
            self._log_interruption(fields)
            pause = FIRST_PAUSE if time.monotonic() - began > _STEADY_SECONDS else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    def _log_interruption(self, fields: dict[str, str]) -> None:
        """Log an outage when it begins."""
        self.failures += 1
        if self._interrupted_at is None:
            self._interrupted_at = time.monotonic()
            LOG.warning("change feed interrupted", extra={"fields": fields})

    def _log_resumption(self) -> None:
        """Log the end of an outage, and how long it lasted."""
        if self._interrupted_at is not None:
            seconds, self._interrupted_at = round(time.monotonic() - self._interrupted_at, 3), None
            LOG.info("change feed resumed", extra={"fields": {"seconds": seconds}})

    async def _listen(self, connection: Any) -> str:
        """Listen until the connection ends, or its server turns out to be a standby; returns which of the two."""
        connection.add_termination_listener(lambda _: self._wake.set())
        await connection.execute(_KEEPALIVE, timeout=_ANSWER_SECONDS)
        await connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, payload: self._fanout.receive(payload))
        await self._load(connection)
        self.process_id = connection.get_server_pid()
        self.connections += 1
        if self.connections > 1:
            self._fanout.resync_all()
        self._listening.set()
        self._log_resumption()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._beat):
                    await self._wake.wait()
            self._wake.clear()
            if connection.is_closed():
                return "the connection was closed"
            if await connection.fetchval("SELECT pg_is_in_recovery()", timeout=_ANSWER_SECONDS):
                return "the server is a standby"
            if self._reloaded is not None or self._outdated:
                await asyncio.sleep(self._loaded_at + _BETWEEN_SECONDS - time.monotonic())
            if self._reloaded is not None or self._outdated or time.monotonic() >= self._loaded_at + _LOAD_SECONDS:
                await self._load(connection)

    async def _load(self, connection: Any) -> None:
        self._outdated = False
        changed = await self._tables.load(connection)
        self._loaded_at = time.monotonic()
        self._unknown = {one for one in self._unknown if self._tables.find(one) is None}
        if changed:
            self._fanout.resync_tables(changed)
        if self._reloaded is not None:
            self._reloaded.set_result(None)
            self._reloaded = None
