"""Asks the provider again about the credential of a live answer: an API key, or an opaque token whose end no event reports."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final

from ..auth.identity import Identity
from ..auth.rejected import CredentialRejected
from ..auth.revocation import SUBJECT
from ..http.errors import Unavailable
from ..http.streaming import TICKET
from ..plugins.providers import LoadedProvider
from ..telemetry.log import log_failure
from .ends import DRAINING, KEY_EXPIRED, KEY_REVOKED, SESSION_REVOKED, TOKEN_EXPIRED, End
from .lease import Lease

Subjects = Collection[tuple[str, str]]
"""Revocations as (kind, subject)."""
_AT_ONCE: Final = 16
_KEYS: Final = frozenset({"api_key", "clerk_api_key"})


class Recheck:
    """Finds out whether the credential of a lease is still good."""

    def __init__(self, providers: Sequence[LoadedProvider], seconds: float) -> None:
        """`seconds` is the time limit for one answer of a provider."""
        self._providers = {one.name: one for one in providers}
        self._seconds = seconds
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def is_impossible(self, lease: Lease) -> bool:
        """Is it impossible to look the caller up again? A ticket does not contain the token that it was made with."""
        if TICKET not in lease.request:
            return False
        provider = self._provider_of(lease)
        return provider is None or provider.recheck is None

    def is_needed(self, lease: Lease) -> bool:
        """Must the provider be asked, because it does not recall the same caller? Raises Unavailable if that is unknown."""
        provider = self._provider_of(lease)
        if provider is None or (TICKET in lease.request and provider.recheck is None):
            return False
        if provider.recall is None or TICKET in lease.request:
            return True
        try:
            return provider.recall(lease.request) is not lease.identity
        except Unavailable:
            raise
        except Exception:  # a rejection, or a mistake of the provider: it is asked in full
            return True

    async def outcome(self, lease: Lease, changed: Subjects) -> End | Identity | None:
        """Returns why the lease must end, or the caller as known now; None if no provider is responsible for the caller.

        `changed` are the revocations that were read just now: they show whether a key ended together with its owner. If the
        provider is unavailable, or no longer takes the credential as its own, the lease must end: a request of this caller
        would be refused too.
        """
        provider, before = self._provider_of(lease), lease.identity
        if provider is None or before is None:
            return None
        try:
            async with self._slots, asyncio.timeout(self._seconds):
                if provider.recheck is not None:
                    now = await provider.recheck(before)
                else:
                    now = await provider.authenticate(lease.request)
        except CredentialRejected as rejected:
            return end_of(rejected.reason, before, changed)
        except (Unavailable, TimeoutError):
            return DRAINING
        except Exception as error:
            log_failure("provider failed", error, provider=provider.name)
            return DRAINING
        if now is None:
            return end_of("credential-rejected", before, changed)
        return now if _rights(now) == _rights(before) else SESSION_REVOKED

    def _provider_of(self, lease: Lease) -> LoadedProvider | None:
        return None if lease.identity is None else self._providers.get(lease.identity.provider)


def end_of(reason: str, identity: Identity, changed: Subjects) -> End:
    """Returns the end of a lease whose credential is rejected with this reason."""
    if reason == "key-expired":
        return KEY_EXPIRED
    if reason == "token-expired":
        return TOKEN_EXPIRED
    if identity.token_type not in _KEYS or not subjects_of(identity).isdisjoint(changed):
        return SESSION_REVOKED
    return KEY_REVOKED


def subjects_of(identity: Identity) -> set[tuple[str, str]]:
    """Returns the subjects whose revocation ends this caller's access, as (kind, subject)."""
    user, org = identity.user_id, identity.org_id
    subjects = {("session", identity.session_id), ("jti", identity.token_id), ("user", user), ("user", identity.impersonator)}
    subjects |= {("organization", org), ("user", identity.program)}
    if SUBJECT in identity.derived:
        subjects |= {("user", identity.derived[SUBJECT]), ("subject", identity.derived[SUBJECT])}
    if org is not None:
        subjects |= {("role", identity.org_role), ("membership", f"{user} {org}" if user is not None else None)}
    return {(kind, subject) for kind, subject in subjects if subject is not None}


def is_watched(identity: Identity | None) -> bool:
    """Must the provider be asked again? Yes for API keys and opaque tokens, whose end no event reports."""
    if identity is None or identity.token_type == "session_token":
        return False
    return identity.key_id is not None or identity.claims is None


def _rights(identity: Identity) -> tuple[Any, ...]:
    return (
        identity.token_type, identity.user_id, identity.org_id, identity.org_role, identity.org_permissions, identity.scopes,
        identity.key_id, identity.impersonator, identity.pending, identity.session_id,
    )  # fmt: skip
