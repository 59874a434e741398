"""Verifies Clerk's opaque machine tokens (`ak_`, `mt_`, `oat_`) at the Backend API, with as few calls as possible.

Each verification is billed and counts against a rate limit. So a token is verified only where the route accepts its kind,
and concurrent requests with the same token share one call. The result is cached: for a valid token for
`clerk.machine_cache_seconds`, at most until it expires; for a rejected one for five seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from server import Answer, CredentialRejected, House, Identity, SingleFlight, Unavailable

from ..jwt.bearer import digest_of
from ..jwt.cache import TokenCache, Verified
from ..jwt.strict_json import Malformed
from . import machine_answer
from .audience import MachineAudience
from .key_fetch import API_VERSION
from .machine_answer import KINDS, Kind
from .settings import ClerkSettings

_PREFIXES: Final = tuple(kind.prefix for kind in KINDS)
_SHAPE: Final = re.compile(r"[\x21-\x7e]{1,512}")
_REFUSED_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 4.5
# The House's HTTP client has 64 connections for all calls of providers; some must always be free for the key sets.
_AT_ONCE: Final = 12
_WAITING: Final = 500
_QUEUE_SECONDS: Final = 2.0
_MAX_ANSWER: Final = 65_536
_MAX_RETRY_AFTER: Final = 3600


class _Refused(NamedTuple):
    reason: str
    detail: str


class MachineTokens:
    """The verified machine tokens of one Clerk instance."""

    def __init__(
        self, settings: ClerkSettings, house: House, clock: Callable[[], float], audience: MachineAudience | None = None
    ) -> None:
        """`clock` returns Unix seconds. `audience` is the check of OAuth tokens; by default that of the settings."""
        self._audience = audience or MachineAudience(settings)
        self._settings = settings
        self._house = house
        self._clock = clock
        self._good: TokenCache[Identity] = TokenCache()
        self._bad: TokenCache[_Refused] = TokenCache()
        self._flights: SingleFlight[bytes, Identity | _Refused | Unavailable] = SingleFlight("verify a machine token")
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def kind_of(self, token: str) -> Kind | None:
        """Returns the token's kind by its prefix (case counts); None for another prefix, or without a secret key of Clerk."""
        if not token.startswith(_PREFIXES):
            return None
        kind = next((kind for kind in KINDS if token.startswith(kind.prefix)), None)
        return kind if kind is not None and self._key(kind) is not None else None

    async def identify(self, token: str, kind: Kind, accepted: frozenset[str]) -> Identity:
        """Returns the caller. `accepted` are the token types that the route accepts.

        Raises CredentialRejected, or Unavailable if Clerk cannot be reached.
        """
        if kind.token_type not in accepted:
            raise CredentialRejected("credential-rejected", f"the route does not accept {kind.token_type}; Clerk was not asked")
        if not _SHAPE.fullmatch(token):
            raise CredentialRejected("credential-rejected", "not shaped like a token; Clerk was not asked")
        digest, now = digest_of(token), self._clock()
        outcome = self._good.get(digest, 0, now) or self._bad.get(digest, 0, now) or await self._shared(digest, token, kind)
        if isinstance(outcome, _Refused):
            raise CredentialRejected(*outcome)
        return outcome

    async def close(self) -> None:
        """Cancel the calls in progress."""
        await self._flights.close()

    def _key(self, kind: Kind) -> str | None:
        settings = self._settings
        if kind.token_type == "m2m_token" and settings.machine_secret_key is not None:
            return settings.machine_secret_key
        return settings.secret_key

    async def _shared(self, digest: bytes, token: str, kind: Kind) -> Identity | _Refused:
        """Returns the outcome of the call for this token, which concurrent requests share. Raises Unavailable."""
        if digest not in self._flights and len(self._flights) >= _WAITING:
            raise Unavailable("too many machine tokens wait to be verified")
        try:
            outcome = await self._flights.run(digest, lambda: self._fly(digest, token, kind))
        except RuntimeError:  # cancelled by `close`; `_fly` raises nothing
            raise Unavailable("the provider is closing") from None
        if isinstance(outcome, Unavailable):
            raise Unavailable(str(outcome), retry_after=outcome.retry_after)
        return outcome

    async def _fly(self, digest: bytes, token: str, kind: Kind) -> Identity | _Refused | Unavailable:
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            return Unavailable("Clerk's Backend API is slow; too many machine tokens wait to be verified")
        try:
            return await self._ask(digest, token, kind)
        except CredentialRejected as refused:
            verdict, now = _Refused(refused.reason, refused.detail), self._clock()
            self._bad.put(digest, 0, Verified(verdict, now, now + _REFUSED_SECONDS))
            return verdict
        except Unavailable as outage:
            return outage
        except Exception as error:  # an unexpected failure says nothing about the token
            return Unavailable(f"{kind.token_type}: {type(error).__name__}")
        finally:
            self._slots.release()

    async def _ask(self, digest: bytes, token: str, kind: Kind) -> Identity:
        """Call Clerk once, and cache a valid token. Raises CredentialRejected or Unavailable."""
        asked_at = self._clock()
        answer = await self._house.fetch(
            self._settings.api_url + kind.path,
            method="POST",
            headers={
                "Authorization": f"Bearer {self._key(kind)}",
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Clerk-API-Version": API_VERSION,
            },
            body=json.dumps({kind.member: token}).encode(),
            max_bytes=_MAX_ANSWER,
            timeout=_CALL_SECONDS,
        )
        _check_status(answer)
        try:
            identity, expires = machine_answer.read(kind, answer.body, self._clock(), self._audience)
        except Malformed as error:
            raise Unavailable(f"Clerk's response is malformed: {error.detail}") from None
        until = asked_at + self._settings.machine_cache
        self._good.put(digest, 0, Verified(identity, asked_at, until if expires is None else min(until, expires)))
        return identity


def _check_status(answer: Answer) -> None:
    if answer.status == 200:
        return
    if answer.status in (400, 404):
        raise CredentialRejected("credential-rejected", f"Clerk knows no such token ({answer.status})")
    if answer.status in (401, 403):
        raise Unavailable(f"Clerk answered {answer.status}: check CLERK_SECRET_KEY or CLERK_MACHINE_SECRET_KEY")
    raise Unavailable(f"Clerk answered {answer.status}", retry_after=_retry_after(answer))


def _retry_after(answer: Answer) -> int:
    """Returns the seconds of the header Retry-After, 1 to 3600; 1 if it is missing or malformed."""
    value = next((text for name, text in answer.headers.items() if name.lower() == "retry-after"), "")
    return min(max(int(value), 1), _MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", value) else 1
