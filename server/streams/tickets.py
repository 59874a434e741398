"""Tickets: each opens one live answer once, as the caller who asked for it, for browsers that cannot send a header."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from ..auth.caller import caller_key
from ..auth.identity import Identity
from ..auth.revocation import SUBJECT
from ..http.errors import TooManyRequests, Unauthorized

SECONDS: Final = 30
PER_CALLER: Final = 100
"""The most unused tickets of one caller; beyond it the answer is a 429."""
_AT_ONCE: Final = 4
"""The most look-ups in progress: clients that only guess must not take the connections of known callers."""
_FORM: Final = re.compile(r"st_[A-Za-z0-9_-]{43}\Z")
_FIELDS: Final = (
    "provider", "token_type", "user_id", "org_id", "org_slug", "org_role", "org_permissions", "session_id", "scopes", "claims",
    "issued_at", "expires_at", "key_id", "token_id", "impersonator",
)  # fmt: skip


class Tickets:
    """The tickets of all processes, in Postgres."""

    def __init__(self, call: Callable[..., Awaitable[list[Mapping[str, Any]]]]) -> None:
        """`call(function, *args)` runs a listed database function: `Database.call`."""
        self._call = call
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def issue(self, identity: Identity, path: str) -> tuple[str, int]:
        """Returns (a new ticket for this path, for how many seconds it is valid).

        A ticket is not valid for longer than the credential that it represents. Raises TooManyRequests,
        Unauthorized if the credential has just expired, and Unavailable.
        """
        left = SECONDS if identity.expires_at is None else min(SECONDS, int(identity.expires_at - time.time()))
        if left < 1:
            raise Unauthorized("token-expired")
        ticket = f"st_{secrets.token_urlsafe(32)}"
        arguments = _digest(ticket), caller_key(identity), path, to_text(identity), left, PER_CALLER
        ((kept, *_),) = [tuple(row.values()) for row in await self._call("keep_stream_ticket", *arguments)]
        if not kept:
            raise TooManyRequests("tickets", headers={"Retry-After": str(SECONDS)})
        return ticket, left

    async def redeem(self, ticket: str | None, path: str) -> Identity | None:
        """Returns the caller of a valid ticket for this path, and uses it up; None for any other text. Raises Unavailable."""
        if ticket is None or not _FORM.match(ticket):
            return None
        async with self._slots:
            rows = await self._call("take_stream_ticket", _digest(ticket), path)
        return from_text(rows[0]["identity"]) if rows else None


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode()).digest()


def to_text(identity: Identity) -> str:
    """Returns all fields of an Identity as text."""
    fields: dict[str, Any] = {name: getattr(identity, name) for name in _FIELDS}
    # What a provider has derived from the credential, for a recheck. Anything else but the subject can be computed again.
    derived = {name: base64.b64encode(value).decode() for name, value in identity.derived.items() if isinstance(value, bytes)}
    subject = {SUBJECT: identity.derived[SUBJECT]} if SUBJECT in identity.derived else {}
    return json.dumps([fields, derived, subject], default=_plain)


def from_text(text: str) -> Identity:
    """Returns the Identity that `to_text` has written."""
    fields, derived, subject = json.loads(text)
    identity = Identity(**fields)
    identity.derived.update({name: base64.b64decode(value) for name, value in derived.items()} | subject)
    return identity


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
