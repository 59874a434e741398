"""The identity of a caller: made by a provider, read by everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from aiohttp import web

from ..http.errors import Unauthorized
from .billing import Subscription
from .names import is_plain_text, names_something, with_org_prefix
from .reverification import Reverification, is_fresh

ADMIN: Final = "org:admin"
"""The role of an organisation's administrator."""
TOKEN_TYPES: Final = frozenset({"session_token", "access_token", "api_key", "clerk_api_key", "m2m_token", "oauth_token"})
CLIENT: Final = "client:"
"""The beginning of the `key_id` of an issuer's client that acts for itself; its id follows."""
_NO_CLAIMS: Mapping[str, Any] = MappingProxyType({})


class Identity:
    """A known caller. Immutable; every argument but `provider` may be left out.

    provider         the name of the provider that authenticated the caller
    token_type       the kind of credential: session_token, access_token, api_key, clerk_api_key, m2m_token or oauth_token
    user_id          the user, 1 to 255 printable characters; None for an organisation's own key
    org_id           the *active* organisation, 1 to 255 printable characters, or None
    org_role         the caller's role in it, such as `org:admin`, or None
    org_permissions  the caller's permissions in it, such as `org:invoices:read`, or None
    org_slug, session_id   the active organisation's slug and the session's id, or None
    scopes           the scopes of the credential; None where its kind has no scopes
    claims           the token's payload; None for opaque credentials
    issued_at        when the credential was issued, Unix seconds; None where unknown: then every revocation applies to it
    expires_at       when the credential ends, Unix seconds, with its provider's leeway; None if it has no known end.
                     A live answer (`event_stream`, `socket`) ends then
    key_id           the id of an API key (never the secret), or `client:` and the id of a program that acts for itself, 1 to
                     255 printable characters; or None
    token_id         the id of the token (its claim `jti`), by which it can be revoked, or None
    impersonator     who really acts, where that is not the user: the subject of the token's `act` claim (RFC 8693 4.1, Clerk's
                     impersonation), 1 to 255 printable characters. None: the user acts
    pending          set by the server: is it a session with unfinished tasks (Clerk's `sts` claim)?
    derived          a dictionary for values computed from this identity alone, cached with it for later requests

    Raises ValueError for an unknown token type, and for ids, permissions or scopes of another form.
    """

    __slots__ = (
        "claims", "derived", "expires_at", "impersonator", "issued_at", "key_id", "org_id", "org_permissions", "org_role",
        "org_slug", "pending", "provider", "scopes", "session_id", "token_id", "token_type", "user_id",
    )  # fmt: skip

    provider: str
    token_type: str
    user_id: str | None
    org_id: str | None
    org_slug: str | None
    org_role: str | None
    org_permissions: tuple[str, ...] | None
    session_id: str | None
    scopes: tuple[str, ...] | None
    claims: Mapping[str, Any] | None
    issued_at: float | None
    expires_at: float | None
    key_id: str | None
    token_id: str | None
    impersonator: str | None
    pending: bool
    derived: dict[str, Any]

    def __init__(
        self,
        *,
        provider: str,
        token_type: str = "access_token",
        user_id: str | None = None,
        org_id: str | None = None,
        org_slug: str | None = None,
        org_role: str | None = None,
        org_permissions: Iterable[str] | None = None,
        session_id: str | None = None,
        scopes: Iterable[str] | None = None,
        claims: Mapping[str, Any] | None = None,
        issued_at: float | None = None,
        expires_at: float | None = None,
        key_id: str | None = None,
        token_id: str | None = None,
        impersonator: str | None = None,
    ) -> None:
        if token_type not in TOKEN_TYPES:
            raise ValueError(f"token_type must be one of {', '.join(sorted(TOKEN_TYPES))}, not {token_type!r}")
        for name, value in (("user_id", user_id), ("org_id", org_id), ("key_id", key_id), ("impersonator", impersonator)):
            if value is not None and not is_plain_text(value):
                raise ValueError(f"{name} must be 1 to 255 characters of printable text, or None")
        if expires_at is not None and not -math.inf < expires_at < math.inf:
            raise ValueError("expires_at must be Unix seconds, or None")
        put = object.__setattr__
        put(self, "provider", provider)
        put(self, "token_type", token_type)
        put(self, "user_id", user_id)
        put(self, "org_id", org_id)
        put(self, "org_slug", org_slug)
        put(self, "org_role", org_role)
        put(self, "org_permissions", _words(org_permissions, "org_permissions"))
        put(self, "session_id", session_id)
        put(self, "scopes", _words(scopes, "scopes"))
        put(self, "claims", claims)
        put(self, "issued_at", issued_at)
        put(self, "expires_at", expires_at)
        put(self, "key_id", key_id)
        put(self, "token_id", token_id)
        put(self, "impersonator", impersonator)
        # Clerk's `sts` claim; an unknown value counts as pending, so that a new state of Clerk's does not grant access.
        put(self, "pending", token_type == "session_token" and claims is not None and claims.get("sts", "active") != "active")
        put(self, "derived", {})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an Identity is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("an Identity is immutable")

    def __repr__(self) -> str:
        """The caller, without credential and claims."""
        return (
            f"Identity(provider={self.provider!r}, token_type={self.token_type!r}, "
            f"user_id={self.user_id!r}, org_id={self.org_id!r})"
        )

    @property
    def actor(self) -> str:
        """The value of `created_by`: the user id, or `key:<id>` for a key without a user."""
        return self.user_id if self.user_id is not None else f"key:{self.key_id}"

    @property
    def audited_as(self) -> str:
        """The actor in the audit log: `key:<id>` for every key, a user's too; else the user id; else provider and type."""
        return f"key:{self.key_id}" if self.key_id is not None else self.user_id or f"{self.provider}:{self.token_type}"

    @property
    def program(self) -> str | None:
        """The id of a program that acts for itself: a machine of Clerk, or a client of an issuer; None for other callers."""
        is_program = self.user_id is None and self.key_id is not None and self.token_type in ("m2m_token", "access_token")
        return self.key_id.removeprefix(CLIENT) if is_program and self.key_id else None

    def has(
        self,
        *,
        role: str | None = None,
        permission: str | None = None,
        feature: str | None = None,
        plan: str | None = None,
        reverification: Reverification | None = None,
    ) -> bool:
        """Does this caller have *all* of the arguments? False without any argument, and for missing or malformed claims.

        The rules are those of Clerk's `has()`. Names compare with any number of leading `org:` collapsed to one; role and
        permission need an active organisation. Plan, feature and reverification hold for session tokens only: a machine's
        claims are free text of its owner and prove none of them.
        """
        if role is None and permission is None and feature is None and plan is None and reverification is None:
            return False
        if self.user_id is None and self.token_type == "session_token":
            return False
        return (
            (role is None or self._has_role(role))
            and (permission is None or self._has_permission(permission))
            and (feature is None or self._session_claim("fea").has(feature))
            and (plan is None or self._session_claim("pla").has(plan))
            and (reverification is None or self._verified_lately(reverification))
        )

    def _has_role(self, role: str) -> bool:
        if self.org_id is None or not isinstance(self.org_role, str) or not names_something(role):
            return False
        return with_org_prefix(role) == with_org_prefix(self.org_role)

    def _has_permission(self, permission: str) -> bool:
        return (
            self.org_id is not None
            and names_something(permission)
            and with_org_prefix(permission) in (self.org_permissions or ())
        )

    def _session_claim(self, name: str) -> Subscription:
        claims = self.claims if self.claims is not None and self.token_type == "session_token" else _NO_CLAIMS
        return Subscription.parse(claims.get(name))

    def _verified_lately(self, asked: Reverification) -> bool:
        return self.token_type == "session_token" and self.claims is not None and is_fresh(self.claims.get("fva"), asked)


def _words(values: Iterable[str] | None, field: str) -> tuple[str, ...] | None:
    words = None if values is None else (values,) if isinstance(values, str) else tuple(values)
    if isinstance(values, str) or not all(isinstance(word, str) for word in words or ()):
        raise ValueError(f"{field} must be a list of words")
    return words


IDENTITY: Final = web.RequestKey("identity", Identity)


def identity_of(request: web.Request) -> Identity:
    """The caller of this request. Raises Unauthorized (401) where there is none, as on a public route."""
    identity: Identity | None = request.get(IDENTITY)
    if identity is None:
        raise Unauthorized("credential-missing")
    return identity


def caller_of(request: web.Request) -> Identity | None:
    """The caller of this request, or None where there is none: for routes that are `@public(optional=True)`.

    On a locked route it is the caller, as `identity_of` returns; on a route that is `@public` alone it is always None.
    """
    return request.get(IDENTITY)
