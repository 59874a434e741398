"""Postgres URLs as providers and other drivers write them: what the driver does not know is dropped or named."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

SCHEMES: Final = ("postgresql", "postgres")
# What libpq and other clients know and this server does not need: it has its own limits, and asyncpg binds no channel.
_DROPPED: Final = frozenset({
    "channel_binding", "connect_timeout", "connection_limit", "fallback_application_name", "gssencmode", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "pgbouncer", "pool_timeout", "socket_timeout", "sslsni",
    "sslaccept", "statement_cache_size", "supa", "tcp_user_timeout",
})  # fmt: skip
_KNOWN: Final = frozenset({
    "application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "options", "passfile", "password", "port",
    "service", "servicefile", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcrl", "sslkey", "sslmode",
    "sslnegotiation", "sslpassword", "sslrootcert", "target_session_attrs", "user",
})  # fmt: skip
_FILES: Final = frozenset({"sslcert", "sslcrl", "sslkey", "sslrootcert"})
_PLACEHOLDER: Final = re.compile(r"\[[A-Za-z _-]*PASSWORD[A-Za-z _-]*\]", re.IGNORECASE)
_NOT_ENCODED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

_WORD: Final = re.compile(r"[A-Za-z_]{1,40}")
_ENCODE: Final = "a character must be percent-encoded: in a password # is %23, % is %25, / is %2F, ? is %3F and @ is %40"


class UrlMistake(ValueError):
    """A mistake in a Postgres URL. The message contains no part of the URL but the name of a parameter, of a file or of
    the scheme."""


def usable(url: str) -> str:
    """Returns the URL without the parameters that change nothing here. Raises UrlMistake for a mistake that can be named.

    What is no URL at all is returned as it is: connecting reports it.
    """
    if _PLACEHOLDER.search(url):
        raise UrlMistake("the placeholder for the password is still in it")
    scheme, colon, rest = url.partition("://")
    if colon and scheme.partition("+")[0] in SCHEMES and "+" in scheme:
        raise UrlMistake(f"write postgresql://, not {scheme}://, which is another library's notation")
    if scheme not in SCHEMES or not colon:
        return url
    if _has_raw_characters(rest):
        raise UrlMistake(_ENCODE)
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return url
    kept = []
    for name, value in given:
        if name == "schema" and value != "public":
            raise UrlMistake("the parameter schema is not supported: the server's tables are in public")
        if name in _DROPPED or name == "schema":
            continue
        if name not in _KNOWN:
            raise UrlMistake(f"unknown parameter {name!r}" if _WORD.fullmatch(name) else "unknown parameter")
        if name in _FILES and not (name == "sslrootcert" and value == "system"):
            _refuse_unreadable(name, value)
        kept.append((name, value))
    return url if len(kept) == len(given) else urlunsplit(parts._replace(query=urlencode(kept)))


def _refuse_unreadable(name: str, path: str) -> None:
    """The driver's own error for a file of `name` does not say which file."""
    try:
        with open(path, "rb"):
            return
    except (OSError, ValueError) as error:
        raise UrlMistake(f"{name}: {path}: {error.strerror if isinstance(error, OSError) else 'not a path'}") from None


def _has_raw_characters(rest: str) -> bool:
    """Whether what follows `://` has a character that belongs to a password and would be taken for a separator."""
    front, _, query = rest.partition("?")
    authority = front.rpartition("/")[0] if "/" in front else front
    return (
        authority.count("@") > 1
        or "/" in authority
        or "#" in rest
        or _NOT_ENCODED.search(rest) is not None
        or ("@" not in authority and "@" in query)
    )
