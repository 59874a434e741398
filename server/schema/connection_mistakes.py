"""Why a connection to Postgres cannot be opened; a mistake in its URL is one line without a secret."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from ..database import driver
from ..database.direct import direct_connection
from ..database.urls import UrlMistake, complaint
from ..database.violations import StatementError
from ..http.errors import ApiError, Unavailable
from ..messages import one_line
from ..settings.setting import ConfigError, StartFailed
from .tls_files import complaint_about_file, trusted_by
from .waiting import until_reachable

URL: Final = "database.url (DATABASE_URL)"
DIRECT_URL: Final = "database.direct_url (GATEPOST_DATABASE_DIRECT_URL)"
OWNER_URL: Final = "database.owner_url (DATABASE_OWNER_URL)"
_UNREACHABLE: Final = "the database cannot be reached"
# What Postgres answers to a connection that it will never accept: a wrong password; a role or a rule of pg_hba.conf; a missing
# database; no right to connect to it; a wrong word in `options`. Its message names the role or database, and no secret.
_OPTIONS: Final = "correct the parameter `options` of the URL, or the role's own settings"
_REFUSED: Final = {
    "28P01": "give this role's password",
    "28000": "create the role, let it log in, or add a line to pg_hba.conf",
    "3D000": "create it: CREATE DATABASE … OWNER …",
    "42501": "grant it CONNECT on the database",
    **dict.fromkeys(("22023", "42601", "42704", "55P02"), _OPTIONS),
}
# What a provider's proxy or a pooler answers in place of Postgres, with any state.
_BY_A_PROXY: Final = (
    ("tenant or user not found|no such user|no such database|endpoint .*(?:not found|not exist)",
     "compare role, host and database with the URL that the provider shows"),
    ("endpoint id is not specified|project id is not specified", "use the provider's own host name, with sslmode=require"),
    ("insecure|ssl (?:connection )?is required|ssl required|no encryption|ssl off", "add sslmode=require to the URL"),
)  # fmt: skip
_NO_SUCH_OBJECT: Final = ("42P01", "42883", "42703")  # a table, function or column
_HINTS: Final = {
    "ConnectionRefusedError": "is Postgres running there, and is the port right?",
    "FileNotFoundError": "is Postgres running there, and is this the folder of its socket?",
    "TimeoutError": "is the host right, and does a firewall let this machine through?",
    "(53300)": "lower database.pool_size or workers, or raise max_connections or the role's CONNECTION LIMIT",
    "(55000)": "is it meant to be closed? ALTER DATABASE … ALLOW_CONNECTIONS true",
    "TargetServerAttributeNotMatched": "no host is what target_session_attrs asks for",
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


def of_a_statement(error: Exception) -> Exception | None:
    """Returns what to raise instead of an error of a statement, so that it is one line; None for any other error.

    A ConfigError where the schema is missing or older, else StartFailed. Postgres's words hold no password.
    """
    translated = driver.translate_error(error)
    if driver.is_server_error(error):
        state = getattr(error, "sqlstate", None)
        words = f"{type(error).__name__} ({state}): {one_line(str(error).partition(chr(10))[0])}"
        if state in _NO_SUCH_OBJECT:
            return ConfigError(f"the database has no schema, or an older one: run `python -m server migrate` ({words})")
        return StartFailed(f"the database refused a statement: {words}")
    if isinstance(translated, Unavailable):
        return StartFailed(unreachable(translated))
    if isinstance(error, StatementError | ApiError):  # of startup, where they are translated already
        return StartFailed(f"the database refused a statement: {getattr(error, 'log_text', type(error).__name__)}")
    return None


def explained(error: Exception, connect: Mapping[str, Any], setting: str, whose: str = "") -> Exception:
    """Returns what to raise instead of `error`, which prevented a connection with these arguments of asyncpg.

    A ConfigError for a mistake in `setting`, Unavailable where the server cannot be reached; both name host and port. Any
    other error is returned as it is.
    """
    place = _place(connect)
    if refused := _refused(error, connect):
        return ConfigError(f"{setting}: {refused[0]} ({place}): {refused[1]}")
    cause = error.__context__ or error
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return ConfigError(f"{setting}: the host is not known ({place})")
    if isinstance(cause, ssl.SSLCertVerificationError):
        by = trusted_by(connect.get("dsn", ""))
        return ConfigError(f"{setting}: the server's certificate is not trusted: {cause.verify_message} ({place}; by {by})")
    if isinstance(cause, ConnectionError) and "rejected SSL upgrade" in str(cause):
        return ConfigError(f"{setting}: the server does not offer TLS, which sslmode asks for ({place})")
    if (of_file := complaint_about_file(cause, connect.get("dsn", ""))) is not None:
        return ConfigError(f"{setting}: {of_file} ({place})")
    if isinstance(cause, OSError) and isinstance(cause.filename, str):  # a certificate or key that sslmode needs
        return ConfigError(f"{setting}: {cause.filename}: {cause.strerror} ({place})")
    if isinstance(error, Unavailable):
        return Unavailable(f"{_UNREACHABLE}{whose}: {error} ({place})")
    if isinstance(error, UrlMistake):
        return ConfigError(f"{setting}: {error}")
    if isinstance(error, ValueError):
        words = complaint(connect["dsn"]) if "dsn" in connect else str(error)
        return ConfigError(f"{setting}: {str(error) if words in str(error) else words}")
    return error


def _refused(error: Exception, connect: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what Postgres or a proxy in its place answers, what to do), for a connection that it will never accept; else None."""
    answer = error if getattr(error, "sqlstate", None) else error.__context__
    if (state := getattr(answer, "sqlstate", None)) is None:
        return None
    message = str(answer).splitlines()[0]
    for words, todo in _BY_A_PROXY:
        if re.search(words, message, re.IGNORECASE):
            return message, todo
    if state not in _REFUSED:
        return None
    if state == "42501" and "permission denied to set" in message:  # a parameter, or a role
        return message, _OPTIONS
    return message, _REFUSED[state] + _missing(state, connect.get("dsn"))


