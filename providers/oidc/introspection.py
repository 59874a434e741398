"""Asks an issuer about opaque tokens (RFC 7662), with as few and as small calls as possible.

Concurrent requests with the same token share one call, and few calls are under way at once, whatever tokens clients make up.
An answer about a valid token is used again for `cache_seconds`, never past `exp`; one about a bad token for five seconds.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import quote_plus, urlencode

from server import Answer, CredentialRejected, House, SingleFlight, Unavailable

from ..jwt.cache import TokenCache, Verified
from ..jwt.strict_json import Malformed, read_object
from ..jwt.texts import retry_after
from . import introspection_answer
from .claims import Caller
from .discovery import Discovery
from .settings import IssuerSettings

_CALL_SECONDS: Final = 4.0
_QUEUE_SECONDS: Final = 2.0
_AT_ONCE: Final = 8
_WAITING: Final = 500
_MAX_ANSWER: Final = 65_536
_REFUSED_SECONDS: Final = 5.0
_UNDISCOVERED_SECONDS: Final = 5
# The issuer closed a kept connection at the same moment. The request changes nothing, so it may be sent again.
_CLOSED: Final = ("ServerDisconnectedError", "ClientOSError", "ConnectionResetError")


class Answered(NamedTuple):
    """The caller of a valid token, and until when the answer may be reused (Unix seconds; None: not at all)."""

    caller: Caller
    until: float | None


class _Refused(NamedTuple):
    reason: str
    detail: str


class Introspection:
    """The opaque tokens of one issuer. Nothing is shared between issuers: neither answers nor places in the queue."""

    def __init__(self, settings: IssuerSettings, house: House, discovery: Discovery, clock: Callable[[], float]) -> None:
        """`clock` returns Unix seconds."""
        given = settings.introspection
        assert given is not None
        self._settings, self._house, self._discovery, self._clock = settings, house, discovery, clock
        self._cache_seconds = given.cache_seconds
        self._authorization = _basic(given.client_id, given.client_secret)
        self._bad: TokenCache[_Refused] = TokenCache()
        self._flights: SingleFlight[bytes, Answered | _Refused | Unavailable] = SingleFlight("introspect a token")
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._calls = self._failures = 0

    def figures(self) -> dict[str, float]:
        """Returns for the metrics how often the issuer was asked, and how often without a usable answer."""
        return {"introspections_total": self._calls, "introspection_failures_total": self._failures}

    async def ask(self, digest: bytes, token: str) -> Answered:
        """Returns the caller of an opaque token, which may be bound to a key. Raises CredentialRejected, Unavailable."""
        outcome = self._bad.get(digest, 0, self._clock()) or await self._shared(digest, token)
        if isinstance(outcome, _Refused):
            raise CredentialRejected(*outcome)
        return outcome

    async def close(self) -> None:
        """Cancel the calls in progress."""
        await self._flights.close()

    async def _shared(self, digest: bytes, token: str) -> Answered | _Refused:
        """Returns the outcome of the call for this token, which concurrent requests share. Raises Unavailable."""
        if digest not in self._flights and len(self._flights) >= _WAITING:
            raise Unavailable(f"too many tokens wait to be introspected by {self._settings.issuer}")
        try:
            outcome = await self._flights.run(digest, lambda: self._fly(digest, token))
        except RuntimeError:  # cancelled by `close`; `_fly` raises nothing
            raise Unavailable("the provider is closing") from None
        if isinstance(outcome, Unavailable):
            raise Unavailable(str(outcome), retry_after=outcome.retry_after)
        return outcome

    async def _fly(self, digest: bytes, token: str) -> Answered | _Refused | Unavailable:
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            return Unavailable(f"{self._settings.issuer} is slow; too many tokens wait to be introspected")
        try:
            return await self._question(token)
        except CredentialRejected as refused:
            verdict, now = _Refused(refused.reason, refused.detail), self._clock()
            self._bad.put(digest, 0, Verified(verdict, now, now + _REFUSED_SECONDS))
            return verdict
        except Unavailable as outage:
            self._failures += 1
            return outage
        except Exception as error:  # an unexpected failure proves nothing about the token
            self._failures += 1
            return Unavailable(f"{self._settings.issuer}: introspection failed: {type(error).__name__}")
        finally:
            self._slots.release()

    async def _question(self, token: str) -> Answered:
        """Ask the issuer. Raises CredentialRejected or Unavailable."""
        asked_at = self._clock()
        answer = await self._post(token)
        _check_status(answer, self._settings.issuer)
        try:
            members = read_object(answer.body, "introspection response")
        except Malformed as error:
            raise Unavailable(f"{self._settings.issuer}: {error.detail}") from None
        caller = introspection_answer.read(members, self._settings, self._clock())
        until = min(caller.times.expires, asked_at + self._cache_seconds)
        return Answered(caller, until if until > asked_at else None)

    async def _post(self, token: str) -> Answer:
        endpoint = self._discovery.introspection_endpoint
        if endpoint is None:
            raise Unavailable(str(self._discovery.not_ready()), retry_after=_UNDISCOVERED_SECONDS)
        self._calls += 1
        for last in (False, True):
            try:
                return await self._house.fetch(
                    endpoint,
                    method="POST",
                    headers={
                        "Authorization": self._authorization,
                        "Content-Type": "application/x-www-form-urlencoded",
                        "Accept": "application/json",
                    },
                    body=urlencode({"token": token, "token_type_hint": "access_token"}).encode(),
                    max_bytes=_MAX_ANSWER,
                    timeout=_CALL_SECONDS,
                )
            except Unavailable as outage:
                if last or not str(outage).endswith(_CLOSED):
                    raise
        raise AssertionError("unreachable")


def _basic(client_id: str, secret: str) -> str:
    """The header for a client (RFC 6749 2.3.1): id and secret are encoded as in a form before they are joined."""
    return "Basic " + b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()


def _check_status(answer: Answer, issuer: str) -> None:
    """Raise unless the answer is a 200: nothing else is about the token (RFC 7662 2.2, 2.3)."""
    if answer.status == 200:
        return
    if answer.status in (401, 403):
        hint = ": are introspection.client_id and its secret right?"
    else:
        hint = ", a redirect, which is not followed" if 300 <= answer.status < 400 else ""
    raise Unavailable(
        f"{issuer}: the introspection endpoint answered {answer.status}{hint}", retry_after=retry_after(answer.headers)
    )
