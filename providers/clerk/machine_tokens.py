"""Clerk's opaque machine tokens (`ak_`, `mt_`, `oat_`): verified at the Backend API, as seldom as can be.

Each verification is billed and counts against a rate limit. So a token is asked about only where the route takes its
kind, by one call for all who show it at the same time, and the answer is kept for a while: a good one for
`clerk.machine_cache_seconds` and never past its expiration, a bad one for five seconds.
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
from .machine_answer import KINDS, Kind
from .settings import ClerkSettings

API_VERSION: Final = "2026-05-12"
_PREFIXES: Final = tuple(kind.prefix for kind in KINDS)
_SHAPE: Final = re.compile(r"[\x21-\x7e]{1,512}")
_REFUSED_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 4.5
# The house's client has 16 connections for all that a provider asks; the key set must always find a free one.
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

    def __init__(self, settings: ClerkSettings, house: House, clock: Callable[[], float]) -> None:
        """`clock` gives Unix seconds."""
        self._settings = settings
        self._house = house
        self._clock = clock
        self._good: TokenCache[Identity] = TokenCache()
        self._bad: TokenCache[_Refused] = TokenCache()
        self._flights: SingleFlight[bytes, Identity | _Refused | Unavailable] = SingleFlight("verify a machine token")
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def kind_of(self, token: str) -> Kind | None:
        """The token's kind by its prefix (case counts); None where it has none, or no key is set to ask Clerk with."""
        if not token.startswith(_PREFIXES):
            return None
        kind = next((kind for kind in KINDS if token.startswith(kind.prefix)), None)
        return kind if kind is not None and self._key(kind) is not None else None

    async def identify(self, token: str, kind: Kind, accepted: frozenset[str]) -> Identity:
        """Who the token speaks for. `accepted` are the token types of the route.

        Raises CredentialRejected, or Unavailable when Clerk cannot be asked.
        """
        if kind.token_type not in accepted:
            raise CredentialRejected("credential-rejected", f"the route takes no {kind.token_type}; Clerk was not asked")
        if not _SHAPE.fullmatch(token):
            raise CredentialRejected("credential-rejected", "not shaped like a token; Clerk was not asked")
        digest, now = digest_of(token), self._clock()
        outcome = self._good.get(digest, 0, now) or self._bad.get(digest, 0, now) or await self._shared(digest, token, kind)
        if isinstance(outcome, _Refused):
            raise CredentialRejected(*outcome)
        return outcome

    async def close(self) -> None:
        """Drop the calls that are under way."""
        await self._flights.close()

    def _key(self, kind: Kind) -> str | None:
        settings = self._settings
        if kind.token_type == "m2m_token" and settings.machine_secret_key is not None:
            return settings.machine_secret_key
        return settings.secret_key

    async def _shared(self, digest: bytes, token: str, kind: Kind) -> Identity | _Refused:
        """The outcome of the one call about this token, which all its callers share."""
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
        except Exception as error:  # whatever went wrong, it is no verdict on the token
            return Unavailable(f"{kind.token_type}: {type(error).__name__}")
        finally:
            self._slots.release()

    async def _ask(self, digest: bytes, token: str, kind: Kind) -> Identity:
        """Ask Clerk once. Raises CredentialRejected or Unavailable."""
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
            identity, expires = machine_answer.read(kind, answer.body, self._clock())
        except Malformed as error:
            raise Unavailable(f"Clerk's answer cannot be read: {error.detail}") from None
        until = asked_at + self._settings.machine_cache
        self._good.put(digest, 0, Verified(identity, asked_at, until if expires is None else min(until, expires)))
        return identity


def _check_status(answer: Answer) -> None:
    if answer.status == 200:
        return
    if answer.status in (400, 404):
        raise CredentialRejected("credential-rejected", f"Clerk knows no such token ({answer.status})")
    if answer.status in (401, 403):
        raise Unavailable(f"Clerk answered {answer.status}: is CLERK_SECRET_KEY (CLERK_MACHINE_SECRET_KEY) right?")
    raise Unavailable(f"Clerk answered {answer.status}", retry_after=_retry_after(answer))


def _retry_after(answer: Answer) -> int:
    """Seconds, as Clerk says them with a 429; one second where it says none that can be read."""
    said = next((value for name, value in answer.headers.items() if name.lower() == "retry-after"), "")
    return min(max(int(said), 1), _MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", said) else 1
