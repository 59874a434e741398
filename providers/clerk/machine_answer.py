"""Reads the Backend API's response about a machine token strictly: it becomes an Identity, or a rejection with its reason.

A status of 200 alone proves nothing: the body may state that the token is revoked or expired, or be about something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server import CredentialRejected, Identity, is_plain_text

from ..jwt.actor import read_actor
from ..jwt.strict_json import freeze, read_object
from .audience import MachineAudience
from .session import own_id

# Clerk's documents say milliseconds, its types for OAuth tokens say seconds. No token expires in 1973 or in 5138.
_MILLISECONDS_FROM: Final = 1e11
_LATEST: Final = 1e15


class Kind(NamedTuple):
    """One kind of opaque token: its prefix, where it is verified, and the object type and subjects of a valid response."""

    prefix: str
    token_type: str
    path: str
    member: str
    """The only member of the request's body; its value is the token."""
    object: str
    subjects: tuple[str, ...]


KINDS: Final = (
    Kind("mt_", "m2m_token", "/m2m_tokens/verify", "token", "machine_to_machine_token", ("mch_",)),
    Kind(
        "oat_",
        "oauth_token",
        "/oauth_applications/access_tokens/verify",
        "access_token",
        "clerk_idp_oauth_access_token",
        ("user_",),
    ),
    Kind("ak_", "clerk_api_key", "/api_keys/verify", "secret", "api_key", ("user_", "org_", "mch_")),
)


def read(kind: Kind, body: bytes, now: float, audience: MachineAudience) -> tuple[Identity, float | None]:
    """Returns the caller, and when the token expires (Unix seconds; None: never). `now` is in Unix seconds.

    Only the response about an OAuth token can name an audience.

    Raises CredentialRejected unless the response is that for a valid token, Malformed if it is not a JSON object.
    """
    members = read_object(body, "response")
    if members.get("active", True) is not True:
        raise _odd("Clerk says that it is not active")
    if members.get("object") != kind.object:
        raise _odd("the response is about another kind of object")
    key_id, subject = _text(members, "id"), _text(members, "subject")
    own_id(subject)
    if not key_id.startswith(kind.prefix):
        raise _odd("the response's id is not of this kind")
    if not subject.startswith(kind.subjects):
        raise _odd("the response's subject is not of an expected kind")
    expires = _moment(members, "expiration")
    _check_alive(members, expires, now)
    trouble = None
    if kind.token_type == "oauth_token":
        trouble = audience.check(members if members.get("aud") is not None else {})
    actor = read_actor(members) if members.get("act") is not None else None  # null: the token has none
    identity = Identity(
        provider="clerk",
        token_type=kind.token_type,
        user_id=subject if subject.startswith("user_") else None,
        org_id=subject if subject.startswith("org_") else None,
        scopes=_scopes(members),
        claims=_claims(members),
        issued_at=_moment(members, "created_at"),
        expires_at=expires,
        key_id=key_id,
        token_id=key_id,
        impersonator=own_id(actor.subject) if actor is not None else None,
    )
    audience.observe(trouble, now)
    return identity, expires


def _check_alive(members: Mapping[str, Any], expires: float | None, now: float) -> None:
    for name in ("revoked", "expired"):
        if not isinstance(members.get(name), bool):
            raise _odd(f"{name} is missing or neither true nor false")
    if members["revoked"]:
        raise CredentialRejected("key-revoked", "Clerk says that it is revoked")
    if members["expired"] or (expires is not None and expires <= now):
        raise CredentialRejected("key-expired", "Clerk says that it is expired")


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not is_plain_text(value) or " " in value:
        raise _odd(f"{name} is missing or not a plain text")
    return value


def _moment(members: Mapping[str, Any], name: str) -> float | None:
    value = members.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= _LATEST:
        raise _odd(f"{name} is not a time")
    return value / 1000 if value >= _MILLISECONDS_FROM else float(value)


def _scopes(members: Mapping[str, Any]) -> list[str]:
    scopes = members.get("scopes")
    if scopes is None:
        return []
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise _odd("scopes is not a list of strings")
    return scopes


def _claims(members: Mapping[str, Any]) -> Mapping[str, Any] | None:
    claims = members.get("claims")
    if claims is not None and not isinstance(claims, dict):
        raise _odd("claims is not an object")
    return freeze(claims) if claims is not None else None


def _odd(detail: str) -> CredentialRejected:
    return CredentialRejected("credential-rejected", detail)
