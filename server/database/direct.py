"""A separate connection: for migrations, commands and the revocation feed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from . import driver
from .hosts import Hosts

_CLOSE_SECONDS: Final = 1.0


@asynccontextmanager
async def direct_connection(connect: Mapping[str, Any], *, seconds: float = 10) -> AsyncIterator[Any]:
    """A separate connection, opened within `seconds` and closed at the end: for migrations, commands and the revocation feed.

    `connect` goes to asyncpg (`dsn`, or host, port, user, database). Raises Unavailable, ValueError.
    """
    try:
        connection = await Hosts(driver.connect, connect, seconds, elsewhere=driver.another_host_may_do).open()
    except Exception as error:
        raise driver.connection_error(error) from None
    try:
        yield connection
    finally:
        with suppress(Exception):  # if it no longer responds it is dropped, so that the caller can open another
            await connection.close(timeout=_CLOSE_SECONDS)
