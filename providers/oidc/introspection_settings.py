"""Reads and checks the member `introspection` of `[[oidc.issuers]]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .table_reader import Members
from .table_secrets import TEXT, names_of, read_secret

_MEMBERS: Final = ("client_id", *names_of("client_secret"), "cache_seconds", "prefix", "endpoint")
API_KEY_PREFIX: Final = "gp_"
"""The beginning of Gatepost's own API keys, which no issuer ever sees."""


@dataclass(frozen=True, slots=True)
class IntrospectionSettings:
    """How this server asks an issuer about opaque tokens (RFC 7662).

    client_id, client_secret   this server's own credentials at the issuer
    cache_seconds              how long the issuer's answer about a valid token is used again; 0: not at all
    prefix                     how the issuer's opaque tokens begin; "": in any way
    endpoint                   the URL, or None: by discovery
    """

    client_id: str
    client_secret: str = field(repr=False)
    cache_seconds: float
    prefix: str
    endpoint: str | None


def read(table: Members) -> IntrospectionSettings | None:
    """Returns the settings of one issuer's table, or None without the member. Raises ValueError for a mistake."""
    if "introspection" not in table.given:
        return None
    inner = Members(f"{table.where}: introspection", table.table("introspection"))
    inner.refuse_others(_MEMBERS)
    client_id = inner.text("client_id")
    if client_id is None or not TEXT.fullmatch(client_id):
        raise inner.mistake("client_id", "is missing" if client_id is None else "must consist of printable ASCII characters")
    prefix = inner.text("prefix", empty=True) or ""
    if prefix.startswith(API_KEY_PREFIX):
        raise inner.mistake("prefix", f"must not begin with {API_KEY_PREFIX}, as API keys do: no issuer is asked about them")
    seconds = inner.seconds("cache_seconds", 0.0, 3600.0)
    secret = read_secret(inner, "client_secret") or ""
    return IntrospectionSettings(client_id, secret, seconds, prefix, inner.url("endpoint", query=True))


def refuse_ambiguous(issuers: Sequence[tuple[str, IntrospectionSettings]]) -> None:
    """Raises ValueError where two issuers would be asked about the same tokens: each would see the other's."""
    owners: dict[str, str] = {}
    for issuer, settings in issuers:
        other = owners.setdefault(settings.prefix, issuer)
        if other != issuer:
            which = f"begin with {settings.prefix!r}" if settings.prefix else "are opaque"
            raise ValueError(
                f"oidc.issuers: {other!r} and {issuer!r} would both be asked about tokens that {which}; "
                "give each its own introspection.prefix"
            )
