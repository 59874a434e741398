"""Reads an Identity's fields from a verified payload by the operator's `claims` mapping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from server import CredentialRejected, Identity, is_plain_text, with_org_prefix

from ..jwt.actor import read_actor
from ..jwt.strict_json import freeze
from ..jwt.times import Times
from ..jwt.token_id import token_id_of
from .clients import is_clients_own
from .settings import IssuerSettings

NAME: Final = "oidc"
CLIENT: Final = "client:"
"""The beginning of the `key_id` of a client that acts for itself; the client's id in the issuer's namespace follows."""


def lookup(claims: Mapping[str, Any], name: str) -> Any:
    """Returns the value of the claim `name`, or None.

    `name` is a claim's exact name (`https://acme.example/org`) or, if there is no such claim, a path into
    objects (`realm_access.roles`). At every step the longest name that exists is taken, so a path may start with a URL.
    """
    if name in claims:
        return claims[name]
    end = name.rfind(".")
    while end > 0:
        inner = claims.get(name[:end])
        if inner is not None:
            return lookup(inner, name[end + 1 :]) if isinstance(inner, dict) else None
        end = name.rfind(".", 0, end)
    return None


def identity_of(claims: dict[str, Any], settings: IssuerSettings, times: Times, *, opaque: bool = False) -> Identity:
    """Returns the Identity in a verified payload, its ids in the issuer's namespace. Freezes `claims`.

    `opaque`: the claims are the issuer's answer about an opaque token, which is not for its bearer: the Identity has none.
    Raises CredentialRejected("token-claims") for an invalid field and for a missing user.
    """
    fields = {**_subject(claims, settings, opaque), **_organisation(claims, settings)}
    scopes, impersonator = _scopes(claims, settings), _impersonator(claims, settings)
    session, subject = claims.get("sid"), claims.get("sub")
    session_id = _own(settings, session, "sid") if is_plain_text(session) else None
    identity = Identity(
        provider=NAME,
        token_type="access_token",
        scopes=scopes,
        session_id=session_id,
        token_id=token_id_of(claims),
        claims=None if opaque else freeze(claims),
        issued_at=times.issued,
        expires_at=times.expires + settings.leeway if times.expires < math.inf else None,
        impersonator=impersonator,
        **fields,
    )
    if is_plain_text(subject) and (session_id is None or settings.claims["user_id"] != "sub"):
        # What a sign-out names is the token's `sub`, and maybe a session that this token does not name.
        identity.derived["subject"] = _own(settings, subject, "sub")
    return identity


def _subject(claims: Mapping[str, Any], settings: IssuerSettings, opaque: bool) -> dict[str, str]:
    """Returns the user, or the key id of a client that acts for itself, which is no user unless `clients` says so."""
    client = _client(claims, opaque)
    if client is not None and not settings.clients_are_users:
        key_id = CLIENT + _own(settings, client, "sub")
        if len(key_id) > 255:
            raise _odd("sub", "is too long with its namespace")
        return {"key_id": key_id}
    user_id = _text(claims, settings.claims["user_id"])
    if user_id is None and client is not None and "sub" not in claims:
        user_id = client  # an opaque token without a subject
    if user_id is None:
        raise _odd(settings.claims["user_id"], "is missing")
    return {"user_id": _own(settings, user_id, settings.claims["user_id"])}


def _client(claims: Mapping[str, Any], opaque: bool) -> str | None:
    """Returns the client whose own token this is (client credentials, RFC 6749 4.4), or None for a user's.

    The issuer's answer about an opaque token may leave out `sub` (RFC 7662 2.2).
    """
    own = is_clients_own(claims)
    if (subject := _text(claims, "sub") if own or opaque else None) is not None:
        return subject if own else None
    return (_text(claims, "client_id") or _text(claims, "azp")) if opaque else None


def _impersonator(claims: Mapping[str, Any], settings: IssuerSettings) -> str | None:
    """The subject of `act`, in the namespace of this issuer; `<iss> <sub>` for the subject of another issuer.

    So an actor of another issuer is never taken for a user of this one, and a revocation of a user ends what they do as others.
    """
    actor = read_actor(claims)
    if actor is None:
        return None
    if actor.issuer is None or actor.issuer == settings.issuer:
        return _own(settings, actor.subject, "act.sub")
    named = f"{actor.issuer} {actor.subject}"
    if len(named) > 255:
        raise _odd("act", "is too long with its issuer")
    return named


def _organisation(claims: Mapping[str, Any], settings: IssuerSettings) -> dict[str, Any]:
    """Returns the fields of the active organisation; without one, roles and permissions are left out: they mean nothing."""
    names = settings.claims
    org_id = _text(claims, names["org_id"]) if "org_id" in names else None
    if org_id is None:
        return {}
    if settings.orgs is not None and org_id not in settings.orgs:
        raise _odd(names["org_id"], "is not one of this issuer's `orgs`")
    fields: dict[str, Any] = {"org_id": _own(settings, org_id, names["org_id"])}
    readers: tuple[tuple[str, Callable[[Mapping[str, Any], str], Any]], ...] = (
        ("org_slug", _text),
        ("org_role", _role),
        ("org_permissions", _permissions),
    )
    for field, reader in readers:
        if field in names:
            fields[field] = reader(claims, names[field])
    return fields


def _own(settings: IssuerSettings, id: str, name: str) -> str:
    try:
        own = settings.own(id)
    except ValueError as error:
        raise _odd(name, str(error)) from None
    if len(own) > 255:
        raise _odd(name, "is too long with its namespace")
    return own


def _role(claims: Mapping[str, Any], name: str) -> str | None:
    role = _text(claims, name)
    return with_org_prefix(role) if role is not None else None


def _permissions(claims: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    words = _words(claims, name)
    return tuple(with_org_prefix(word) for word in words) if words is not None else None


def _scopes(claims: Mapping[str, Any], settings: IssuerSettings) -> tuple[str, ...]:
    """Returns the scopes (RFC 9068 2.2.3) from the configured claim, else `scope`, else `scp`. Without any: none, not all."""
    if "scopes" in settings.claims:
        return _words(claims, settings.claims["scopes"]) or ()
    scopes = _words(claims, "scope")
    return (scopes if scopes is not None else _words(claims, "scp")) or ()


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """Returns a string that can be stored and logged; None if it is missing, null or empty. Raises CredentialRejected."""
    value = lookup(claims, name)
    if value is None or value == "":
        return None
    if not is_plain_text(value):
        raise _odd(name, "is not 1 to 255 characters of printable text")
    return value


def _words(claims: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """Returns the words of a list of strings, or of a string in which spaces separate them (RFC 6749 3.3); None if missing."""
    value = lookup(claims, name)
    if value is None:
        return None
    words = value.split(" ") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _odd(name, "is neither a string nor a list of strings")
    return tuple(word for word in words if word)


def _odd(name: str, problem: str) -> CredentialRejected:
    return CredentialRejected("token-claims", f"{name} {problem}")
