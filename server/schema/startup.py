"""Opens the database of one server from its settings: the configured one, or the embedded Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, Final

from ..auth.cleanup import Cleanup
from ..auth.revocation import Revocations
from ..auth.revocation_feed import READ_SECONDS, Feed
from ..database.connections import Database
from ..database.direct import direct_connection
from ..database.driver import translate_error
from ..database.hosts import of_primary, split
from ..embedded.process import PostgresError
from ..embedded.server import EmbeddedPostgres, running_socket
from ..http.errors import Unavailable
from ..settings.setting import ConfigError
from ..settings.setting import StartFailed as StartFailed
from ..settings.sources import Settings
from ..telemetry.log import LOG
from .connection_mistakes import DIRECT_URL, URL, connected, explained, unreachable
from .migrate import LOCK, SERVING_ROLE, migrate
from .pooler import same_place
from .safety import problems, public_rows, refusal, warnings
from .waiting import until_reachable, wait_seconds

DATABASE_NAME: Final = "gatepost"


class ServerDatabase:
    """Opens the database, checks that it is safe to serve from, and closes it."""

    def __init__(self, settings: Settings, *, beside_parent: bool = False) -> None:
        """`beside_parent`: this process is a worker, whose parent has started the embedded Postgres."""
        self._settings, self._beside_parent = settings, beside_parent
        self._embedded: EmbeddedPostgres | None = None
        self._watch: asyncio.Task[None] | None = None
        self.database = Database(
            size=settings.get("database.pool_size"),
            acquire_seconds=settings.get("database.acquire_seconds"),
            statement_seconds=settings.get("database.statement_seconds"),
            pooled=settings.get("database.pooler") == "transaction",
        )
        self.revocations = Revocations(max_staleness=settings.get("revocation.max_staleness"))
        self._feed: Feed | None = None
        self._cleanup = Cleanup(self.revocations, self.database.call)
        self._place: Mapping[str, Any] | None = None

    @property
    def pending(self) -> int:
        """The number of ended accesses whose keys and memberships still have to be cleaned up."""
        return self._cleanup.pending

    async def open(self) -> None:
        """Start the embedded Postgres if no URL is set, connect, and refuse an unsafe database.

        Raises ConfigError for a mistake in the settings or an unsafe database, StartFailed if it cannot be reached.
        """
        connect = self._place = await self.provide()
        try:
            await until_reachable(lambda: self._connect(connect), wait_seconds(self._settings))
            await self._refuse_unsafe()
            if direct := self._settings.get("database.direct_url"):
                await self._refuse_another_database(of_primary(direct))
            self._feed = Feed(self.revocations, self.straight)
            await until_reachable(self._feed_opened, wait_seconds(self._settings))
            self._cleanup.open()
        except Unavailable as error:
            pooler = "; is a pooler in between? see database.pooler" if "08P01" in str(error) else ""
            raise StartFailed(f"{unreachable(error)}{pooler}") from error

    async def _feed_opened(self) -> None:
        """Read all revocations. Raises Unavailable also where the connection is lost between two pages of them."""
        assert self._feed is not None
        try:
            await self._feed.open()
        except Exception as error:
            raise translate_error(error) from error

    def straight(self) -> AbstractAsyncContextManager[Any]:
        """A connection of its own that may LISTEN: not through a transaction pooler. Raises Unavailable, also before `open`."""
        if self._place is None:
            raise Unavailable("the database is not open")
        return direct_connection(self._straight(self._place), seconds=READ_SECONDS)

    async def _connect(self, connect: Mapping[str, Any]) -> None:
        try:
            await self.database.open(connect, lambda: self._url_now("database.url"))
            await self._refuse_standby(connect.get("dsn"))
        except Exception as error:
            raise explained(error, connect, URL) from None

    async def _refuse_standby(self, dsn: str | None) -> None:
        """Raise Unavailable where the only host of the URL is a standby: it may be promoted while it is waited for.

        Of several hosts, the next one is tried when the first write fails.
        """
        async with self.database.connection() as connection:
            standby = await connection.fetchval("SELECT pg_is_in_recovery()")
        if standby and len(split(dsn or "")) == 1:
            await self.database.close()
            raise Unavailable("it is a standby, which cannot be written to: give the address of the primary")

    def _straight(self, connect: Mapping[str, Any]) -> dict[str, Any]:
        """Asyncpg's arguments for a connection that may LISTEN, which a standby refuses, with the URL as it is now."""
        if dsn := self._url_now("database.direct_url") or self._url_now("database.url"):
            connect = of_primary(dsn)
        return {**connect, "command_timeout": READ_SECONDS}

    def _url_now(self, key: str) -> str | None:
        """The URL of this key; from its file if it has one, which may have been replaced since startup."""
        try:
            url: str | None = self._settings.reread(key)
        except ConfigError as error:
            LOG.error("the file of a database URL cannot be used", extra={"fields": {"why": str(error)}})
            return self._settings.get(key)  # type: ignore[no-any-return]
        return url

    async def provide(self) -> dict[str, Any]:
        """Returns asyncpg's arguments to connect as the serving role: to `database.url`, else to the embedded Postgres.

        Starts the embedded one, unless this is a worker whose parent has started it. Raises ConfigError.
        """
        url = self._settings.get("database.url")
        if url is not None:
            return {"dsn": url}
        if self._beside_parent and (beside := beside_running_server(self._settings)) is not None:
            return beside
        return await self._start_embedded()

    async def close(self) -> None:
        await self._cleanup.close()
        if self._feed is not None:
            await self._feed.close()
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self.database.close()
        if self._embedded is not None:
            self._embedded.stop()

    async def _refuse_unsafe(self) -> None:
        async with self.database.connection() as connection:
            trouble = refusal(await problems(connection))
            remarks = [] if trouble else await warnings(connection)
            public = [] if trouble else await public_rows(connection)
        for line in remarks:
            LOG.warning(line)
        for line in public:
            LOG.info(line)
        if trouble:
            embedded = "" if self._embedded is None else "; mend it with `python -m server migrate --schema FILE`"
            raise ConfigError(trouble + embedded)

    async def _refuse_another_database(self, direct: dict[str, Any]) -> None:
        """Refuse a direct URL to another database: revocations must be read from where they are written."""
        async with self.database.connection() as connection, connected(direct, DIRECT_URL) as straight:
            if not await same_place(connection, straight):
                raise ConfigError("database.direct_url: leads to a different database from database.url (DATABASE_URL)")

    async def _start_embedded(self) -> dict[str, Any]:
        folder = Path(self._settings.get("data_folder")) / "postgres"
        self._embedded = EmbeddedPostgres(folder)
        try:
            self._embedded.start()
        except PostgresError as error:
            raise ConfigError(f"embedded Postgres: {error}") from error
        self._watch = asyncio.create_task(self._embedded.watch())
        owner = {"host": str(self._embedded.socket), "port": self._embedded.port, "user": self._embedded.superuser}
        await migrate_embedded(owner)
        return {**owner, "user": SERVING_ROLE, "database": DATABASE_NAME}


async def migrate_embedded(owner: dict[str, Any]) -> None:
    """Create the database if it is missing, and migrate its schema. `owner` holds asyncpg's arguments for its superuser."""
    async with direct_connection({**owner, "database": "postgres"}) as first:
        await first.execute(f"SELECT pg_advisory_lock({LOCK})")  # until the connection ends
        if not await first.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE_NAME):
            await first.execute(f"CREATE DATABASE {DATABASE_NAME}")
    async with direct_connection({**owner, "database": DATABASE_NAME}) as connection:
        await migrate(connection, serving_role=SERVING_ROLE)


def beside_running_server(settings: Settings) -> dict[str, Any] | None:
    """Returns asyncpg's arguments for the embedded Postgres of a server that runs on this data folder, or None."""
    socket = running_socket(Path(settings.get("data_folder")) / "postgres")
    return {"host": str(socket), "port": 5432, "user": SERVING_ROLE, "database": DATABASE_NAME} if socket else None
