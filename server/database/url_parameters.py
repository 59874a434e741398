"""The parameters of a Postgres URL: what libpq, providers and other clients put there, and what becomes of it here."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote, unquote_plus, urlencode

from ..messages import nearest_name


class UrlMistake(ValueError):
    """A mistake in a Postgres URL. The message contains no part of the URL but the name of a parameter, of a file or of
    the scheme."""


# What libpq and other clients know and this server does not need: it has its own limits, and asyncpg binds no channel.
_DROPPED: Final = frozenset({
    "channel_binding", "connect_timeout", "connection_limit", "fallback_application_name", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "max_connection_lifetime", "max_idle_connection_lifetime", "max_protocol_version",
    "min_protocol_version", "pgbouncer", "pool_timeout", "single_use_connections", "socket_timeout", "sslaccept",
    "sslcompression", "sslsni", "statement_cache_size", "supa", "tcp_user_timeout", "uselibpqcompat", "workaround",
})  # fmt: skip
# Dropped where they ask for what happens here in any case; any other value is refused, because it would not be obeyed.
_DROPPED_VALUES: Final = {
    "client_encoding": ("utf8", "utf-8", "auto"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
    "schema": ("public",),
    "sslcertmode": ("allow", "prefer"),
}
_KNOWN: Final = frozenset({
    "application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "options", "passfile", "password", "port",
    "service", "servicefile", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcrl", "sslkey", "sslmode",
    "sslnegotiation", "sslpassword", "sslrootcert", "target_session_attrs", "user",
})  # fmt: skip
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
}
_ENCRYPTED: Final = ("require", "verify-ca", "verify-full")
_FILES: Final = frozenset({"passfile", "servicefile", "sslcert", "sslcrl", "sslkey", "sslrootcert"})
# Other clients' words, and what they are called in a URL for libpq.
_MEANT: Final = {
    "ssl": "write sslmode=require",
    "tls": "write sslmode=require",
    "requiressl": "write sslmode=require",
    "currentschema": "the server's tables are in public",
    "search_path": "the server's tables are in public",
    "username": "write user",
}
_WORD: Final = re.compile(r"[A-Za-z_]{1,40}")


def starts_with_parameter(query: str) -> bool:
    """Whether this text begins with the name of a parameter, so that it is no end of a password."""
    name = unquote(query.partition("=")[0])
    return name in _KNOWN or name in _DROPPED or name in _DROPPED_VALUES


def usable_query(query: str) -> str:
    """Returns the query of a URL without what changes nothing here, as the driver reads it. Raises UrlMistake."""
    given = [_parameter(piece) for piece in query.split("&") if piece]
    kept = [(name, value) for name, value in given if not _is_dropped(name, value)]
    mode = dict(kept).get("sslmode")
    _check_roots(dict(kept), mode)
    if mode not in _ENCRYPTED:
        kept = [(name, _for_postgres(value) if name == "options" else value) for name, value in kept]
    kept = [(name, value) for name, value in kept if (name, value) != ("options", "")]
    if kept == given and "+" not in query and "&&" not in query and query.strip("&") == query:
        return query
    return urlencode(kept, quote_via=quote)


def _parameter(piece: str) -> tuple[str, str]:
    name, equals, text = piece.partition("=")
    name = unquote(name)
    if not equals:
        raise UrlMistake(f"the parameter {name!r} has no value" if _WORD.fullmatch(name) else "a parameter has no value")
    # As for libpq, + is a sign of its own; but some clients write the blanks in options so.
    return name, unquote_plus(text) if name == "options" else unquote(text)


def _is_dropped(name: str, value: str) -> bool:
    """Whether the parameter changes nothing here. Raises UrlMistake where it is unknown, or would not be obeyed."""
    if name in _DROPPED:
        return True
    if name in _DROPPED_VALUES:
        if value.lower() not in _DROPPED_VALUES[name]:
            raise UrlMistake(
                f"the parameter {name} is not supported" + (f": {_MEANT['search_path']}" if name == "schema" else "")
            )
        return True
    if name not in _KNOWN:
        raise UrlMistake(_unknown(name))
    if name in _CHOICES and value not in _CHOICES[name]:
        raise UrlMistake(f"{name} must be one of {', '.join(_CHOICES[name])}")
    if name in _FILES and not (name == "sslrootcert" and value == "system"):
        _refuse_unreadable(name, value)
    return False


def _unknown(name: str) -> str:
    if not _WORD.fullmatch(name):
        return "unknown parameter"
    if name.lower() in _MEANT:
        return f"unknown parameter {name!r}: {_MEANT[name.lower()]}"
    near = nearest_name(name, sorted(_KNOWN | _DROPPED), cutoff=0.75)  # among so many names a looser one would mislead
    return f"unknown parameter {name!r}" + (f"; the nearest known one is {near!r}" if near else "")


def _check_roots(kept: dict[str, str], mode: str | None) -> None:
    """What libpq refuses before it connects. Raises UrlMistake."""
    if kept.get("sslrootcert") == "system" and mode not in (None, "verify-full"):
        raise UrlMistake("sslrootcert=system needs sslmode=verify-full")
    if kept.get("sslnegotiation") == "direct" and mode not in _ENCRYPTED:
        raise UrlMistake("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")


def _for_postgres(options: str) -> str:
    """`options` without the words for a provider's proxy (`endpoint=…`), which Postgres refuses: proxies demand TLS."""
    words = options.split(" ")
    return " ".join(word for at, word in enumerate(words) if word.startswith("-") or (at > 0 and words[at - 1] in ("-c", "-B")))


def _refuse_unreadable(name: str, path: str) -> None:
    """The driver's own error for a file of `name` does not say which file."""
    try:
        with open(path, "rb"):
            return
    except (OSError, ValueError) as error:
        raise UrlMistake(f"{name}: {path}: {error.strerror if isinstance(error, OSError) else 'not a path'}") from None