def _missing(state: str, dsn: str | None) -> str:
    """What the URL leaves out, so that a default took its place."""
    parts = urlsplit(dsn or "")
    if not dsn or not parts.scheme:
        return ""
    if state == "3D000" and not parts.path.strip("/") and "dbname=" not in parts.query:
        return " (the URL names no database: it ends in /DATABASE)"
    if state.startswith("28") and not parts.username and "user=" not in parts.query:
        return " (the URL names no role: postgresql://ROLE:PASSWORD@HOST/DATABASE)"
    return " (the URL has no password)" if state == "28P01" and not parts.password and "password=" not in parts.query else ""


def unreachable(error: Unavailable) -> str:
    """The sentence that the database cannot be reached, why, and where to look."""
    text = str(error) if str(error).startswith(_UNREACHABLE) else f"{_UNREACHABLE}: {error}"
    return text + next((f": {hint}" for words, hint in _HINTS.items() if words in text), "")


def _place(connect: Mapping[str, Any]) -> str:
    """Host, port and database, and never the password."""
    if "dsn" not in connect:
        return f"{connect.get('host')}:{connect.get('port')}"
    try:
        parts = urlsplit(connect["dsn"])
        query = parse_qs(parts.query)
        port = query.get("port", [os.environ.get("PGPORT", "5432")])[0]
        hosts = parts.netloc.rpartition("@")[2] or query.get("host", [os.environ.get("PGHOST", "localhost")])[0]
    except ValueError:
        return "?"
    where = ",".join(one if re.search(r":\d+$", one) else f"{one.removesuffix(':')}:{port}" for one in hosts.split(","))
    return f"{where}/{unquote(parts.path.lstrip('/'))}"
