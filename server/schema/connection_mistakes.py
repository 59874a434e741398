"""Why a connection to Postgres cannot be opened; a mistake in its URL is one line without a secret."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from ..database.direct import direct_connection
from ..database.urls import UrlMistake
from ..http.errors import Unavailable
from ..settings.setting import ConfigError
from .waiting import until_reachable

URL: Final = "database.url (DATABASE_URL)"
DIRECT_URL: Final = "database.direct_url (GATEPOST_DATABASE_DIRECT_URL)"
OWNER_URL: Final = "database.owner_url (DATABASE_OWNER_URL)"
_UNREACHABLE: Final = "the database cannot be reached"
# What Postgres answers to a connection that it will never accept: a wrong password; a role or a rule of pg_hba.conf; a missing
# database; no right to connect to it. Its message names the role or database, and no secret.
_REFUSED: Final = {
    "28P01": "give this role's password",
    "28000": "create the role, let it log in, or add a line to pg_hba.conf",
    "3D000": "create it: CREATE DATABASE … OWNER …",
    "42501": "grant it CONNECT on the database",
}


@asynccontextmanager
async def connected(connect: Mapping[str, Any], setting: str, whose: str = "", *, wait: float = 0.0) -> AsyncIterator[Any]:
    """A connection with these arguments of asyncpg (`dsn`, or host, port, user, database), closed at the end.

    Raises ConfigError for a mistake in `setting`, Unavailable if the server cannot be reached; both name host and port.
    `whose` is added to the latter's message, as in ` as its owner`. A server that cannot be reached is tried again for `wait`
    seconds.
    """

    async def opening() -> tuple[Any, Any]:
        opened = direct_connection(connect)
        try:
            return opened, await opened.__aenter__()
        except Exception as error:
            raise explained(error, connect, setting, whose) from None

    opened, connection = await until_reachable(opening, wait)
    try:
        yield connection
    finally:
        await opened.__aexit__(None, None, None)


def explained(error: Exception, connect: Mapping[str, Any], setting: str, whose: str = "") -> Exception:
    """Returns what to raise instead of `error`, which prevented a connection with these arguments of asyncpg.

    A ConfigError for a mistake in `setting`, Unavailable where the server cannot be reached; both name host and port. Any
    other error is returned as it is.
    """
    place = _place(connect)
    state = getattr(error, "sqlstate", None) or getattr(error.__context__, "sqlstate", None)
    if state in _REFUSED:
        message = str(error if getattr(error, "sqlstate", None) else error.__context__).splitlines()[0]
        return ConfigError(f"{setting}: {message} ({place}): {_REFUSED[state]}")
    cause = error.__context__ or error
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return ConfigError(f"{setting}: the host is not known ({place})")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConfigError(f"{setting}: the server's certificate is not trusted: {cause.verify_message} ({place})")
    if isinstance(cause, ConnectionError) and "rejected SSL upgrade" in str(cause):
        return ConfigError(f"{setting}: the server does not offer TLS, which sslmode asks for ({place})")
    if isinstance(cause, OSError) and isinstance(cause.filename, str):  # a certificate or key that sslmode needs
        return ConfigError(f"{setting}: {cause.filename}: {cause.strerror} ({place})")
    if isinstance(error, Unavailable):
        return Unavailable(f"{_UNREACHABLE}{whose}: {error} ({place})")
    if isinstance(error, UrlMistake):
        return ConfigError(f"{setting}: {error}")
    if isinstance(error, ValueError):
        return ConfigError(f"{setting}: not a Postgres URL that can be used")
    return error


def unreachable(error: Unavailable) -> str:
    """The sentence that the database cannot be reached, and why."""
    return str(error) if str(error).startswith(_UNREACHABLE) else f"{_UNREACHABLE}: {error}"


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
