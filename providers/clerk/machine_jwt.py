"""Turns the verified payload of a machine token that is a JWT (an OAuth access token, an M2M token) into an Identity.

Clerk signs these tokens with the key that signs its sessions. The header and the subject tell them apart, and only a route
that names the type accepts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from aiohttp import web

from server import CredentialRejected, Identity, accepted_types, is_plain_text

from ..jwt.actor import read_actor
from ..jwt.strict_json import freeze
from ..jwt.times import Times, read_times
from .audience import MachineAudience
from .session import check_issuer, optional_text, own_id, text
from .settings import ClerkSettings

ACCESS_TOKEN_TYPES: Final = ("at+jwt", "application/at+jwt")
"""The `typ` of an OAuth access token (RFC 9068 2.1); Clerk's libraries compare it exactly, too."""
_MACHINE: Final = "mch_"
# The categories (`cat`) of two other classes of JWT that the same key signs. Clerk's documents name none for OAuth tokens.
_TEMPLATE: Final = "cl_B7d4PD222AAA"
_M2M: Final = "cl_B7d4PD333AAA"


def token_type(header: Mapping[str, Any], claims: Mapping[str, Any]) -> str | None:
    """Returns `m2m_token` or `oauth_token`, in the order of Clerk's own libraries; None for a token that is neither."""
    subject = claims.get("sub")
    if isinstance(subject, str) and subject.startswith(_MACHINE):
        return "m2m_token"
    return "oauth_token" if header.get("typ") in ACCESS_TOKEN_TYPES else None


def check_accepted(request: web.Request, kind: str) -> None:
    """Raise CredentialRejected unless the route names the token type `kind`."""
    if kind not in accepted_types(request):
        raise CredentialRejected("token-type", f"the route does not accept {kind}")


class MachineJwt:
    """Reads the machine tokens of one Clerk instance."""

    def __init__(self, settings: ClerkSettings, audience: MachineAudience) -> None:
        self._settings, self._audience = settings, audience

    def identity(self, kind: str, header: Mapping[str, Any], claims: dict[str, Any], now: float) -> tuple[Identity, Times]:
        """Returns the caller and the times of the token; `kind` is from `token_type`, `header` and `claims` are verified.

        Raises CredentialRejected with the reason. The checks are in the order of those of a session token.
        """
        settings = self._settings
        _check_header(kind, header)
        if "cnf" in claims:  # RFC 7800 3: it is valid only with a proof of its key, which a bearer does not send
            raise _reject("token-type", "cnf binds the token to a key")
        subject, token_id = own_id(text(claims, "sub")), text(claims, "jti")
        if subject is None:
            raise _reject("token-claims", "sub is missing")
        trouble = self._audience.check(claims)
        check_issuer(claims, settings)
        times = read_times(
            claims, now, leeway=settings.leeway, longest=settings.max_lifetime, setting="clerk.max_token_seconds"
        )
        found = _machine(subject, claims) if kind == "m2m_token" else _user(subject, claims, token_id)
        actor = read_actor(claims)
        made = Identity(
            provider="clerk",
            token_type=kind,
            token_id=token_id,
            claims=freeze(claims),
            issued_at=times.issued,
            expires_at=times.expires + settings.leeway,
            impersonator=own_id(actor.subject) if actor is not None else None,
            **found,
        )
        self._audience.observe(trouble, now)
        return made, times


def _reject(reason: str, detail: str) -> CredentialRejected:
    return CredentialRejected(reason, detail)


def _check_header(kind: str, header: Mapping[str, Any]) -> None:
    """Raise CredentialRejected where `typ` or `cat` says that it is another class of token."""
    if kind == "m2m_token":
        if header.get("typ", "JWT") != "JWT":
            raise _reject("token-type", "a machine's token with the typ of an OAuth access token")
        if header.get("cat", _M2M) != _M2M:  # absent: issued before there were categories
            raise _reject("token-type", "cat is not a machine token's")
    elif "cat" in header and (not isinstance(header["cat"], str) or header["cat"] in (_TEMPLATE, _M2M)):
        raise _reject("token-type", "cat is that of another kind of token")


def _machine(subject: str, claims: Mapping[str, Any]) -> dict[str, Any]:
    """A machine is no user and in no organisation. `key_id` is its id, which all of its tokens share."""
    if "scopes" in claims:
        return {"key_id": subject, "scopes": _split("scopes", claims["scopes"])}
    audience = claims.get("aud")  # Clerk's libraries take it for the scopes; a malformed one is the audience check's to refuse
    return {"key_id": subject, "scopes": audience if _are_words(audience) else []}


def _user(subject: str, claims: Mapping[str, Any], token_id: str | None) -> dict[str, Any]:
    """The user who authorised the application, and the organisation that they chose for it."""
    client = text(claims, "client_id")
    if subject == client or subject.startswith("org_"):
        raise _reject("token-claims", "sub is not a user")
    return {
        "user_id": subject,
        "org_id": own_id(optional_text(claims, "org_id")),
        "key_id": token_id,
        "scopes": _granted(claims),
    }


def _granted(claims: Mapping[str, Any]) -> list[str]:
    """The scopes: the list `scp`, or the text `scope` (RFC 9068 2.2.3). With both, only those that both contain."""
    if "scp" not in claims:
        return _split("scope", claims["scope"]) if "scope" in claims else []
    listed = _words("scp", claims["scp"])
    if "scope" not in claims:
        return listed
    also = frozenset(_split("scope", claims["scope"]))
    return [scope for scope in listed if scope in also]


def _split(name: str, value: object) -> list[str]:
    if not isinstance(value, str):
        raise _reject("token-claims", f"{name} is not a string")
    return _words(name, [word for word in value.split(" ") if word])


def _words(name: str, value: object) -> list[str]:
    if not _are_words(value):
        raise _reject("token-claims", f"{name} is not a list of words")
    return value


def _are_words(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(is_plain_text(word) and " " not in word for word in value)
