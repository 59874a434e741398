"""`POST /api/webhooks/clerk`: applies each event signed by Clerk once, and records it in the same transaction."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import hdrs, web
from standardwebhooks import Webhook

from server import BadRequest, Unavailable, describe, public, raw_body, revocation_failed, scoped

from .events import ENDS, Event, normalise

PATH: Final = "/api/webhooks/clerk"
KEEP_FOR: Final = timedelta(days=30)
APPLY: Final = "SELECT apply_clerk_event($1, $2, $3, $4, $5, $6)"
_FAMILIES: Final = ("svix", "webhook")  # Clerk's, and the standard's own
_TOLERANCE: Final = 300
_MOST_SIGNATURES: Final = 10
_KEY_BYTES: Final = range(24, 65)  # of the standard
# The signed text joins id and time by dots: with a dot in the id it could be cut in two ways.
_ID: Final = re.compile(r"[!-\-/-~]{1,255}")
_SECONDS: Final = re.compile(r"[1-9][0-9]{0,10}")
_AT_ONCE: Final = 2
_LOG: Final = logging.getLogger("gatepost.clerk")


class _Refused(ValueError):
    """A delivery that is not Clerk's. The message goes to the log: the sender learns no reason."""


class Receiver:
    """Takes deliveries. Without a valid signature it does not use the database. Only the log states the reason."""

    def __init__(self, table: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> None:
        """`table` is the plugin's table of the settings; `clock` returns Unix seconds. Raises ValueError for a bad secret."""
        self._hooks = [Webhook(key) for key in secrets(table.get("webhook_signing_secret"))]
        self._revoke_for = revoke_for(table)
        self._clock = clock
        # Events go one at a time in the database; a burst of them must not hold all its connections while they wait.
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @describe(
        body=dict[str, Any],
        answers={204: None},
        summary="Take an event of Clerk's",
        text="The credential is the signature in the headers `svix-id`, `svix-timestamp` and `svix-signature`.",
        refusals={
            400: "It is not Clerk's, or too old.",
            503: "No secret is configured, or the database cannot be asked. Clerk tries again.",
        },
        tags=["webhooks"],
        operation_id="receive_clerk_event",
    )
    async def take(self, request: web.Request) -> web.Response:
        """204 for a valid event, even a repeated one; raises 400, or 503 without a secret or database (Clerk retries)."""
        if not self._hooks:
            raise Unavailable("clerk.webhook_signing_secret (CLERK_WEBHOOK_SIGNING_SECRET) is not set")
        try:
            _check_encoding(request)
            raw = await raw_body(request)  # first: a body without a length, or over the limit, is a 411 or 413 for anyone
            message, sent, signatures = _signed(request)
            if abs(int(self._clock()) - sent) > _TOLERANCE:
                raise _Refused("webhook-time")
            event = self._event(raw, message, sent, signatures)
        except _Refused as refused:
            raise BadRequest(for_log=str(refused)) from None
        except (ValueError, ArithmeticError, RecursionError):
            raise BadRequest(for_log="webhook-body") from None
        outcome = await self._apply(request, message, event)
        if "malformed" in event.payload:
            _LOG.warning("an event could not be read and was only kept", extra={"fields": {"id": message, "type": event.type}})
        _LOG.debug("event taken", extra={"fields": {"id": message, "type": event.type, "outcome": outcome}})
        return web.Response(status=204)

    def _event(self, raw: bytes, message: str, sent: int, signatures: list[str]) -> Event:
        text, moment, proven = raw.decode(), datetime.fromtimestamp(sent, UTC), False
        for hook in self._hooks:
            expected = hook.sign(message, moment, text).encode()
            for signature in signatures:
                proven |= hmac.compare_digest(expected, signature.encode())
        if not proven:
            raise _Refused("webhook-signature")
        return normalise(json.loads(text, object_pairs_hook=_members, parse_constant=_refuse), sent)

    async def _apply(self, request: web.Request, message: str, event: Event) -> str:
        payload = json.dumps(event.payload)
        try:
            async with self._turns, scoped(request) as db:
                outcome: str = await db.fetchval(APPLY, message, event.type, event.at, payload, KEEP_FOR, self._revoke_for)
        except Exception as error:
            # On any error nothing was recorded, so Clerk's next attempt finds everything unchanged.
            if event.type in ENDS:
                revocation_failed(request, event.type.partition(".")[0], error)
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"a Clerk event could not be applied: {type(error).__name__}") from error
        return outcome


def routes(table: Mapping[str, Any]) -> list[web.RouteDef]:
    """The route, with its receiver. Raises ValueError for a bad secret."""
    return [web.post(PATH, public(Receiver(table).take))]


def secrets(value: object) -> list[bytes]:
    """The keys in the setting: `whsec_` and base64, several while they are rotated. Raises ValueError, never with a value."""
    if value is None:
        return []
    keys = [_key(word) for word in re.split(r"[\s,]+", value) if word] if isinstance(value, str) else []
    if not keys:
        raise ValueError("clerk.webhook_signing_secret is set but empty")
    return keys


def _key(word: str) -> bytes:
    encoded = word.removeprefix("whsec_").rstrip("=")
    try:
        key = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (Base64Error, ValueError):
        key = b""
    if len(key) not in _KEY_BYTES:
        raise ValueError("clerk.webhook_signing_secret must be whsec_ and base64 of 24 to 64 bytes: copy it whole from Clerk")
    return key


def revoke_for(table: Mapping[str, Any]) -> timedelta:
    """Returns how long a revocation must be kept: the longest life of a token plus the permitted clock skew."""
    longest = float(table.get("max_token_seconds", 86_400.0)) or 365 * 86_400.0
    return timedelta(seconds=longest + 2 * float(table.get("leeway_seconds", 5.0)) + 60)


def _check_encoding(request: web.Request) -> None:
    """Refuse a compressed body: the signature is over the plain one."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise _Refused("webhook-encoding")


def _signed(request: web.Request) -> tuple[str, int, list[str]]:
    """(id, time, signatures) of the headers. Both families may be there if they say the same; ValueError for all else."""
    said = {tuple(_one(request, f"{family}-{name}") for name in ("id", "timestamp", "signature")) for family in _FAMILIES}
    said.discard(("", "", ""))
    if len(said) != 1:
        raise _Refused("webhook-headers")  # missing, or they do not agree
    message, sent, signatures = said.pop()
    listed = [word for word in signatures.split(" ") if word]
    if not _ID.fullmatch(message) or not _SECONDS.fullmatch(sent) or not 0 < len(listed) <= _MOST_SIGNATURES:
        raise _Refused("webhook-headers")
    return message, int(sent), [word for word in listed if word.startswith("v1,") and word.isascii()]


def _one(request: web.Request, name: str) -> str:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise _Refused("webhook-headers")
    return values[0].strip() if values else ""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members := dict(pairs)) != len(pairs):
        raise ValueError("duplicate members")  # readers take different ones of them
    return members


def _refuse(text: str) -> Any:
    raise ValueError(text)  # NaN, Infinity: no JSON
