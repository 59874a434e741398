"""Postgres URLs as providers and other drivers write them: what the driver does not know is dropped or named."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from .url_parameters import UrlMistake as UrlMistake
from .url_parameters import starts_with_parameter, usable_query

SCHEMES: Final = ("postgresql", "postgres")
_PLACEHOLDER: Final = re.compile(r"\[[A-Za-z _-]*PASSWORD[A-Za-z _-]*\]", re.IGNORECASE)
_PLACEHOLDER_ALONE: Final = re.compile(
    r"<[^>]*>|\$?\{[^}]*\}|\{\{.*\}\}|\$[A-Z_]{3,}|\*{3,}|\u2022{3,}|x{6,}|\.{3,}"
    r"|your[-_ ]?(?:db[-_ ]?)?(?:password|pass|pwd)(?:[-_ ]?here)?",
    re.IGNORECASE,
)
_NOT_ENCODED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")
_ENCODE: Final = "a character must be percent-encoded: in a password # is %23, % is %25, / is %2F, ? is %3F and @ is %40"
_BRACKET: Final = "a bracket in the password must be percent-encoded: [ is %5B and ] is %5D"
_ROOTS: Final = "name the file in the URL (sslrootcert=FILE), or trust this system's (sslmode=verify-full&sslrootcert=system)"
_NO_URL: Final = "not a Postgres URL that can be used, or one of the variables PGSSLMODE, PGPORT … is wrong"
_SYSTEM: Final = re.compile(r"(?:(?<=\?)|(?<=&))sslrootcert=system(?=&|\Z)")


def usable(url: str) -> str:
    """Returns the URL without the parameters that change nothing here. Raises UrlMistake for a mistake that can be named.

    What is no URL at all is returned as it is: connecting reports it.
    """
    if _PLACEHOLDER.search(url):
        raise UrlMistake("the placeholder for the password is still in it")
    scheme, colon, rest = url.partition("://")
    if colon and scheme.lower().partition("+")[0] in SCHEMES and "+" in scheme:
        raise UrlMistake(f"write postgresql://, not {scheme}://, which is another library's notation")
    if re.match(r"postgres(?:ql)?:(?!//)", url, re.IGNORECASE):
        raise UrlMistake("it must begin with postgresql://, with two slashes")
    if scheme.lower() not in SCHEMES or not colon:
        return url
    if "%00" in rest:
        raise UrlMistake("has a NUL character (%00) in it")
    if "/" in rest.partition("?")[0].rpartition("@")[2].partition("/")[2] and "#" not in rest:
        raise UrlMistake("the name of the database has a / in it: nothing may follow the name")
    if _has_raw_characters(rest):
        raise UrlMistake(_ENCODE)
    try:
        parts = urlsplit(url)
    except ValueError:
        bracket = any(sign in rest.rpartition("@")[0] for sign in "[]")
        raise UrlMistake(_BRACKET if bracket else "the brackets of an IPv6 address are not closed") from None
    login, _, hosts = parts.netloc.rpartition("@")
    if _PLACEHOLDER_ALONE.fullmatch(unquote(login.partition(":")[2])):
        raise UrlMistake("the placeholder for the password is still in it")
    for host in hosts.split(","):
        _check_host(host)
    query = usable_query(parts.query)
    return url if query == parts.query and url.endswith(query) else urlunsplit(parts._replace(query=query))


def complaint(url: str) -> str:
    """What is wrong with a text that the driver does not take for a Postgres URL, without any part of it but its scheme."""
    scheme, colon, _ = url.partition("://")
    if url.lower().startswith("jdbc:"):
        return "write postgresql://ROLE:PASSWORD@HOST/DATABASE, not jdbc:postgresql://, which is Java's notation"
    if url.lower().startswith("psql ") or url.lower().startswith("postgresql:"):
        return "give the URL alone: postgresql://ROLE:PASSWORD@HOST/DATABASE"
    if not colon:
        keywords = ", not libpq's keywords" if "=" in url else ""
        return f"not a Postgres URL that can be used: it must begin with postgresql://{keywords}"
    if scheme.lower() not in SCHEMES and _SCHEME.fullmatch(scheme):
        proxy = ", the address of a proxy; give the database's own" if scheme.startswith("prisma") else ""
        return f"not a Postgres URL that can be used: it must begin with postgresql://, not {scheme}://{proxy}"
    return "not a Postgres URL that can be used"


def refused_by_driver(words: str) -> ValueError:
    """The mistake behind the driver's words on a URL, which are kept only where they hold no part of it."""
    first = words.partition("\n")[0]
    return UrlMistake(f"{first}: {_ROOTS}") if first.startswith("root certificate file") else ValueError(_NO_URL)


def trusts_system_roots(url: str) -> bool:
    """Whether the server's certificate must be one that this system trusts (`sslrootcert=system`, as for libpq 16)."""
    return _SYSTEM.search(url) is not None


def _check_host(written: str) -> None:
    """Raises UrlMistake for a host, or host and port, that no connection can be made to."""
    host, colon, port = (written, "", "") if written.endswith("]") else written.rpartition(":")
    host, port = (host, port) if colon else (written, "")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise UrlMistake("an IPv6 address needs brackets: [::1]")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UrlMistake("the port must be a number from 1 to 65535")
    if re.search(r"\s", unquote(written)) and not unquote(host).startswith("/"):
        raise UrlMistake("the host has a blank in it")
    if "/" not in unquote(host) and any(len(label) > 63 for label in host.split(".")):
        raise UrlMistake("the host's name is too long")


def _has_raw_characters(rest: str) -> bool:
    """Whether what follows `://` has a character that belongs to a password and would be taken for a separator."""
    front, _, query = rest.partition("?")
    authority = front.rpartition("/")[0] if "/" in front else front
    return (
        authority.count("@") > 1
        or "/" in authority
        or "#" in rest
        or _NOT_ENCODED.search(rest) is not None
        or ("@" not in authority and "@" in query and not starts_with_parameter(query))
    )
