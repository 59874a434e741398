"""What logout tokens and security events have in common: the issuer's signature over them, and the end of what they name."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from aiohttp import hdrs, web

from server import ApiError, CredentialRejected, House, Unavailable, is_plain_text, revocation_failed, scoped, service

from ..jwt import jws
from ..jwt.strict_json import Malformed
from ..jwt.times import Times, read_times
from .issuer import Issuer
from .provider import issuers_in
from .settings import IssuerSettings, media_type

SERVICE: Final = "oidc_issuers"
_APPLY: Final = "SELECT apply_sign_out($1, $2, $3, $4, $5, $6, $7)"
_AT_ONCE: Final = 2
_FOR_EVER: Final = 365 * 86_400.0
_KEPT: Final = 86_400.0
_MOST_KEPT: Final = 30 * _KEPT


class Refused(Exception):
    """A token breaks a rule. `code` is the standard's error code; `rule` describes the broken rule to a reader."""

    def __init__(self, code: str, rule: str) -> None:
        super().__init__(rule)
        self.code, self.rule = code, rule


class UnsupportedType(ApiError):
    """415: the request's content type is not the one in the standard."""

    status = 415


class Signed(NamedTuple):
    """A verified token of an issuer."""

    issuer: Issuer
    claims: dict[str, Any]


class End(NamedTuple):
    """What is to end.

    kind      `session`, `user`, or `subject`: the tokens of a user that name no session. Or `enabled`: nothing ends, the
              user's account is no longer disabled
    id        of the session or the user, in the issuer's namespace
    owner     the user whose session it is, or None
    at        tokens issued at this time (Unix seconds) or earlier end; None: all of them
    keys      whether the user's API keys end too
    """

    kind: str
    id: str
    owner: str | None = None
    at: float | None = None
    keys: bool = False


@asynccontextmanager
async def opened(house: House) -> AsyncIterator[Mapping[str, Issuer]]:
    """The service of the receivers: the issuers of the provider, by `iss`. Providers are opened before services."""
    yield issuers_in(house)


def check_type(request: web.Request, expected: str) -> None:
    """Raise the 415 unless the request's content type is `expected`."""
    if len(request.headers.getall(hdrs.CONTENT_TYPE, ())) != 1 or request.content_type != expected:
        raise UnsupportedType(for_log=f"the content type is not {expected}")


async def read_signed(
    request: web.Request, token: str, types: Iterable[str], before: Callable[[IssuerSettings], None] | None = None
) -> Signed:
    """Returns the claims of a token whose `iss` is one of the issuers, which has signed it.

    `types` are the accepted header types, as `media_type` returns them. `before` is called with the settings of the issuer that
    the token names, before its signature is verified. Raises Refused, and Unavailable if the keys cannot be fetched.
    """
    issuers: Mapping[str, Issuer] = service(request, SERVICE)
    if not issuers:
        raise Unavailable("oidc is not among the providers: no token of its issuers can be verified")
    segments = jws.split(token)
    if segments is None:
        raise Refused("invalid_request", "it is not a signed JWT")
    try:
        payload = jws.decode(segments.payload)
        named = jws.unverified_issuer(payload)
        issuer = issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise Refused("invalid_issuer", "iss is not an issuer that this server trusts")
        if before is not None:
            before(issuer.settings)
        header, _, claims = await issuer.read(segments, payload)
    except Malformed as error:
        raise Refused("invalid_request", error.detail) from None
    except CredentialRejected:
        raise Refused("invalid_key", "it is not signed with one of the issuer's keys") from None
    if claims.get("iss") != issuer.settings.issuer:
        raise Refused("invalid_issuer", "iss is another issuer")
    if media_type(header.members.get("typ", "")) not in types:
        raise Refused("invalid_request", "typ is that of another kind of token")
    _check_audience(claims, issuer.settings)
    return Signed(issuer, claims)


def times_of(signed: Signed) -> Times:
    """Returns the times of a token that must have `exp` and `iat`. Raises Refused."""
    settings = signed.issuer.settings
    try:
        times = read_times(
            signed.claims,
            signed.issuer.now(),
            leeway=settings.leeway,
            longest=settings.max_lifetime,
            setting="max_token_seconds",
        )
    except CredentialRejected as error:
        raise Refused("invalid_request", error.detail) from None
    if times.issued is None:
        raise Refused("invalid_request", "iat is missing")
    return times


def text_of(claims: Mapping[str, Any], name: str, *, required: bool = False) -> str | None:
    """Returns a claim that is 1 to 255 characters of printable text; None if it is absent and not required. Raises Refused."""
    if name not in claims and not required:
        return None
    if not is_plain_text(claims.get(name)):
        raise Refused("invalid_request", f"{name} is not 1 to 255 characters of printable text")
    return str(claims[name])


def ends_of(settings: IssuerSettings, sub: str | None, sid: str | None, at: float, *, keys: bool = False) -> list[End]:
    """Returns what ends for a subject and a session of this issuer, of which one may be None. Raises Refused.

    With a session, only that session ends, and the tokens of its user that name no session, because they may belong to it.
    """
    user = _own(settings, sub) if sub is not None else None
    if sid is None:
        return [End("user", user, None, at, keys)] if user is not None else []
    ends = [End("session", _own(settings, sid), user)]
    return [*ends, End("subject", user, None, at)] if user is not None else ends


class Ending:
    """Records what ends, once for each token, in one transaction; every process refuses it within a second."""

    def __init__(self) -> None:
        # A burst of events must not hold all connections of the database.
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def apply(
        self, request: web.Request, signed: Signed, kind: str, jti: str, at: float, ends: list[End], keep: float = _KEPT
    ) -> str:
        """Returns `applied` or `repeated`. `at` is when it happened (Unix seconds); a repeat is known for `keep` seconds.

        Raises Unavailable, after which nothing was recorded, so that the issuer's next attempt finds everything unchanged.
        """
        settings = signed.issuer.settings
        name = "oidc:" + hashlib.sha256(json.dumps([settings.issuer, request.path, jti]).encode()).hexdigest()
        rows = [
            {"kind": e.kind, "subject": e.id, "owner": e.owner, "at": None if e.at is None else _time(e.at), "keys": e.keys}
            for e in ends
        ]
        keep_for, revoke_for = timedelta(seconds=min(keep, _MOST_KEPT)), revoke_seconds(settings)
        args = (name, kind[:100], _moment(at), settings.issuer, json.dumps(rows), keep_for, timedelta(seconds=revoke_for))
        try:
            async with self._turns, scoped(request) as db:
                outcome: str = await db.fetchval(_APPLY, *args)
        except Exception as error:
            revocation_failed(request, ends[0].kind, error)
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"a sign-out could not be recorded: {type(error).__name__}") from error
        return outcome


def revoke_seconds(settings: IssuerSettings) -> float:
    """Returns how long an end must be remembered: the longest life of a token plus the permitted clock skew, in seconds."""
    return (settings.max_lifetime or _FOR_EVER) + 2 * settings.leeway + 60


def _check_audience(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named) or settings.audiences.isdisjoint(named):
        raise Refused("invalid_audience", "aud names neither `audience` nor `logout_audience`")


def _own(settings: IssuerSettings, id: str) -> str:
    try:
        own = settings.own(id)
    except ValueError as error:
        raise Refused("invalid_request", f"the subject or session: {error}") from None
    if len(own) > 255:
        raise Refused("invalid_request", "the subject or session is too long with its namespace")
    return own


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _time(at: float) -> str:
    return _moment(at).isoformat()
