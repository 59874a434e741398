"""What Clerk's Backend API says of a machine token, read strictly: an Identity, or the reason why not.

A 200 alone proves nothing: Clerk may say in it that the token is revoked, expired, or something else altogether.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from server import CredentialRejected, Identity, is_plain_text

from ..jwt.actor import read_actor
from ..jwt.strict_json import freeze, read_object

# Clerk's documents say milliseconds, its types for OAuth tokens say seconds. No token expires in 1973 or in 5138.
_MILLISECONDS_FROM: Final = 1e11
_LATEST: Final = 1e15


class Kind(NamedTuple):
    """One kind of opaque token: how it starts, where it is verified, and what the answer must be."""

    prefix: str
    token_type: str
    path: str
    member: str
    """The only member of the request's body."""
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


def read(kind: Kind, body: bytes, now: float) -> tuple[Identity, float | None]:
    """Who the token speaks for, and until when (Unix seconds; None: no end). `now` is in Unix seconds.

    Raises CredentialRejected for any answer but a good token's, Malformed for what is not a JSON object at all.
    """
    said = read_object(body, "answer")
    if said.get("active", True) is not True:
        raise _odd("Clerk says that it is not active")
    if said.get("object") != kind.object:
        raise _odd("the answer is about another kind of object")
    key_id, subject = _text(said, "id"), _text(said, "subject")
    if not key_id.startswith(kind.prefix):
        raise _odd("the answer's id is not of this kind")
    if not subject.startswith(kind.subjects):
        raise _odd("the answer's subject is not of a kind that is expected")
    expires = _moment(said, "expiration")
    _check_alive(said, expires, now)
    actor = read_actor(said) if said.get("act") is not None else None  # an answer states what it does not have as null
    identity = Identity(
        provider="clerk",
        token_type=kind.token_type,
        user_id=subject if subject.startswith("user_") else None,
        org_id=subject if subject.startswith("org_") else None,
        scopes=_scopes(said),
        claims=_claims(said),
        issued_at=_moment(said, "created_at"),
        key_id=key_id,
        impersonator=actor.subject if actor is not None else None,
    )
    return identity, expires


def _check_alive(said: Mapping[str, Any], expires: float | None, now: float) -> None:
    for name in ("revoked", "expired"):
        if not isinstance(said.get(name), bool):
            raise _odd(f"{name} is missing or neither true nor false")
    if said["revoked"]:
        raise CredentialRejected("key-revoked", "Clerk says that it is revoked")
    if said["expired"] or (expires is not None and expires <= now):
        raise CredentialRejected("key-expired", "Clerk says that it is expired")


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not is_plain_text(value) or " " in value:
        raise _odd(f"{name} is missing or not a plain text")
    return value


def _moment(said: Mapping[str, Any], name: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= _LATEST:
        raise _odd(f"{name} is not a time")
    return value / 1000 if value >= _MILLISECONDS_FROM else float(value)


def _scopes(said: Mapping[str, Any]) -> list[str]:
    scopes = said.get("scopes")
    if scopes is None:
        return []
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise _odd("scopes is not a list of texts")
    return scopes


def _claims(said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    claims = said.get("claims")
    if claims is not None and not isinstance(claims, dict):
        raise _odd("claims is not an object")
    return freeze(claims) if claims is not None else None


def _odd(detail: str) -> CredentialRejected:
    return CredentialRejected("credential-rejected", detail)
