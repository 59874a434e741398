"""The embedded Postgres for a command: the one of a running server, or one that is started and stopped again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ..database.direct import direct_connection
from ..embedded.process import PostgresError
from ..embedded.server import EmbeddedPostgres
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from .connection_mistakes import DIRECT_URL, OWNER_URL, URL, connected
from .migrate import SERVING_ROLE
from .startup import DATABASE_NAME, beside_running_server, migrate_embedded

_WAIT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1
_USED: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def exists(settings: Settings) -> bool:
    """Whether the embedded database was created here."""
    return (Path(settings.get("data_folder")) / "postgres" / "data").exists()


@asynccontextmanager
async def embedded_owner(settings: Settings, *, migrate: bool = True) -> AsyncIterator[dict[str, Any]]:
    """asyncpg's arguments to connect as the owner of the embedded database, within the block.

    Where no server runs, Postgres is started (a new folder gets an empty one), its schema brought up to date unless `migrate`
    is False, and it is stopped at the end, after other commands that use it. Call it in the main thread. Raises ConfigError if
    it cannot be started.
    """
    started = None
    if (beside := beside_running_server(settings)) is None:
        started = await _start(settings)
    if started is None:
        owner = {**(beside or beside_running_server(settings) or {}), "user": EmbeddedPostgres.superuser}
        if migrate:  # another command may have started it just now
            await migrate_embedded(owner)
        yield owner
        return
    try:
        owner = {"host": str(started.socket), "port": started.port, "user": started.superuser}
        if migrate:
            await migrate_embedded(owner)
        try:
            yield {**owner, "database": DATABASE_NAME}
        finally:
            await _until_unused(owner)
    finally:
        started.stop()


def as_serving_role(owner: dict[str, Any]) -> dict[str, Any]:
    """The same arguments for the serving role."""
    return {**owner, "user": SERVING_ROLE}


@asynccontextmanager
async def serving_and_owner(settings: Settings) -> AsyncIterator[tuple[Any, Any | None]]:
    """A connection in the serving role, and one as the owner; None for the latter where `database.owner_url` is not set.

    Without `database.url` both lead to the embedded Postgres, which is started where no server runs on it. Raises
    ConfigError, Unavailable.
    """
    direct = settings.get("database.direct_url")
    if (url := direct or settings.get("database.url")) is None:
        async with (
            embedded_owner(settings) as owner,
            direct_connection(as_serving_role(owner)) as serving,
            direct_connection(owner) as opened,
        ):
            yield serving, opened
        return
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(connected({"dsn": url}, DIRECT_URL if direct else URL))
        owner_url = settings.get("database.owner_url")
        yield serving, await stack.enter_async_context(connected({"dsn": owner_url}, OWNER_URL)) if owner_url else None


async def _start(settings: Settings) -> EmbeddedPostgres | None:
    """Start it; None if another process has done so meanwhile. Raises ConfigError."""
    postgres = EmbeddedPostgres(Path(settings.get("data_folder")) / "postgres")
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            postgres.start()
        except PostgresError as error:
            if beside_running_server(settings) is not None:
                return None
            # Another process starts or stops it: wait, and then use its Postgres or start our own.
            if "is in use by process" not in str(error) or time.monotonic() > deadline:
                raise ConfigError(f"embedded Postgres: {error}") from error
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return postgres


async def _until_unused(owner: dict[str, Any]) -> None:
    """Wait until no other command is connected, for half a minute at most."""
    deadline = time.monotonic() + _WAIT_SECONDS
    async with direct_connection({**owner, "database": "postgres"}) as connection:
        while time.monotonic() < deadline:
            if not await connection.fetchval(_USED):
                return
            await asyncio.sleep(_POLL_SECONDS)
