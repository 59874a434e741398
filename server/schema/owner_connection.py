"""Connects as the owner; a mistake in the URL, such as a wrong password, is one line that says where and what to do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from ..database.connections import direct_connection
from ..http.errors import Unavailable
from ..settings.setting import ConfigError

_SETTING: Final = "database.owner_url (DATABASE_OWNER_URL)"
# What Postgres answers to a connection that it will never accept: a wrong password; a role or a rule of pg_hba.conf; a missing
# database; no right to connect to it. Its message names the role or database, and no secret.
_REFUSED: Final = {
    "28P01": "give this role's password",
    "28000": "create the role, let it log in, or add a line to pg_hba.conf",
    "3D000": "create it: CREATE DATABASE … OWNER …",
    "42501": "grant it CONNECT on the database",
}


@asynccontextmanager
async def owner_connection(connect: Mapping[str, Any]) -> AsyncIterator[Any]:
    """A connection with these arguments of asyncpg (`dsn`, or host, port, user, database), closed at the end.

    Raises ConfigError for a mistake in the URL, Unavailable if the server cannot be reached; both name host and port.
    """
    opened = direct_connection(connect)
    try:
        connection = await opened.__aenter__()
    except Exception as error:
        raise _explained(error, connect) from None
    try:
        yield connection
    finally:
        await opened.__aexit__(None, None, None)


def _explained(error: Exception, connect: Mapping[str, Any]) -> Exception:
    place = _place(connect)
    state = getattr(error, "sqlstate", None) or getattr(error.__context__, "sqlstate", None)
    if state in _REFUSED:
        message = str(error if getattr(error, "sqlstate", None) else error.__context__).splitlines()[0]
        return ConfigError(f"{_SETTING}: {message} ({place}): {_REFUSED[state]}")
    if isinstance(error.__context__, socket.gaierror):
        return ConfigError(f"{_SETTING}: the host is not known ({place})")
    if isinstance(error, Unavailable):
        return Unavailable(f"the database cannot be reached as its owner: {error} ({place})")
    if isinstance(error, ValueError):
        return ConfigError(f"{_SETTING}: not a Postgres URL that can be used")
    return error


def _place(connect: Mapping[str, Any]) -> str:
    """Host, port and database, and never the password."""
    if "dsn" not in connect:
        return f"{connect.get('host')}:{connect.get('port')}"
    try:
        parts = urlsplit(connect["dsn"])
        query = parse_qs(parts.query)
        where = parts.netloc.rpartition("@")[2] or f"{query.get('host', ['?'])[0]}:{query.get('port', ['5432'])[0]}"
    except ValueError:
        return "?"
    return f"{where}/{unquote(parts.path.lstrip('/'))}"
